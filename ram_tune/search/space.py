"""A search space is data: named arms and what they set, read from `search_spaces/*.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import ram_tune
from ram_tune.errors import BadInput, nearest
from ram_tune.presets import known_fields


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Published(_Part):
    """A published number, in percent, and all that it is a number of."""

    arm: str
    dataset: str
    split: str
    scale: int
    views: Literal["one", "ten"]
    classifier: Literal["svm", "network"]
    source: str
    mAP: float | None = None  # noqa: N815
    CF1: float | None = None
    OF1: float | None = None

    def protocol(self) -> str:
        """What it is a number of, in words."""
        return f"{self.source}: {self.dataset} {self.split}, N={self.scale}, {self.views} views, {self.classifier}"


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
    seeds: int = Field(default=1, ge=1)
    """Runs of each arm."""
    published: tuple[Published, ...] = ()
    """Numbers to set beside the measured ones."""

    def owned(self) -> dict[str, str]:
        """Field → the first arm that owns it: what `--set` may not touch."""
        return {field: arm for arm, values in reversed(self.arms.items()) for field in values}


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
    try:
        space = Space.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(path, found=f"what is not YAML ({error})", expected="a search space") from error
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        unknown = problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1
        raise BadInput(
            f"{path}: {field or 'the whole file'}",
            found=repr(problem["input"])[:80],
            expected=problem["msg"][:1].lower() + problem["msg"][1:],
            remedy=nearest(field, Space.model_fields) if unknown else "",
        ) from None
    known_fields(space.base, f"{path}: base")
    for arm, values in space.arms.items():
        known_fields(values, f"{path}: arms.{arm}")
    return space
