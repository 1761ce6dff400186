"""Two processes that train one run against one process that trains it alone."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing

from ram_tune.data.batches import training_batches
from ram_tune.presets import configure, parse_set
from ram_tune.training.judging import evaluate
from ram_tune.training.loop import fit, optimise, train_epoch
from ram_tune.training.ranks import ALONE, Ranks, join, leave
from ram_tune.training.run import prepare

STEPS = 20


def run_of(pictures: Path, fields: list[str], cache: Path, ranks: Ranks):
    exact = ["training.precision=fp32", "stage1.epochs=0", "execution.threads=1"]
    return prepare(configure(str(pictures), overrides=parse_set([*fields, *exact])), cache, ranks=ranks)


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


def losses(run) -> list[float]:
    """Mean loss of each step over several epochs."""
    found: list[float] = []
    for epoch in range(1, 99):
        run.network.train()
        for batch in training_batches(run.train, 16, 0, epoch, run.ranks.rank, run.ranks.world):
            total = run.ranks.sum(optimise(run, batch))
            found.append(float(total[0]) / (len(batch.targets) * run.ranks.world))
            if len(found) == STEPS:
                return found
    raise AssertionError


def child(rank: int, address: str, pictures: Path, fields: list[str], cache: Path, out: Path) -> None:
    torch.set_num_threads(1)
    ranks = join(rank, 2, address, torch.device("cpu"))
    found = losses(run_of(pictures, fields, cache, ranks))
    run = run_of(pictures, fields, cache, ranks)
    reports = list(fit(run))
    odd = ranks.gather(np.arange(7)[rank::2])
    said = ranks.from_first(["from", rank])
    np.savez(
        out / f"{rank}.npz",
        losses=found,
        selection=[report.metrics["selection/mAP"] for report in reports],
        train=[report.metrics["train/loss"] for report in reports],
        weights=torch.cat([tensor.flatten().float() for tensor in run.network.state_dict().values()]).numpy(),
        odd=odd,
        said=said[1],
    )
    leave()


def test_two_with_half_the_batch_are_one_with_all_of_it(pictures, tiny, tmp_path):
    fields = [field for field in tiny if not field.startswith("training.batch_size")] + ["training.batch_size=16"]
    alone = run_of(pictures, fields, tmp_path / "cache", ALONE)
    wanted = losses(alone)
    reports = list(fit(run_of(pictures, fields, tmp_path / "cache", ALONE)))
    multiprocessing.spawn(child, (free_address(), pictures, fields, tmp_path / "cache", tmp_path), nprocs=2)
    first, second = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in (0, 1))
    np.testing.assert_allclose(first["losses"], wanted, atol=1e-5)
    np.testing.assert_allclose(first["selection"], [one.metrics["selection/mAP"] for one in reports], atol=1e-6)
    np.testing.assert_allclose(first["train"], [one.metrics["train/loss"] for one in reports], atol=1e-5)
    np.testing.assert_array_equal(first["weights"], second["weights"])
    assert first["odd"].tolist() == second["odd"].tolist() == list(range(7))  # 4 and 3 rows, back in their order
    assert first["said"] == second["said"] == 0


def gradients(run) -> list[np.ndarray]:
    """Of each step of the first epoch, none of which is taken."""
    run.optimizer.step = lambda: None
    found, n, size = [], len(run.train), run.config.training.batch_size
    run.network.train()
    for step, batch in enumerate(training_batches(run.train, size, 0, 1, run.ranks.rank, run.ranks.world)):
        optimise(run, batch, min(size, n - step * size))
        found.append(torch.cat([p.grad.flatten() for p in run.network.parameters() if p.grad is not None]).numpy())
    return found


def one_of_three(rank: int, address: str, pictures: Path, fields: list[str], cache: Path, out: Path) -> None:
    torch.set_num_threads(1)
    run = run_of(pictures, fields, cache, join(rank, 3, address, torch.device("cpu")))
    found, mean = gradients(run), train_epoch(run, 1, lambda *_: None)["loss"]
    few = evaluate(run, replace(run.test, array=run.test.array[:2], targets=run.test.targets[:2]))
    np.savez(out / f"{rank}.npz", *found, mean=mean, scores=few.scores, regions=few.regions, terms=few.terms)
    leave()


# Of 20 images: shares of 3, 3 and 2, twice, then of 2, 1 and 1; or of 7, 6 and 6, then one image for three.
@pytest.mark.parametrize("size", [8, 19])
def test_shares_that_are_not_equal_give_what_the_whole_gives(pictures, tiny, tmp_path, size):
    fields = [*tiny, f"training.batch_size={size}", "execution.accumulate=2"]
    alone = run_of(pictures, fields, tmp_path / "cache", ALONE)
    wanted, mean = gradients(alone), train_epoch(alone, 1, lambda *_: None)["loss"]
    few = evaluate(alone, replace(alone.test, array=alone.test.array[:2], targets=alone.test.targets[:2]))
    arguments = (free_address(), pictures, fields, tmp_path / "cache", tmp_path)
    multiprocessing.spawn(one_of_three, arguments, nprocs=3)
    for rank in range(3):
        found = np.load(tmp_path / f"{rank}.npz")
        for step, gradient in enumerate(wanted):
            np.testing.assert_allclose(found[f"arr_{step}"], gradient, atol=1e-6)
        assert found["mean"] == pytest.approx(mean, abs=1e-6)  # what only keeps a rank in step counts nothing
        for name in ("scores", "regions", "terms"):  # of two images: one of the three has none
            np.testing.assert_allclose(found[name], getattr(few, name), atol=1e-6)


def test_alone_nothing_is_asked_of_anybody():
    rows = np.arange(6).reshape(3, 2)
    assert ALONE.gather(rows) is rows and ALONE.from_first("x") == "x"
    assert ALONE.sum(torch.ones(2)).tolist() == [1, 1]


@pytest.mark.parametrize("world", [2, 3])
def test_each_rank_draws_its_own_dropout(pictures, tiny, tmp_path, world):
    seen = []
    for rank in range(world):
        run = run_of(pictures, [*tiny, "model.dropout=0.5"], tmp_path, ALONE)
        run.ranks = Ranks(rank, 1)
        train_epoch(run, 1, lambda *_: None)
        seen.append(torch.cat([p.flatten() for p in run.network.parameters()]).detach())
    assert all(not torch.equal(seen[0], other) for other in seen[1:])
