"""Search spaces: what comes with the package is right, what is wrong is named."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_tune.errors import BadInput
from ram_tune.search import space as spaces

GOOD = "version: 1\ntitle: T\narms:\n  one: {loss.anchor: off}\n  two: {loss.anchor: on}\n"
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
        (GOOD.replace("loss.anchor: on", "model.cell: papers"), ["arms.two: model.cell: found 'papers'", "'paper' or"]),
        (GOOD.replace("loss.anchor: on", "training.lr_steps: [1, x]"), ["training.lr_steps.1: found 'x'"]),
        (GOOD.replace("loss.anchor: on", "training.learning_rate: .inf"), ["training.learning_rate: found inf"]),
        (GOOD + ENTRY.replace("arm: two", "arm: twos"), ["published.0.arm", "'twos'", "Did you mean two?"]),
        (GOOD + ENTRY.replace("split:", "splt:"), ["published.0.splt", "unknown", "Did you mean split?"]),
        (GOOD + ENTRY.replace("split: S, ", ""), ["published.0.split", "nothing", "a value"]),
        (GOOD + ENTRY.replace("mAP: 9", "mAP: high"), ["published.0.mAP", "'high'", "number"]),
        (GOOD + "published: [two]\n", ["published.0", "'two'", "a mapping with arm, dataset"]),
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


LINES = (spaces.folder() / "constraints.yaml").read_text().splitlines()
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
]


@st.composite
def mutated(draw) -> str:
    """The text of constraints.yaml with lines deleted, doubled, replaced or cut short."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        other = st.sampled_from([*LINES, *ODD]) | st.text(max_size=20)
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
        assert spaces.read(str(path)).arms
