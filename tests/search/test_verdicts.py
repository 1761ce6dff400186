"""What is said of a search: verdicts by hand-made cases, intervals against SciPy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ram_tune.search.findings import (
    Confirmed,
    Tried,
    half_width,
)
from ram_tune.search.verdicts import unconfirmed, verdict, verdicts

MAX, TWO = ("maximize",), ("maximize", "minimize")


def finished(number: int, *objectives: float, **more) -> Tried:
    return Tried(number, more.pop("values", {}), "finished", objectives, **more)


# ── confirmed or not


def confirmed(best: tuple[float, ...], paper: tuple[float, ...]) -> tuple[Confirmed, Confirmed]:
    return Confirmed("best", 12, best), Confirmed("paper", 0, paper)


@pytest.mark.parametrize(
    ("ours", "theirs", "direction", "judged"),
    [
        ((0.70, 0.71, 0.72), (0.60, 0.61, 0.63), "maximize", "better by more than seed noise"),
        ((0.70, 0.61, 0.72), (0.60, 0.69, 0.71), "maximize", "not better than seed noise"),
        ((0.60, 0.61, 0.63), (0.70, 0.71, 0.72), "maximize", "worse by more than seed noise"),
        ((0.60, 0.61, 0.63), (0.70, 0.71, 0.72), "minimize", "better by more than seed noise"),
        ((0.70, 0.71, 0.72), (0.60, 0.61, 0.63), "minimize", "worse by more than seed noise"),
        ((0.70, 0.71), (0.70, 0.71), "maximize", "not better than seed noise"),
    ],
)
def test_a_verdict_is_beyond_the_noise_of_seeds_or_not(ours, theirs, direction, judged):
    said = verdict(*confirmed(ours, theirs), "mAP", direction)
    assert said.endswith(judged)
    assert f"over {len(ours)} fresh seeds" in said


def test_the_numbers_of_a_verdict_by_hand():
    # Differences 4, 6, 8 points: mean 6, s = 2; t(0.975, 2) = 4.303 by the table; 4.303·2/√3 = 4.968
    said = verdict(*confirmed((0.64, 0.68, 0.72), (0.60, 0.62, 0.64)), "mAP")
    assert said == (
        "test mAP 68.0 % of the best setting (number 12) against 62.0 % of the paper's, over 3 fresh seeds: "
        "a difference of +6.0 points [+1.0, +11.0], 95 % interval: better by more than seed noise"
    )
    assert "a difference of -0.025 [" in verdict(*confirmed((0.3, 0.45), (0.35, 0.45)), "loss", "minimize")


SHARES = st.floats(0, 1)


@given(st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=6))
def test_better_means_what_scipys_interval_of_paired_differences_means(pairs):
    ours, theirs = map(np.array, zip(*pairs, strict=True))
    scale = stats.sem(100 * (ours - theirs))
    low, high = stats.t.interval(0.95, len(pairs) - 1, loc=100 * (ours - theirs).mean(), scale=scale or 1)
    said = verdict(*confirmed(tuple(map(float, ours)), tuple(map(float, theirs))), "mAP")
    if scale > 1e-9 and min(abs(low), abs(high)) > 1e-9:  # elsewhere the two round differently
        assert ("better by more" in said) == (low > 0)
        assert ("worse by more" in said) == (high < 0)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_the_half_width_is_scipys(values):
    expected = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    assert half_width(values) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_one_seed_says_nothing_about_noise():
    said = verdict(*confirmed((0.70,), (0.60,)), "mAP")
    assert said.endswith("over 1 fresh seed: a difference of +10.0 points; one seed says nothing about noise")


def test_a_seed_that_failed_takes_its_pair_with_it():
    said = verdict(*confirmed((0.70, math.nan, 0.72), (0.60, 0.61, 0.63)), "mAP")
    assert said == verdict(*confirmed((0.70, 0.72), (0.60, 0.63)), "mAP").replace("2 fresh seeds", "2 fresh seeds of 3")
    assert "nothing is confirmed" in verdict(*confirmed((math.nan,), (0.6,)), "mAP")
    assert "nothing is confirmed" in verdict(*confirmed((), ()), "mAP")


def test_the_papers_setting_may_be_the_best():
    assert "the best setting is the paper's own (number 0)" in verdict(
        Confirmed("best", 0, (0.6,)), Confirmed("paper", 0, (0.6,)), "mAP"
    )


def test_an_unconfirmed_best_is_flattered_by_having_been_picked():
    tried = [finished(0, 0.5), finished(1, 0.7), finished(2, 0.9, feasible=False), Tried(3, {}, "pruned")]
    said = unconfirmed(tried, MAX, "mAP")
    assert said.startswith("mAP 70.0 % of setting 1 is the best of 2 on the selection images, and flattered by")
    assert "winner's curse" in said and said.endswith("--confirm 3")
    assert "the only one to have finished" in unconfirmed(tried[:1], MAX, "mAP")
    assert unconfirmed([], MAX, "mAP") == "there is no best setting to confirm"


# ── the sentences


def said_of(tried: list[Tried], directions=MAX, edges=lambda values: [], objectives=("mAP", "loss"), horizon=9) -> str:
    return "\n".join(verdicts(tried, edges, directions, objectives, horizon))


def test_the_edge_of_a_domain_is_said_of_the_best_setting_alone():
    tried = [finished(0, 0.5, values={"x": 0.0}), finished(1, 0.7, values={"x": 1.0})]
    said = said_of(tried, edges=lambda values: [f"x={values['x']} is at the upper edge of 0 to 1"])
    assert "x=1.0 is at the upper edge of 0 to 1: a wider domain may hold a better one" in said
    assert "x=0.0" not in said
    assert "edge" not in said_of(tried)


def test_why_settings_were_given_up_and_what_that_saved():
    tried = [
        *(finished(number, 0.5, epochs=9) for number in range(3)),
        *(Tried(number, {}, "pruned", epochs=epochs) for number, epochs in enumerate([1, 3, 1], 3)),
        Tried(6, {}, "failed", reason="torch.OutOfMemoryError: CUDA out of memory", epochs=2),
        Tried(7, {}, "failed", reason="ValueError: no"),
        Tried(8, {}, "failed", reason="OutOfMemoryError: CUDA out of memory"),
        Tried(9, {}, "failed"),
    ]
    said = said_of(tried).splitlines()
    assert "3 of 10 settings pruned, after 1 epoch (2), 3 epochs (1)" in said
    assert (
        "4 of 10 settings failed: 2 × OutOfMemoryError: CUDA out of memory; 1 × ValueError: no; 1 × no error noted"
    ) in said
    # 27 + 5 + 2 trained; 8 + 6 + 8 saved
    assert "34 epochs trained; pruning saved 22 of 56" in said


def test_without_pruning_none_is_saved_and_cheap_runs_are_told_apart():
    tried = [finished(0, 0.5, epochs=9), finished(1, 0.9, epochs=2, cheap=True)]
    said = said_of(tried).splitlines()
    assert "9 epochs trained; pruning saved none" in said
    assert "1 of 2 settings had only a cheap run (2 epochs)" in said
    assert not any("failed" in line or "pruned," in line for line in said)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (0, "no better setting in the last 8 of 24 finished: more will hardly help"),
        (15, "no better setting in the last 8 of 24 finished: more will hardly help"),
        (16, "the best setting (32) came at place 17 of 24 finished: still improving, go on with --trials 50"),
        (23, "the best setting (46) came at place 24 of 24 finished: still improving, go on with --trials 50"),
    ],
)
def test_whether_the_search_still_improves(place, said):
    tried = [finished(2 * number, 0.9 if number == place else 0.5) for number in range(24)]
    assert said in said_of([*reversed(tried), Tried(99, {}, "pruned")]).splitlines()


def test_as_good_again_is_no_improvement():
    tried = [finished(number, 0.5) for number in range(9)]
    assert "no better setting in the last 3 of 9 finished" in said_of(tried)
    several = [finished(number, 0.5, 1.0) for number in range(9)]
    assert "no new setting on the Pareto front in the last 3 of 9" in said_of(several, TWO)
    several[8] = finished(8, 0.1, 0.9)
    assert "the newest setting on the Pareto front (8) came at place 9 of 9" in said_of(several, TWO)


def test_the_papers_setting_has_its_rank_or_its_fate():
    tried = [finished(1, 0.7), finished(2, 0.8), finished(3, 0.9, feasible=False)]
    paper = finished(0, 0.7, paper=True)
    assert "the paper's setting was not among the tried" in said_of(tried)
    assert "the paper's setting (number 0) ranks 2 of 3, with mAP 70.0 % on the selection images" in said_of(
        [paper, *tried]
    )
    for state, fate in {"pruned": "was pruned", "failed": "failed", "open": "has not finished"}.items():
        assert f"(number 0) {fate}" in said_of([Tried(0, {}, state, paper=True), *tried])
    assert "breaks a constraint" in said_of([replace(paper, feasible=False), *tried])
    assert "has no value of a full run" in said_of([replace(paper, cheap=True), *tried])
    again = [Tried(0, {}, "failed", paper=True), *tried, replace(paper, number=4)]
    assert "the paper's setting (number 4) ranks 2 of 3" in said_of(again)


def test_the_papers_setting_on_the_front_or_not():
    tried = [finished(0, 0.7, 20, paper=True), finished(1, 0.8, 30), finished(2, 0.6, 25)]
    assert "ranks 2 of 3" in said_of(tried, TWO) and said_of(tried, TWO).count(", on the Pareto front") == 1
    tried[1] = finished(1, 0.8, 10)
    assert ", not on the Pareto front" in said_of(tried, TWO)


@pytest.mark.parametrize("directions", [MAX, TWO])
@pytest.mark.parametrize("n", range(3))
def test_few_settings_do_not_break_anything(n, directions):
    tried = [finished(number, *(0.5 for _ in directions)) for number in range(n)]
    said = said_of(tried, directions)
    if n:
        assert f"{n} setting{'s' * (n > 1)} finished: too few to tell whether more would help" in said
    else:
        assert said == "no setting has been tried yet"


def test_a_search_with_nothing_to_show_says_so():
    assert "no setting has finished yet" in said_of([Tried(0, {}, "open")])
    assert "no setting keeps the constraints, of 2 that finished" in said_of(
        [finished(number, 0.5, feasible=False) for number in range(2)]
    )
