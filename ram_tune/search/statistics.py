"""Means, intervals and p values of a few seeds, as textbooks have them; pure functions of numbers.

[Student] Student, "The probable error of a mean", 1908. [Fisher] R. A. Fisher, "The design of experiments", 1935, §21.
[Holm] S. Holm, "A simple sequentially rejective multiple test procedure", 1979. [Efron] B. Efron, "Bootstrap methods:
another look at the jackknife", 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

LEVEL = 0.95
"""Of every interval here: the field's usual."""

MOST_SEEDS = 36
"""Over which sign flips are not counted: two halves of 2^18 sums take a fraction of a second."""

ROUNDING = 1e-9
"""Relative: sums of the same numbers in another order are as large."""


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie; both ends are nan where one value alone gives none."""

    mean: float
    low: float = math.nan
    high: float = math.nan

    @property
    def half(self) -> float:
        """Half its width."""
        return (self.high - self.low) / 2

    @property
    def known(self) -> bool:
        """Has it two ends?"""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Paired:
    """How one arm differs from another, seed by seed."""

    difference: Interval
    n: int  # pairs
    p: float  # two-sided, of the paired t test; nan of one pair
    flips: float  # two-sided, of the exact sign-flip test; nan of more than `MOST_SEEDS` pairs
    floor: float  # the smallest that `flips` can be at this n


def half_width(values: Sequence[float]) -> float:
    """t(0.975, n − 1) · s / √n: half the width of the 95 % interval of the mean of n ≥ 2 values [Student]."""
    from scipy.special import stdtrit  # scipy.stats would take a second to load

    n = len(values)
    return float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stdev(values) / math.sqrt(n)


def t_interval(values: Sequence[float]) -> Interval:
    """mean ± `half_width` of one value or more."""
    middle = mean(values)
    if len(values) < 2:
        return Interval(middle)
    half = half_width(values)
    return Interval(middle, middle - half, middle + half)


def t_test(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t test: 2·P(T_{n−1} > |mean| / (s / √n)) of n differences [Student].

    nan of one. Where all are the same there is no spread to compare with: 1 if they are 0, else 0.
    """
    from scipy.special import stdtr

    n = len(differences)
    if n < 2:
        return math.nan
    middle, error = mean(differences), stdev(differences) / math.sqrt(n)
    if error == 0:
        return 0.0 if middle else 1.0
    return float(2 * stdtr(n - 1, -abs(middle / error)))


def sign_flips(differences: Sequence[float]) -> float:
    """Two-sided p of the exact permutation test of n paired differences: the share of all 2ⁿ ways to give them signs
    whose sum is as far from 0 as theirs [Fisher].

    If an arm made no difference, either sign of each was as likely. nan of more than `MOST_SEEDS`.
    """
    n = len(differences)
    if n > MOST_SEEDS:
        return math.nan
    found = np.abs(sum(differences)) - ROUNDING * sum(map(abs, differences))
    # All sums of one half of the seeds beside all those of the other, sorted: 2^(n/2) look-ups count 2^n sums.
    one, other = _sums(differences[: n // 2]), np.sort(_sums(differences[n // 2 :]))
    above = len(other) - np.searchsorted(other, found - one, side="left")
    below = np.searchsorted(other, -found - one, side="right")
    extreme = 2**n if found <= 0 else int(above.sum() + below.sum())  # both tails overlap at 0
    return extreme / 2**n


def flips_floor(n: int) -> float:
    """The smallest p that `sign_flips` can give of n differences: 2/2ⁿ, for all of one sign and for their mirror image."""
    return 2.0 ** (1 - n)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """How `ours` differ from `theirs`, the same seeds in the same order, one or more."""
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    n = len(differences)
    return Paired(t_interval(differences), n, t_test(differences), sign_flips(differences), flips_floor(n))


def holm(p: Sequence[float]) -> list[float]:
    """p values of m comparisons, adjusted so that the chance of any false one stays below the level [Holm].

    Of the i-th smallest: max over j ≤ i of min(1, (m − j + 1)·p_j). A nan is no comparison, and stays one.
    """
    known = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    adjusted, highest = [math.nan] * len(p), 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        adjusted[place] = highest
    return adjusted


def percentiles(estimate: float, draws: np.ndarray) -> Interval:
    """The percentile bootstrap interval [Efron]: `estimate`, and the 2.5 % and 97.5 % quantiles of `draws` (R,).

    Draws that are nan (a resample of which the metric does not exist) are left out.
    """
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high))


def centred(estimate: float, draws: np.ndarray) -> Interval:
    """`percentiles` of the draws, moved so that their mean is `estimate`.

    For a metric such as AP: a resample repeats images, and one that stands beside itself flatters the ranking. What other
    images of the same number would give lies round the estimate, as the tests simulate; a difference of two such metrics
    needs no moving.
    """
    return percentiles(estimate, draws - np.nanmean(draws) + estimate)


def _sums(values: Sequence[float]) -> np.ndarray:
    """(2^n,) the sums of `values` (n) with every choice of signs."""
    found = np.zeros(1)
    for value in values:
        found = np.concatenate([found + value, found - value])
    return found
