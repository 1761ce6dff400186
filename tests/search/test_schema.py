"""The JSON Schema of a space: it is the model's, and knows right from wrong."""

from __future__ import annotations

import copy

import jsonschema
import pytest
import yaml

from ram_tune.config import Config, fields
from ram_tune.search import schema as schemas
from ram_tune.search import space as spaces

SCHEMA = schemas.schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)
GOOD = {"version": 1, "title": "T", "arms": {"one": {}, "two": {"loss.anchor": True}}}


def test_the_committed_file_is_the_models():
    same = schemas.path().read_text(encoding="utf-8") == schemas.text()
    assert same, "the model has changed: run `python -m ram_tune.search.schema` and commit search_spaces/schema.json"


def test_it_is_a_schema_of_the_draft_it_names():
    CHECK.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("name", spaces.names())
def test_it_accepts_what_comes_with_the_package_and_is_named_in_it(name):
    text = (spaces.folder() / f"{name}.yaml").read_text(encoding="utf-8")
    CHECK.validate(yaml.safe_load(text))
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")


def test_it_knows_every_field_with_its_default_and_meaning():
    known = SCHEMA["$defs"]["Fields"]["properties"]
    assert {name: about["default"] for name, about in known.items()} == Config().flat()
    assert {name: about["description"] for name, about in known.items()} == {
        name: about["description"] for name, about in fields()
    }
    assert all("type" in about or "anyOf" in about for about in known.values())
    CHECK.validate({**GOOD, "base": Config().flat()})


@pytest.mark.parametrize(
    "value", ["on", "off", True]
)  # YAML 1.2, in which editors read, has no other booleans than true
def test_it_accepts_a_switch_as_editors_read_it(value):
    CHECK.validate({**GOOD, "base": {"loss.anchor": value}})


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ((), "titel", "T"),
        ((), "arms", {}),
        ((), "seeds", 0),
        ((), "base", {"training.epochs": 0}),
        (("arms",), "none", None),
        (("arms", "two"), "loss.ancor", True),
        (("arms", "two"), "loss.anchor", "maybe"),
        (("arms", "two"), "model.cell", "papers"),
        (("arms", "two"), "training.learning_rate", 0),
    ],
)
def test_it_rejects_what_the_reader_rejects(tmp_path, place, key, value):
    content = copy.deepcopy(GOOD)
    node = content
    for part in place:
        node = node[part]
    node[key] = value
    assert not CHECK.is_valid(content)
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(spaces.BadInput):
        spaces.read(str(path))
