"""From a space to the graph of jobs: which runs there are, and which needs which."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from ram_tune.config import FINAL_ONLY, Config, Training, fields
from ram_tune.errors import BadInput
from ram_tune.presets import configure, edge_fingerprint, from_fields, weights_fingerprint
from ram_tune.search.jobs import Job
from ram_tune.search.parameters import within
from ram_tune.search.space import Space

if TYPE_CHECKING:
    from ram_tune.data.roles import Dataset
    from ram_tune.search.settings import Need


def base_config(space: Space, data: str, data_root: str, overrides: Mapping[str, Any]) -> Config:
    """The configuration that all arms share. Raises BadInput for an override of a field that an arm owns."""
    owned = space.owned()
    for field in overrides:
        if field in owned:
            raise BadInput(
                f"--set {field}",
                found="a field that is searched" if space.parameters else f"a field that arm {owned[field]!r} sets",
                expected="a field that no parameter owns" if space.parameters else "a field that no arm owns",
                remedy="Change it in a copy of the search space, and give that file's path.",
            )
    return configure(data, data_root, space.base, overrides=overrides)


@dataclass(frozen=True)
class Maker:
    """Makes the jobs of sampled settings. Plain values, for the desk's process gets it."""

    space: Space
    data: str
    data_root: str
    overrides: Mapping[str, Any]
    dataset: str  # its fingerprint

    def __reduce__(self) -> tuple:
        return Maker, (self.space, self.data, self.data_root, self.overrides, self.dataset)  # not what is cached

    @cached_property
    def base(self) -> Config:
        """What all settings share: the paper's own setting, on this dataset."""
        return base_config(self.space, self.data, self.data_root, self.overrides)

    @cached_property
    def paper(self) -> dict[str, Any] | None:
        """The paper's setting as the sampler would name it; None where it lies outside the space."""
        inside, outside = within(self.base.flat(), self.space.parameters)
        return None if outside else inside

    @cached_property
    def _identity(self) -> Callable[[Config], str]:
        return identities(self.dataset)

    def jobs(self, need: Need) -> list[Job]:
        """The jobs of a run, each after those it needs, itself last. Raises BadInput for values that do not go together."""
        cheap = self.space.fidelity if need.cheap else {}
        overrides = {**self.overrides, "training.seed": self.base.training.seed + need.seed}
        config = configure(self.data, self.data_root, self.space.base, cheap, overrides, need.values)
        job, identity = Job("train", need.name, config, "", self.dataset, sampled=True), self._identity
        made: list[Job] = []

        def training(one: Config, name: str) -> Job:
            first, needs = one.stage1_config(), ()
            if first is not None:
                usual = self.base.stage1_config()
                same = usual is not None and identity(usual) == identity(first)
                setting = "stage 1" if same else f"stage 1 of {need.name}"
                made.append(Job("stage1", setting, first, identity(first), self.dataset))
                needs = (identity(first),)
            return replace(job, setting=name, config=one, fingerprint=identity(one), needs=needs)

        trained = models_of(config, self.base)
        if [identity(one) for one in trained] == [identity(config)]:
            run = training(config, need.name)
            return [*made, run]
        models = [training(one, f"{need.name} (N={one.data.image_size})") for one in trained]
        needs = tuple(one.fingerprint for one in models)
        return [*made, *models, replace(job, kind="evaluate", fingerprint=identity(config), needs=needs)]


def plan(
    space: Space, data: str, data_root: str, overrides: Mapping[str, Any], seeds: int, dataset: Dataset
) -> list[Job]:
    """All jobs, each after those it needs: every stage 1 once, then the arms seed by seed.

    Arms that compute the same on this dataset share a run, be it stage 1's. Arms that differ only in how they are evaluated
    need one trained model: the others are `evaluate` jobs on it. Seeds count from the base configuration's. Raises BadInput.
    """
    _require_same_images(space)
    base = base_config(space, data, data_root, overrides)
    identity = identities(dataset.fingerprint)
    first_seed = base.training.seed
    wanted = [
        (arm, configure(data, data_root, space.base, {**overrides, "training.seed": seed}, values))
        for seed in range(first_seed, first_seed + seeds)
        for arm, values in space.arms.items()
    ]
    named: dict[str, list[str]] = {}  # identity → the arms of it: what an arm sets, another dataset's preset may have
    for arm, config in wanted:
        alike = named.setdefault(identity(config), [])
        if arm in alike:
            raise BadInput(f"arms.{arm}: training.seed", found="one seed", expected="the seeds of all arms")
        alike.append(arm)

    stages: dict[str, Job] = {}
    models: dict[str, Job] = {}  # trained only for evaluations: no arm is just this
    trainings, evaluations = [], []

    def needed(config: Config) -> tuple[str, ...]:
        first = config.stage1_config()
        if first is None:
            return ()
        stages.setdefault(identity(first), Job("stage1", "stage 1", first, identity(first), dataset.fingerprint))
        return (identity(first),)

    for arm, config in wanted:
        first, *also = named[identity(config)]
        if arm != first:
            continue
        run = Job("train", arm, config, identity(config), dataset.fingerprint, also=tuple(also))
        trained = models_of(config, base)
        if [identity(one) for one in trained] == [identity(config)]:
            trainings.append(replace(run, needs=needed(config)))
            continue
        for one in trained:
            if identity(one) not in named:
                name = f"{arm} (training)" if len(trained) == 1 else f"{arm} (N={one.data.image_size})"
                job = Job("train", name, one, identity(one), dataset.fingerprint, needed(one))
                models.setdefault(identity(one), job)
        evaluations.append(replace(run, kind="evaluate", needs=tuple(identity(one) for one in trained)))
    for run in [run for run in trainings if run.fingerprint in stages]:  # a whole-image arm that is just that
        stages[run.fingerprint] = replace(stages[run.fingerprint], also=(run.setting, *run.also))
        trainings.remove(run)
    models = {run: job for run, job in models.items() if run not in stages}  # what an arm evaluates may be just that
    # Arms that others evaluate are trainings all the same, and come before them.
    return [*_told_apart(stages, [*models.values(), *trainings]), *models.values(), *trainings, *evaluations]


def _told_apart(stages: Mapping[str, Job], trainings: Sequence[Job]) -> list[Job]:
    """Stages 1 that differ in more than their seed bear the names of the arms that start from them."""
    kinds = {
        job.config.model_copy(update={"training": _seedless(job.config)}).fingerprint({}) for job in stages.values()
    }
    if len(kinds) < 2:
        return list(stages.values())
    arms = {run: dict.fromkeys(job.setting for job in trainings if run in job.needs) for run in stages}
    return [replace(job, setting=f"stage 1 of {', '.join(arms[run])}") for run, job in stages.items()]


def _seedless(config: Config) -> Training:
    return config.training.model_copy(update={"seed": 0})


def models_of(config: Config, base: Config) -> list[Config]:
    """The trainings whose models `config` evaluates, one for each of its scales; itself where it is just a training.

    How a finished model is evaluated does not make it another one: there the trainings have what all arms share.
    """
    rule = config.evaluation
    final = {name: getattr(base.evaluation, name) for name in FINAL_ONLY}
    if config.training.select_by == "loss":  # which epoch is kept then depends on no field of the evaluation
        rule = base.evaluation
    evaluation = {f"evaluation.{name}": value for name, value in {**rule.model_dump(), **final, "scales": ()}.items()}
    scales = config.evaluation.scales or (config.data.image_size,)
    return [from_fields({**config.flat(), **evaluation, "data.image_size": scale}) for scale in scales]


def study_name(name: str, base: Config, dataset: Dataset) -> str:
    """The search on this dataset with what all its arms share: another seed does not make it another search."""
    shared = identities(dataset.fingerprint)(base.model_copy(update={"training": _seedless(base)}))
    return f"{experiment_name(name, dataset.name)}-{shared[:8]}"


def experiment_name(name: str, dataset: str) -> str:
    """What a search on the dataset of that name is called in MLflow, as its best model is. It stands in queries, in commands
    (`NAME@best`), and in names of folders.
    """
    return re.sub(r"[^\w.+-]+", "_", f"{name}-{dataset}")


def identities(dataset: str) -> Callable[[Config], str]:
    """`training.run.identity` for many configurations on the dataset of that fingerprint: a file is read once."""
    weights, edges = cache(weights_fingerprint), cache(edge_fingerprint)

    def identity(config: Config) -> str:
        files = {**weights(config.model.backbone.weights), **edges(config.model.proposals.edge_model)}
        return config.fingerprint({"dataset": dataset, **files})

    return identity


def _require_same_images(space: Space) -> None:
    """Arms are compared on one dataset: the fields that say which images there are belong to `base` or `--set`."""
    elsewhere = {name for name, about in fields() if name.startswith("data.") and not about["hashed"]}
    for arm, values in space.arms.items():
        for field in elsewhere & set(values):
            raise BadInput(f"arms.{arm}: {field}", found="a choice of images", expected="the same images for all arms")
