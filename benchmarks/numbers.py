"""Scores to numbers, and representations to decisions: against the libraries one would otherwise call.

Legend: n images, L labels, D representation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from statistics import median

import numpy as np
import torch

from benchmarks.measure import Row, ratio, side_by_side
from ram_tune.evaluation import svm
from ram_tune.evaluation.metrics import summary

TOP, THRESHOLD = 3, 0.5
SIX = "CP", "CR", "CF1", "OP", "OR", "OF1"


def _f1(p: float, r: float) -> float:
    return 2 * p * r / (p + r) if p + r else 0.0


def _six(cp: float, cr: float, op: float, or_: float, end: str) -> dict[str, float]:
    return {f"{name}{end}": v for name, v in zip(SIX, (cp, cr, _f1(cp, cr), op, or_, _f1(op, or_)), strict=True)}


def by_sklearn(scores: np.ndarray, probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, precision_score, recall_score

    found = {"mAP": float(average_precision_score(targets, scores, average="macro"))}
    every = probabilities >= THRESHOLD
    top = np.zeros_like(every)
    np.put_along_axis(top, np.argpartition(-probabilities, TOP, axis=1)[:, :TOP], True, axis=1)
    for end, predicted in (("", every & top), ("_all", every)):
        p, r = (
            [float(score(targets, predicted, average=how, zero_division=0)) for how in ("macro", "micro")]
            for score in (precision_score, recall_score)
        )
        found |= _six(p[0], r[0], p[1], r[1], end)
    return found


def by_torchmetrics(scores: np.ndarray, probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    from torchmetrics.functional.classification import (
        multilabel_average_precision,
        multilabel_precision,
        multilabel_recall,
    )

    labels = targets.shape[1]
    s, p, t = torch.from_numpy(scores), torch.from_numpy(probabilities), torch.from_numpy(targets).long()
    found = {"mAP": float(multilabel_average_precision(s, t, labels))}
    top = torch.zeros_like(p).scatter(1, p.topk(TOP, dim=1).indices, 1.0)
    # Its rule is above the threshold, ours at or above: no random probability is exactly at it.
    for end, predicted in (("", p * top), ("_all", p)):
        cp, op = (float(multilabel_precision(predicted, t, labels, THRESHOLD, how)) for how in ("macro", "micro"))
        cr, or_ = (float(multilabel_recall(predicted, t, labels, THRESHOLD, how)) for how in ("macro", "micro"))
        found |= _six(cp, cr, op, or_, end)
    return found


def metrics(images: int, labels: int, rounds: int) -> Iterator[Row]:
    """All numbers of one evaluation; those that a library has too must be the same."""
    draw = np.random.default_rng(0)
    targets = draw.random((images, labels)) < np.geomspace(0.4, 0.003, labels)  # COCO: from person to toaster
    scores = (draw.normal(size=targets.shape) + 2 * targets).astype(np.float32)  # as networks and SVMs give them
    probabilities = 1 / (1 + np.exp(-2 * scores + 3))

    def ours() -> dict[str, float]:
        return summary(scores, probabilities, targets, None, TOP, THRESHOLD)

    others = {"scikit-learn": by_sklearn, "torchmetrics": by_torchmetrics}
    works = [ours, *(lambda by=by: by(scores, probabilities, targets) for by in others.values())]
    own = ours()
    for name, by in others.items():
        found = by(scores, probabilities, targets)
        # torchmetrics computes in single precision.
        worst = max(abs(found[key] - own[key]) for key in found)
        if worst > (1e-9 if name == "scikit-learn" else 1e-6):
            raise SystemExit(f"{name} and ram_tune differ by {worst:.1e}")
    times = side_by_side(works, rounds)
    for (name, _), taken in zip(others.items(), times[1:], strict=True):
        yield Row(
            f"mAP and CP … OF1, twice, of {images:,} × {labels} scores: times faster",
            name,
            ratio(taken, times[0]),
            10,
            True,
            "sorting each label's scores",
            f"{median(times[0]):.2f} s, {median(taken):.2f} s",
        )


def machines(images: int, labels: int, width: int, rounds: int) -> Iterator[Row]:
    """One-vs-rest SVMs, all labels side by side, against scikit-learn, one label after another."""
    from sklearn.svm import LinearSVC
    from threadpoolctl import threadpool_limits

    draw = np.random.default_rng(0)
    targets = draw.random((images, labels)) < 0.1
    directions = draw.normal(size=(labels, width))
    x = np.maximum(draw.normal(size=(images, width)) + targets @ directions, 0).astype(np.float32)
    x64 = svm.unit(x)

    def ours() -> None:
        svm.fit(x, targets, None, [1.0], 3)

    def theirs() -> None:
        with threadpool_limits(1):
            for target in targets.T:
                LinearSVC(C=1.0, dual=False).fit(x64, target)  # type: ignore[arg-type]

    times = side_by_side([ours, theirs], rounds)
    cores = len(os.sched_getaffinity(0))
    yield Row(
        f"one-vs-rest SVM, {labels} labels, {images:,} × {width}: times faster",
        "scikit-learn, one label after another on one core",
        ratio(times[1], times[0]),
        round(0.9 * cores, 2),
        True,
        f"{cores} cores",
        f"{median(times[0]):.1f} s, {median(times[1]):.1f} s",
    )
