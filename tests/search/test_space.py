"""Search spaces: what comes with the package is right, what is wrong is named."""

from __future__ import annotations

import pytest

from ram_tune.errors import BadInput
from ram_tune.search import space as spaces

GOOD = "version: 1\ntitle: T\narms:\n  one: {loss.anchor: off}\n  two: {loss.anchor: on}\n"


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
        (GOOD.replace("  one:", "  null:"), ["arms"]),
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
