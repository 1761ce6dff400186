"""What a parameter is drawn from, and when it applies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from ram_tune.search.fields import Part


def _scalar(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        value = float(value)  # YAML reads 1e-4 as a text
    if isinstance(value, str | bool) or (isinstance(value, int | float) and abs(value) < 1e300):
        return value
    raise ValueError("a number, a text, or on or off")


def _number(value: Any) -> float:
    value = _scalar(value)
    if isinstance(value, str | bool):
        raise ValueError("a number")
    return value


def _condition(value: Any) -> Any:
    if isinstance(value, Mapping):
        if not value or not set(value) <= {"above", "below"}:
            raise ValueError("a value, a list of values, {above: x} or {below: x}")
        return {relation: _number(limit) for relation, limit in value.items()}
    return [_scalar(one) for one in value] if isinstance(value, list) else _scalar(value)


Scalar = Annotated[Any, BeforeValidator(_scalar), WithJsonSchema({"type": ["boolean", "number", "string"]})]
Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]  # which a float holds exactly, as Optuna needs it
_SHAPES = {
    "anyOf": [
        {"type": ["boolean", "number", "string"]},
        {"type": "array", "items": {"type": ["boolean", "number", "string"]}},
        {
            "type": "object",
            "properties": {"above": {"type": "number"}, "below": {"type": "number"}},
            "additionalProperties": False,
            "minProperties": 1,
        },
    ]
}
Condition = Annotated[Any, BeforeValidator(_condition), WithJsonSchema(_SHAPES)]


class Domain(Part):
    """The values that a parameter may have (one of `choice`, `int` and `float`), and when it applies."""

    choice: tuple[Scalar, ...] | None = Field(default=None, strict=False)  # strictly, YAML's list would be no tuple
    """Any of these."""
    integer: tuple[Whole, Whole] | None = Field(default=None, alias="int", strict=False)
    """Whole numbers from low to high, both included."""
    real: tuple[Number, Number] | None = Field(default=None, alias="float", strict=False)
    """Numbers from low to high, both included."""
    log: bool = False
    """Draw on a logarithmic scale."""
    step: Number | None = None
    """Only low, low + step, low + 2 step, …"""
    when: dict[str, Condition] = Field(default={})
    """Other parameters → the value, the values (a list), or {above: x} or {below: x}, with which this one applies. All
    must hold; a parameter that does not apply itself fails."""

    @model_validator(mode="after")
    def _one_kind(self) -> Domain:
        if sum(kind is not None for kind in (self.choice, self.integer, self.real)) != 1:
            raise ValueError("exactly one of choice, int and float, such as {int: [1, 9]}")
        return self

    @property
    def written(self) -> tuple[float, float]:
        """Low and high as they are written. Not of a choice."""
        bounds = self.integer or self.real
        assert bounds is not None
        return bounds

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value that can be drawn: with `step`, high is on the grid. Not of a choice."""
        low, high = self.written
        if self.step is None:
            return low, high
        first, last, step = (Decimal(str(number)) for number in (low, high, self.step))  # 0.1 + 0.2 is 0.3
        on_grid = first + (last - first) // step * step
        return low, int(on_grid) if self.integer else float(on_grid)

    def member(self, value: Any) -> Any:
        """`value` as a draw from the domain would have it. Raises ValueError where it lies outside."""
        if self.choice is not None:
            found = next((one for one in self.choice if same(one, value)), None)
            if found is None:
                raise ValueError
            return found
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        low, high = self.bounds
        steps = (value - low) / (self.step or 1)
        whole = abs(steps - round(steps)) < 1e-8 or (self.integer is None and self.step is None)
        if not low <= value <= high or not whole:
            raise ValueError
        return int(value) if self.integer else float(value)

    def words(self) -> str:
        """Such as `0.001 to 10 on a log scale, when loss.anchor is on`."""
        if self.choice is not None:
            text = f"one of {_listed(self.choice)}"
        else:
            text = f"{plainly(self.written[0])} to {plainly(self.written[1])}"
            text = f"the whole numbers {text}" if self.integer else text
            text += " on a log scale" if self.log else ""
            text += f" in steps of {plainly(self.step)}" if self.step is not None else ""
        conditions = [f"{name} is {condition_words(condition)}" for name, condition in self.when.items()]
        return text + (f", when {' and '.join(conditions)}" if conditions else "")


def holds(condition: Any, value: Any) -> bool:
    """Whether a parameter of this value meets a condition of `Domain.when`."""
    if isinstance(condition, Mapping):
        return condition.get("above", -math.inf) < value < condition.get("below", math.inf)
    return any(same(one, value) for one in (condition if isinstance(condition, list) else [condition]))


def same(one: Any, other: Any) -> bool:
    """Whether two values are one to the field that has them."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)  # to Python, True is 1


def condition_words(condition: Any) -> str:
    """Such as `above 1`."""
    if isinstance(condition, Mapping):
        return " and ".join(f"{relation} {plainly(limit)}" for relation, limit in condition.items())
    return _listed(condition) if isinstance(condition, list) else plainly(condition)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(plainly, values))


def plainly(value: Any) -> str:
    """A value as a person would write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)
