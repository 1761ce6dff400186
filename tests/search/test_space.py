"""Search spaces: what comes with the package is right, what is wrong is named."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_tune.errors import BadInput
from ram_tune.search import space as spaces

GOOD = "version: 1\ntitle: T\narms:\n  one: {loss.anchor: off}\n  two: {loss.anchor: on}\n"
DRAWN = """version: 1
title: T
parameters:
  model.regions: {int: [1, 9]}
  loss.anchor: {choice: [on, off], when: {model.regions: {above: 1}}}
"""
ENTRY = "published:\n  - {arm: two, dataset: D, split: S, scale: 1, views: one, classifier: svm, source: X, mAP: 9}\n"


@pytest.mark.parametrize("name", spaces.names())
def test_every_space_of_the_package_is_valid_and_says_its_question(name):
    assert spaces.read(name).question


def test_the_five_arms_switch_exactly_what_their_names_say():
    arms = spaces.read("constraints").arms
    assert list(arms) == ["none", "S+P", "A+S", "A+P", "A+S+P"]
    for arm, fields in arms.items():
        on = {
            letter
            for letter, name in zip("ASP", ("anchor", "scale", "positive"), strict=True)
            if fields[f"loss.{name}"]
        }
        assert on == (set() if arm == "none" else set(arm.split("+")))


def test_published_numbers_are_those_of_tables_4_and_5():
    space = spaces.read("constraints")
    voc = {entry.arm: entry.mAP for entry in space.published if entry.dataset == "voc2007"}
    assert voc == {"none": 89.9, "S+P": 90.2, "A+S": 90.4, "A+P": 90.3, "A+S+P": 91.3}
    coco = {entry.arm: (entry.mAP, entry.CF1, entry.OF1) for entry in space.published if entry.dataset == "coco2014"}
    assert coco == {"none": (71.5, 65.8, 70.9), "A+S+P": (72.2, 66.5, 71.3)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace("title", "titel"), ["titel"]),
        (GOOD.replace("loss.anchor: on", "loss.ancor: on"), ["arms.two", "loss.ancor", "Did you mean loss.anchor?"]),
        (GOOD + "armz: {}\n", ["armz", "Did you mean arms?"]),
        (GOOD + "seeds: none\n", ["seeds", "'none'", "integer"]),
        (GOOD + "seeds: 0\n", ["seeds", "greater than or equal to 1"]),
        (GOOD.replace("version: 1", "version: 9"), ["version", "9"]),
        ("version: 1\ntitle: T\narms: {}\n", ["arms"]),
        ("version: 1\ntitle: T\n", ["arms", "nothing", "at least one arm"]),
        ("version: 1\ntitle: T\narms:\n", ["arms", "nothing", "at least one arm"]),
        (GOOD.replace("{loss.anchor: off}", ""), ["arms.one", "nothing", "Write {} for an arm that sets nothing"]),
        (GOOD.replace("{loss.anchor: off}", "off"), ["arms.one", "False", "a mapping"]),
        (GOOD.replace("  one:", "  null:"), ["line 4", "null", "reads as nothing", 'quotes: "null"']),
        (GOOD.replace("  one:", "  ~:"), ["line 4", "reads as nothing", 'quotes: "~"']),
        (GOOD.replace("  one:", "  ?\n  :"), ["line 4", "reads as nothing", 'quotes: "null"']),
        (GOOD.replace("  one:", "  no:"), ["line 4", "the name no", "reads as false", 'quotes: "no"']),
        (GOOD.replace("  one:", "  On:"), ["line 4", "reads as true", 'quotes: "On"']),
        (GOOD.replace("  one:", "  1:"), ["line 4", "reads as a number", 'quotes: "1"']),
        (GOOD.replace("  one:", "  2024-01-01:"), ["line 4", "reads as a date"]),
        (GOOD.replace("  one:", "  [one]:"), ["line 4", "a list or mapping"]),
        (GOOD.replace("  one:", "  two:"), ["line 5", "'two' a second time", "first in line 4"]),
        (GOOD + "title: U\n", ["line 6", "'title' a second time", "first in line 2"]),
        (GOOD.replace("off}", "off, loss.anchor: on}"), ["line 4", "'loss.anchor' a second time"]),
        (GOOD + "seeds: on\n", ["seeds", "True", "integer"]),
        (GOOD + "base: {training.epochs: many}\n", ["base: training.epochs: found 'many'", "integer", "Passes over"]),
        (GOOD.replace("loss.anchor: on", "training.epochs: on"), ["arms.two: training.epochs: found True", "a number"]),
        (GOOD.replace("loss.anchor: on", "model.regions: 0"), ["arms.two: model.regions: found 0", "equal to 1"]),
        (GOOD.replace("loss.anchor: on", "model.cell: papers"), ["arms.two: model.cell: found 'papers'", "'paper', "]),
        (GOOD.replace("loss.anchor: on", "training.lr_steps: [1, x]"), ["training.lr_steps.1: found 'x'"]),
        (GOOD.replace("loss.anchor: on", "training.learning_rate: .inf"), ["training.learning_rate: found inf"]),
        (GOOD + ENTRY.replace("arm: two", "arm: twos"), ["published.0.arm", "'twos'", "Did you mean two?"]),
        (GOOD + "reference: twos\n", ["reference", "'twos'", "Did you mean two?"]),
        (GOOD + ENTRY.replace("split:", "splt:"), ["published.0.splt", "unknown", "Did you mean split?"]),
        (GOOD + ENTRY.replace("split: S, ", ""), ["published.0.split", "nothing", "a value"]),
        (GOOD + ENTRY.replace("mAP: 9", "mAP: high"), ["published.0.mAP", "'high'", "number"]),
        (GOOD + "published: [two]\n", ["published.0", "'two'", "a mapping with arm, dataset"]),
        (GOOD + "base_on: {scenes: {training.epoch: 2}}\n", ["base_on.scenes", "Did you mean training.epochs?"]),
        (GOOD + "others: [{system: X, dataset: D, sauce: Y}]\n", ["others.0.sauce", "Did you mean source?"]),
        (GOOD + "parameters: {model.regions: {int: [1, 9]}}\n", ["parameters", "arms as well", "not both"]),
        (DRAWN + "arms_on: {scenes: {one: {}}}\n", ["parameters", "arms as well", "not both"]),
        (GOOD + "parameters_on: {scenes: {model.regions: {int: [1, 9]}}}\n", ["arms as well"]),
        (GOOD + "budget: {trials: 3}\n", ["budget", "found arms", "parameters to draw from", "in place of `arms`"]),
        ("version: 1\ntitle: T\nparameters: {}\n", ["parameters", "at least one arm", "or parameters, such as"]),
        ("version: 1\ntitle: T\nparameters_on: {scenes: {model.regions: {int: [1, 9]}}}\n", ["arms: found nothing"]),
        (DRAWN + "parameters_on: {scenes: {}}\n", ["parameters_on.scenes", "{}"]),
        (DRAWN.replace("{int: [1, 9]}", "5"), ["parameters.model.regions", "found 5", "choice, int, float, log, step"]),
        (DRAWN.replace("{int: [1, 9]}", ""), ["parameters.model.regions", "nothing", "a mapping with choice, int"]),
        (DRAWN.replace("int:", "itn:"), ["parameters.model.regions.itn", "unknown name", "Did you mean int?"]),
        (DRAWN.replace("{int: [1, 9]}", "{}"), ["parameters.model.regions", "exactly one of choice, int and float"]),
        (DRAWN.replace("{int:", "{float: [1, 9], int:"), ["parameters.model.regions", "exactly one of choice"]),
        (DRAWN.replace("[1, 9]", "[1]"), ["parameters.model.regions.int.1", "two numbers, [low, high]"]),
        (DRAWN.replace("[1, 9]", "[1, 2, 3]"), ["parameters.model.regions.int", "two numbers, [low, high]"]),
        (DRAWN.replace("[1, 9]", "9"), ["parameters.model.regions.int: found 9", "two numbers, [low, high]"]),
        (DRAWN.replace("[1, 9]", "[1, many]"), ["parameters.model.regions.int.1", "'many'", "integer"]),
        (DRAWN.replace("int: [1, 9]", "float: [1, many]"), ["parameters.model.regions.float.1", "'many'", "a number"]),
        (DRAWN.replace("[on, off]", "[[on], off]"), ["parameters.loss.anchor.choice.0", "[True]", "a number, a text"]),
        (DRAWN.replace("[on, off]", "on"), ["parameters.loss.anchor.choice: found True", "a list"]),
        (DRAWN.replace("above", "over"), ["parameters.loss.anchor.when.model.regions", "{above: x} or {below: x}"]),
        (DRAWN.replace("{above: 1}}", "{above: 1}, loss.ancor: on}"), ["parameters: loss.anchor.when", "'loss.ancor'"]),
        (DRAWN.replace("when: {model.regions: {above: 1}}", "when: on"), ["loss.anchor.when", "True", "a mapping"]),
        (DRAWN.replace("regions:", "region:"), ["parameters", "'model.region'", "Did you mean model.regions?"]),
        (DRAWN.replace("[1, 9]", "[9, 1]"), ["parameters: model.regions", "[9, 1]", "[low, high]"]),
        (
            DRAWN + "parameters_on: {scenes: {data.image_size: {choice: [8]}}}\n",
            ["parameters_on.scenes: data.image_size", "found 8", "equal to 32"],
        ),
        (DRAWN + "parameters_on: [scenes]\n", ["parameters_on", "a mapping, such as {model.regions"]),
        (DRAWN + "objectives: [mAPP]\n", ["objectives.0", "'mAPP'", "'mAP'", "Did you mean mAP?"]),
        (DRAWN + "objectives: [mAP, loss, mAP]\n", ["objectives", "mAP twice", "once"]),
        (DRAWN + "objectives: []\n", ["objectives", "at least 1"]),
        (DRAWN + "objectives: mAP\n", ["objectives: found 'mAP'", "a list, such as [mAP]"]),
        (DRAWN + "constraints: [mAP > 3]\n", ["constraints.0", "'mAP > 3'", "`ms_per_image <= 20`"]),
        (DRAWN + "constraints: [loss <= 3, mPA >= 0.5]\n", ["constraints.1", "'mPA'", "Did you mean mAP?"]),
        (DRAWN + "constraints: [mAP >= 50]\n", ["constraints.0", "'mAP >= 50'", "from 0 to 1", "0.5 for 50 %"]),
        (DRAWN + "constraints: ms_per_image <= 20\n", ["constraints", "a list"]),
        (DRAWN + "sampler: 5\n", ["sampler: found 5", "a mapping with name, options, judge"]),
        (DRAWN + "sampler: {nam: tpe}\n", ["sampler.nam", "Did you mean name?"]),
        (DRAWN + "sampler: {name: tpe, judge: mAP}\n", ["sampler.judge", "'mAP'", "with the pruner alone"]),
        (DRAWN + "pruner: {options: {}}\n", ["pruner.name", "nothing", "a value"]),
        (DRAWN + "pruner: {name: median, judge: OF1}\n", ["pruner.judge", "'OF1'", "an objective", "mAP"]),
        (
            DRAWN + "objectives: [CF1, parameters]\npruner: median\n",
            ["pruner.judge", "nothing", "the objective", "pruner: {name: median, judge: CF1}"],
        ),
        (
            DRAWN + "objectives: [mAP, parameters]\npruner: {name: median, judge: parameters}\n",
            ["pruner.judge", "'parameters'", "changes with the epochs", "mAP"],
        ),
        (DRAWN + "objectives: [ms_per_image]\npruner: median\n", ["pruner.judge", "nothing", "Use no pruner"]),
        (DRAWN + "budget: {trials: 0}\n", ["budget.trials", "equal to 1"]),
        (DRAWN + "budget: {hours: 0}\n", ["budget.hours", "greater than 0"]),
        (DRAWN + "budget: {gpu_hours: -1}\n", ["budget.gpu_hours", "greater than 0"]),
        (DRAWN + "budget: {trails: 3}\n", ["budget.trails", "Did you mean trials?"]),
        (DRAWN + "budget: 3\n", ["budget: found 3", "a mapping with trials, hours, gpu_hours"]),
        (DRAWN + "fidelity: {training.epoch: 3}\n", ["fidelity", "Did you mean training.epochs?"]),
        (DRAWN + "fidelity: {training.epochs: 0}\n", ["fidelity: training.epochs: found 0", "equal to 1"]),
        (DRAWN + "fidelity: {model.regions: 2}\n", ["fidelity: model.regions", "drawn too (parameters)"]),
        (
            DRAWN + "fidelity: {loss.scale: on}\nparameters_on: {scenes: {loss.scale: {choice: [on]}}}\n",
            ["fidelity: loss.scale", "drawn too (parameters_on.scenes)"],
        ),
        (DRAWN + "promote: 0.0\n", ["promote", "greater than 0"]),
        (DRAWN + "promote: 1.5\n", ["promote", "less than or equal to 1"]),
        (DRAWN + "confirm: -1\n", ["confirm", "equal to 0"]),
        (DRAWN + "reference: two\n", ["reference", "'two'", "where there are no arms"]),
        (DRAWN + ENTRY, ["published.0.arm", "'two'", "where there are no arms"]),
        (GOOD + "question: 2024-99-99\n", ["not YAML"]),
        (GOOD.replace("title: T", "title: 0x" + "f" * 5000), ["title", "a huge number", "string"]),
        ("[" * 5000, ["not YAML"]),
        ("arms: [", ["not YAML"]),
        ("", ["the whole file"]),
        ("!!python/object/apply:os.system ['true']", ["not YAML"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, words):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        spaces.read(str(path))
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_an_unknown_search_names_the_nearest():
    with pytest.raises(BadInput, match="Did you mean constraints"):
        spaces.read("constrains")


@pytest.mark.parametrize("arm", ["none", '"null"', "'no'", '"1"', "off-axis"])
def test_a_name_that_is_a_text_is_right(tmp_path, arm):
    path = tmp_path / "space.yaml"
    path.write_text(GOOD.replace("one", arm) + ENTRY)
    assert list(spaces.read(str(path)).arms) == [arm.strip("\"'"), "two"]


def test_values_stay_as_written_and_what_yaml_calls_a_text_may_be_a_number(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(GOOD.replace("loss.anchor: off", "training.learning_rate: 1e-5, training.lr_steps: [3]"))
    assert spaces.read(str(path)).arms["one"] == {"training.learning_rate": "1e-5", "training.lr_steps": [3]}


def test_merged_mappings_may_overrule_one_another(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(GOOD.replace("{loss.anchor: off}", "&one {loss.anchor: off}").replace("two: {", "two: {<<: *one, "))
    assert spaces.read(str(path)).arms["two"] == {"loss.anchor": True}


# parameters


def drawn(tmp_path, more: str = "") -> spaces.Space:
    path = tmp_path / "space.yaml"
    path.write_text(DRAWN + more)
    return spaces.read(str(path))


def test_a_space_of_parameters_says_how_it_is_searched(tmp_path):
    space = drawn(
        tmp_path,
        """
objectives: [CF1, ms_per_image]
constraints: [ms_per_image <= 20, "mAP>=0.5"]
sampler: {name: nsga2, options: {population_size: 10}}
pruner: {name: median, judge: CF1}
budget: {trials: 7, hours: 1, gpu_hours: 2.5}
fidelity: {training.epochs: 3}
promote: 0.5
confirm: 3
""",
    )
    assert list(space.parameters) == ["model.regions", "loss.anchor"] and not space.arms
    assert space.parameters["loss.anchor"].choice == (True, False)
    assert space.objectives == ("CF1", "ms_per_image")
    assert (space.sampler.name, space.sampler.options) == ("nsga2", {"population_size": 10})
    assert (space.pruner.name, space.pruner.judge) == ("median", "CF1")
    assert (space.budget.trials, space.budget.hours, space.budget.gpu_hours) == (7, 1, 2.5)
    assert (space.fidelity, space.promote, space.confirm) == ({"training.epochs": 3}, 0.5, 3)


def test_what_a_space_of_parameters_does_not_say_is_at_its_default(tmp_path):
    space = drawn(tmp_path)
    assert (space.objectives, space.constraints) == (("mAP",), ())
    assert (space.sampler.name, space.pruner.name) == ("tpe", "hyperband")
    assert (space.budget.trials, space.budget.hours, space.budget.gpu_hours) == (20, None, None)
    assert (space.fidelity, space.confirm, space.seeds) == ({}, 0, 1)


def test_a_methods_name_may_stand_alone(tmp_path):
    space = drawn(tmp_path, "sampler: random\npruner: none\n")
    assert space.sampler == spaces.Method(name="random") and space.pruner == spaces.Method(name="none")


def test_a_space_is_another_on_a_dataset_that_it_names(tmp_path):
    more = """
base: {training.epochs: 9, loss.scale: on}
base_on: {scenes: {training.epochs: 3}}
parameters_on: {scenes: {model.regions: {int: [1, 3]}}}
"""
    space = drawn(tmp_path, more)
    scenes = space.on("scenes")
    assert scenes.base == {"training.epochs": 3, "loss.scale": True}
    assert {name: domain.bounds for name, domain in scenes.parameters.items()} == {"model.regions": (1, 3)}
    assert scenes.on("scenes") == scenes
    assert space.on("voc2007") == space


def test_base_on_goes_with_arms_too(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(GOOD + "base_on: {scenes: {training.epochs: 3}}\n")
    assert spaces.read(str(path)).on("scenes").base == {"training.epochs": 3}


def test_what_is_drawn_is_owned(tmp_path):
    space = drawn(tmp_path, "parameters_on: {scenes: {loss.scale: {choice: [on, off]}}}\n")
    assert space.owned() == {"model.regions": "parameters", "loss.anchor": "parameters"}
    assert space.on("scenes").owned() == {"loss.scale": "parameters"}
    assert set(spaces.read("constraints").owned().values()) == {"none"}


def test_the_searches_that_come_with_the_package_draw_what_they_are_called_after():
    fields = {name: set(spaces.read(name).parameters) for name in ("regions", "thresholds", "weights")}
    assert fields == {
        "regions": {"model.regions"},
        "thresholds": {"loss.scale_threshold", "loss.positive_threshold"},
        "weights": {"loss.anchor_weight", "loss.positive_weight", "loss.localization_weight"},
    }
    full = spaces.read("full")
    assert set.union(*fields.values()) < set(full.parameters) == set(full.on("scenes").parameters)


# whatever is written

LINES = {name: (spaces.folder() / f"{name}.yaml").read_text().splitlines() for name in ("constraints", "full")}
ODD = [
    "",
    "  : {}",
    "arms:",
    "base: &a {x: *a}",
    "  null: {}",
    "  ? [a]",
    "- 1",
    "  <<: [1]",
    "version: !!int x",
    "title: 1:99",
    "parameters: {loss.anchor_weight: {float: [1e-3, 1e-1], when: &w {loss.anchor: *w}}}",
    "  loss.anchor: {choice: [on], when: {loss.anchor_weight: on}}",
    "  training.epochs: {int: [1, 0x" + "f" * 5000 + "]}",
    "  training.lr_steps: {choice: [[1], [2]]}",
    "constraints: [[a], 1]",
]


@st.composite
def mutated(draw) -> str:
    """The text of a space with lines deleted, doubled, replaced or cut short."""
    original = LINES[draw(st.sampled_from(sorted(LINES)))]
    lines = list(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        other = st.sampled_from([*original, *ODD]) | st.text(max_size=20)
        change = st.sampled_from([[], [lines[at]] * 2, [lines[at][: draw(st.integers(0, 60))]]]) | other.map(
            lambda x: [x]
        )
        lines[at : at + 1] = draw(change)
    return "\n".join(lines)


@settings(deadline=None)  # a busy machine is no fault
@given(content=(mutated() | st.text()).map(str.encode) | st.binary())
def test_whatever_is_read_is_a_space_or_bad_input(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with suppress(BadInput):  # never another exception
        space = spaces.read(str(path))
        assert bool(space.arms) != bool(space.parameters)
