"""A report put together: the tables of a search, what is to be said of it, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from ram_tune.search.answer import answer_of
from ram_tune.search.jobs import Outcome
from ram_tune.search.report import attention_table, failed_runs, mechanism_table, results_table
from ram_tune.search.reports import formats
from ram_tune.search.reports.compare import Comparison, compare
from ram_tune.search.reports.kept import Kept
from ram_tune.search.reports.tables import (
    difference_table,
    gains_table,
    labels_table,
    published_table,
    verdicts,
    without_reference,
)
from ram_tune.search.settings import Need

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Document:
    """All that a report says, whatever its format."""

    kept: Kept
    others: Sequence[Kept]
    comparison: Comparison
    answer: Sequence[Table]  # what every arm is worth; of a sampled search its settings
    said: Sequence[str] = ()  # sentences
    differences: Sequence[Table] = ()
    labels: Sequence[Table] = ()
    regions: Sequence[Table] = ()
    failed: Sequence[str] = field(default_factory=tuple)

    @property
    def title(self) -> str:
        return f"{self.kept.space.title} on {self.kept.dataset}"

    @property
    def tables(self) -> list[Table]:
        return [*self.answer, *self.differences, *self.labels, *self.regions]


def document(kept: Kept, others: Sequence[Kept] = (), metric: str = "mAP", reference: str = "") -> Document:
    """The report of `kept`, with the arms of `others` beside its own. Raises BadInput as `compare` does."""
    found = compare(kept, others, metric, reference)
    tables, said = [], verdicts(found)
    if kept.space.parameters:
        tables, said = _sampled(kept)
        said = [*said, *without_reference(found)]
    if kept.arms:
        tables.append(results_table(kept.space, kept.dataset, kept.jobs, kept.outcomes, kept.arms))
    for other in (one for one in others if one.arms):
        table = results_table(other.space, other.dataset, other.jobs, other.outcomes, other.arms)
        table.title = f"{table.title} ({escape(other.name)})"
        tables.append(table)
    return Document(
        kept,
        others,
        found,
        tables,
        said,
        _there(difference_table(found), published_table(found)),
        _there(gains_table(found), labels_table(found)),
        _there(mechanism_table(kept.jobs, kept.histories), attention_table(kept.jobs, kept.outcomes)),
        [line for one in (kept, *others) for line in failed_runs(one.study)],
    )


def _there(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table]


def _sampled(kept: Kept) -> tuple[list[Table], list[str]]:
    """What `answer` says at the end of a sampled search, from the record."""
    base = (kept.study.note("space") or {}).get("training.seed", 0)
    runs = {(job.setting, job.seed): kept.outcomes.get(job.fingerprint, Outcome()) for job in kept.jobs}

    def confirmed(need: Need) -> Outcome:
        return runs.get((need.name, base + need.seed), Outcome())

    return answer_of(kept.study, kept.space, kept.epochs, confirmed)


def show(found: Document, console: Console) -> None:
    """On a terminal."""
    if found.kept.space.question:
        console.print(found.kept.space.question, markup=False, highlight=False)
    for table in found.tables:
        console.print(table)
    for line in (*(f"· {sentence}" for sentence in found.said), *found.failed):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def markdown(found: Document) -> str:
    """The same as Markdown."""
    parts = [f"# {formats.escaped(found.title)}\n"]
    if found.kept.space.question:
        parts.append(f"{formats.escaped(found.kept.space.question)}\n")
    parts += [formats.markdown(table) for table in found.answer]
    parts += ["\n".join(f"- {formats.escaped(sentence)}" for sentence in found.said) + "\n"] if found.said else []
    parts += [formats.markdown(table) for table in (*found.differences, *found.labels, *found.regions)]
    if found.failed:
        parts.append("### Failed runs\n\n" + "\n".join(f"- {formats.escaped(line)}" for line in found.failed) + "\n")
    return "\n".join(parts)
