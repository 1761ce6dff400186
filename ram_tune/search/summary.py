"""What a search found, as it is printed at its end, kept with its run, and described in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ram_tune.search.answer import answer
from ram_tune.search.jobs import Job, Outcome
from ram_tune.search.plan import Maker
from ram_tune.search.report import attention_table, failed_runs, failures, mechanism_table, results_table
from ram_tune.search.reports.formats import escaped, markdown
from ram_tune.search.space import Space
from ram_tune.search.study import Study
from ram_tune.training.results import epochs, read_summary

WIDTH = 120  # characters of a table in a file


@dataclass(frozen=True)
class Summary:
    tables: Sequence[Table]
    said: Sequence[str]  # sentences on them
    failed: Sequence[str]  # a line for each failed run

    def shown(self) -> Group:
        """For a console."""
        return Group(*self.tables, *(Text(f"· {sentence}") for sentence in self.said))

    def text(self) -> str:
        plain = Console(width=WIDTH, color_system=None)
        with plain.capture() as text:
            plain.print(self.shown(), *self.failed, sep="\n", markup=False)
        return text.get()

    def markdown(self, longest: int) -> str:
        """As many of the tables, in their order, as `longest` characters hold; the failed runs before them."""
        found = "".join(f"- {escaped(line)}\n" for line in self.failed)
        for part in [*map(markdown, self.tables), "".join(f"- {escaped(sentence)}\n" for sentence in self.said)]:
            if len(found) + len(part) < longest:
                found += f"\n{part}"
        return found.strip()[:longest]


def summarise(
    space: Space,
    dataset: str,
    jobs: Sequence[Job],
    outcomes: Mapping[str, Outcome],
    study: Study,
    maker: Maker | None,
) -> Summary:
    """Of as much as there is. `jobs`: the plan, of named arms; `maker`: of a sampled search, whose `study` says the rest."""
    if maker:
        tables, said = answer(study, maker)
        return Summary(tables, said, failed_runs(study))
    tables = (
        results_table(space, dataset, jobs, outcomes),
        mechanism_table(jobs, histories(outcomes)),
        attention_table(jobs, outcomes),
    )
    return Summary([table for table in tables if table], [], failures(jobs, outcomes))


def histories(outcomes: Mapping[str, Outcome]) -> dict[str, list[dict[str, float]]]:
    """Fingerprint → the epochs of the runs whose files are there; the 0th is what regions did before the first."""
    found = {}
    for run, outcome in outcomes.items():
        summary = read_summary(Path(outcome.checkpoint)) if outcome.checkpoint else None
        if summary:
            found[run] = epochs(summary)
    return found
