"""Parameters: fields of the configuration that a sampler draws, their domains, and when each applies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ram_tune.config import fields
from ram_tune.errors import BadInput, nearest
from ram_tune.presets import known_fields
from ram_tune.search.domains import Domain, condition_words, holds, plainly, same
from ram_tune.search.fields import Fields, check_values, shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

EDGE = 0.02
"""A drawn number this near to a bound of its domain, as a share of the domain, is at its edge. *Decided*."""


SEEDS = ("training.seed", "stage1.seed")
"""Fields that are chance: no value of theirs is better than another."""

Parameters = Mapping[str, Domain]
"""Field of the configuration → what it is drawn from."""


def check(parameters: Parameters, where: str) -> None:
    """Raise BadInput, naming `where` and the field, for a domain or a condition that cannot be meant."""
    unhashed = {name for name, about in fields() if not about["hashed"]}
    for name, domain in parameters.items():
        known_fields([name], where)
        if name in unhashed:
            execution = name.startswith("execution.")
            raise BadInput(
                f"{where}: {name}",
                found="how a run is executed" if execution else "a choice of images",
                expected="a field that changes the result" if execution else "the same images for all settings",
                remedy="It belongs to `base` or `--set`.",
            )
        if name in SEEDS:
            raise BadInput(
                f"{where}: {name}",
                found="chance",
                expected="a field that can be better or worse",
                remedy="`seeds` says how often a setting is trained.",
            )
        _check_domain(name, domain, where)
        for parent, condition in domain.when.items():
            _check_condition(parameters, name, parent, condition, where)
    if circle := _circle(parameters):
        raise BadInput(
            f"{where}: {circle[0]}",
            found=f"conditions that go in a circle: {' → '.join(circle)}",
            expected="a parameter that applies without the others",
            remedy="Remove one of the conditions.",
        )


def _check_domain(name: str, domain: Domain, where: str) -> None:
    here, kind = f"{where}: {name}", Fields.model_fields[name].annotation
    if domain.choice is not None:
        _check_choices(name, domain.choice, where)
        if domain.log or domain.step is not None:
            raise BadInput(here, found="a choice with log or step", expected="these with int or float alone")
        return
    low, high = domain.written
    if kind is bool:
        raise BadInput(here, found="numbers for a switch", expected="choice: [on, off]")
    if kind is int and domain.real is not None:
        raise BadInput(here, found="float", expected="int, for the field takes whole numbers")
    if low > high:
        raise BadInput(here, found=shown([low, high]), expected="[low, high]", remedy="Nothing lies between them.")
    if domain.log and low <= 0:
        raise BadInput(here, found=f"log with the low bound {shown(low)}", expected="a low bound above 0")
    if domain.step is not None:
        if domain.log:
            raise BadInput(here, found="log and step", expected="one of them")
        if domain.step <= 0:
            raise BadInput(here, found=f"step {shown(domain.step)}", expected="a step above 0")
        if domain.integer and domain.step % 1:
            raise BadInput(here, found=f"step {shown(domain.step)}", expected="a whole step between whole numbers")
    for bound in (low, high):
        check_values({name: bound}, where)


def _check_choices(name: str, choices: tuple[Any, ...], where: str) -> None:
    here = f"{where}: {name}"
    if not choices:
        raise BadInput(here, found="no choice", expected="at least one")
    for number, value in enumerate(choices):
        read = check_values({name: value}, where)[name]
        if not same(read, value):  # such as '512', or 1 for a switch: it would never equal what a run has
            raise BadInput(here, found=shown(value), expected=f"{plainly(read)}, as the field reads it")
        if any(same(value, other) for other in choices[:number]):
            raise BadInput(here, found=f"the choice {shown(value)} twice", expected="every choice once")


def _check_condition(parameters: Parameters, name: str, parent: str, condition: Any, where: str) -> None:
    here = f"{where}: {name}.when"
    if parent == name:
        raise BadInput(here, found=f"a condition on {name} itself", expected="a condition on another parameter")
    if parent not in parameters:
        raise BadInput(
            here,
            found=f"a condition on {parent!r}, which is no parameter",
            expected=f"one of {', '.join(parameters)}",
            remedy=nearest(parent, parameters),
        )
    choices = parameters[parent].choice or ()
    if isinstance(condition, Mapping) and any(isinstance(one, str | bool) for one in choices):
        raise BadInput(here, found=f"{condition_words(condition)} for {parent}", expected="one or more of its choices")


def _circle(parameters: Parameters) -> list[str]:
    """Parameters whose conditions name one another in a circle, the first one again as the last; or none."""
    seen: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in seen:
            return []
        seen.add(name)
        return next(filter(None, (visit(parent, [*path, name]) for parent in parameters[name].when)), [])

    return next(filter(None, (visit(name, []) for name in parameters)), [])


def ordered(parameters: Parameters) -> list[str]:
    """The parameters, each after those its condition names, otherwise as written."""
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        for parent in parameters[name].when:
            visit(parent)
        order.setdefault(name)

    for name in parameters:
        visit(name)
    return list(order)


def active(values: Mapping[str, Any], parameters: Parameters) -> list[str]:
    """The parameters that apply where the others have these values, as written."""
    apply: set[str] = set()
    for name in ordered(parameters):
        conditions = parameters[name].when.items()
        if all(parent in apply and parent in values and holds(limit, values[parent]) for parent, limit in conditions):
            apply.add(name)
    return [name for name in parameters if name in apply]


def suggest(trial: BaseTrial, parameters: Parameters) -> dict[str, Any]:
    """What the trial's sampler draws for the parameters that apply, and for no other."""
    values: dict[str, Any] = {}
    for name in ordered(parameters):
        if name not in active(values, parameters):
            continue
        domain = parameters[name]
        if domain.choice is not None:
            values[name] = trial.suggest_categorical(name, domain.choice)
            continue
        low, high = domain.bounds
        if domain.integer is not None:
            step = int(domain.step or 1)
            values[name] = trial.suggest_int(name, int(low), int(high), step=step, log=domain.log)
        else:
            values[name] = trial.suggest_float(name, low, high, step=domain.step, log=domain.log)
    return values


MOST_COMBINATIONS = 10_000


def combinations(parameters: Parameters) -> list[dict[str, Any]] | None:
    """Every setting that can be drawn; None where a parameter has a continuous domain or there are over 10,000."""
    found: list[dict[str, Any]] = [{}]
    for name in ordered(parameters):
        domain = parameters[name]
        if domain.choice is not None:
            values: list[Any] = list(domain.choice)
        elif domain.integer is not None:
            low, high = domain.bounds
            values = list(range(int(low), int(high) + 1, int(domain.step or 1)))
        else:
            return None
        longer: list[dict[str, Any]] = []
        for one in found:
            longer += [{**one, name: value} for value in values] if name in active(one, parameters) else [one]
        found = longer
        if len(found) > MOST_COMBINATIONS:
            return None
    return found


def distributions(parameters: Parameters) -> dict[str, BaseDistribution]:
    """The domains as Optuna has them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, domain in parameters.items():
        if domain.choice is not None:
            found[name] = CategoricalDistribution(domain.choice)
            continue
        low, high = domain.bounds
        if domain.integer is not None:
            found[name] = IntDistribution(int(low), int(high), log=domain.log, step=int(domain.step or 1))
        else:
            found[name] = FloatDistribution(low, high, log=domain.log, step=domain.step)
    return found


def within(values: Mapping[str, Any], parameters: Parameters) -> tuple[dict[str, Any], list[str]]:
    """Of a flat configuration: the parameters that apply, as a sampler would draw them; and those outside their domain."""
    inside: dict[str, Any] = {}
    outside = []
    for name in active(values, parameters):
        try:
            inside[name] = parameters[name].member(values[name])
        except ValueError:
            outside.append(name)
    return inside, outside


def at_edge(values: Mapping[str, Any], parameters: Parameters) -> list[str]:
    """Which numbers lie at the edge of their domain, in words: a better one may lie beyond it."""
    found = []
    for name in active(values, parameters):
        domain = parameters[name]
        if domain.choice is not None or name not in values:
            continue
        low, high = domain.bounds
        scale = math.log if domain.log else float
        margin = EDGE * (scale(high) - scale(low)) if domain.integer is None else 0
        value = values[name]
        lower, upper = scale(value) - scale(low) <= margin, scale(high) - scale(value) <= margin
        if lower != upper:  # both in a domain of one value: it has no edge
            text = str(value) if domain.integer else f"{value:.3g}"
            edge = "lower" if lower else "upper"
            found.append(f"{name}={text} is at the {edge} edge of {plainly(low)} to {plainly(high)}")
    return found


def plain(parameters: Parameters) -> dict[str, Any]:
    """The parameters as JSON has them."""
    return {
        name: domain.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for name, domain in parameters.items()
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """How `new` differs from `old` (both from `plain`), in words; their order is no difference."""
    before, after = ({name: Domain.model_validate(one) for name, one in tree.items()} for tree in (old, new))
    found = [f"{name} is gone: it was {before[name].words()}" for name in before if name not in after]
    for name, domain in after.items():
        if name not in before:
            found.append(f"{name} is new: {domain.words()}")
        elif domain != before[name]:
            found.append(f"{name} was {before[name].words()}; it is now {domain.words()}")
    return found


def short(name: str, names: Iterable[str]) -> str:
    """The last parts of a dotted name, as few as no other of `names` ends with."""
    others = [f".{other}" for other in names if other != name]
    parts = name.split(".")
    endings = (".".join(parts[-count:]) for count in range(1, len(parts)))
    return next((end for end in endings if not any(other.endswith(f".{end}") for other in others)), name)
