"""From a space to the graph of jobs: which runs there are, and which needs which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ram_tune.config import Config, fields
from ram_tune.data.roles import Dataset
from ram_tune.errors import BadInput
from ram_tune.presets import configure
from ram_tune.search.space import Space
from ram_tune.training.run import identity


@dataclass(frozen=True)
class Job:
    """One run for the executor."""

    kind: Literal["stage1", "train"]
    setting: str  # the arm's name
    config: Config
    fingerprint: str
    needs: str = ""  # fingerprint of the stage-1 job whose weights it starts from

    @property
    def name(self) -> str:
        return self.setting if self.kind == "stage1" else f"{self.setting} · seed {self.config.training.seed}"


def base_config(space: Space, data: str, data_root: str, overrides: Mapping[str, Any]) -> Config:
    """The configuration that all arms share. Raises BadInput for an override of a field that an arm owns."""
    owned = space.owned()
    for field in overrides:
        if field in owned:
            raise BadInput(
                f"--set {field}",
                found=f"a field that arm {owned[field]!r} sets",
                expected="a field that no arm owns",
                remedy="Change the arm in a copy of the search space, and give that file's path.",
            )
    return configure(data, data_root, space.base, overrides=overrides)


def plan(
    space: Space, data: str, data_root: str, overrides: Mapping[str, Any], seeds: int, dataset: Dataset
) -> list[Job]:
    """All jobs, each after the one it needs: every stage 1 once, then the arms seed by seed.

    Seeds count from the base configuration's. Raises BadInput.
    """
    _require_same_images(space)
    first_seed = base_config(space, data, data_root, overrides).training.seed
    stages: dict[str, Job] = {}
    runs = []
    for seed in range(first_seed, first_seed + seeds):
        for arm, values in space.arms.items():
            layers = space.base, {**overrides, "training.seed": seed}, values
            config = configure(data, data_root, *layers)
            needs = ""
            if first := config.stage1_config():
                needs = identity(first, dataset)
                stages.setdefault(needs, Job("stage1", "stage 1", first, needs))
            runs.append(Job("train", arm, config, identity(config, dataset), needs))
    _require_different(runs)
    return [*stages.values(), *runs]


def _require_same_images(space: Space) -> None:
    """Arms are compared on one dataset: the fields that say which images there are belong to `base` or `--set`."""
    elsewhere = {name for name, about in fields() if name.startswith("data.") and not about["hashed"]}
    for arm, values in space.arms.items():
        for field in elsewhere & set(values):
            raise BadInput(f"arms.{arm}: {field}", found="a choice of images", expected="the same images for all arms")


def _require_different(runs: list[Job]) -> None:
    """Two runs that compute the same would write to the same place."""
    seen: dict[str, Job] = {}
    for job in runs:
        if twin := seen.get(job.fingerprint):
            raise BadInput(
                f"arms {twin.name} and {job.name}",
                found="the same configuration",
                expected="arms that differ",
                remedy="Remove one of them.",
            )
        seen[job.fingerprint] = job
