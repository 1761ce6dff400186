"""Samplers and pruners by name: the right ones, with the options given, and no memory that a restart would lose."""

from __future__ import annotations

import importlib.util
import pickle
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna import pruners, samplers
from optuna.storages import InMemoryStorage

from ram_tune.errors import BadInput
from ram_tune.search import samplers as ours
from ram_tune.search.samplers import check_sampler, judges_epochs, pruner, sampler

optuna.logging.set_verbosity(optuna.logging.ERROR)

CLASSES = {
    "tpe": samplers.TPESampler,
    "gp": samplers.GPSampler,
    "cmaes": samplers.CmaEsSampler,
    "qmc": samplers.QMCSampler,
    "nsga2": samplers.NSGAIISampler,
    "nsga3": samplers.NSGAIIISampler,
    "random": samplers.RandomSampler,
}
# Options with which each sampler soon leaves its random beginning, and trials enough to see it.
LIVELY: dict[str, tuple[dict[str, Any], int]] = {
    "tpe": ({"n_startup_trials": 4}, 14),
    "gp": ({"n_startup_trials": 3}, 5),
    "cmaes": ({"popsize": 4}, 14),
    "qmc": ({}, 14),
    "nsga2": ({"population_size": 4}, 14),
    "nsga3": ({"population_size": 4}, 14),
    "random": ({}, 14),
}
needs_cmaes = pytest.mark.skipif(importlib.util.find_spec("cmaes") is None, reason="needs the package cmaes")
EVERY = [pytest.param(name, marks=needs_cmaes if name == "cmaes" else ()) for name in CLASSES]


def draw(trial: optuna.Trial) -> float:
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 1e-3, 10, log=True)
    regions = trial.suggest_int("regions", 1, 9)
    if trial.suggest_categorical("anchor", ["on", "off"]) == "on":
        trial.suggest_float("weight", 0, 1)
    return -((x - 0.3) ** 2) - (np.log10(y) - 0.5) ** 2 - 0.1 * abs(regions - 5)


def go_on(storage: InMemoryStorage, name: str, options: Mapping[str, Any], seed: int, to: int) -> None:
    """Try settings, one after the other, until there are `to`."""
    study = optuna.load_study(study_name="s", storage=storage)
    for number in range(len(study.trials), to):
        study.sampler = sampler(name, options, seed, number)
        trial = study.ask()
        study.tell(trial, draw(trial))


def storage() -> InMemoryStorage:
    kept = InMemoryStorage()
    optuna.create_study(study_name="s", storage=kept, direction="maximize")
    return kept


def tried(name: str, seed: int, stops: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """The settings of a search that a new process takes up after each of `stops` trials."""
    options, count = LIVELY[name]
    kept = storage()
    for to in (*stops, count):
        go_on(kept, name, options, seed, to)
        kept = pickle.loads(pickle.dumps(kept))
    return [trial.params for trial in optuna.load_study(study_name="s", storage=kept).trials]


@pytest.mark.parametrize("name", EVERY)
def test_a_name_makes_its_sampler(name):
    assert type(sampler(name, {}, 0, 0)) is CLASSES[name]


@pytest.mark.parametrize("name", EVERY)
def test_a_restarted_search_goes_on_as_if_it_had_not_stopped(name):
    assert tried(name, 7, stops=(1, 4)) == tried(name, 7)


@pytest.mark.parametrize("name", EVERY)
def test_another_seed_is_another_search(name):
    one, other = tried(name, 1), tried(name, 2)
    assert not [params for params in one if params in other]


@pytest.mark.parametrize("name", EVERY)
def test_no_setting_comes_twice(name):
    found = tried(name, 2)
    assert len({repr(params) for params in found}) == len(found)
    weights = [params["weight"] for params in found if "weight" in params]
    assert len(weights) > 1 and len(set(weights)) == len(weights)  # the conditional one is drawn anew each time


@pytest.mark.parametrize("name", ["tpe", pytest.param("cmaes", marks=needs_cmaes)])
def test_a_fresh_sampler_at_every_ask_still_learns_from_what_was_tried(name):
    kept = storage()
    go_on(kept, name, {}, 0, 60)
    values = [trial.value for trial in optuna.load_study(study_name="s", storage=kept).trials]
    assert np.median(values[-15:]) > np.median(values[:15]) + 0.2


def test_qmc_covers_each_parameter_evenly():
    kept = storage()
    go_on(kept, "qmc", {}, 0, 17)
    trials = optuna.load_study(study_name="s", storage=kept).trials[1:]  # the first one is drawn at random
    eighths = [int(trial.params["x"] * 8) for trial in trials]
    assert sorted(eighths) == sorted([*range(8)] * 2)


@pytest.fixture
def said(caplog):
    """What Optuna logs of warnings."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.enable_propagation()
    yield caplog
    optuna.logging.disable_propagation()
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_said_about_experiments_or_conditional_parameters(name, said):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tried(name, 0)
    # GP says once that it would be faster with one more package.
    assert not [record for record in said.records if "greenlet" not in record.getMessage()]


def test_options_are_passed_on():
    options = {"n_startup_trials": 3, "multivariate": False, "constant_liar": False}
    made, plain = sampler("tpe", options, 0, 0), sampler("tpe", {}, 0, 0)
    assert (made._n_startup_trials, made._multivariate, made._group, made._constant_liar) == (3, False, False, False)
    assert (plain._n_startup_trials, plain._multivariate, plain._group) == (10, True, True)
    assert sampler("nsga2", {"population_size": 6, "crossover_prob": 1}, 0, 0).population_size == 6
    assert sampler("qmc", {"qmc_type": "halton"}, 0, 0)._qmc_type == "halton"


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "nsga3"])
def test_constraints_are_noted_with_the_trial(name):
    study = optuna.create_study(direction="maximize")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.sampler = sampler(name, {}, 0, 0, lambda trial: (trial.params["x"] - 2,))
    trial = study.ask()
    value = draw(trial)
    study.tell(trial, value)
    assert list(study.trials[0].constraints.values()) == [study.trials[0].params["x"] - 2]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("tep", {}, ["found tep", "gp, cmaes", "Did you mean tpe?"]),
        ("tpe", {"n_startup_trial": 3}, ["'n_startup_trial' of tpe", "multivariate", "Did you mean n_startup_trials?"]),
        ("tpe", {"seed": 3}, ["'seed' of tpe"]),
        ("tpe", {"constraints_func": None}, ["'constraints_func' of tpe"]),
        ("gp", {"independent_sampler": "random"}, ["'independent_sampler' of gp"]),
        ("random", {"x": 1}, ["'x' of random", "no options"]),
        ("tpe", {"n_startup_trials": "ten"}, ["n_startup_trials='ten'", "kind int"]),
        ("tpe", {"n_startup_trials": True}, ["n_startup_trials=True", "kind int"]),
        ("nsga2", {"population_size": 1}, ["population_size=1", "greater than or equal to 2"]),
        ("tpe", {"multivariate": False, "group": True}, ["multivariate=False", "group"]),
    ],
)
def test_what_a_sampler_does_not_know_is_refused(name, options, words):
    with pytest.raises(BadInput) as error:
        check_sampler(name, options, 1, False)
    assert str(error.value).startswith("sampler: ")
    assert all(word in str(error.value) for word in words)


def test_an_option_lists_neither_our_seed_nor_what_yaml_cannot_write():
    with pytest.raises(BadInput) as error:
        sampler("gp", {"?": 1}, 0, 0)
    assert error.value.expected == "one of n_startup_trials, deterministic_objective, warn_independent_sampling"


def test_cmaes_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="pip install cmaes"):
        check_sampler("cmaes", {}, 1, False)


@needs_cmaes
def test_a_search_with_several_objectives_needs_a_sampler_that_has_them():
    check_sampler("cmaes", {}, 1, False)
    with pytest.raises(BadInput, match=r"cmaes in a search with 2 objectives.*tpe, gp, qmc"):
        check_sampler("cmaes", {}, 2, False)


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "cmaes"])
def test_the_others_suggest_for_several_objectives(name):
    check_sampler(name, {}, 2, False)
    options, count = LIVELY[name]
    study = optuna.create_study(directions=["maximize", "minimize"])
    for number in range(count):
        study.sampler = sampler(name, options, 0, number)
        trial = study.ask()
        study.tell(trial, (draw(trial), trial.params["x"]))


@pytest.mark.parametrize("name", ["random", "qmc", pytest.param("cmaes", marks=needs_cmaes)])
def test_a_search_with_constraints_needs_a_sampler_that_takes_them(name):
    check_sampler(name, {}, 1, False)
    with pytest.raises(BadInput, match=f"{name} in a search with constraints.*one of tpe, gp, nsga2, nsga3"):
        check_sampler(name, {}, 1, True)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("hyperband", pruners.HyperbandPruner),
        ("successive_halving", pruners.SuccessiveHalvingPruner),
        ("median", pruners.MedianPruner),
        ("percentile", pruners.PercentilePruner),
        ("patient", pruners.PatientPruner),
        ("wilcoxon", pruners.WilcoxonPruner),
        ("none", type(None)),
    ],
)
def test_a_name_makes_its_pruner(name, made):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(pruner(name, {}, 27)) is made


def test_pruners_have_our_defaults_under_the_options_given():
    made = pruner("hyperband", {}, 27)
    assert (made._min_resource, made._max_resource, made._reduction_factor) == (1, 27, 3)
    made = pruner("hyperband", {"reduction_factor": 2, "max_resource": 9}, 27)
    assert (made._max_resource, made._reduction_factor) == (9, 2)
    made = pruner("successive_halving", {}, 27)
    assert (made._min_resource, made._reduction_factor) == (1, 3)
    made = pruner("patient", {"min_delta": 0.01}, 27)
    assert (made._patience, made._min_delta, type(made._wrapped_pruner)) == (3, 0.01, pruners.MedianPruner)
    assert pruner("patient", {"patience": 1, "wrapped_pruner": "none"}, 27)._wrapped_pruner is None
    assert pruner("median", {"n_warmup_steps": 2}, 27)._n_warmup_steps == 2
    assert pruner("percentile", {"percentile": 40}, 27)._percentile == 40
    assert pruner("wilcoxon", {"p_threshold": 0.2}, 27)._p_threshold == 0.2


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("hyperbnd", {}, ["found hyperbnd", "Did you mean hyperband?"]),
        ("hyperband", {"reduction": 3}, ["'reduction' of hyperband", "Did you mean reduction_factor?"]),
        ("hyperband", {"reduction_factor": 1}, ["reduction_factor=1", ">= 2"]),
        ("hyperband", {"min_resource": 0}, ["min_resource=0", ">= 1"]),
        ("hyperband", {"min_resource": 28}, ["min_resource 28 is more than max_resource 27"]),
        ("hyperband", {"max_resource": "auto"}, ["max_resource='auto'", "kind int"]),
        ("successive_halving", {"min_resource": "auto"}, ["min_resource='auto'", "kind int"]),
        ("median", {"interval_steps": 0}, ["interval_steps=0", "at least 1"]),
        ("patient", {"patience": -1}, ["patience=-1", "negative"]),
        ("patient", {"wrapped_pruner": "hyperband"}, ["wrapped_pruner=hyperband", "median, percentile, none"]),
        ("wilcoxon", {"p_threshold": 2.0}, ["p_threshold=2.0", "between 0 and 1"]),
        ("none", {"patience": 1}, ["'patience' of none", "no options"]),
    ],
)
def test_what_a_pruner_does_not_know_is_refused(name, options, words):
    with pytest.raises(BadInput) as error:
        pruner(name, options, 27)
    assert str(error.value).startswith("pruner: ")
    assert all(word in str(error.value) for word in words)


def test_only_wilcoxon_and_none_judge_no_epochs():
    assert [name for name in ours._PRUNERS if not judges_epochs(name)] == ["wilcoxon", "none"]
