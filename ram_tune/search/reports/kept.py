"""What a search left on disk: its study, which says how every run ended, and the folders of its finished runs.

Nothing here is written, and MLflow is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ram_tune.config import Config
from ram_tune.presets import from_fields
from ram_tune.search import space as spaces
from ram_tune.search.jobs import Job, Outcome, located
from ram_tune.search.settings import PAPERS
from ram_tune.search.space import Space
from ram_tune.search.study import Study, open_study
from ram_tune.training.results import CONFIG, epochs, read_config, read_summary

ABOUT = "about"
"""The note by which a study says what it is a study of."""

CONFIRMED = ", confirmed"
"""How the name ends of a sampled setting that was trained again with fresh seeds: those are compared as arms are."""


def note(study: Study, search: str, dataset: str, space: Space, command: str, epochs: int) -> None:
    """Note what the study is of: the search's name, its space as it is run, `epochs` of one run."""
    shape = space.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    shape["pruner"] = space.pruner.model_dump(mode="json")  # else a space takes its silence for the usual one
    about = {"search": search, "dataset": dataset, "space": shape, "command": command, "epochs": epochs}
    study.set_note(ABOUT, about)


@dataclass(frozen=True)
class Kept:
    """A search as it lies on disk. Arms are named ones, or the settings of a sampled search that were confirmed."""

    study: Study
    space: Space
    dataset: str
    command: str  # as typed last; empty where the study is older than this note
    epochs: int  # of one run
    arms: Sequence[str]  # in their order
    fields: Mapping[str, Mapping[str, Any]]  # arm → those it sets
    jobs: Sequence[Job]  # of arms, of stage 1 and of models that arms evaluate; also those that are still missing
    outcomes: Mapping[str, Outcome]  # fingerprint → how it ended

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def reference(self) -> str:
        """The arm that others are compared with, where nobody names another; empty without arms."""
        if self.space.parameters:
            return next((arm for arm in self.arms if arm == PAPERS), "")
        return self.space.reference if self.space.reference in self.arms else next(iter(self.arms), "")

    @cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """Fingerprint → what `metrics.json` says, of the finished runs whose files are there."""
        found = {run: read_summary(folder) for run, folder in self.folders.items()}
        return {run: summary for run, summary in found.items() if summary}

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Fingerprint → the folder of a finished run."""
        return {
            job.fingerprint: Path(self.outcomes[job.fingerprint].checkpoint)
            for job in self.jobs
            if self.finished(job) and self.outcomes[job.fingerprint].checkpoint
        }

    @property
    def histories(self) -> dict[str, list[dict[str, float]]]:
        """Fingerprint → the epochs of a finished run."""
        return {run: epochs(summary) for run, summary in self.summaries.items()}

    def finished(self, job: Job) -> bool:
        return job.fingerprint in self.outcomes and self.outcomes[job.fingerprint].state == "finished"


def opened(url: str, name: str) -> Study:
    """The study that is called just so, in the storage at `url`. Raises BadInput."""
    found = open_study(url, name, create=False, exactly=True)
    assert found is not None  # it was listed
    return found


def read(study: Study, folder: Path) -> Kept:
    """The search of that study, whose runs lie in `folder`. Raises BadInput for files that are damaged."""
    attrs = study.study.user_attrs  # once: every look at it reads all of it
    about = attrs.get(f"note:{ABOUT}") or {}
    dataset, space = about.get("dataset", ""), _space(about, study.name)
    runs = {key.removeprefix("run:"): run for key, run in attrs.items() if key.startswith("run:")}
    outcomes = {
        run: located(Outcome(one["metrics"], one["checkpoint"], one["error"], one.get("pruned", "")), run, folder)
        for run, one in runs.items()
        if one["state"] != "running"
    }
    fields = attrs.get("arms") or {}
    arms = sorted(fields, key=list({**space.arms, **fields}).index)  # the space's order, whichever was run first
    if space.parameters:
        names = {one["setting"] for one in runs.values() if one["setting"].endswith(CONFIRMED)}
        arms = sorted(names, key=lambda arm: (arm != PAPERS, arm))
    jobs = _jobs(runs, outcomes, arms, fields, space)
    if not dataset and jobs:
        dataset = jobs[0].config.data.name
    epochs = about.get("epochs") or max((job.config.training.epochs for job in jobs if job.kind != "stage1"), default=0)
    return Kept(study, space, dataset, about.get("command", ""), epochs, arms, fields, jobs, outcomes)


def _space(about: Mapping[str, Any], study: str) -> Space:
    """As it was noted; of an older study as it comes with the package, else one that knows nothing but a name."""
    if about:
        return Space.model_validate(about["space"])
    packaged = max((name for name in spaces.names() if study.startswith(f"{name}-")), key=len, default="")
    if not packaged:
        return Space(version=1, title=study, arms={"": {}})
    space = spaces.read(packaged)
    return space.on(next((data for data in (*space.arms_on, *space.parameters_on) if f"-{data}-" in study), ""))


def _jobs(
    runs: Mapping[str, Mapping[str, Any]],
    outcomes: Mapping[str, Outcome],
    arms: Sequence[str],
    fields: Mapping[str, Mapping[str, Any]],
    space: Space,
) -> list[Job]:
    """The jobs of stage 1, of what arms evaluate, and of the arms in their order, with every seed that was asked for.

    Arms that compute the same have one job for each seed. One that is just stage 1 has its own beside stage 1's.
    """
    needed = {need for one in runs.values() for need in one.get("needs", ())}
    others = [
        run
        for run, one in runs.items()
        if not space.parameters and one["setting"] not in arms and (one["kind"] == "stage1" or run in needed)
    ]
    alike = _alike(runs, arms)
    known: dict[str, dict[int, str]] = {arm: {} for arm in alike}  # arm → seed → run
    for run, one in runs.items():
        for arm in (arm for arm, those in alike.items() if _arms(one) & {arm, *those}):
            there = known[arm].get(one["seed"])
            if there is None or there not in outcomes or outcomes[there].state != "finished":
                known[arm][one["seed"]] = run
    seeds = {seed for one in known.values() for seed in one}
    first, asked = min(seeds, default=0), space.confirm if space.parameters else space.seeds
    seeds |= set(range(first, first + asked))

    configs = _Configs(runs, outcomes, fields)
    dataset = configs.dataset
    jobs = [
        Job(runs[run]["kind"], runs[run]["setting"], configs.of(runs[run]["setting"], runs[run]["seed"]), run, dataset)
        for run in others
    ]
    for seed in sorted(seeds):
        for arm, also in alike.items():
            run = known[arm].get(seed, f"{arm} {seed}, not run")
            kind = (
                "evaluate" if run in runs and runs[run]["kind"] == "evaluate" else "train"
            )  # not stage 1's: it is an arm
            jobs.append(Job(kind, arm, configs.of(arm, seed), run, dataset, also=also))
    return [replace(job, needs=tuple(runs.get(job.fingerprint, {}).get("needs", ()))) for job in jobs]


def _alike(runs: Mapping[str, Mapping[str, Any]], arms: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Arm → later ones that compute the same: arms that share one run would share them all."""
    first = {arm: arm for arm in arms}
    for one in runs.values():
        same = {first[arm] for arm in _arms(one) & first.keys()}
        if len(same) > 1:
            lead = min(same, key=arms.index)
            first = {arm: lead if own in same else own for arm, own in first.items()}
    return {arm: tuple(one for one in arms if first[one] == arm != one) for arm in arms if first[arm] == arm}


def _arms(run: Mapping[str, Any]) -> set[str]:
    return {run["setting"], *run.get("also", ())}


class _Configs:
    """The configuration of every setting, read once from the folder of one of its finished runs."""

    def __init__(
        self,
        runs: Mapping[str, Mapping[str, Any]],
        outcomes: Mapping[str, Outcome],
        fields: Mapping[str, Mapping[str, Any]],
    ):
        self.fields, self.found = fields, dict[str, Config]()
        there = {run: Path(one.checkpoint) for run, one in outcomes.items() if one.checkpoint}
        there = {run: path for run, path in there.items() if (path / CONFIG).is_file()}
        self.folders = {arm: path for run, path in there.items() for arm in _arms(runs[run])}
        trained = [path for run, path in there.items() if runs[run]["kind"] != "stage1"]
        self.base = read_config(trained[0]) if trained else Config()
        self.dataset = next((about["dataset"] for path in there.values() if (about := read_summary(path))), "")

    def of(self, setting: str, seed: int) -> Config:
        """That of the run of this seed. Of a setting without a finished run: what others have, with its own fields."""
        if setting not in self.found:
            folder = self.folders.get(setting)
            own = self.fields.get(setting, {})
            self.found[setting] = read_config(folder) if folder else from_fields({**self.base.flat(), **own})
        config = self.found[setting]
        return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
