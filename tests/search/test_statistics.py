"""Intervals and p values against SciPy on the same numbers, Holm by hand, and what an interval promises, by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ram_tune.search.statistics import (
    MOST_SEEDS,
    flips_floor,
    half_width,
    holm,
    paired,
    percentiles,
    sign_flips,
    t_interval,
    t_test,
)


@pytest.fixture(params=[2, 3, 5, 12])
def seeds(request) -> tuple[list[float], list[float]]:
    random = np.random.default_rng(request.param)
    theirs = random.normal(0.7, 0.02, request.param)
    return (theirs + random.normal(0.01, 0.01, request.param)).tolist(), theirs.tolist()


def test_the_interval_of_a_mean_is_scipys(seeds):
    ours, _ = seeds
    low, high = stats.t.interval(0.95, len(ours) - 1, loc=np.mean(ours), scale=stats.sem(ours))
    found = t_interval(ours)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(ours), low, high), rel=1e-9)
    assert found.half == pytest.approx(half_width(ours))


def test_of_five_seeds_by_the_table():
    # 1 … 5: mean 3, s = √2.5; t(0.975, 4) = 2.776 by the table; 2.776·1.5811/√5 = 1.963
    assert t_interval([1, 2, 3, 4, 5]).low == pytest.approx(3 - 1.963, abs=1e-3)


def test_one_seed_has_a_mean_and_no_interval():
    found = t_interval([0.7])
    assert found.mean == 0.7
    assert not found.known
    assert math.isnan(t_test([0.7]))


def test_a_difference_by_seed_is_scipys(seeds):
    ours, theirs = seeds
    expected = stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval(0.95)
    found = paired(ours, theirs)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), rel=1e-9)
    assert found.n == len(ours)


def test_sign_flips_are_scipys_exact_permutation_test(seeds):
    ours, theirs = seeds
    expected = stats.permutation_test(
        (ours, theirs), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert paired(ours, theirs).flips == pytest.approx(expected.pvalue, abs=1e-12)


@pytest.mark.parametrize("values", [[1, 2, 3], [1, -2, 3, 3], [0, 0, 1], [0.1, 0.2, -0.3], [0, 0]])
def test_sign_flips_count_ties_and_zeros_as_all_ways_written_out(values):
    sums = [sum(sign * value for sign, value in zip(signs, values, strict=True)) for signs in ways(len(values))]
    as_far = [abs(one) >= abs(sum(values)) - 1e-12 for one in sums]
    assert sign_flips(values) == sum(as_far) / len(as_far)


def ways(n: int) -> list[tuple[int, ...]]:
    return list(itertools.product((1, -1), repeat=n))


@pytest.mark.parametrize(("n", "floor"), [(1, 1.0), (2, 0.5), (5, 0.0625), (6, 0.03125)])
def test_the_floor_is_reached_where_every_seed_agrees(n, floor):
    assert flips_floor(n) == floor
    assert sign_flips([0.1 + seed for seed in range(n)]) == floor


def test_many_seeds_are_counted_too_and_more_are_left_to_the_t_test():
    many = [1.0] * (MOST_SEEDS - 1) + [-1.0]
    # as far as 34 of 36: at most one of the other sign, on either side
    assert sign_flips(many) == (2 * (1 + MOST_SEEDS)) / 2**MOST_SEEDS
    assert math.isnan(sign_flips([1.0] * (MOST_SEEDS + 1)))


@pytest.mark.parametrize(("differences", "p"), [([0.0, 0.0, 0.0], 1.0), ([0.1, 0.1, 0.1], 0.0)])
def test_without_any_spread_the_t_test_says_equal_or_not(differences, p):
    assert t_test(differences) == p


def test_holm_by_hand():
    # sorted 0.01 0.02 0.03 0.04: ×4 0.04, ×3 0.06, ×2 0.06, ×1 0.04 → never below the one before
    assert holm([0.02, 0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.06, 0.04, 0.06])
    # [Holm]'s steps at 5 %: 0.005·3 and 0.011·2 pass, 0.2 does not
    assert holm([0.2, 0.011, 0.005]) == pytest.approx([0.2, 0.022, 0.015])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_leaves_out_what_is_no_comparison():
    first, second = holm([math.nan, 0.01])
    assert math.isnan(first) and second == 0.01
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_finding_at_its_level():
    random = np.random.default_rng(0)
    false = 0
    for _ in range(1000):
        p = [t_test(random.normal(0, 1, 5).tolist()) for _ in range(4)]
        false += min(holm(p)) < 0.05
    assert 0.03 < false / 1000 < 0.065


def test_at_five_seeds_the_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(2017)
    covered = [t_interval(random.normal(0.7, 0.02, 5).tolist()) for _ in range(2000)]
    share = np.mean([one.low <= 0.7 <= one.high for one in covered])
    assert 0.93 <= share <= 0.97


def test_the_percentile_interval_is_scipys_on_the_same_draws():
    values = np.random.default_rng(1).normal(0.1, 1, 200)
    expected = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=5)
    found = percentiles(values.mean(), expected.bootstrap_distribution)
    interval = expected.confidence_interval
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6)
    assert found.mean == values.mean()


def test_resamples_without_the_metric_are_left_out():
    assert percentiles(0.5, np.array([0.5, np.nan, 0.5])).known
