"""Objectives and constraints: which way is better, and what is no constraint."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ram_tune.errors import BadInput
from ram_tune.evaluation.metrics import summary
from ram_tune.search.objectives import DIRECTIONS, metric, parse_constraint


def test_a_loss_and_what_a_model_costs_are_to_be_small():
    assert {name for name, way in DIRECTIONS.items() if way == "minimize"} == {"loss", "parameters", "ms_per_image"}
    scores, targets = np.eye(3), np.eye(3, dtype=bool)
    measured = summary(scores, scores, targets, np.zeros_like(targets), 3, 0.5)
    assert set(DIRECTIONS) - {"loss", "parameters", "ms_per_image"} <= set(measured)
    assert [metric(name) for name in ("mAP", "loss", "parameters", "ms_per_image")] == [
        "selection/mAP",
        "selection/loss",
        "cost/parameters",
        "cost/ms_per_image",
    ]


@given(
    name=st.sampled_from(["loss", "parameters", "ms_per_image"]),
    relation=st.sampled_from(["<=", ">="]),
    limit=st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**9), 10**9),
    gaps=st.lists(st.sampled_from(["", " ", "  "]), min_size=4, max_size=4),
)
def test_a_constraint_is_read_as_it_is_written(name, relation, limit, gaps):
    before, between, then, after = gaps
    assert parse_constraint(f"{before}{name}{between}{relation}{then}{limit}{after}") == (name, relation, limit)


@given(st.text() | st.from_regex(r"[a-zA-Z_]+ ?[<>=]+ ?[-+0-9.e]+"))
def test_whatever_is_no_constraint_is_bad_input(text):
    with suppress(BadInput):
        name, relation, limit = parse_constraint(text)
        assert name in DIRECTIONS and relation in ("<=", ">=") and math.isfinite(limit)
