"""What is best: the metrics that a search may aim at, and limits on them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal, get_args

from ram_tune.errors import BadInput, nearest
from ram_tune.search.fields import shown

Metric = Literal["mAP", "mAP_11", "CF1", "OF1", "CP", "CR", "OP", "OR", "loss", "parameters", "ms_per_image"]
COSTS = ("parameters", "ms_per_image")
"""Metrics of the model, not of its scores: the same after every epoch."""
DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {
    name: "minimize" if name in ("loss", *COSTS) else "maximize" for name in get_args(Metric)
}
"""What objectives and constraints may name → what is wanted of it."""


def metric(name: str) -> str:
    """How a metric of DIRECTIONS is called among a run's numbers."""
    return f"cost/{name}" if name in COSTS else f"selection/{name}"


def parse_constraint(text: str, where: str = "constraints") -> tuple[str, Literal["<=", ">="], float]:
    """`ms_per_image <= 20` → metric, relation, limit. Raises BadInput."""
    parts = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*", text)
    name, relation, number = parts.groups() if parts else ("", "", "")
    try:
        limit = float(number)
    except ValueError:  # no match, or `1.2.3`
        limit = math.inf
    if not math.isfinite(limit):
        example = "`ms_per_image <= 20`"
        raise BadInput(where, found=shown(text), expected=f"a metric, <= or >=, and a number, such as {example}")
    if name not in DIRECTIONS:
        raise BadInput(
            where,
            found=f"the unknown metric {shown(name)}",
            expected=f"one of {', '.join(DIRECTIONS)}",
            remedy=nearest(name, DIRECTIONS),
        )
    if not (0 <= limit <= 1 or name in COSTS or name == "loss"):
        raise BadInput(where, found=shown(text), expected="a share from 0 to 1", remedy="Write 0.5 for 50 %.")
    return name, "<=" if relation == "<=" else ">=", limit


def excess(metrics: Mapping[str, float], limit: tuple[str, str, float]) -> float:
    """By how much a constraint is broken; 0 or less where it holds."""
    name, relation, bound = limit
    by = metrics[metric(name)] - bound
    return by if relation == "<=" else -by
