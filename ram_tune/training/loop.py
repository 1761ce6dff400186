"""The training loop: epochs, selection, learning rate. The same one in a plain process and on a cluster.

Legend: T loss terms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ram_tune.config import Training
from ram_tune.data.batches import Batch, steps_per_epoch, training_batches
from ram_tune.training.judging import REMEDY, NotFiniteError, evaluate, region_metrics, selection_metrics
from ram_tune.training.run import Run

CHECK_EVERY = 50
"""Steps between looks at the loss: each look makes the host wait for the device."""

Progress = Callable[[int, int, float], None]
"""Told now and then within an epoch: steps done, steps in all, loss."""


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch. `metrics` are named `train/…` and `selection/…`."""

    epoch: int
    metrics: dict[str, float]
    is_best: bool


def fit(run: Run, progress: Progress = lambda *_: None) -> Iterator[EpochReport]:
    """Train what is left of `run`, an epoch a step.

    The caller keeps `run.state()` after every epoch and `run.weights()` after a best one. Whoever stops asking for the
    next report has stopped the run. Raises NotFiniteError.
    """
    config = run.config.training
    if run.epoch == 0 and run.attends:
        before = region_metrics(run, "selection", evaluate(run, run.selection))
        run.start = {f"selection/{name}": value for name, value in before.items()}
    while run.epoch < config.epochs:
        epoch = run.epoch + 1
        learned = train_epoch(run, epoch, progress)
        selection = evaluate(run, run.selection)
        report = {f"train/{name}": value for name, value in learned.items()}
        report |= {f"selection/{name}": value for name, value in selection_metrics(run, selection).items()}

        value = report[f"selection/{config.select_by}"] * (1 if config.select_by == "loss" else -1)
        is_best = run.best_epoch == 0 or value < run.best_value
        if is_best:
            run.best_epoch, run.best_value = epoch, value
        run.epoch = epoch
        run.history.append({"epoch": epoch, **report})
        yield EpochReport(epoch, report, is_best)


def train_epoch(run: Run, epoch: int, progress: Progress) -> dict[str, float]:
    """One pass over train → mean loss and terms, learning rate, images/s."""
    config, network = run.config.training, run.network
    ranks = run.ranks
    # Dropout then draws in a resumed epoch what it would have drawn in an uninterrupted run, and on each rank its own.
    torch.manual_seed(int(np.random.SeedSequence((config.seed, epoch, ranks.rank)).generate_state(1)[0]))
    rate = learning_rate(config, epoch)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    steps = steps_per_epoch(len(run.train), config.batch_size)
    log = torch.zeros(steps, 1 + len(run.criterion.terms), device=run.device)
    started = time.perf_counter()
    network.train()
    n = len(run.train)
    batches = training_batches(run.train, config.batch_size, config.seed, epoch, ranks.rank, ranks.world)
    for step, batch in enumerate(batches):
        whole = min(config.batch_size, n - step * config.batch_size)
        log[step] = optimise(run, batch.to(run.device), whole)
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            _require_finite(ranks.sum(log[: step + 1]), run, epoch)
            progress(step + 1, steps, float(log[step, 0]) / len(batch.targets))
    seconds = time.perf_counter() - started
    means = (ranks.sum(log.sum(0)) / n).tolist()
    return {
        **dict(zip(("loss", *run.criterion.terms), means, strict=True)),
        "learning_rate": rate,
        "images_per_second": n / seconds,
    }


def optimise(run: Run, batch: Batch, whole: int = 0) -> Tensor:
    """One step of the optimiser on this rank's share of a batch of `whole` images (0: all shares are of one size), in
    `execution.accumulate` pieces → (1 + T,) summed loss and terms of the share. Gradients are those of the mean over the
    whole batch: DDP averages over ranks, so that each image weighs `world / whole`, and one that only keeps its rank in
    step (see `training_batches`) nothing.
    """
    ranks = run.ranks
    whole = whole or len(batch.targets) * ranks.world
    weight = ranks.world if ranks.rank < whole else 0  # dealt out like cards: who comes later has none
    total = torch.zeros(1 + len(run.criterion.terms), device=run.device)
    run.optimizer.zero_grad(set_to_none=True)
    # As many pieces on each rank, for DDP averages after each: what the smallest share allows.
    for piece in batch.chunk(min(run.config.execution.accumulate, max(whole // ranks.world, 1))):
        with run.autocast():
            prediction = run.model(piece.inputs, run.given(piece))
        loss, terms = run.criterion(prediction, piece.targets)
        (weight * loss / whole).backward()
        total += bool(weight) * torch.cat([loss.detach()[None], terms])
    if run.config.training.clip_norm:
        nn.utils.clip_grad_norm_(run.network.parameters(), run.config.training.clip_norm)
    run.optimizer.step()
    return total


def learning_rate(config: Training, epoch: int) -> float:
    """Adam's step size in `epoch` (from 1): divided after each of `lr_steps`."""
    return config.learning_rate * config.lr_factor ** sum(epoch > step for step in config.lr_steps)


def _require_finite(log: Tensor, run: Run, epoch: int) -> None:
    bad = (~torch.isfinite(log)).nonzero()
    if len(bad):
        step, column = bad[0].tolist()
        term = ("loss", *run.criterion.terms)[column]
        if column == 0:  # the sum shows the same as its part: name the part
            parts = [c for s, c in bad.tolist() if s == step and c > 0]
            term = run.criterion.terms[parts[0] - 1] if parts else term
        raise NotFiniteError(
            f"epoch {epoch}, batch {step + 1}: the {term} term of the loss is {log[step, column].item()}. {REMEDY}"
        )
