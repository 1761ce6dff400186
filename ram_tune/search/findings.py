"""What a sampled search found, said plainly: its best settings, what mattered, whether to believe it, whether to go on.

Values are those of the selection images until a setting is confirmed; nothing here reads a study or a file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ram_tune.search.statistics import half_width

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Direction = Literal["maximize", "minimize"]
PERCENT = frozenset({"mAP", "mAP_11", "CF1", "OF1", "CP", "CR", "OP", "OR"})
"""Objectives that are kept as shares of 1 and shown in percent."""

MOST_COLUMNS = 6
"""Parameters in the columns of a table; more of them are its rows."""

FEWEST_FOR_IMPORTANCE = 4
"""Finished settings under which no importance is told."""

FEWEST_FOR_TREND = 6
"""Finished settings under which it is not told whether the search still improves: their last third is one setting."""


@dataclass(frozen=True)
class Tried:
    """A setting that was tried."""

    number: int  # its trial in Optuna's study
    values: dict[str, Any]  # field → value, of the parameters that apply to it
    state: Literal["finished", "pruned", "failed", "open"]
    objectives: tuple[float, ...] = ()  # means over its seeds, in the search's order; of a finished setting only
    seeds: tuple[tuple[float, ...], ...] = ()  # the objectives of each finished seed
    feasible: bool = True  # whether it keeps the search's constraints
    reason: str = ""  # why it was given up, or the error's line
    epochs: int = 0  # trained in all, over seeds
    paper: bool = False  # whether it is the paper's setting
    cheap: bool = False  # whether only its cheap run was made, whose values are not comparable with the others'


@dataclass(frozen=True)
class Confirmed:
    """A setting trained again with fresh seeds, and measured on the test images."""

    name: Literal["best", "paper"]
    number: int  # its trial in Optuna's study
    values: tuple[float, ...]  # the first objective of each fresh seed, in the seeds' order; NaN: it did not finish


def pareto(tried: Sequence[Tried], directions: Sequence[Direction]) -> list[Tried]:
    """The feasible finished settings that none other dominates, best first objective first; ties are kept.

    One dominates another if it is as good in every objective and better in one. With one objective: all that share the
    best value.
    """
    gains = {one.number: gains_of(one, directions) for one in tried if measured(one) and one.feasible}
    known = {one.number: one for one in tried}
    front: list[int] = []
    # In this order whatever dominates a setting comes before it.
    for number in sorted(gains, key=lambda number: ([-gain for gain in gains[number]], number)):
        if not any(_dominates(gains[other], gains[number]) for other in front):
            front.append(number)
    return [known[number] for number in front]


def best(tried: Sequence[Tried], directions: Sequence[Direction]) -> Tried | None:
    """The best by the first objective of the feasible finished settings (of several objectives: of the Pareto front).

    The earliest of several as good; None where none has finished.
    """
    return next(iter(pareto(tried, directions)), None)


def settings_table(
    tried: Sequence[Tried],
    names: Mapping[str, str],
    objectives: Sequence[str],
    directions: Sequence[Direction],
    limit: int = 10,
) -> Table:
    """The `limit` best settings, a row each, and the paper's if it has finished: parameters, objectives, seeds.

    `names`: parameter's field → its short name. With several objectives the Pareto front comes first and is marked. Then
    come feasible settings by the first objective, and those that break a constraint. With many parameters the table lies
    on its side, a column for each of fewer settings.
    """
    front = {one.number for one in pareto(tried, directions)}
    ranked = sorted(
        (one for one in tried if measured(one)),
        key=lambda one: (not one.feasible, one.number not in front, -gains_of(one, directions)[0], one.number),
    )
    sideways = len(names) > MOST_COLUMNS
    limit = min(limit, MOST_COLUMNS) if sideways else limit
    shown = [one for place, one in enumerate(ranked) if place < limit or one.paper]
    fields = dict.fromkeys([*names, *(field for one in shown for field in one.values)])
    lines = [
        [Text(name) for name in ("setting", *(names.get(f, f) for f in fields), *map(_headed, objectives), "seeds")]
    ]
    for one in shown:
        mark = f"{' (paper)' if one.paper else ''}{' *' if len(directions) > 1 and one.number in front else ''}"
        parameters = [_parameter(one.values[field]) if field in one.values else "—" for field in fields]
        cells = [_measurement(one, place, objective) for place, objective in enumerate(objectives)]
        name = f"{one.number}{mark}{'' if one.feasible else ' †'}"
        lines.append([Text(text) for text in (name, *parameters, *cells, f"{len(one.seeds) or 1}")])
    table = Table(title="Best settings", caption_justify="left")
    head, *rows = zip(*lines, strict=True) if sideways else lines
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    notes = [f"{_count(tried)}; values are of the selection images"]
    if len(ranked) > len(shown):
        notes.append(f"{plural(len(ranked) - len(shown), 'more setting')} finished")
    if any(len(one.seeds) > 1 for one in shown):
        notes.append("± is the 95 % interval over seeds")
    if front and len(directions) > 1:
        notes.append(
            f"* {len(front)} on the Pareto front: none is as good in every objective and better in one of them"
        )
    if not all(one.feasible for one in shown):
        notes.append("† breaks a constraint")
    table.caption = escape("\n".join(notes))
    return table


def importances(tried: Sequence[Tried], parameters: Mapping[str, BaseDistribution], seed: int = 0) -> dict[str, float]:
    """Field → share of the differences in the first objective that it explains by itself (fANOVA); they sum to 1.

    The greatest comes first. Only parameters that every finished setting has can be compared, see `left_out`. Empty with
    fewer than four finished settings, or where nothing varies. `seed`: of fANOVA's random forest.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    study = comparable_study(tried, parameters)
    if study is None:
        return {}
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    return {field: float(share) for field, share in shares.items()}  # of NumPy's floats


def comparable_study(tried: Sequence[Tried], parameters: Mapping[str, BaseDistribution]) -> optuna.Study | None:
    """A study in memory of the settings and the parameters that `importances` goes by; None where it has nothing to go by."""
    import optuna

    settings, missing = _comparable(tried, parameters), left_out(tried, parameters)
    varied = {field: parameters[field] for field in parameters if field not in missing}
    values = [one.objectives[0] for one in settings]
    spread = stdev(values) if len(values) >= FEWEST_FOR_IMPORTANCE else 0.0
    if not varied or not spread:
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    centre = mean(values)
    for one, value in zip(settings, values, strict=True):
        study.add_trial(
            optuna.trial.create_trial(
                # The shares do not depend on the scale, and squares of very small differences would vanish.
                value=(value - centre) / spread,
                params={field: one.values[field] for field in varied},
                distributions=varied,
            )
        )
    return study


def left_out(tried: Sequence[Tried], parameters: Mapping[str, BaseDistribution]) -> dict[str, str]:
    """Field → why `importances` says nothing about it."""
    settings, why = _comparable(tried, parameters), {}
    for field in parameters:
        values = [one.values[field] for one in settings if field in one.values]
        if len(values) < len(settings):
            why[field] = "does not apply to every setting"
        elif all(value == values[0] for value in values):
            why[field] = "is the same in every setting"
    return why


def importance_table(
    found: Mapping[str, float],
    tried: Sequence[Tried],
    parameters: Mapping[str, BaseDistribution],
    names: Mapping[str, str],
    objective: str,
) -> Table:
    """What `importances` found, a row for each parameter; without rows it says why there is nothing to show."""
    table = Table(title=escape(f"What {objective} depends on"), caption_justify="left")
    table.add_column("parameter")
    table.add_column("importance (%)", justify="right")
    for field, share in found.items():
        table.add_row(Text(names.get(field, field)), f"{100 * share:.0f}")
    settings = len(_comparable(tried, parameters))
    if found:
        notes = [
            f"of the differences between {settings} finished settings, each parameter by itself (fANOVA)",
            "it goes by the settings that were tried: with few of them a rough guess",
        ]
        for field, reason in left_out(tried, parameters).items():
            notes.append(f"left out: {names.get(field, field)}, which {reason}")
    elif settings < FEWEST_FOR_IMPORTANCE:
        notes = [f"{plural(settings, 'finished setting')}: at least {FEWEST_FOR_IMPORTANCE} are needed to tell"]
    else:
        notes = [
            f"{settings} finished settings, but {objective} or every parameter is the same in all: nothing to tell"
        ]
    table.caption = escape("\n".join(notes))
    return table


def measured(one: Tried) -> bool:
    """Has it values that can be compared with others'?"""
    return one.state == "finished" and not one.cheap and all(map(math.isfinite, one.objectives))


def gains_of(one: Tried, directions: Sequence[Direction]) -> tuple[float, ...]:
    """Its objectives, so that more is better."""
    pairs = zip(one.objectives, directions, strict=True)
    return tuple(value if direction == "maximize" else -value for value, direction in pairs)


def _dominates(gains: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return gains != others and all(gain >= other for gain, other in zip(gains, others, strict=True))


def _comparable(tried: Sequence[Tried], parameters: Mapping[str, BaseDistribution]) -> list[Tried]:
    """The finished settings whose values lie in today's domains: those may have been changed since."""
    from optuna.trial import create_trial

    inside = []
    for one in filter(measured, tried):
        known = {field: value for field, value in one.values.items() if field in parameters}
        try:
            create_trial(value=0.0, params=known, distributions={field: parameters[field] for field in known})
        except ValueError:
            continue
        inside.append(one)
    return inside


def _count(tried: Sequence[Tried]) -> str:
    states = Counter("cheap run only" if one.cheap and one.state == "finished" else one.state for one in tried)
    words = [f"{states[state]} {state}" for state in ("finished", "pruned", "failed", "open")]
    words += [f"{count} {state}" for state, count in states.items() if state == "cheap run only"]
    return f"{plural(len(tried), 'setting')}: {', '.join(words)}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _headed(objective: str) -> str:
    return f"{objective} (%)" if objective in PERCENT else objective


def _measurement(one: Tried, place: int, objective: str) -> str:
    """An objective as a cell: its mean, and the half-width of its interval where there are several seeds."""
    show = (lambda value: f"{100 * value:.1f}") if objective in PERCENT else _number
    mean = show(one.objectives[place])
    if len(one.seeds) < 2:
        return mean
    return f"{mean} ± {show(half_width([seed[place] for seed in one.seeds]))}"


def worded(objective: str, value: float) -> str:
    return f"{100 * value:.1f} %" if objective in PERCENT else _number(value)


def _parameter(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    """Three significant digits; large ones written out: 138,000,000."""
    short = f"{value:.3g}"
    return f"{float(short):,.0f}" if abs(value) >= 1000 else short
