"""Scores → probabilities (METHOD 7, "Probability"). Legend: n images, L labels.

[Platt] J. Platt, "Probabilistic outputs for support vector machines", 1999.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ram_tune.errors import BadInput
from ram_tune.evaluation.metrics import Bools, Floats, check_finite

# How the fit is carried out, not what it is: none of these moves the minimum.
_TOLERANCE = 1e-10  # largest slope of the mean loss, in standardised scores, at which a label is done
_MOST_STEPS = 100  # of Newton; about ten are needed
_MOST_HALVINGS = 100  # of one Newton step
_SUFFICIENT = 0.25  # part of the promised decrease a step must bring (Armijo); at less, one may land where p is flat
_INVISIBLE = 1e-15  # relative change of the loss that is its rounding


def sigmoid(x: Floats) -> NDArray[np.float64]:
    """1 / (1 + exp(−x)), in double precision, without overflow; exactly 0.5 at 0."""
    small = np.exp(-np.abs(x, dtype=np.float64))
    return np.where(x >= 0, 1, small) / (1 + small)


@dataclass(frozen=True, eq=False)
class Platt:
    """A sigmoid per label: P(label | score) = sigmoid(slope · score + intercept), [Platt] with our sign of both."""

    slope: NDArray[np.float64]  # (L,), per unit of score; negative where the scores rank a label backwards
    intercept: NDArray[np.float64]  # (L,)

    @classmethod
    def fit(cls, scores: Floats, targets: Bools, ignore: Bools | None = None) -> Platt:
        """Least cross-entropy of sigmoid(slope · score + intercept) against [Platt]'s regularised targets.

        These are (N₊+1)/(N₊+2) for the label's N₊ positives and 1/(N₋+2) for its N₋ negatives, so the minimum is finite
        on separable scores, too. `scores`, `targets`, `ignore` (n, L); ignored cells are left out, and not in N₊, N₋.
        Where the scores cannot tell (one class only, or constant scores) the slope is 0 and the probability the mean
        regularised target; with no cell at all, 1/2. ValueError: scores that are not finite.
        """
        check_finite(scores)
        counted = np.ones_like(targets) if ignore is None else ~ignore
        positive = targets & counted
        n, n_positive = counted.sum(0), positive.sum(0)  # (L,)
        wanted = np.where(positive, (n_positive + 1) / (n_positive + 2), 1 / (n - n_positive + 2))  # (n, L)
        share = counted / np.maximum(n, 1)  # (n, L), of each cell in its label's mean
        mean_wanted = np.where(n > 0, (share * wanted).sum(0), 0.5)
        prior = np.log(mean_wanted / (1 - mean_wanted))

        # Standardised scores: the same minimum, and one tolerance and starting point fit every unit of score.
        exact = scores.astype(np.float64)
        mean = (share * exact).sum(0)
        deviation = np.sqrt((share * (exact - mean) ** 2).sum(0))
        tells = deviation > 0  # with one class, or a deviation that is rounding alone, the fit starts at its minimum
        slope, intercept = np.zeros_like(prior), prior.copy()
        if tells.any():
            standard = (exact - mean)[:, tells] / deviation[tells]
            a, b = _newton(standard, wanted[:, tells], share[:, tells], prior[tells])
            slope[tells] = a / deviation[tells]
            intercept[tells] = b - slope[tells] * mean[tells]
        return cls(slope, intercept)

    def __call__(self, scores: Floats) -> NDArray[np.float64]:
        """Probabilities (n, L) of `scores` (n, L)."""
        return sigmoid(self.slope * scores + self.intercept)

    def text(self) -> str:
        """As JSON, what `read` reads."""
        return json.dumps({"slope": self.slope.tolist(), "intercept": self.intercept.tolist()})

    @classmethod
    def read(cls, path: Path, labels: int) -> Platt:
        """That of `labels` labels in a file. Raises BadInput."""
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            platt = cls(*(np.asarray(tree[name], np.float64) for name in ("slope", "intercept")))
            fits = all(each.shape == (labels,) and np.isfinite(each).all() for each in (platt.slope, platt.intercept))
        except (OSError, ValueError, KeyError, TypeError):
            platt, fits = None, False
        if platt is None or not fits:
            raise BadInput(
                path,
                found="a damaged file, or that of another model",
                expected=f"slope and intercept, {labels} numbers each",
                remedy="Remove it to do without probabilities.",
            )
        return platt


def probabilities(scores: Floats, classification: str, platt: Platt | None = None) -> NDArray[np.float64]:
    """Probability (n, L) of each label, from network scores trained with `loss.classification`.

    Scores of `bce` and `asymmetric` are log-odds: their sigmoid. Those of `euclidean` were trained through a softmax
    over labels, which can pass 0.5 for one label only: they need `platt`, fitted on the selection split, and raise
    ValueError without it.
    """
    if classification in ("bce", "asymmetric"):
        return sigmoid(scores)
    if platt is None:
        raise ValueError(f"loss.classification {classification}: its scores are no log-odds; pass a fitted Platt")
    return platt(scores)


def _newton(
    u: NDArray[np.float64], wanted: NDArray[np.float64], share: NDArray[np.float64], prior: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The a, b (L,) that minimise each label's Σ share · cross-entropy(wanted, sigmoid(a·u + b)).

    u, wanted, share (n, L). Newton's method from a = 0, b = `prior`, all labels side by side. A step is halved until it
    brings enough of what it promised; the loss is strictly convex, so this converges from anywhere.
    """

    def loss(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        logit = a * u + b
        return (share * (np.logaddexp(0, logit) - wanted * logit)).sum(0)

    a, b = np.zeros_like(prior), prior
    now = loss(a, b)
    for _ in range(_MOST_STEPS):
        p = sigmoid(a * u + b)
        rest = share * (p - wanted)
        slope_a, slope_b = (rest * u).sum(0), rest.sum(0)
        going = np.maximum(np.abs(slope_a), np.abs(slope_b)) > _TOLERANCE  # a label that is done stays as it is
        if not going.any():
            break
        # The 2×2 system, solved about the weighted mean of u, where it is diagonal and nothing cancels.
        weight = share * p * (1 - p)
        total = np.maximum(weight.sum(0), np.finfo(float).tiny)
        centre = (weight * u).sum(0) / total
        spread = np.maximum((weight * (u - centre) ** 2).sum(0), np.finfo(float).tiny)
        to_a = -(rest * (u - centre)).sum(0) / spread
        to_b = -slope_b / total - centre * to_a
        promise = slope_a * to_a + slope_b * to_b  # negative
        step = going.astype(np.float64)
        then = loss(a + step * to_a, b + step * to_b)
        for _ in range(_MOST_HALVINGS):
            failed = then > now + _SUFFICIENT * step * promise + _INVISIBLE * (1 + now)
            if not failed.any():
                break
            step[failed] /= 2
            then = loss(a + step * to_a, b + step * to_b)
        a, b, now = a + step * to_a, b + step * to_b, then
    return a, b
