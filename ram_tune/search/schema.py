"""The JSON Schema of a search space, from which editors complete and check it. `python -m ram_tune.search.schema` writes it.

An editor finds it by the first line of each space: `# yaml-language-server: $schema=schema.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, create_model
from pydantic.json_schema import GenerateJsonSchema

from ram_tune.search.space import Fields, Space, folder


class _ForEditors(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # a field's title would only repeat its name

    def bool_schema(self, schema: Any) -> dict[str, Any]:
        # Editors read YAML 1.2, in which `on` is a text; we read YAML 1.1, in which it is true.
        return {"type": ["boolean", "string"], "enum": [True, False, "on", "off", "yes", "no"]}


def schema() -> dict[str, Any]:
    """A space's JSON Schema (draft 2020-12), with every field of the configuration in `base` and in each arm."""
    written: dict[str, Any] = {
        "base": (Fields, Field(default={}, description=Space.model_fields["base"].description)),
        "arms": (dict[str, Fields], Field(min_length=1, description=Space.model_fields["arms"].description)),
    }
    model = create_model("Space", __base__=Space, __doc__=Space.__doc__, **written)
    tree = model.model_json_schema(schema_generator=_ForEditors)
    for field in tree["$defs"]["Fields"]["properties"].values():
        field.pop("hashed", None)  # a mark for the fingerprint's use; the description says it in words
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
