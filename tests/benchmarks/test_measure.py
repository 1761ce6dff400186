"""The table of measurements: what is kept of a row, and when a target holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.measure import Row, as_json, from_json, markdown, ratio, side_by_side

FINITE = st.floats(0.01, 1000)
ROWS = st.builds(Row, st.text(), st.text(), FINITE, FINITE, st.booleans(), st.text(), st.text())


@given(st.lists(ROWS))
def test_rows_come_back_as_they_were(rows):
    assert from_json(as_json(rows, {"cpus": "2"})) == rows


def test_a_target_is_met_from_its_own_side():
    assert Row("a", "b", 10.0, 10, at_least=True).holds and Row("a", "b", 1.06, 1.06, at_least=False).holds
    assert not Row("a", "b", 9.9, 10, at_least=True).holds and not Row("a", "b", 1.07, 1.06, at_least=False).holds
    header, rule, line = markdown([Row("a", "b", 9.9, 10, at_least=True)]).splitlines()
    assert header.count("|") == rule.count("|") == line.count("|")
    assert "9.90 ×" in line and "≥ 10 ×" in line and "**no**" in line


def test_works_take_turns_after_a_round_that_is_not_counted():
    order: list[str] = []
    times = side_by_side([lambda: order.append("one"), lambda: order.append("other")], rounds=2)
    assert order == ["one", "other"] * 3
    assert [len(one) for one in times] == [2, 2]


def test_a_ratio_is_the_median_of_rounds_so_that_one_slow_round_does_not_count():
    assert ratio([2.0, 3.0, 90.0], [1.0, 1.0, 1.0]) == 3.0
