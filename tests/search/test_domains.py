"""Domains: what is none is refused, what cannot be meant of a field is named."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from ram_tune.errors import BadInput
from ram_tune.search.domains import Domain
from ram_tune.search.parameters import check


def made(**domains: dict[str, Any]) -> dict[str, Domain]:
    """Domains by field; `loss__anchor` stands for `loss.anchor`."""
    return {name.replace("__", "."): Domain.model_validate(domain) for name, domain in domains.items()}


@pytest.mark.parametrize(
    ("domain", "value", "found"),
    [
        ({"int": [1, 9]}, 9.0, 9),
        ({"int": [1, 9]}, 2.5, None),
        ({"int": [1, 9]}, True, None),
        ({"int": [1, 9], "step": 2}, 4, None),
        ({"int": [1, 9], "step": 3}, 9, None),  # the grid ends at 7
        ({"float": [0, 1]}, 1, 1.0),
        ({"float": [0, 1]}, 1.0001, None),
        ({"float": [0, 1]}, "half", None),
        ({"float": [0, 1], "step": 0.1}, 0.3, 0.3),
        ({"float": [0, 1], "step": 0.1}, 0.35, None),
        ({"choice": ["a", "b"]}, "b", "b"),
        ({"choice": ["a", "b"]}, "c", None),
        ({"choice": [1, 2]}, True, None),
        ({"choice": [0, 1.5]}, 0.0, 0),
    ],
)
def test_a_value_is_taken_as_its_domain_has_it(domain, value, found):
    read = Domain.model_validate(domain)
    if found is None:
        with pytest.raises(ValueError):
            read.member(value)
    else:
        assert read.member(value) == found and type(read.member(value)) is type(found)


# what cannot be meant


@pytest.mark.parametrize(
    ("name", "domain", "words"),
    [
        ("model.region", {"int": [1, 9]}, ["'model.region'", "Did you mean model.regions?"]),
        ("loss.anchor", {"choice": []}, ["no choice", "at least one"]),
        ("model.regions", {"int": [9, 1]}, ["[9, 1]", "[low, high]"]),
        ("loss.anchor_weight", {"float": [1, 0.1]}, ["[1.0, 0.1]", "[low, high]"]),
        ("loss.anchor_weight", {"float": [0, 1], "log": True}, ["log", "low bound 0", "above 0"]),
        ("loss.anchor_weight", {"float": [0.1, 1], "log": True, "step": 0.1}, ["log and step"]),
        ("loss.anchor_weight", {"float": [0.1, 1], "step": 0}, ["step 0", "above 0"]),
        ("model.regions", {"int": [1, 9], "step": -1}, ["step -1", "above 0"]),
        ("model.regions", {"int": [1, 9], "step": 0.5}, ["step 0.5", "whole step"]),
        ("model.regions", {"choice": [1, 2, 1]}, ["choice 1 twice"]),
        ("loss.anchor_weight", {"choice": [1, 1.0]}, ["choice 1.0 twice"]),
        ("loss.anchor", {"choice": [True, False], "log": True}, ["choice with log or step"]),
        ("loss.anchor", {"choice": [True, False], "step": 1}, ["choice with log or step"]),
        ("loss.anchor", {"choice": [0, 1]}, ["found 0", "off"]),
        ("loss.anchor", {"choice": ["off", "on"]}, ["found 'off'", "expected off"]),
        ("loss.anchor", {"int": [0, 1]}, ["numbers for a switch", "choice: [on, off]"]),
        ("data.image_size", {"choice": ["512"]}, ["found '512'", "expected 512"]),
        ("training.epochs", {"choice": [3, True]}, ["found True", "a number"]),
        ("data.image_size", {"choice": [512, 8]}, ["found 8", "equal to 32"]),
        ("model.cell", {"choice": ["paper", "plain"]}, ["found 'plain'", "'paper', 'standard' or 'none'"]),
        ("model.cell", {"int": [1, 2]}, ["found 1", "'paper', 'standard' or 'none'"]),
        ("model.regions", {"int": [0, 9]}, ["found 0", "equal to 1", "regions per image"]),
        ("model.regions", {"int": [1, 65]}, ["found 65", "equal to 64"]),
        ("model.regions", {"float": [1, 9]}, ["float", "int"]),
        ("training.lr_steps", {"int": [1, 9]}, ["found 1", "tuple"]),
        ("training.learning_rate", {"float": [0, 1]}, ["found 0", "greater than 0"]),
        ("training.seed", {"int": [0, 9]}, ["chance", "`seeds`"]),
        ("stage1.seed", {"int": [0, 9]}, ["chance"]),
        ("execution.threads", {"int": [1, 9]}, ["how a run is executed", "changes the result"]),
        ("data.limit", {"int": [1, 9]}, ["a choice of images", "the same images for all settings"]),
        ("data.split_seed", {"int": [1, 9]}, ["a choice of images"]),
        ("loss.scale", {"choice": [True], "when": {"loss.ancor": True}}, ["'loss.ancor'", "Did you mean loss.anchor?"]),
        ("loss.scale", {"choice": [True], "when": {"training.epochs": 3}}, ["'training.epochs'", "no parameter"]),
        ("loss.scale", {"choice": [True], "when": {"loss.scale": True}}, ["loss.scale itself"]),
        ("loss.scale", {"choice": [True], "when": {"loss.anchor": {"above": 1}}}, ["above 1", "its choices"]),
    ],
)
def test_what_cannot_be_meant_is_named(name, domain, words):
    parameters = {**made(loss__anchor={"choice": [True, False]}), name: Domain.model_validate(domain)}
    with pytest.raises(BadInput) as caught:
        check(parameters, "space.yaml: parameters")
    for word in ["space.yaml: parameters", name, *words]:
        assert word in str(caught.value)


def test_conditions_in_a_circle_are_named():
    parameters = made(
        model__regions={"int": [1, 9]},
        loss__anchor={"choice": [True, False], "when": {"loss.positive": True, "model.regions": 5}},
        loss__scale={"choice": [True, False], "when": {"loss.anchor": True}},
        loss__positive={"choice": [True, False], "when": {"loss.scale": True}},
    )
    with pytest.raises(BadInput) as caught:
        check(parameters, "here")
    assert "loss.anchor → loss.positive → loss.scale → loss.anchor" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("training.learning_rate", {"float": ["1e-6", "1e-4"], "log": True}),
        ("training.learning_rate", {"choice": ["1e-6", 0.001]}),
        ("training.weight_decay", {"int": [0, 1]}),  # whole numbers for a field of any
        ("model.regions", {"int": [5, 5]}),
        ("model.regions", {"choice": [1, 5, 9]}),
        ("model.cell", {"choice": ["paper", "standard"]}),
        ("loss.scale", {"choice": [True], "when": {"loss.anchor": 7}}),  # it never holds, and harms nobody
        ("model.regions", {"int": [1, 9], "when": {"data.image_size": {"above": 512}}}),
    ],
)
def test_what_can_be_meant_is_right(name, domain):
    base = made(loss__anchor={"choice": [True, False]}, data__image_size={"choice": [512, 640]})
    check({**base, name: Domain.model_validate(domain)}, "here")


def test_yaml_reads_1e_4_as_a_text_and_we_as_a_number():
    domain = Domain.model_validate({"float": ["1e-4", 1], "when": {"a": ["1E2"], "b": {"above": "2e+0"}}})
    assert domain.bounds == (0.0001, 1) and domain.when == {"a": [100.0], "b": {"above": 2.0}}


@pytest.mark.parametrize(
    "domain",
    [
        {},
        {"int": [1, 9], "float": [1, 9]},
        {"choice": [1], "int": [1, 2]},
        {"int": [1]},
        {"int": [1, 2, 3]},
        {"int": [1, 2.5]},
        {"int": [True, 9]},
        {"int": [1, 10**400]},
        {"float": [0, math.inf]},
        {"float": [math.nan, 1]},
        {"float": [0, 10**400]},
        {"choice": [[1]]},
        {"choice": [None]},
        {"choice": [math.nan]},
        {"choice": "ab"},
        {"int": [1, 9], "log": 1},
        {"int": [1, 9], "step": "x"},
        {"int": [1, 9], "when": {"a": {"over": 1}}},
        {"int": [1, 9], "when": {"a": {}}},
        {"int": [1, 9], "when": {"a": {"above": True}}},
        {"int": [1, 9], "when": {"a": [[1]]}},
        {"int": [1, 9], "when": {"a": None}},
        {"int": [1, 9], "steps": 1},
    ],
)
def test_what_is_no_domain_is_refused(domain):
    with pytest.raises(ValidationError):
        Domain.model_validate(domain)
