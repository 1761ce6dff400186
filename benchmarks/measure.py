"""How things are measured and written down: always against something else in the same run, for machines are noisy."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """One line of the table: `ratio` of what was measured to `against`."""

    what: str
    against: str
    ratio: float
    target: float
    at_least: bool  # whether the target is a lower limit
    limit: str = ""  # what counting operations or bytes allows
    took: str = ""  # what both took, in this run

    @property
    def holds(self) -> bool:
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target

    def cells(self) -> list[str]:
        sign = "≥" if self.at_least else "≤"
        shown = f"{self.ratio:.2f} ×" if self.ratio < 100 else f"{self.ratio:.0f} ×"
        said = "yes" if self.holds else "**no**"
        return [self.what, self.against, shown, f"{sign} {self.target:g} ×", said, self.limit, self.took]


HEADER = ["what", "against", "measured", "target", "holds", "limit", "in this run"]


def markdown(rows: Iterable[Row]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def as_json(rows: Iterable[Row], about: dict[str, str]) -> str:
    return json.dumps({**about, "rows": [{**asdict(row), "holds": row.holds} for row in rows]}, indent=1)


def from_json(text: str) -> list[Row]:
    return [Row(**{name: value for name, value in row.items() if name != "holds"}) for row in json.loads(text)["rows"]]


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def side_by_side(works: Sequence[Callable[[], object]], rounds: int = 5) -> list[list[float]]:
    """Seconds of each of `works` in each of so many rounds, taking turns, after a round that warms up."""
    for work in works:
        work()
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for times, work in zip(taken, works, strict=True):
            times.append(seconds(work))
    return taken


def ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """The median over rounds of one / other."""
    return median(one / other for one, other in zip(ones, others, strict=True))
