"""A search space is data: named arms and what they set, or parameters to draw; read from `search_spaces/*.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

import ram_tune
from ram_tune.errors import BadInput, nearest
from ram_tune.search import yaml_strict
from ram_tune.search.domains import Domain
from ram_tune.search.fields import Part, check_values, expected, shown
from ram_tune.search.objectives import DIRECTIONS, Metric, metric, parse_constraint
from ram_tune.search.parameters import check
from ram_tune.search.published import Other, Published


class Method(Part):
    """A sampler or a pruner: its name, or its name with options."""

    name: str
    """What it is called."""
    options: dict[str, Any] = Field(default={})
    """Its own options."""
    judge: str = ""
    """For a pruner: the objective by which epochs are judged. Default: the only one."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler(core)]}


class Budget(Part):
    """When a sampled search ends: with the first of these that is spent."""

    trials: int = Field(default=20, ge=1)
    """Settings."""
    hours: float | None = Field(default=None, gt=0)
    """Hours from the start. Default: no limit."""
    gpu_hours: float | None = Field(default=None, gt=0)
    """Hours of all GPUs together. Default: no limit."""


class Space(Part):
    """One question and the settings that answer it: named arms, or parameters from which a sampler draws."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["arms"]}, {"required": ["parameters"]}]})

    version: Literal[1]
    """Of this format."""
    title: str
    """What the search is called in records."""
    question: str = ""
    """What it is to answer."""
    base: dict[str, Any] = Field(default={})
    """Fields of every run."""
    base_on: dict[str, dict[str, Any]] = Field(default={})
    """Dataset (a name that `--data` knows) → further fields of every run on it."""
    arms: dict[str, dict[str, Any]] = Field(default={}, min_length=1)
    """Arm → the fields it owns."""
    arms_on: dict[str, dict[str, dict[str, Any]]] = Field(default={})
    """Dataset (a name that `--data` knows) → arms for it in place of `arms`, such as at sizes that a CPU can train."""
    parameters: dict[str, Domain] = Field(default={}, min_length=1)
    """Field → what its values are drawn from. In place of `arms`."""
    parameters_on: dict[str, Annotated[dict[str, Domain], Field(min_length=1)]] = Field(default={})
    """Dataset (a name that `--data` knows) → parameters for it in place of `parameters`."""
    objectives: tuple[Metric, ...] = Field(default=("mAP",), strict=False, min_length=1)
    """What is best, on the selection images; with several, no setting is best but those that none beats in all."""
    constraints: tuple[str, ...] = Field(default=(), strict=False)
    """What a setting must keep, such as `ms_per_image <= 20`."""
    sampler: Method = Method(name="tpe")
    """What draws the settings."""
    pruner: Method = Method(name="none")
    """What gives up settings that promise nothing. Default: hyperband; none, for named arms and several objectives."""
    budget: Budget = Budget()
    """When the search ends."""
    fidelity: dict[str, Any] = Field(default={})
    """Fields of a cheap first run of each setting. Default: none, every setting is trained in full at once."""
    promote: float = Field(default=1 / 3, gt=0, le=1)
    """Share of the settings whose cheap run is good enough for a full one."""
    confirm: int = Field(default=0, ge=0)
    """Fresh seeds with which the best setting and the paper's are trained in the end."""
    seeds: int = Field(default=1, ge=1)
    """Runs of each arm, or of each sampled setting that stays in the running."""
    reference: str = ""
    """The arm that the others are compared with. Default: the first."""
    published: tuple[Published, ...] = Field(default=(), strict=False)  # strictly, YAML's list would be no tuple
    """Numbers to set beside the measured ones."""
    others: tuple[Other, ...] = Field(default=(), strict=False)
    """Published numbers of systems that are none of the arms: rows of their own."""

    @model_validator(mode="before")
    @classmethod
    def _usual_pruner(cls, value: Any) -> Any:
        """Hyperband, where one objective says how it judges."""
        if isinstance(value, dict) and value.get("parameters") and "pruner" not in value:
            names = value.get("objectives") or ["mAP"]
            single = isinstance(names, list) and len(names) == 1 and names[0] in DIRECTIONS
            if single and metric(names[0]).startswith("selection/"):
                return {**value, "pruner": "hyperband"}
        return value

    def on(self, data: str) -> Space:
        """The space as it is for the dataset `data`."""
        return self.model_copy(
            update={
                "base": {**self.base, **self.base_on.get(data, {})},
                "arms": self.arms_on.get(data, self.arms),
                "parameters": self.parameters_on.get(data, self.parameters),
            }
        )

    def owned(self) -> dict[str, str]:
        """Field → the first arm that owns it, or "parameters": what `--set` may not touch."""
        arms = {field: arm for arm, values in reversed(self.arms.items()) for field in values}
        return {**arms, **dict.fromkeys(self.parameters, "parameters")}


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
    _require_one_kind(space, path)
    for where, values in (
        ("base", space.base),
        ("fidelity", space.fidelity),
        *((f"base_on.{data}", values) for data, values in space.base_on.items()),
        *((f"arms.{arm}", values) for arm, values in space.arms.items()),
        *((f"arms_on.{data}.{arm}", one) for data, arms in space.arms_on.items() for arm, one in arms.items()),
    ):
        check_values(values, f"{path}: {where}")
    _check_arms_named(space, path)
    if space.parameters:
        _check_sampled(space, path)
    return space


def _require_one_kind(space: Space, path: Path) -> None:
    named, drawn = space.arms or space.arms_on, space.parameters or space.parameters_on
    if not space.arms and not space.parameters:
        raise BadInput(f"{path}: arms", found="nothing", expected=SETTINGS)
    if named and drawn:
        raise BadInput(f"{path}: parameters", found="arms as well", expected="arms or parameters, not both")
    ignored = sorted(space.model_fields_set & SAMPLED_ONLY)
    if named and ignored:
        remedy = "Give `parameters` in place of `arms`, or remove it."
        raise BadInput(f"{path}: {ignored[0]}", found="arms", expected="parameters to draw from", remedy=remedy)


def _check_arms_named(space: Space, path: Path) -> None:
    known = {arm for arms in (space.arms, *space.arms_on.values()) for arm in arms}
    named = {f"published.{number}.arm": entry.arm for number, entry in enumerate(space.published)}
    named |= {"reference": space.reference} if space.reference else {}
    for field, arm in named.items():
        if arm not in known:
            raise BadInput(
                f"{path}: {field}",
                found=repr(arm),
                expected=f"one of the arms {', '.join(known)}" if known else "none, where there are no arms",
                remedy=nearest(arm, known),
            )


def _check_sampled(space: Space, path: Path) -> None:
    """What a search over parameters says of them, and of what is best."""
    on = {f"parameters_on.{data}": one for data, one in space.parameters_on.items()}
    for where, parameters in {"parameters": space.parameters, **on}.items():
        check(parameters, f"{path}: {where}")
        if both := [name for name in space.fidelity if name in parameters]:
            raise BadInput(
                f"{path}: fidelity: {both[0]}",
                found=f"a field that is drawn too ({where})",
                expected="a field that is no parameter",
                remedy="Remove it from one of the two.",
            )
    names, judge = space.objectives, space.pruner.judge
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"{path}: objectives", found=f"{twice[0]} twice", expected="every objective once")
    for number, text in enumerate(space.constraints):
        parse_constraint(text, f"{path}: constraints.{number}")
    if space.sampler.judge:
        raise BadInput(
            f"{path}: sampler.judge", found=repr(space.sampler.judge), expected="a judge with the pruner alone"
        )
    judges = [name for name in names if metric(name).startswith("selection/")]  # the others no epoch changes
    if judge and judge not in judges:
        raise BadInput(
            f"{path}: pruner.judge",
            found=shown(judge),
            expected=f"an objective that changes with the epochs: {' or '.join(judges) or 'there is none'}",
            remedy=nearest(judge, judges),
        )
    if space.pruner.name != "none" and not judge and (len(names) > 1 or not judges):
        raise BadInput(
            f"{path}: pruner.judge",
            found="nothing",
            expected="the objective by which epochs are judged",
            remedy=f"Write pruner: {{name: {space.pruner.name}, judge: {judges[0]}}}." if judges else "Use no pruner.",
        )


def _explain(error: ValidationError, path: Path) -> BadInput:
    # A misspelt name before the one that is missing because of it.
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    kind, place = problem["type"], problem["loc"]
    found = "nothing" if kind == "missing" or problem["input"] is None else shown(problem["input"])
    should, remedy = expected(problem["msg"]), ""
    part = PARTS.get(str(place[0]), Space) if len(place) > 1 or (kind == "model_type" and place) else Space
    known = [info.alias or name for name, info in part.model_fields.items()]
    where = str(place[-1]) if place else ""
    if kind == "extra_forbidden":
        found, should, remedy = "an unknown name", f"one of {', '.join(known)}", nearest(where, known)
    elif part is Domain and kind in ("missing", "too_long", "tuple_type") and where != "choice":
        should = "two numbers, [low, high]"
    elif kind == "missing":
        should = "a value"
    elif kind == "model_type":
        should = f"a mapping with {', '.join(known)}"
    elif kind == "tuple_type":
        should = "a list, such as [mAP]" if where == "objectives" else "a list"
    elif kind == "literal_error" and isinstance(problem["input"], str):
        remedy = nearest(problem["input"], DIRECTIONS) if place[:1] == ("objectives",) else ""
    elif kind == "dict_type":
        drawn = place[:1] in (("parameters",), ("parameters_on",)) and "when" not in place
        should = f"a mapping, such as {'{model.regions: {int: [1, 9]}}' if drawn else '{loss.anchor: off}'}"
        named = len(place) == 2 and place[:1] == ("arms",) and problem["input"] is None
        remedy = "Write {} for an arm that sets nothing." if named else ""
    if place in (("arms",), ("parameters",)):
        should = SETTINGS
    return BadInput(
        f"{path}: {'.'.join(str(part) for part in place) or 'the whole file'}",
        found=found,
        expected=should,
        remedy=remedy,
    )


PARTS: dict[str, type[Part]] = {
    "published": Published,
    "others": Other,
    "parameters": Domain,
    "parameters_on": Domain,
    "sampler": Method,
    "pruner": Method,
    "budget": Budget,
}
SETTINGS = (
    "at least one arm, such as `arms: {none: {loss.anchor: off}}`, or parameters, "
    "such as `parameters: {model.regions: {int: [1, 9]}}`"
)
SAMPLED_ONLY = {"objectives", "constraints", "sampler", "pruner", "budget", "fidelity", "promote", "confirm"}
