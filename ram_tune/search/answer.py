"""The answer of a sampled search, put together from its study: tables, and what a person should know of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from ram_tune.search.findings import Confirmed, Direction, Tried, best, importance_table, importances, settings_table
from ram_tune.search.jobs import Outcome
from ram_tune.search.objectives import COSTS, DIRECTIONS, metric
from ram_tune.search.parameters import at_edge, distributions, short
from ram_tune.search.plan import Maker
from ram_tune.search.settings import PAPERS, Need, confirmations, tried
from ram_tune.search.space import Space
from ram_tune.search.study import Study
from ram_tune.search.verdicts import unconfirmed, verdict, verdicts


def answer(study: Study, maker: Maker) -> tuple[list[Table], list[str]]:
    """Tables, and sentences; of as much as there is, also where the search was stopped or failed."""
    outcomes = study.outcomes()

    def confirmed(need: Need) -> Outcome:
        return outcomes.get(maker.jobs(need)[-1].fingerprint, Outcome())

    return answer_of(study, maker.space, maker.base.training.epochs, confirmed, maker.paper)


def answer_of(
    study: Study,
    space: Space,
    horizon: int,
    confirmed: Callable[[Need], Outcome],
    paper: Mapping[str, Any] | None = None,
) -> tuple[list[Table], list[str]]:
    """The same from the record alone. `horizon`: epochs of one run, which is all that most settings have; `confirmed`: how
    a run that confirms has ended; `paper`: the values of the paper's setting, for whoever asks by them.
    """
    settings = tried(study)
    names = {name: short(name, space.parameters) for name in space.parameters}
    directions: list[Direction] = [DIRECTIONS[name] for name in space.objectives]
    tables = [settings_table(settings, names, space.objectives, directions)]
    drawn = distributions(space.parameters)
    if settings:
        found = importances(settings, drawn)
        tables.append(importance_table(found, settings, drawn, names, space.objectives[0]))
    said = verdicts(settings, lambda values: at_edge(values, space.parameters), directions, space.objectives, horizon)
    fewer = sum(one.state == "finished" and len(one.seeds) < space.seeds for one in settings)
    if space.seeds > 1 and fewer:
        said.append(
            f"{fewer} settings have fewer than {space.seeds} seeds: they were not among the best when they ended"
        )
    return tables, [*_confirmed(settings, space, confirmed, paper), *said]


def is_complete(study: Study, maker: Maker) -> bool:
    """Whether nothing of the search is left to be run."""
    settings, outcomes = tried(study), study.outcomes()
    if len(settings) < maker.space.budget.trials or any(one.state == "open" for one in settings):
        return False
    needs = confirmations(maker.space, settings, maker.paper)
    return all(outcomes.get(maker.jobs(need)[-1].fingerprint, Outcome()).state == "finished" for need in needs)


def _confirmed(
    settings: Sequence[Tried],
    space: Space,
    confirmed: Callable[[Need], Outcome],
    paper: Mapping[str, Any] | None,
) -> list[str]:
    """Is the best setting better than the paper's? By the test images and fresh seeds where there are such runs."""
    directions: list[Direction] = [DIRECTIONS[name] for name in space.objectives]
    objective = space.objectives[0]
    chosen = best(settings, directions)
    if chosen is None:
        return []
    values: dict[str, list[float]] = {}
    for need in confirmations(space, settings, paper):
        values.setdefault(need.name, []).append(_tested(confirmed(need).metrics, objective))
    if not any(math.isfinite(value) for each in values.values() for value in each):
        return [unconfirmed(settings, directions, objective)]
    papers = Confirmed("paper", chosen.number if chosen.paper else -1, tuple(values.pop(PAPERS)))
    (bests,) = values.values() if values else (papers.values,)
    return [verdict(Confirmed("best", chosen.number, tuple(bests)), papers, objective, directions[0])]


def _tested(metrics: Mapping[str, float], objective: str) -> float:
    """An objective on the test images; of those that know no images, or no test, as it is."""
    name = metric(objective) if objective in (*COSTS, "loss") else f"test/{objective}"
    return metrics.get(name, math.nan)


def space_table(maker: Maker) -> Table:
    """What is drawn from what, and the paper's value of it."""
    table = Table(title="Parameters")
    for column in ("parameter", "drawn from", "the paper's"):
        table.add_column(column, overflow="fold")
    values = maker.base.flat()
    for name, domain in maker.space.parameters.items():
        paper = values[name]
        shown = ("off", "on")[paper] if isinstance(paper, bool) else f"{paper}"
        table.add_row(*map(Text, (name, domain.words(), shown)))
    return table


def plot_command(study: Study, storage: str) -> str:
    """How to look at the study in Optuna's own dashboard."""
    return f"optuna-dashboard {storage}  (study {study.name}; pip install optuna-dashboard)"
