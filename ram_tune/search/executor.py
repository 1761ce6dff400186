"""Ray Tune runs jobs on whatever cluster there is; it decides, retries and remembers nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune

from ram_tune.distribution.trial import DRIVER_RESOURCES, ENVIRONMENT, TrialConfig, run_trial
from ram_tune.distribution.worker import Order
from ram_tune.errors import BadInput
from ram_tune.search.plan import Job

OBJECT_STORE_BYTES = 200_000_000  # nothing large travels through it


class Listener(Protocol):
    """Told of what happens to jobs, in the driver's process, in order."""

    def started(self, job: Job) -> None: ...

    def epoch(self, job: Job, metrics: dict[str, Any]) -> None:
        """An epoch's metrics, `epoch` among them."""

    def finished(self, job: Job, outcome: Outcome) -> None:
        """A job ended: well, or with `outcome.error`."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    metrics: dict[str, float]  # `test/…`; empty if it failed
    checkpoint: str = ""  # folder with best.pt and the files of training.results
    error: str = ""  # traceback


@contextmanager
def ray_cluster() -> Iterator[dict[str, float]]:
    """A Ray instance of our own on this machine → the CPUs and GPUs it has."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one machine of one's own is not taken away
    ray.init(
        address="local",  # never a stale cluster whose address is lying about
        include_dashboard=True,  # Train frees the resources of a stopped run through it
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    try:
        there = ray.cluster_resources()
        yield {name: there.get(name, 0.0) for name in ("CPU", "GPU")}
    finally:
        ray.shutdown()


def execute(
    jobs: Sequence[Job], there: Mapping[str, float], storage: Path, cache_dir: Path, listeners: Sequence[Listener]
) -> dict[str, Outcome]:
    """Run all jobs, those that are needed first → fingerprint: outcome. A job whose need failed is not run, and fails.

    `there` is what `ray_cluster` gave. Raises BadInput, before anything runs, for a job that could never be placed.
    """
    for job in jobs:
        _require_room(job, there)
    outcomes: dict[str, Outcome] = {}
    for kind in ("stage1", "train"):
        ready = []
        for job in (job for job in jobs if job.kind == kind):
            if job.needs and outcomes[job.needs].error:
                _tell(listeners, job, outcomes, Outcome({}, error="not run: stage 1, which it starts from, failed"))
            else:
                ready.append(job)
        if ready:
            _run(ready, there, storage, cache_dir, listeners, outcomes)
    return outcomes


def resources(job: Job, jobs: int, there: Mapping[str, float]) -> dict[str, float]:
    """CPUs and GPUs of a job's worker: what it asks for; CPUs else an equal share of what is there, at least one."""
    execution = job.config.execution
    gpus = execution.gpus_per_worker
    return {
        "CPU": execution.cpus_per_worker or max(there["CPU"] // jobs, 1),
        "GPU": min(there["GPU"], 1.0) if gpus is None else gpus,
    }


def _require_room(job: Job, there: Mapping[str, float]) -> None:
    for name, wanted in resources(job, 1, there).items():
        if wanted > there[name]:
            raise BadInput(
                f"execution.{name.lower()}s_per_worker",
                found=f"{wanted:g}",
                expected=f"at most {there[name]:g}, which is what this machine has",
                remedy="The run could never start. Ask for less.",
            )


def _run(
    jobs: Sequence[Job],
    there: Mapping[str, float],
    storage: Path,
    cache_dir: Path,
    listeners: Sequence[Listener],
    outcomes: dict[str, Outcome],
) -> None:
    configs: list[TrialConfig] = []
    for job in jobs:
        stage1 = outcomes[job.needs].checkpoint if job.needs else ""
        order = Order(config=job.config.model_dump_json(), cache_dir=str(cache_dir), stage1=stage1)
        configs.append(
            TrialConfig(
                fingerprint=job.fingerprint,
                order=dict(order),
                storage=str(storage / "train"),
                resources=resources(job, len(jobs), there),
            )
        )
    # More trials than workers fit would start drivers that only wait.
    at_once = min(int(there[name] // n) for config in configs for name, n in config["resources"].items() if n)
    watcher = _Watcher({job.fingerprint: job for job in jobs}, listeners, outcomes)
    tune.Tuner(
        tune.with_resources(run_trial, DRIVER_RESOURCES),
        param_space={"job": tune.grid_search(configs)},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
        run_config=tune.RunConfig(
            name=f"tune-{jobs[0].kind}",
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[watcher],
        ),
    ).fit()


def _tell(listeners: Sequence[Listener], job: Job, outcomes: dict[str, Outcome], outcome: Outcome) -> None:
    outcomes[job.fingerprint] = outcome
    for listener in listeners:
        listener.finished(job, outcome)


class _Watcher(tune.Callback):
    """Passes on to `listeners` what Tune says of `jobs` (by fingerprint), and keeps their outcomes."""

    def __init__(self, jobs: dict[str, Job], listeners: Sequence[Listener], outcomes: dict[str, Outcome]):
        self.jobs, self.listeners, self.outcomes = jobs, listeners, outcomes

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its callbacks; this one lives in the driver only

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        for listener in self.listeners:
            listener.started(self._job(trial))

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **_: Any) -> None:
        job = self._job(trial)
        if result.get("error"):
            _tell(self.listeners, job, self.outcomes, Outcome({}, error=result["error"]))
        elif result.get("finished"):
            metrics = {name: value for name, value in result.items() if name.startswith("test/")}
            metrics["best_epoch"] = result["best_epoch"]
            _tell(self.listeners, job, self.outcomes, Outcome(metrics, result["checkpoint_path"]))
        elif "train/loss" in result:
            metrics = {name: value for name, value in result.items() if name == "epoch" or "/" in name}
            for listener in self.listeners:
                listener.epoch(job, metrics)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        error = Path(trial.error_file).read_text() if trial.error_file else "no traceback was left"
        _tell(self.listeners, self._job(trial), self.outcomes, Outcome({}, error=error))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        if self._job(trial).fingerprint not in self.outcomes:
            _tell(self.listeners, self._job(trial), self.outcomes, Outcome({}, error="ended without a final report"))

    def _job(self, trial: Any) -> Job:
        return self.jobs[trial.config["job"]["fingerprint"]]
