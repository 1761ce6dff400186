"""The study: Optuna's storage is the only truth about what was tried.

A setting is an Optuna trial. Its runs (one for each seed) and the stage 1 they share are kept as attributes of the study, so
that seeds can be added to a setting whose trial has ended, which Optuna does not change any more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ram_tune.errors import BadInput
from ram_tune.options import masked
from ram_tune.search.jobs import Job, Outcome
from ram_tune.search.lease import Lease

if TYPE_CHECKING:
    import optuna

OBJECTIVE = "selection/mAP"
"""What a setting's value is the mean of: never of the test images."""

ERROR_CHARACTERS = 4000


class Study:
    """Opened by `open_study`; every method reads (but see `keep`) or writes the storage at once."""

    def __init__(self, study: optuna.Study):
        self.study = study
        self.name = study.study_name
        # Beside what is noted, not among it: it is read every few seconds, and whoever reads one note reads all of them.
        place, number = study._storage, study._study_id
        self.lease = Lease(
            lambda: place.get_study_system_attrs(number).get("ram_tune:lease"),
            lambda held: place.set_study_system_attr(number, "ram_tune:lease", held),  # type: ignore[arg-type]
        )
        self._kept: dict[str, Any] | None = None

    def keep(self) -> Study:
        """Read what is noted once and then remember it: for whoever alone writes it, as the desk does. Each question would
        else read all runs of the search.
        """
        self._kept = self.study.user_attrs
        return self

    def agree(self, arms: Mapping[str, Mapping[str, Any]]) -> None:
        """Note the arms. Raises BadInput for one that this study knows under the same name with other fields."""
        known = self._read("arms") or {}
        for arm, fields in arms.items():
            if arm in known and known[arm] != dict(fields):
                raise BadInput(
                    f"arm {arm!r} of study {self.name}",
                    found=_written(fields),
                    expected=f"{_written(known[arm])}, as when the study was made",
                    remedy="Give the changed arm another name, or start anew with --fresh.",
                )
        self._set("arms", {**known, **{arm: dict(fields) for arm, fields in arms.items()}})

    def outcomes(self) -> dict[str, Outcome]:
        """Fingerprint → how that run ended, for those that did."""
        return {
            fingerprint: Outcome(run["metrics"], run["checkpoint"], run["error"], run.get("pruned", ""))
            for fingerprint, run in self.runs().items()
            if run["state"] != "running"
        }

    def runs(self) -> dict[str, dict[str, Any]]:
        """Fingerprint → what is known of that run: its setting, state, epochs, …"""
        attrs = list(self._all().items())  # the desk's other thread may note something meanwhile
        return {key.removeprefix("run:"): run for key, run in attrs if key.startswith("run:")}

    def started(self, job: Job, gpus: float = 0.0) -> None:
        """A job runs, for the first time or again, on so many GPUs."""
        before = self._read(f"run:{job.fingerprint}") or {"attempts": 0}
        for arm in () if job.sampled else job.owners:
            self._open(arm)
        spent = before.get("epochs", 0), before.get("seconds", 0.0), before.get("gpu_seconds", 0.0)
        self._write(job, before, "running", Outcome(), before["attempts"] + 1, *spent, gpus)

    def ended(
        self,
        job: Job,
        outcome: Outcome,
        runs: Mapping[str, Sequence[str]] | None = None,
        epochs: int = 0,
        seconds: float = 0.0,
        gpus: float = 0.0,
    ) -> None:
        """A job ended, after so many epochs in all, and so many seconds on `gpus` GPUs since it started last.

        The trial of an arm is told when none of `runs` (arm → the fingerprints of its runs) is left: its value is the mean
        over the finished ones; with none finished the trial has failed. A stopped run leaves the trial open: the next driver
        takes it up. Trials of sampled settings are kept by `Sampling`.
        """
        before = self._read(f"run:{job.fingerprint}") or {"attempts": 0}
        arms = () if job.sampled else job.owners
        for arm in () if before["attempts"] else arms:
            self._open(arm)  # it fails before it ever started
        spent = max(epochs, before.get("epochs", 0)), before.get("seconds", 0.0) + seconds
        on_gpus = before.get("gpu_seconds", 0.0) + gpus * seconds
        self._write(job, before, outcome.state, outcome, before["attempts"], *spent, on_gpus)
        for arm in arms:
            self.settle(arm, (runs or {}).get(arm, ()))

    def rename(self, jobs: Sequence[Job]) -> bool:
        """Note under which names today's plan knows its runs, beside those they had → whether any was new: an arm may come to
        share a run that was there before it.
        """
        known, changed = self.runs(), False
        for job in jobs:
            if (run := known.get(job.fingerprint)) is not None:
                new = {**run, "kind": job.kind, **self._names(job, run)}
                if new != run:
                    self._set(f"run:{job.fingerprint}", new)
                    changed = True
        return changed

    def _names(self, job: Job, before: Mapping[str, Any]) -> dict[str, Any]:
        """A run's setting, and the other arms that share it, those of earlier plans among them."""
        had = [name for name in (before.get("setting"), *before.get("also", ())) if name not in (None, job.setting)]
        arms = (self._read("arms") or {}) if had else {}
        earlier = [name for name in had if name in arms]
        also = [name for name in dict.fromkeys((*job.owners, *earlier)) if name != job.setting]
        return {"setting": job.setting, "also": also}

    def note_state(self, run: str, state: str, reason: str) -> None:
        """That a run, known already, is pruned, for this reason."""
        self._set(f"run:{run}", {**self._read(f"run:{run}"), "state": state, "pruned": reason})

    def settle(self, setting: str, runs: Sequence[str]) -> None:
        """Tell the setting's open trial, if there is one and none of `runs` is left to be run."""
        ended, trial = self.outcomes(), self._open_trial(setting)
        if trial is None or any(run not in ended or ended[run].state == "stopped" for run in runs):
            return
        from optuna.trial import TrialState

        values = [ended[run].metrics[OBJECTIVE] for run in runs if ended[run].state == "finished"]
        values = [value for value in values if math.isfinite(value)]
        if values:
            self.study.tell(trial, sum(values) / len(values))
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def _open_trial(self, setting: str) -> int | None:
        """The number of the setting's trial that has not been told yet, perhaps one that an earlier driver left."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.user_attrs.get("setting") == setting and not trial.state.is_finished():
                return trial.number
        return None

    def _open(self, setting: str) -> None:
        from optuna.trial import TrialState, create_trial

        if self._open_trial(setting) is None:  # in one step: asking would leave a window in which to be killed
            self.study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={"setting": setting}))

    def note(self, key: str) -> Any:
        """What `set_note` noted of the search as a whole; None where nothing was."""
        return self._read(f"note:{key}")

    def set_note(self, key: str, value: Any) -> None:
        self._set(f"note:{key}", value)

    def _write(
        self,
        job: Job,
        before: Mapping[str, Any],
        state: str,
        outcome: Outcome,
        attempts: int,
        epochs: int,
        seconds: float,
        gpu_seconds: float,
        gpus: float = 0.0,
    ) -> None:
        run = {
            "kind": job.kind,
            **self._names(job, before),
            "seed": job.seed,
            "needs": list(job.needs),
            "state": state,
            "attempts": attempts,
            "metrics": dict(outcome.metrics),
            "checkpoint": outcome.checkpoint,
            "error": outcome.error[-ERROR_CHARACTERS:],
            "pruned": outcome.pruned,
            "epochs": epochs,
            "seconds": seconds,
            "gpu_seconds": gpu_seconds,
            "gpus": gpus,  # that it holds while it runs
        }
        self._set(f"run:{job.fingerprint}", run)

    def _all(self) -> dict[str, Any]:
        return self.study.user_attrs if self._kept is None else self._kept

    def _read(self, key: str) -> Any:
        return self._all().get(key)

    def _set(self, key: str, value: Any) -> None:
        self.study.set_user_attr(key, value)
        if self._kept is not None:
            self._kept[key] = value


def open_study(
    storage: str,
    name: str,
    fresh: bool = False,
    create: bool = True,
    exactly: bool = False,
    directions: Sequence[Literal["maximize", "minimize"]] = ("maximize",),
) -> Study | None:
    """The newest generation of the study `name`, made if it is not there; `fresh` makes the next generation.

    `exactly`: `name` is one generation's own. Without `create` None where there is none. `directions`: of a new study's
    objectives. Raises BadInput for a storage that cannot be used.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = storage.removeprefix("sqlite:///")
    if not create and file != storage and not Path(file).exists():
        return None  # opening would make it
    try:
        if file == storage:  # a server, which may be restarted between two questions
            place = optuna.storages.get_storage(
                optuna.storages.RDBStorage(storage, engine_kwargs={"pool_pre_ping": True})
            )
        else:
            place = optuna.storages.get_storage(storage)
        known = set(optuna.get_all_study_names(place))
        generation = 1
        while not exactly and generation_name(name, generation + 1) in known:
            generation += 1
        if fresh and generation_name(name, generation) in known:
            generation += 1
        chosen = generation_name(name, generation)
        if chosen not in known and not create:
            return None
        study = optuna.create_study(storage=place, study_name=chosen, directions=list(directions), load_if_exists=True)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError, RuntimeError) as error:
        raise BadInput(
            "--study-storage",
            found=f"{masked(storage)} ({str(error).splitlines()[0]})",
            expected="a database that can be written",
            remedy="Such as sqlite:////home/me/studies.db; the folder must exist.",
        ) from error
    return Study(study)


def generation_name(name: str, generation: int) -> str:
    """`--fresh` raises the generation: nothing of an earlier one is used again."""
    return name if generation == 1 else f"{name}-{generation}"


def _written(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in fields.items()) or "no fields"
