"""The training loop: epochs, selection, learning rate, final test. The same one in a plain process and on a cluster.

Legend: n images, L labels, K regions, T loss terms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ram_tune.config import Training
from ram_tune.data.batches import Batch, Source, evaluation_batches, steps_per_epoch, training_batches
from ram_tune.evaluation import metrics
from ram_tune.evaluation.attention import region_statistics
from ram_tune.evaluation.calibration import Platt, probabilities
from ram_tune.models.regions import anchors
from ram_tune.training.run import Run

CHECK_EVERY = 50
"""Steps between looks at the loss: each look makes the host wait for the device."""

REMEDY = "Lower training.learning_rate, or set training.clip_norm=1 or training.precision=fp32."

Progress = Callable[[int, int, float], None]
"""Told now and then within an epoch: steps done, steps in all, loss."""


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch. `metrics` are named `train/…` and `selection/…`."""

    epoch: int
    metrics: dict[str, float]
    is_best: bool


@dataclass(frozen=True)
class Scores:
    """What the network says of one role's images, in their order."""

    scores: np.ndarray  # (n, L) float32, comparable between images
    regions: np.ndarray | None  # (n, K, 4) float32
    terms: np.ndarray  # (1 + T,): the loss and its unweighted terms, means over images


class NotFiniteError(RuntimeError):
    """A loss term became infinite or no number; the message names epoch, batch and term."""


def fit(run: Run, progress: Progress = lambda *_: None) -> Iterator[EpochReport]:
    """Train what is left of `run`, an epoch a step.

    The caller keeps `run.state()` after every epoch and `run.weights()` after a best one. Whoever stops asking for the
    next report has stopped the run. Raises NotFiniteError.
    """
    config = run.config.training
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
    # Dropout then draws in a resumed epoch what it would have drawn in an uninterrupted run.
    torch.manual_seed(int(np.random.SeedSequence((config.seed, epoch)).generate_state(1)[0]))
    rate = learning_rate(config, epoch)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    steps = steps_per_epoch(len(run.train), config.batch_size)
    log = torch.zeros(steps, 1 + len(run.criterion.terms), device=run.device)
    started = time.perf_counter()
    network.train()
    for step, batch in enumerate(training_batches(run.train, config.batch_size, config.seed, epoch)):
        log[step] = optimise(run, batch.to(run.device))
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            _require_finite(log[: step + 1], run, epoch)
            progress(step + 1, steps, float(log[step, 0]) / len(batch.targets))
    seconds = time.perf_counter() - started
    means = (log.sum(0) / len(run.train)).tolist()
    return {
        **dict(zip(("loss", *run.criterion.terms), means, strict=True)),
        "learning_rate": rate,
        "images_per_second": len(run.train) / seconds,
    }


def optimise(run: Run, batch: Batch) -> Tensor:
    """One step of the optimiser on one batch, in `execution.accumulate` pieces → (1 + T,) summed loss and terms."""
    total = torch.zeros(1 + len(run.criterion.terms), device=run.device)
    run.optimizer.zero_grad(set_to_none=True)
    for inputs, targets in zip(*(part.chunk(run.config.execution.accumulate) for part in batch[:2]), strict=True):
        with run.autocast():
            prediction = run.network(inputs)
        loss, terms = run.criterion(prediction, targets)
        (loss / len(batch.targets)).backward()
        total += torch.cat([loss.detach()[None], terms])
    if run.config.training.clip_norm:
        nn.utils.clip_grad_norm_(run.network.parameters(), run.config.training.clip_norm)
    run.optimizer.step()
    return total


@torch.inference_mode()
def evaluate(run: Run, source: Source) -> Scores:
    """The network's scores of every image of `source`, single crop."""
    run.network.eval()
    scores, regions = [], []
    total = torch.zeros(1 + len(run.criterion.terms), device=run.device)
    for waiting in evaluation_batches(source, run.config.execution.evaluation_batch_size):
        batch = waiting.to(run.device)
        with run.autocast():
            prediction = run.network(batch.inputs)
        loss, terms = run.criterion(prediction, batch.targets)
        total += torch.cat([loss[None], terms])
        scores.append(comparable(run, prediction.scores.float()))
        if prediction.regions is not None:
            regions.append(prediction.regions.float())
    if not all(torch.isfinite(part).all() for part in scores):  # the last step's update can have broken the weights
        raise NotFiniteError(f"epoch {run.epoch + 1}: the scores after the last batch are not finite. {REMEDY}")
    return Scores(
        torch.cat(scores).cpu().numpy(),
        torch.cat(regions).cpu().numpy() if regions else None,
        (total / len(source)).cpu().numpy(),
    )


def comparable(run: Run, scores: Tensor) -> Tensor:
    """Scores (n, L) by which images can be ranked, see `evaluation.normalize`."""
    shift_free = run.config.loss.classification == "euclidean" and run.config.evaluation.normalize
    return scores.log_softmax(1) if shift_free else scores


def selection_metrics(run: Run, found: Scores) -> dict[str, float]:
    """Losses, metrics and what the regions do, on the selection split, calibrated on it."""
    names = ("loss", *run.criterion.terms)
    losses = dict(zip(names, found.terms.tolist(), strict=True))
    return losses | label_metrics(run, "selection", found, calibrate(run, found)) | region_metrics(run, found)


def finish(run: Run) -> dict[str, tuple[Scores, dict[str, float]]]:
    """Evaluate the network as it is now (the caller has loaded the best weights) on selection and, this once, on test.

    → role: its scores and its metrics; test is calibrated on selection (METHOD 7).
    """
    selection = evaluate(run, run.selection)
    platt = calibrate(run, selection)
    test = evaluate(run, run.test)
    on_test = label_metrics(run, "test", test, platt) | region_metrics(run, test)
    return {"selection": (selection, selection_metrics(run, selection)), "test": (test, on_test)}


def calibrate(run: Run, selection: Scores) -> Platt | None:
    """Per-label Platt scaling where the loss gives scores no probability of their own (METHOD 7)."""
    if run.config.loss.classification != "euclidean":
        return None
    images = run.annotations("selection")
    return Platt.fit(selection.scores, images.targets, images.difficult)


def label_metrics(run: Run, role: str, found: Scores, platt: Platt | None) -> dict[str, float]:
    """mAP, mAP_11, CP … OF1 and their `_all` variants of one role's scores, and the mAP of chance."""
    images, rule = run.annotations(role), run.config.evaluation
    likely = probabilities(found.scores, run.config.loss.classification, platt)
    found_metrics = metrics.summary(found.scores, likely, images.targets, images.difficult, rule.top_k, rule.threshold)
    return found_metrics | {"chance": images.chance()}


def region_metrics(run: Run, found: Scores) -> dict[str, float]:
    """Mirrored share, area, spread and distance to the anchors, where there are regions."""
    if found.regions is None:
        return {}
    points = anchors(found.regions.shape[1], run.config.loss.anchor_radius).numpy()
    return region_statistics(found.regions, points)


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
