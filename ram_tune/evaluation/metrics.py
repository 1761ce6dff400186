"""Scores and decisions → numbers (METHOD 7). Legend: n images, L labels.

Everywhere `targets` (n, L) says which labels an image has, and `ignore` (n, L), where given, which of these cells count
neither for nor against: VOC's labels of which an image shows only "difficult" objects.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

THREADS_PAY = 500_000
"""Scores from which on threads save more than they take to start."""


def average_precision(scores: Floats, targets: Bools, ignore: Bools | None = None) -> NDArray[np.float64]:
    """Area under each label's precision–recall steps, not interpolated: AP = Σ_j (R_j − R_{j−1}) P_j.

    j runs over the distinct scores, descending: tied images pass together, so AP does not depend on the images' order.
    `scores` (n, L), any unit: only their order within a label counts. Returns (L,), in [0, 1]; nan for a label without
    positives. ValueError: scores that are not finite.
    """
    return _areas(_curves(scores, targets, ignore))


def average_precision_11(scores: Floats, targets: Bools, ignore: Bools | None = None) -> NDArray[np.float64]:
    """VOC 2007's AP: the mean over r = 0, 0.1, …, 1 of the highest precision among thresholds with recall ≥ r.

    Arguments, ties, result and errors as `average_precision`.
    """
    return _eleven_points(_curves(scores, targets, ignore))


def mean_average_precision(ap: Floats) -> float:
    """mAP: the mean of `ap` (L,) over labels that have one; nan if none has."""
    known = ap[~np.isnan(ap)]
    return float(known.mean()) if known.size else float("nan")


def decide(probabilities: Floats, top_k: int | None, threshold: float) -> Bools:
    """(n, L) decisions: an image's `top_k` most probable labels (None: all), less those below `threshold`.

    *Decided*: METHOD's "top-scored" is by probability, for that is what compares across labels; raw scores, calibrated
    label by label, may rank otherwise. Equal probabilities rank by label index, lower first. `ignore` has no say: a
    place given to a cell that is not counted is spent. ValueError: probabilities that are not finite.
    """
    check_finite(probabilities, "probabilities")
    chosen = probabilities >= threshold
    if top_k is not None and top_k < probabilities.shape[1]:
        least = np.partition(probabilities, -top_k, axis=1)[:, -top_k, None]  # (n, 1) the last one to be given a place
        placed = probabilities >= least
        tied = np.count_nonzero(placed, axis=1) > top_k  # more are equal to the last one than there are places
        if tied.any():
            above, equal = probabilities[tied] > least[tied], probabilities[tied] == least[tied]
            places = top_k - np.count_nonzero(above, axis=1)[:, None]
            placed[tied] = above | (equal & (np.cumsum(equal, axis=1) <= places))
        chosen &= placed
    return chosen


def f1_scores(predicted: Bools, targets: Bools, ignore: Bools | None = None) -> dict[str, float]:
    """CP, CR, CF1 (means over labels) and OP, OR, OF1 (over all cells) of decisions `predicted` (n, L), in [0, 1].

    With Nᵖ predicted, Nᵍ true and Nᶜ correct images of each label: OP = ΣNᶜ/ΣNᵖ, OR = ΣNᶜ/ΣNᵍ, CP = mean(Nᶜ/Nᵖ),
    CR = mean(Nᶜ/Nᵍ), F1 = 2PR/(P+R) of *those*, not a mean of per-label F1. 0/0 is 0, so a label never predicted
    lowers CP. A label without positives is left out of CP and CR; predicting it still lowers OP.
    """
    positive, counted = _cells(targets, ignore)
    predicted = predicted & counted
    n_predicted, n_true, n_correct = predicted.sum(0), positive.sum(0), (predicted & positive).sum(0)  # (L,) each
    present = n_true > 0
    labels = present.sum()
    cp = _ratio(_ratio(n_correct, n_predicted)[present].sum(), labels)
    cr = _ratio(_ratio(n_correct, n_true)[present].sum(), labels)
    op, or_ = _ratio(n_correct.sum(), n_predicted.sum()), _ratio(n_correct.sum(), n_true.sum())
    cf1, of1 = _ratio(2 * cp * cr, cp + cr), _ratio(2 * op * or_, op + or_)
    values = {"CP": cp, "CR": cr, "CF1": cf1, "OP": op, "OR": or_, "OF1": of1}
    return {name: float(value) for name, value in values.items()}


def summary(
    scores: Floats, probabilities: Floats, targets: Bools, ignore: Bools | None, top_k: int, threshold: float
) -> dict[str, float]:
    """Every number of METHOD 7: mAP (area), mAP_11, the six of `f1_scores`, and these again as `CP_all` … `OF1_all`.

    AP ranks images by `scores`; decisions are made on `probabilities` (both (n, L)): at most `top_k` an image with
    probability ≥ `threshold`, and, for `_all`, any number. All in [0, 1]; the mAPs are nan if no label has positives.
    ValueError: scores or probabilities that are not finite.
    """
    curves = _curves(scores, targets, ignore)
    top = f1_scores(decide(probabilities, top_k, threshold), targets, ignore)
    every = f1_scores(decide(probabilities, None, threshold), targets, ignore)
    return {
        "mAP": mean_average_precision(_areas(curves)),
        "mAP_11": mean_average_precision(_eleven_points(curves)),
        **top,
        **{f"{name}_all": value for name, value in every.items()},
    }


def check_finite(values: Floats, name: str = "scores") -> None:
    """ValueError that counts the `values` that are not finite: a NaN would be ranked without a word."""
    if bad := int(np.count_nonzero(~np.isfinite(values))):
        raise ValueError(f"{name}: found {bad} of {values.size} not finite; expected numbers. Did training diverge?")


class _Curve(NamedTuple):
    """Precision–recall steps of one label: the T distinct scores of its positives, descending. Between two of them recall
    stays and precision only falls, so that no other threshold counts.
    """

    found: NDArray[np.int64]  # (T,) positives at or above each
    precision: NDArray[np.float64]  # (T,)


def _curves(scores: Floats, targets: Bools, ignore: Bools | None) -> list[_Curve]:
    """Of each label. Cells that are ignored are as if they were not there."""
    check_finite(scores)
    positive, counted = _cells(targets, ignore)
    by_label = [np.ascontiguousarray(one.T) for one in (scores, positive, counted)]  # (L, n): along memory
    if scores.size < THREADS_PAY:
        return list(map(_curve, *by_label))
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:  # NumPy sorts outside the interpreter's lock
        return list(pool.map(_curve, *by_label))


def _curve(scores: Floats, hits: Bools, used: Bools) -> _Curve:
    """Of one label; each (n,)."""
    every, positives = np.sort(scores[used]), np.sort(scores[hits])
    first = np.flatnonzero(np.append(True, positives[1:] != positives[:-1])[: len(positives)])  # of each group of ties
    found = len(positives) - first
    seen = len(every) - np.searchsorted(every, positives[first])
    return _Curve(found[::-1], (found / seen)[::-1])


def _areas(curves: list[_Curve]) -> NDArray[np.float64]:
    """(L,), nan for labels without positives."""
    return np.array(
        [
            (np.diff(found, prepend=0) * precision).sum() / found[-1] if len(found) else np.nan
            for found, precision in curves
        ]
    )


def _eleven_points(curves: list[_Curve]) -> NDArray[np.float64]:
    """(L,), nan for labels without positives."""

    def mean(curve: _Curve) -> float:
        best_from = np.maximum.accumulate(curve.precision[::-1])[::-1]  # highest at this threshold or further down
        # recall ≥ tenths/10 in integers: no rounding decides whether 3 of 10 reach 0.3
        first = np.searchsorted(10 * curve.found, np.arange(11) * curve.found[-1])
        return float(best_from[first].mean())

    return np.array([mean(curve) if len(curve.found) else np.nan for curve in curves])


def _cells(targets: Bools, ignore: Bools | None) -> tuple[Bools, Bools]:
    """(positive, counted), each (n, L)."""
    counted = np.ones_like(targets) if ignore is None else ~ignore
    return targets & counted, counted


def _ratio(numerator: Any, denominator: Any) -> Any:
    """numerator / denominator, elementwise; 0 where the denominator is 0 (every numerator here is 0 there, too)."""
    return numerator / np.where(denominator == 0, 1, denominator)
