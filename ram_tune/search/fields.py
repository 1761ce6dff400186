"""The configuration's fields one by one: what a search space may say of them, before it is known of which run."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from ram_tune.config import Config, Section
from ram_tune.errors import BadInput
from ram_tune.presets import known_fields


class Part(BaseModel):
    """A part of a search space; unknown names are refused."""

    # Strict: else `seeds: on` would be one seed.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _leaves(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _leaves(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


_flat: dict[str, Any] = {name: (info.annotation, info) for name, info in _leaves()}
Fields = create_model("Fields", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **_flat)
"""Any of the configuration's fields, by dotted name, each valid by itself."""


def check_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Each value by itself, as its field reads it: which go together is only known with the dataset's preset.

    Raises BadInput for an unknown field, naming the nearest, and for a value that its field refuses.
    """
    known_fields(values, where)
    try:
        read = Fields.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        raise BadInput(
            f"{where}: {'.'.join(str(part) for part in problem['loc'])}",
            found=shown(problem["input"]),
            expected=expected(problem["msg"]),
            remedy=f"({Fields.model_fields[name].description})",
        ) from None
    for name, value in values.items():
        if isinstance(value, bool) and Fields.model_fields[name].annotation is not bool:  # to pydantic, True is 1
            raise BadInput(f"{where}: {name}", found=value, expected="a number")
    return {name: getattr(read, name) for name in values}


def expected(message: str) -> str:
    """What pydantic expected, as the middle of a sentence."""
    message = message.removeprefix("Input should be ").removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def shown(value: Any) -> str:
    """A value as a message shows it."""
    try:
        return reprlib.repr(value)  # short, also where aliases of aliases would fill the screen
    except ValueError:  # Python does not write out a number of more than 4300 digits
        return "a huge number"
