"""YAML without its traps: every name is a text, and is written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ram_tune.errors import BadInput

_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_READ_AS = {"null": "nothing", "int": "a number", "float": "a number", "timestamp": "a date"}
# Beside its own errors PyYAML lets through those of Python's constructors (`2020-13-45`, `!!int x`, `!!bool x`, …).
_UNREADABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class _Strict(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here names are still as written: later, `no` is False, and the first of two equal names is gone.
        node: Any = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            where = f"{self.name}, line {line}"
            if not isinstance(key, yaml.ScalarNode):
                raise BadInput(where, found="a list or mapping as a name", expected="a text")
            if key.tag not in (_TEXT, _MERGE):
                name = key.value or "null"
                kind = key.tag.rsplit(":", 1)[-1]
                # true or false, or the kind's own name for what has no name of ours
                meaning = str(self.bool_values.get(name.lower(), kind)).lower()
                raise BadInput(
                    where,
                    found=f"the name {name}, which YAML reads as {_READ_AS.get(kind, meaning)}",
                    expected="a text",
                    remedy=f'Put it in quotes: "{name}".',
                )
            if key.value in lines:
                raise BadInput(
                    where,
                    found=f"{key.value!r} a second time (first in line {lines[key.value]})",
                    expected="every name once",
                    remedy="Keep one of the two, or rename one.",
                )
            lines[key.value] = line
        return node


def load(path: Path) -> Any:
    """The content of a YAML file. Raises BadInput for what is not YAML, and naming the line of a name that is none."""
    try:
        with path.open("rb") as stream:
            return _Strict(stream).get_single_data()  # safe_load's own way, with a loader that is stricter still
    except _UNREADABLE as error:
        raise BadInput(path, found=f"what is not YAML ({error})", expected="a search space") from error
