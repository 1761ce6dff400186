"""Optuna's samplers (what to try next) and pruners (what to give up) by the names that search spaces use."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from optuna import pruners, samplers
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial

from ram_tune.errors import BadInput, nearest

Constraints = Callable[[FrozenTrial], Sequence[float]]
"""A finished trial → numbers that are at most 0 where it keeps the search's constraints."""

Made = TypeVar("Made")


def sampler(
    name: str, options: Mapping[str, Any], seed: int, number: int, constraints: Constraints | None = None
) -> samplers.BaseSampler:
    """The sampler `name` for asking trial `number` of a search.

    A fresh one is made for every ask. What it draws depends on `seed`, `number` and the trials that the study holds, and
    on nothing that a restart would lose.

    Raises BadInput for an unknown name or option, an option's value of the wrong kind or that Optuna refuses, a package
    that is not there, and for `constraints` that the sampler does not take.
    """
    make = _named("sampler", name, _SAMPLERS)
    if name == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise BadInput(
            "sampler",
            found="cmaes without the package cmaes",
            expected="the package, which this sampler needs",
            remedy="Install it: pip install cmaes.",
        )
    given: dict[str, Any] = {"seed": _drawn(seed, number)}
    if (
        name == "qmc"
    ):  # its points are one sequence, told apart by their index: one seed, but not for what falls outside
        given = {"seed": _drawn(seed), "independent_sampler": samplers.RandomSampler(seed=_drawn(seed, number))}
    if constraints is not None:
        if "constraints_func" not in inspect.signature(make).parameters:
            raise _unfit(name, "constraints", [other for other in _SAMPLERS if _constrainable(other)])
        given["constraints_func"] = constraints
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        warnings.filterwarnings("ignore", ".*constraints_func", FutureWarning)
        return _made("sampler", name, make, _SAMPLER_DEFAULTS.get(name, {}), options, given)


def check_sampler(name: str, options: Mapping[str, Any], objectives: int, constrained: bool) -> None:
    """Raise BadInput where `sampler` would, and for a sampler of one objective in a search with several."""
    sampler(name, options, 0, 0, (lambda _: ()) if constrained else None)
    if objectives > 1 and name in _ONE_OBJECTIVE:
        raise _unfit(name, f"{objectives} objectives", [other for other in _SAMPLERS if other not in _ONE_OBJECTIVE])


def pruner(name: str, options: Mapping[str, Any], epochs: int) -> pruners.BasePruner | None:
    """The pruner `name` for runs of `epochs` epochs that report each epoch, the first as 1; None for `none`.

    Raises BadInput for an unknown name or option, and for an option's value of the wrong kind or that Optuna refuses.
    """
    make = _named("pruner", name, _PRUNERS)
    defaults = {"max_resource": epochs} if name == "hyperband" else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        return _made("pruner", name, make, defaults, options)


def judges_epochs(name: str) -> bool:
    """Whether the pruner `name` compares runs epoch by epoch; `wilcoxon` compares settings seed by seed, `none` nothing."""
    return name not in ("wilcoxon", "none")


def _drawn(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _hyperband(
    min_resource: int = 1, max_resource: int = 1, reduction_factor: int = 3, bootstrap_count: int = 0
) -> pruners.BasePruner:
    # Hyperband itself looks at its options at the first epoch of the first run, which is late.
    pruners.SuccessiveHalvingPruner(min_resource, reduction_factor, bootstrap_count=bootstrap_count)
    if min_resource > max_resource:
        raise ValueError(
            f"min_resource {min_resource} is more than max_resource {max_resource}: it would judge nothing"
        )
    return pruners.HyperbandPruner(min_resource, max_resource, reduction_factor, bootstrap_count)


# `auto` is not among the values: Optuna would guess from the first finished runs, and guess again after a restart.
def _successive_halving(
    min_resource: int = 1, reduction_factor: int = 3, min_early_stopping_rate: int = 0, bootstrap_count: int = 0
) -> pruners.BasePruner:
    return pruners.SuccessiveHalvingPruner(min_resource, reduction_factor, min_early_stopping_rate, bootstrap_count)


def _percentile(
    percentile: float = 25.0,
    n_startup_trials: int = 5,
    n_warmup_steps: int = 0,
    interval_steps: int = 1,
    n_min_trials: int = 1,
) -> pruners.BasePruner:
    return pruners.PercentilePruner(
        percentile, n_startup_trials, n_warmup_steps, interval_steps, n_min_trials=n_min_trials
    )


# Only pruners that read nothing but the values: a halving one called now and then would not be restored as it was.
_PATIENT_OF: dict[str, Callable[[], pruners.BasePruner | None]] = {
    "median": pruners.MedianPruner,
    "percentile": _percentile,
    "none": lambda: None,
}


def _patient(patience: int = 3, min_delta: float = 0.0, wrapped_pruner: str = "median") -> pruners.BasePruner:
    if wrapped_pruner not in _PATIENT_OF:
        raise ValueError(f"wrapped_pruner {wrapped_pruner} is none of {', '.join(_PATIENT_OF)}")
    return pruners.PatientPruner(_PATIENT_OF[wrapped_pruner](), patience, min_delta)


def _none() -> None:
    return None


_SAMPLERS: dict[str, Callable[..., samplers.BaseSampler]] = {
    "tpe": samplers.TPESampler,
    "gp": samplers.GPSampler,
    "cmaes": samplers.CmaEsSampler,
    "qmc": samplers.QMCSampler,
    "nsga2": samplers.NSGAIISampler,
    "nsga3": samplers.NSGAIIISampler,
    "random": samplers.RandomSampler,
}
_SAMPLER_DEFAULTS: dict[str, dict[str, Any]] = {
    "tpe": {"multivariate": True, "group": True},
    # That a conditional parameter is drawn apart from the others is no news at every trial.
    "gp": {"warn_independent_sampling": False},
    "cmaes": {"warn_independent_sampling": False},
    # Unscrambled, the sequence begins in the corner of all lower bounds and is the same whatever the seed.
    "qmc": {"scramble": True, "warn_independent_sampling": False},
}
_ONE_OBJECTIVE = ("cmaes",)
_PRUNERS: dict[str, Callable[..., pruners.BasePruner | None]] = {
    "hyperband": _hyperband,
    "successive_halving": _successive_halving,
    "median": pruners.MedianPruner,
    "percentile": _percentile,
    "patient": _patient,
    "wilcoxon": pruners.WilcoxonPruner,
    "none": _none,
}


def _named(where: str, name: str, known: Mapping[str, Callable[..., Made]]) -> Callable[..., Made]:
    if name in known:
        return known[name]
    raise BadInput(where, found=name, expected=f"one of {', '.join(known)}", remedy=nearest(name, known))


def _constrainable(name: str) -> bool:
    return "constraints_func" in inspect.signature(_SAMPLERS[name]).parameters


def _unfit(name: str, what: str, fit: Sequence[str]) -> BadInput:
    return BadInput("sampler", found=f"{name} in a search with {what}", expected=f"one of {', '.join(fit)}")


def _made(
    where: str,
    name: str,
    make: Callable[..., Made],
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
) -> Made:
    """What `make` makes of `options` over `defaults`, with what is `given` by us alone."""
    takes = _takes(make)
    for option, value in options.items():
        if option not in takes:
            raise BadInput(
                where,
                found=f"option {option!r} of {name}",
                expected=f"one of {', '.join(takes)}" if takes else "no options",
                remedy=nearest(option, takes),
            )
        # An int will do where a float is asked for; a bool is none, although Python would have it so.
        if type(value).__name__ not in takes[option] | ({"int"} if "float" in takes[option] else set()):
            kinds = " or ".join(sorted(takes[option] - {"None"}))
            raise BadInput(where, found=f"{option}={value!r} of {name}", expected=f"a value of kind {kinds}")
    settings = {**defaults, **options}
    if settings.get("multivariate") is False and "group" not in options:
        settings["group"] = False  # which is a way of being multivariate
    try:
        return make(**settings, **(given or {}))
    except ValueError as error:
        written = ", ".join(f"{option}={value}" for option, value in settings.items())
        reason = str(error).rstrip(".")
        raise BadInput(
            where, found=f"{name} with {written}", expected=f"options it can work with ({reason})"
        ) from error


def _takes(make: Callable[..., Any]) -> dict[str, set[str]]:
    """Option → the kinds of its value, for those that a search space can write down: numbers, words, on and off."""
    found = {}
    for name, parameter in inspect.signature(make).parameters.items():
        written = parameter.annotation
        kinds = set((written if isinstance(written, str) else written.__name__).split(" | "))
        if name != "seed" and kinds <= {"int", "float", "str", "bool", "None"}:
            found[name] = kinds
    return found
