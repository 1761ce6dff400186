"""A search space is data: named arms and what they set, read from `search_spaces/*.yaml`."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

import ram_tune
from ram_tune.config import Config, Section
from ram_tune.errors import BadInput, nearest
from ram_tune.presets import known_fields
from ram_tune.search import yaml_strict


class _Part(BaseModel):
    # Strict: else `seeds: on` would be one seed.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


@dataclass(frozen=True)
class Protocol:
    """How a number was measured: two are comparable only where all of this is the same."""

    dataset: str
    split: str
    scales: tuple[int, ...]
    views: str
    classifier: str

    @classmethod
    def of(cls, config: Config) -> Protocol:
        """How a run of `config` is measured in the end."""
        data, rule = config.data, config.evaluation
        return cls(data.name, data.test_split, rule.scales or (data.image_size,), rule.views, rule.classifier)

    def words(self) -> str:
        scales = " and ".join(map(str, self.scales))
        views = "one view" if self.views == "one" else "ten views"
        return f"{self.dataset} {self.split}, N={scales}, {views}, {self.classifier}"


class Published(_Part):
    """A published number, in percent, and all that it is a number of."""

    arm: str
    dataset: str
    split: str
    scale: int | list[int]
    views: Literal["one", "ten"]
    classifier: Literal["svm", "network"]
    source: str
    mAP: float | None = None  # noqa: N815
    CF1: float | None = None
    OF1: float | None = None

    def protocol(self) -> Protocol:
        """What it is a number of."""
        scales = (self.scale,) if isinstance(self.scale, int) else tuple(self.scale)
        return Protocol(self.dataset, self.split, scales, self.views, self.classifier)


class Other(_Part):
    """A published number, in percent, of a system that is none of the arms."""

    system: str
    dataset: str
    source: str
    mAP: float | None = None  # noqa: N815
    CF1: float | None = None
    OF1: float | None = None


class Space(_Part):
    """One question and the settings that answer it."""

    version: Literal[1]
    """Of this format."""
    title: str
    """What the search is called in records."""
    question: str = ""
    """What it is to answer."""
    base: dict[str, Any] = {}
    """Fields of every run."""
    arms: dict[str, dict[str, Any]] = Field(min_length=1)
    """Arm → the fields it owns."""
    arms_on: dict[str, dict[str, dict[str, Any]]] = {}
    """Dataset (a name that `--data` knows) → arms for it in place of `arms`, such as at sizes that a CPU can train."""
    seeds: int = Field(default=1, ge=1)
    """Runs of each arm."""
    published: tuple[Published, ...] = Field(default=(), strict=False)  # strictly, YAML's list would be no tuple
    """Numbers to set beside the measured ones."""
    others: tuple[Other, ...] = Field(default=(), strict=False)
    """Published numbers of systems that are none of the arms: rows of their own."""

    def on(self, data: str) -> Space:
        """The space as it is for the dataset `data`."""
        return self.model_copy(update={"arms": self.arms_on.get(data, self.arms)})

    def owned(self) -> dict[str, str]:
        """Field → the first arm that owns it: what `--set` may not touch."""
        return {field: arm for arm, values in reversed(self.arms.items()) for field in values}


def _leaves(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _leaves(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


_flat: dict[str, Any] = {name: (info.annotation, info) for name, info in _leaves()}
Fields = create_model("Fields", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **_flat)
"""Any of the configuration's fields, by dotted name, each valid by itself."""


def folder() -> Path:
    """Where the spaces are that come with the package."""
    package = Path(ram_tune.__file__).parent
    installed = package / "search_spaces"  # a wheel carries them inside
    return installed if installed.is_dir() else package.parent / "search_spaces"


def names() -> list[str]:
    """The spaces that come with the package."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def read(name: str) -> Space:
    """A space by its name, or by the path of a YAML file. Raises BadInput naming file and field."""
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder() / f"{name}.yaml"
    if not path.is_file():
        raise BadInput(
            "search",
            found=f"no search space {name!r}",
            expected=f"one of {', '.join(names())}, or the path of a YAML file",
            remedy=nearest(name, names()),
        )
    content = yaml_strict.load(path)
    try:
        space = Space.model_validate(content)
    except ValidationError as error:
        raise _explain(error, path) from None
    _check(space.base, f"{path}: base")
    for where, arms in (("arms", space.arms), *((f"arms_on.{data}", arms) for data, arms in space.arms_on.items())):
        for arm, values in arms.items():
            _check(values, f"{path}: {where}.{arm}")
    known = {arm for arms in (space.arms, *space.arms_on.values()) for arm in arms}
    for number, entry in enumerate(space.published):
        if entry.arm not in known:
            raise BadInput(
                f"{path}: published.{number}.arm",
                found=repr(entry.arm),
                expected=f"one of the arms {', '.join(space.arms)}",
                remedy=nearest(entry.arm, known),
            )
    return space


def _check(values: Mapping[str, Any], where: str) -> None:
    """Each value by itself: which fields go together is only known with the dataset's preset."""
    known_fields(values, where)
    try:
        Fields.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        raise BadInput(
            f"{where}: {'.'.join(str(part) for part in problem['loc'])}",
            found=_shown(problem["input"]),
            expected=_expected(problem["msg"]),
            remedy=f"({Fields.model_fields[name].description})",
        ) from None
    for name, value in values.items():
        if isinstance(value, bool) and Fields.model_fields[name].annotation is not bool:  # to pydantic, True is 1
            raise BadInput(f"{where}: {name}", found=value, expected="a number")


def _explain(error: ValidationError, path: Path) -> BadInput:
    # A misspelt name before the one that is missing because of it.
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    kind, place = problem["type"], problem["loc"]
    found = "nothing" if kind == "missing" or problem["input"] is None else _shown(problem["input"])
    expected, remedy = _expected(problem["msg"]), ""
    part = Published if place[:1] == ("published",) else Space
    if kind == "extra_forbidden":
        found, expected = "an unknown name", f"one of {', '.join(part.model_fields)}"
        remedy = nearest(str(place[-1]), part.model_fields)
    elif kind == "missing":
        expected = "a value"
    elif kind == "model_type":
        expected = f"a mapping with {', '.join(part.model_fields)}"
    elif kind == "dict_type":
        expected = "a mapping, such as {loss.anchor: off}"
        remedy = "Write {} for an arm that sets nothing." if len(place) == 2 and problem["input"] is None else ""
    if place == ("arms",):
        expected = "at least one arm, such as `arms: {none: {loss.anchor: off}}`"
    return BadInput(
        f"{path}: {'.'.join(str(part) for part in place) or 'the whole file'}",
        found=found,
        expected=expected,
        remedy=remedy,
    )


def _expected(message: str) -> str:
    message = message.removeprefix("Input should be ")
    return message[:1].lower() + message[1:]


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)  # short, also where aliases of aliases would fill the screen
    except ValueError:  # Python does not write out a number of more than 4300 digits
        return "a huge number"
