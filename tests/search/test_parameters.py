"""Parameters: what is drawn lies in its domain and applies, what cannot be meant is named, differences are worded."""

from __future__ import annotations

import json
import math
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_tune.presets import configure
from ram_tune.search import space as spaces
from ram_tune.search.domains import Domain
from ram_tune.search.parameters import (
    active,
    at_edge,
    changes,
    distributions,
    ordered,
    plain,
    short,
    suggest,
    within,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)


def made(**domains: dict[str, Any]) -> dict[str, Domain]:
    """Domains by field; `loss__anchor` stands for `loss.anchor`."""
    return {name.replace("__", "."): Domain.model_validate(domain) for name, domain in domains.items()}


def trial(seed: int) -> optuna.Trial:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask()


CHAIN = made(
    loss__anchor_weight={
        "float": [1e-4, 1],
        "log": True,
        "when": {"loss.anchor": True, "model.regions": {"above": 1}},
    },
    loss__anchor={"choice": [True, False], "when": {"model.regions": {"above": 1}}},
    model__regions={"int": [1, 9]},
    data__image_size={"choice": [512, 640]},
)


# drawing

NAMES = [f"p{number}" for number in range(6)]


@st.composite
def numeric(draw) -> dict[str, Any]:
    if draw(st.booleans()):
        low, high = sorted(draw(st.tuples(st.integers(1, 50), st.integers(1, 50))))
        domain: dict[str, Any] = {"int": [low, high]}
        step: Any = draw(st.integers(1, 7))
    else:
        low, high = sorted(draw(st.tuples(st.integers(1, 900), st.integers(1, 900))))
        low, high = low / 100, high / 100  # as people write them
        domain = {"float": [low, high]}
        step = draw(st.sampled_from([0.05, 0.1, 0.25, 3.0]))
    kind = draw(st.sampled_from(["", "log", "step"]))
    return domain | ({"log": True} if kind == "log" else {"step": step} if kind == "step" else {})


@st.composite
def collections(draw) -> dict[str, dict[str, Any]]:
    """Up to six parameters, each with conditions on some that come before it, written in any order."""
    found: dict[str, dict[str, Any]] = {}
    for name in NAMES[: draw(st.integers(1, len(NAMES)))]:
        domain: dict[str, Any] = draw(
            numeric() | st.sampled_from([{"choice": [True, False]}, {"choice": ["a", "b", "c"]}, {"choice": [1, 2.5]}])
        )
        when: dict[str, Any] = {}
        for parent in draw(st.lists(st.sampled_from(list(found)), max_size=2, unique=True)) if found else []:
            of = found[parent]
            if choices := of.get("choice"):
                when[parent] = draw(st.sampled_from([choices[0], choices[1:], choices]))
            else:
                low, high = of.get("int") or of["float"]
                when[parent] = draw(st.sampled_from([{"above": (low + high) / 2}, {"below": (low + high) / 2}, low]))
        found[name] = domain | ({"when": when} if when else {})
    return {name: found[name] for name in draw(st.permutations(list(found)))}


def naive_member(domain: dict[str, Any], value: Any) -> bool:
    if "choice" in domain:
        return any(value is one or (value == one and type(value) is type(one)) for one in domain["choice"])
    low, high = domain.get("int") or domain["float"]
    if ("int" in domain) is not isinstance(value, int):
        return False
    if not low - 1e-9 <= value <= high + 1e-9:
        return False
    step = domain.get("step")
    return step is None or math.isclose((value - low) / step, round((value - low) / step), abs_tol=1e-6)


def naive_applies(name: str, tree: dict[str, dict[str, Any]], values: dict[str, Any]) -> bool:
    for parent, wanted in tree[name].get("when", {}).items():
        if not naive_applies(parent, tree, values):
            return False
        value = values[parent]
        if isinstance(wanted, dict):
            if not (value > wanted["above"] if "above" in wanted else value < wanted["below"]):
                return False
        elif value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(tree=collections(), seed=st.integers(0, 2**32 - 1))
def test_what_is_drawn_applies_and_lies_in_its_domain_and_nothing_else_is_drawn(tree, seed):
    parameters = {name: Domain.model_validate(domain) for name, domain in tree.items()}
    drawn = trial(seed)
    values = suggest(drawn, parameters)
    for name, value in values.items():
        assert naive_member(tree[name], value), (name, value)
        assert naive_applies(name, tree, values)
    for name in set(tree) - set(values):
        assert not naive_applies(name, tree, values)
    assert set(active(values, parameters)) == set(values)
    assert dict(drawn.params) == values
    # Drawn from what `distributions` says, and within the space that it was drawn from.
    assert drawn.distributions == {name: distributions(parameters)[name] for name in values}
    # What is drawn once is found to be inside, as it was drawn.
    assert within(values, parameters) == ({name: values[name] for name in parameters if name in values}, [])
    order = ordered(parameters)
    assert sorted(order) == sorted(tree)
    assert all(order.index(parent) < order.index(name) for name in tree for parent in tree[name].get("when", {}))
    # JSON and back is no difference.
    assert changes(json.loads(json.dumps(plain(parameters))), plain(parameters)) == []


def test_a_parameter_is_drawn_only_where_it_applies():
    seen = [suggest(trial(seed), CHAIN) for seed in range(60)]
    for values in seen:
        assert ("loss.anchor" in values) == (values["model.regions"] > 1)
        assert ("loss.anchor_weight" in values) == (values.get("loss.anchor") is True)
    assert {len(values) for values in seen} == {2, 3, 4}


def test_the_same_values_may_be_asked_for():
    wanted = {"model.regions": 5, "loss.anchor": True, "loss.anchor_weight": 0.01, "data.image_size": 640}
    study = optuna.create_study()
    study.enqueue_trial(wanted)
    assert suggest(study.ask(), CHAIN) == wanted


def test_a_step_ends_on_its_grid_without_a_word_from_optuna(recwarn):
    parameters = made(
        model__regions={"int": [1, 9], "step": 3},
        loss__scale_threshold={"float": [0.1, 0.45], "step": 0.1},
    )
    seen = [suggest(trial(seed), parameters) for seed in range(40)]
    assert {values["model.regions"] for values in seen} == {1, 4, 7}
    assert {round(values["loss.scale_threshold"], 9) for values in seen} == {0.1, 0.2, 0.3, 0.4}
    assert not [one for one in recwarn if "step" in str(one.message)]


def test_the_order_is_the_written_one_but_for_conditions():
    assert ordered(CHAIN) == ["model.regions", "loss.anchor", "loss.anchor_weight", "data.image_size"]
    free = made(b={"int": [1, 2]}, a={"int": [1, 2]}, c={"int": [1, 2]})
    assert ordered(free) == ["b", "a", "c"]


# conditions


@pytest.mark.parametrize(
    ("condition", "holding"),
    [
        (3, {3}),
        ([2, 4], {2, 4}),
        ([], set()),
        ({"above": 3}, {4, 5}),
        ({"below": 3}, {1, 2}),
        ({"above": 1, "below": 4}, {2, 3}),
        ({"above": 9}, set()),
    ],
)
def test_a_condition_holds_for_its_values_alone(condition, holding):
    parameters = made(a={"int": [1, 5]}, b={"int": [1, 2], "when": {"a": condition}})
    assert {value for value in range(1, 6) if "b" in active({"a": value}, parameters)} == holding


def test_what_does_not_apply_fails_a_condition_whatever_its_value_is():
    parameters = made(
        a={"int": [1, 5]},
        b={"choice": [True, False], "when": {"a": {"above": 1}}},
        c={"int": [1, 2], "when": {"b": True}},
    )
    assert active({"a": 1, "b": True, "c": 1}, parameters) == ["a"]
    assert active({"a": 2, "b": True, "c": 1}, parameters) == ["a", "b", "c"]


def test_on_is_not_the_number_one():
    parameters = made(a={"choice": [True, False]}, b={"int": [1, 2], "when": {"a": 1}})
    assert active({"a": True}, parameters) == ["a"]


def test_a_value_that_is_not_there_yet_fails_a_condition():
    assert active({}, CHAIN) == ["model.regions", "data.image_size"]


# the paper's setting


def test_the_papers_setting_is_what_the_configuration_has():
    inside, outside = within(configure().flat(), CHAIN)
    assert inside == {"loss.anchor_weight": 0.01, "loss.anchor": True, "model.regions": 5, "data.image_size": 512}
    assert outside == []


def test_values_outside_are_named_where_they_apply():
    flat = configure(overrides={"model.regions": 12, "loss.anchor_weight": 3.0, "data.image_size": 100}).flat()
    assert within(flat, CHAIN) == ({"loss.anchor": True}, ["loss.anchor_weight", "model.regions", "data.image_size"])
    flat = configure(overrides={"loss.anchor": False, "loss.anchor_weight": 3.0}).flat()
    assert within(flat, CHAIN)[1] == []


# edges


@pytest.mark.parametrize(
    ("domain", "value", "edge"),
    [
        ({"float": [1e-4, 1], "log": True}, 0.98, "a=0.98 is at the upper edge of 0.0001 to 1"),
        ({"float": [1e-4, 1], "log": True}, 0.8, ""),  # 2.4 % of the way
        ({"float": [1e-4, 1], "log": True}, 1.1e-4, "a=0.00011 is at the lower edge of 0.0001 to 1"),
        ({"float": [1e-4, 1]}, 1.1e-2, "a=0.011 is at the lower edge of 0.0001 to 1"),
        ({"float": [0, 1]}, 0.021, ""),
        ({"float": [0, 1]}, 0.5, ""),
        ({"float": [0, 1]}, 0.0, "a=0 is at the lower edge of 0 to 1"),
        ({"float": [2, 2]}, 2.0, ""),  # there is nothing but the edge
        ({"int": [1, 9]}, 9, "a=9 is at the upper edge of 1 to 9"),
        ({"int": [1, 9]}, 8, ""),
        ({"int": [1, 1000]}, 2, ""),
        ({"int": [1, 1000], "log": True}, 1, "a=1 is at the lower edge of 1 to 1000"),
        ({"int": [1, 9], "step": 3}, 7, "a=7 is at the upper edge of 1 to 7"),
        ({"choice": [1, 9]}, 9, ""),
    ],
)
def test_a_number_at_the_edge_of_its_domain_is_said(domain, value, edge):
    assert at_edge({"a": value}, made(a=domain)) == ([edge] if edge else [])


def test_no_edge_of_what_does_not_apply_or_is_not_there():
    assert at_edge({"model.regions": 5, "loss.anchor": False, "loss.anchor_weight": 1.0}, CHAIN) == []
    assert at_edge({}, CHAIN) == []


# differences


def test_differences_are_worded():
    old = made(
        model__regions={"int": [1, 9]},
        loss__anchor={"choice": [True, False]},
        loss__anchor_weight={"float": [1e-4, 1], "log": True},
        loss__scale_threshold={"float": [0.2, 1]},
    )
    new = made(
        loss__scale_threshold={"float": [0.2, 1.0], "log": False},
        model__regions={"int": [1, 12], "step": 2},
        loss__anchor_weight={
            "float": [1e-4, 1],
            "log": True,
            "when": {"loss.positive": True, "model.regions": {"above": 1}},
        },
        loss__positive={"choice": [True, False]},
    )
    assert changes(plain(old), plain(new)) == [
        "loss.anchor is gone: it was one of on, off",
        "model.regions was the whole numbers 1 to 9; it is now the whole numbers 1 to 12 in steps of 2",
        "loss.anchor_weight was 0.0001 to 1 on a log scale; it is now 0.0001 to 1 on a log scale, "
        "when loss.positive is on and model.regions is above 1",
        "loss.positive is new: one of on, off",
    ]
    assert changes(plain(new), plain(new)) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"choice": [1, 2]}, {"choice": [2, 1]}, "a was one of 1, 2; it is now one of 2, 1"),  # Optuna counts them
        ({"float": [0.1234567, 1]}, {"float": [0.12345678, 1]}, "a was 0.1234567 to 1; it is now 0.12345678 to 1"),
    ],
)
def test_small_differences_are_differences(old, new, words):
    assert changes(plain(made(a=old)), plain(made(a=new))) == [words]


def test_plain_is_what_yaml_would_have():
    assert plain(CHAIN)["loss.anchor_weight"] == {
        "float": [0.0001, 1.0],
        "log": True,
        "when": {"loss.anchor": True, "model.regions": {"above": 1}},
    }


def test_short_names_are_told_apart():
    names = ["training.learning_rate", "stage1.learning_rate", "model.regions", "model.name", "model.backbone.name"]
    assert [short(name, names) for name in names] == [
        "training.learning_rate",
        "stage1.learning_rate",
        "regions",
        "model.name",
        "backbone.name",
    ]
    assert short("model.regions", []) == "regions"


@given(st.lists(st.sampled_from(list(configure().flat())), unique=True))
def test_short_names_are_never_the_same(names):
    assert len({short(name, names) for name in names}) == len(names)


# what comes with the package


@pytest.mark.parametrize("name", [name for name in spaces.names() if spaces.read(name).parameters])
@pytest.mark.parametrize("data", ["voc2007", "coco2014", "scenes"])
def test_the_papers_setting_lies_inside_every_space_and_every_draw_is_a_configuration(name, data):
    space = spaces.read(name).on(data)
    base = configure(data, "", space.base)
    paper, outside = within(base.flat(), space.parameters)
    assert not outside
    assert paper and set(paper) == set(active(base.flat(), space.parameters))
    for seed in range(20):
        values = suggest(trial(seed), space.parameters)
        flat = configure(data, "", space.base, values).flat()
        assert all(flat[field] == value for field, value in values.items())


@pytest.mark.parametrize("data", ["voc2007", "scenes"])
def test_no_draw_of_the_full_space_needs_another_stage_1_but_at_another_size(data):
    space = spaces.read("full").on(data)
    stages = set()
    for seed in range(20):
        config = configure(data, "", space.base, suggest(trial(seed), space.parameters)).stage1_config()
        assert config is not None
        stages.add((config.data.image_size, config.fingerprint({})))
    assert len(stages) == 2
