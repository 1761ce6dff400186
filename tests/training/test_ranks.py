"""Two processes that train one run against one process that trains it alone."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing

from ram_tune.presets import configure, parse_set
from ram_tune.training.loop import fit, optimise, train_epoch
from ram_tune.training.ranks import ALONE, Ranks, join, leave
from ram_tune.training.run import prepare

STEPS = 20


def run_of(pictures: Path, fields: list[str], cache: Path, ranks: Ranks):
    exact = ["training.precision=fp32", "stage1.epochs=0", "execution.threads=1"]
    return prepare(configure(str(pictures), overrides=parse_set([*fields, *exact])), cache, ranks=ranks)


def losses(run) -> list[float]:
    """Mean loss of each step over several epochs."""
    from ram_tune.data.batches import training_batches

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    multiprocessing.spawn(child, (address, pictures, fields, tmp_path / "cache", tmp_path), nprocs=2)
    first, second = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in (0, 1))
    np.testing.assert_allclose(first["losses"], wanted, atol=1e-5)
    np.testing.assert_allclose(first["selection"], [one.metrics["selection/mAP"] for one in reports], atol=1e-6)
    np.testing.assert_allclose(first["train"], [one.metrics["train/loss"] for one in reports], atol=1e-5)
    np.testing.assert_array_equal(first["weights"], second["weights"])
    assert first["odd"].tolist() == second["odd"].tolist() == list(range(7))  # 4 and 3 rows, back in their order
    assert first["said"] == second["said"] == 0


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
