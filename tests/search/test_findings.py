"""What a sampled search found: hand-made settings, a naive definition of the Pareto front, SciPy's own t-test."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import stats
from tables import rows, shown, words

from ram_tune.search.findings import (
    Tried,
    best,
    importance_table,
    importances,
    left_out,
    pareto,
    settings_table,
)

MAX, TWO = ("maximize",), ("maximize", "minimize")
NAMES = {"model.regions": "regions", "loss.anchor": "anchor", "loss.anchor_weight": "anchor_weight"}
SPACE = {"x": FloatDistribution(0, 1), "y": FloatDistribution(1e-4, 1, log=True), "k": IntDistribution(1, 9)}


def finished(number: int, *objectives: float, **more) -> Tried:
    return Tried(number, more.pop("values", {}), "finished", objectives, **more)


# ── best, pareto


@pytest.mark.parametrize(("directions", "number"), [(("maximize",), 1), (("minimize",), 2)])
def test_the_best_goes_by_the_direction(directions, number):
    assert best([finished(0, 0.5), finished(1, 0.7), finished(2, 0.3)], directions).number == number


def test_only_feasible_finished_full_and_finite_settings_can_be_best():
    tried = [
        finished(0, 0.5),
        finished(1, 0.9, feasible=False),
        finished(2, 0.9, cheap=True),
        finished(3, math.nan),
        finished(4, math.inf),
        Tried(5, {}, "pruned"),
        Tried(6, {}, "failed"),
        Tried(7, {}, "open"),
    ]
    assert [one.number for one in pareto(tried, MAX)] == [0]
    assert best(tried[1:], MAX) is None
    assert best([], MAX) is None
    assert pareto([], TWO) == []


def test_of_settings_as_good_the_earliest_is_best_and_all_are_on_the_front():
    tried = [finished(4, 0.7), finished(2, 0.7), finished(1, 0.6)]
    assert best(tried, MAX).number == 2
    assert [one.number for one in pareto(tried, MAX)] == [2, 4]


def test_a_front_by_hand():
    # mAP up, milliseconds down: 2 is beaten by 1 (both), 3 by 0 (as good, slower)
    tried = [finished(0, 0.7, 20), finished(1, 0.6, 10), finished(2, 0.5, 11), finished(3, 0.7, 30)]
    assert [one.number for one in pareto(tried, TWO)] == [0, 1]
    assert best(tried, TWO).number == 0


SMALL = st.lists(st.tuples(*3 * [st.integers(0, 3)]), max_size=12)
DIRECTIONS = st.tuples(*3 * [st.sampled_from(["maximize", "minimize"])])


@given(SMALL, DIRECTIONS, st.randoms(use_true_random=False))
def test_the_front_is_the_naive_one_in_whatever_order_settings_come(points, directions, random):
    tried = [finished(number, *point) for number, point in enumerate(points)]

    def beats(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        signs = [1 if direction == "maximize" else -1 for direction in directions]
        gains = [sign * (a - b) for sign, a, b in zip(signs, one, other, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    naive = {one.number for one in tried if not any(beats(other.objectives, one.objectives) for other in tried)}
    front = pareto(tried, directions)
    assert {one.number for one in front} == naive
    random.shuffle(tried)
    assert pareto(tried, directions) == front
    assert best(tried, directions) == (front[0] if front else None)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_with_one_objective_the_front_is_all_that_share_the_best_value(values):
    front = pareto([finished(number, value) for number, value in enumerate(values)], MAX)
    assert [one.number for one in front] == [number for number, value in enumerate(values) if value == max(values)]


# ── the table of settings


def test_rows_come_best_first_with_what_applies():
    tried = [
        finished(0, 0.5, paper=True, values={"model.regions": 5, "loss.anchor": True, "loss.anchor_weight": 0.1}),
        finished(1, 0.71234, values={"model.regions": 1, "loss.anchor": False}),
        finished(2, 0.6, values={"model.regions": 9, "loss.anchor": True, "loss.anchor_weight": 0.000123456}),
        Tried(3, {"model.regions": 2}, "pruned", epochs=3),
        Tried(4, {"model.regions": 2}, "open"),
    ]
    table = settings_table(tried, NAMES, ["mAP"], MAX)
    assert rows(table) == [
        ["1", "1", "off", "—", "71.2", "1"],
        ["2", "9", "on", "0.000123", "60.0", "1"],
        ["0 (paper)", "5", "on", "0.1", "50.0", "1"],
    ]
    text = words(table)
    assert "setting ┃ regions ┃ anchor ┃ anchor_weight ┃ mAP (%) ┃ seeds" in text
    assert "5 settings: 3 finished, 1 pruned, 0 failed, 1 open; values are of the selection images" in text
    assert "±" not in text and "Pareto" not in text and "†" not in text


def test_a_limit_says_how_many_more_and_keeps_the_papers_row():
    tried = [finished(number, number / 10, paper=number == 0) for number in range(6)]
    table = settings_table(tried, {}, ["mAP"], MAX, limit=2)
    assert [row[0] for row in rows(table)] == ["5", "4", "0 (paper)"]
    assert "3 more settings finished" in words(table)
    assert "more setting" not in words(settings_table(tried, {}, ["mAP"], MAX, limit=5))


def test_several_objectives_mark_the_front_and_what_breaks_a_constraint():
    tried = [
        finished(0, 0.8, 1.5e8, feasible=False),
        finished(1, 0.7, 1.38357544e8),
        finished(2, 0.6, 2e8),
        finished(3, 0.5, 1234.0),
    ]
    table = settings_table(tried, {}, ["mAP", "parameters"], TWO)
    assert rows(table) == [
        ["1 *", "70.0", "138,000,000", "1"],
        ["3 *", "50.0", "1,230", "1"],
        ["2", "60.0", "200,000,000", "1"],
        ["0 †", "80.0", "150,000,000", "1"],
    ]
    assert "* 2 on the Pareto front" in words(table) and "† breaks a constraint" in words(table)


def test_several_seeds_give_students_interval():
    one = finished(0, 0.63, 0.4, seeds=((0.60, 0.3), (0.62, 0.4), (0.67, 0.5)))
    low, high = stats.t.interval(0.95, 2, loc=63, scale=stats.sem([60, 62, 67]))
    loss = stats.t.ppf(0.975, 2) * stats.sem([0.3, 0.4, 0.5])
    table = settings_table([one], {}, ["mAP", "loss"], TWO)
    assert rows(table)[0][1:] == [f"63.0 ± {(high - low) / 2:.1f}", f"0.4 ± {loss:.3g}", "3"]
    assert "± is the 95 % interval over seeds" in words(table)


def test_a_setting_of_which_only_the_cheap_run_was_made_has_no_row():
    table = settings_table([finished(0, 0.9, cheap=True), finished(1, 0.5)], {}, ["mAP"], MAX)
    assert [row[0] for row in rows(table)] == ["1"]
    assert "2 settings: 1 finished, 0 pruned, 0 failed, 0 open, 1 cheap run only" in words(table)


def test_names_and_values_are_not_taken_for_markup():
    one = finished(0, 0.5, values={"[b]": "[red]x"})
    text = shown(settings_table([one], {"[b]": "[b]"}, ["[i]"], MAX))
    assert "[b]" in text and "[red]x" in text and "[i]" in text


# ── importances


def sampled(n: int, value, seed: int = 0) -> list[Tried]:
    draw = np.random.default_rng(seed)
    drawn = [
        {"x": float(draw.uniform()), "y": float(10 ** draw.uniform(-4, 0)), "k": int(draw.integers(1, 10))}
        for _ in range(n)
    ]
    return [finished(number, value(values), values=values) for number, values in enumerate(drawn)]


@pytest.mark.parametrize("field", ["x", "k"])
@pytest.mark.parametrize("scale", [1.0, 1e-170])
def test_the_one_parameter_that_matters_is_found(field, scale):
    found = importances(sampled(40, lambda values: scale * values[field]), SPACE)
    assert next(iter(found)) == field and found[field] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    assert set(found) == set(SPACE)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_importances_are_the_same_every_time_and_of_the_first_objective():
    tried = sampled(12, lambda values: values["x"])
    assert importances(tried, SPACE) == importances(tried, SPACE)
    both = [replace(one, objectives=(*one.objectives, one.values["y"])) for one in tried]
    assert importances(both, SPACE) == importances(tried, SPACE)


def test_what_cannot_be_compared_is_left_out_and_said_so():
    tried = sampled(8, lambda values: values["x"])
    tried[3].values.pop("y")
    space = {**SPACE, "fixed": CategoricalDistribution([True, False])}
    tried = [replace(one, values={**one.values, "fixed": True}) for one in tried]
    assert left_out(tried, space) == {"y": "does not apply to every setting", "fixed": "is the same in every setting"}
    found = importances(tried, space)
    assert set(found) == {"x", "k"}
    table = importance_table(found, tried, space, {"x": "ex"}, "mAP")
    assert rows(table)[0] == ["ex", f"{100 * found['x']:.0f}"]
    text = words(table)
    assert "What mAP depends on" in text and "between 8 finished settings" in text
    assert "left out: y, which does not apply to every setting" in text
    assert "left out: fixed, which is the same in every setting" in text


def test_settings_outside_todays_domains_and_unmeasured_ones_do_not_count():
    tried = sampled(8, lambda values: values["x"])
    odd = [
        finished(20, 5.0, values={"x": 7.0, "y": 0.5, "k": 3}),
        finished(21, math.nan, values=tried[0].values),
        finished(22, 9.0, values=tried[0].values, cheap=True),
        Tried(23, {"x": 0.5}, "pruned"),
    ]
    assert importances([*tried, *odd], SPACE) == importances(tried, SPACE)


@pytest.mark.parametrize("n", range(4))
def test_under_four_settings_no_importance_is_told(n):
    tried = sampled(n, lambda values: values["x"])
    assert importances(tried, SPACE) == {}
    said = f"{n} finished setting{'s' * (n != 1)}: at least 4 are needed to tell"
    assert said in words(importance_table({}, tried, SPACE, {}, "mAP"))


def test_without_variance_no_importance_is_told():
    tried = sampled(6, lambda values: 0.1)
    assert importances(tried, SPACE) == {}
    assert "the same in all: nothing to tell" in words(importance_table({}, tried, SPACE, {}, "mAP"))
    same = [replace(one, values=tried[0].values, objectives=(one.number / 10,)) for one in tried]
    assert importances(same, SPACE) == {}
    assert importances(same, {}) == {}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2), st.booleans(), st.sampled_from([0.0, 0.5])), max_size=6))
def test_importances_of_any_few_settings_are_shares(points):
    space = {"k": IntDistribution(1, 2), "b": CategoricalDistribution([True, False])}
    tried = [finished(number, value, values={"k": k, "b": b}) for number, (k, b, value) in enumerate(points)]
    found = importances(tried, space)
    assert not found or sum(found.values()) == pytest.approx(1)


def test_many_parameters_are_rows():
    fields = {f"a.p{number}": f"p{number}" for number in range(8)}
    tried = [finished(number, 0.5 + number / 100, values=dict.fromkeys(fields, number)) for number in range(9)]
    lines = rows(settings_table(tried, fields, ["mAP"], ["maximize"]))
    assert lines[0] == ["p0", "8", "7", "6", "5", "4", "3"]
    assert lines[-2] == ["mAP (%)", "58.0", "57.0", "56.0", "55.0", "54.0", "53.0"]


@pytest.mark.parametrize("directions", [MAX, TWO])
@pytest.mark.parametrize("n", range(3))
def test_few_settings_are_a_table_too(n, directions):
    objectives = ["mAP", "loss"][: len(directions)]
    table = settings_table([finished(i, *(0.5 for _ in directions)) for i in range(n)], NAMES, objectives, directions)
    assert len(rows(table)) == n and f"{n} finished" in words(table)
