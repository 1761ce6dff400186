"""The JSON Schema of a search space, from which editors complete and check it. `python -m ram_tune.search.schema` writes it.

An editor finds it by the first line of each space: `# yaml-language-server: $schema=schema.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, create_model
from pydantic.json_schema import GenerateJsonSchema

from ram_tune.config import fields
from ram_tune.search.fields import Fields
from ram_tune.search.parameters import SEEDS
from ram_tune.search.space import Space, folder


class _ForEditors(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # a field's title would only repeat its name

    def bool_schema(self, schema: Any) -> dict[str, Any]:
        # Editors read YAML 1.2, in which `on` is a text; we read YAML 1.1, in which it is true.
        return {"type": ["boolean", "string"], "enum": [True, False, "on", "off", "yes", "no"]}


def schema() -> dict[str, Any]:
    """A space's JSON Schema (draft 2020-12), with the configuration's fields wherever a space names them."""
    written: dict[str, Any] = {
        name: (kind, Field(default={}, description=Space.model_fields[name].description, min_length=shortest))
        for name, kind, shortest in (
            ("base", Fields, None),
            ("base_on", dict[str, Fields], None),
            ("fidelity", Fields, None),
            ("arms", dict[str, Fields], 1),
        )
    }
    model = create_model("Space", __base__=Space, __doc__=Space.__doc__, **written)
    tree = model.model_json_schema(schema_generator=_ForEditors)
    for field in tree["$defs"]["Fields"]["properties"].values():
        field.pop("hashed", None)  # a mark for the fingerprint's use; the description says it in words
    searched = [name for name, about in fields() if about["hashed"] and name not in SEEDS]
    tree["$defs"]["Parameter"] = {"description": "A field that may be a parameter.", "enum": searched}
    spaces, domain = tree["properties"], tree["$defs"]["Domain"]["properties"]
    for mapping in (spaces["parameters"], spaces["parameters_on"]["additionalProperties"], domain["when"]):
        mapping["propertyNames"] = {"$ref": "#/$defs/Parameter"}
    return {"$schema": _ForEditors.schema_dialect, **tree}


def text() -> str:
    """The schema as the file holds it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def path() -> Path:
    """Where the file is: beside the spaces."""
    return folder() / "schema.json"


if __name__ == "__main__":
    partial = path().with_name("schema.json.partial")
    partial.write_text(text(), encoding="utf-8")
    partial.replace(path())  # in one step: an editor never reads half of it
    print(path())
