"""What the desk keeps: the study and the record, told of the same things in an order that survives being killed."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ram_tune.search.jobs import Job, Outcome
from ram_tune.search.lease import Held
from ram_tune.search.objectives import DIRECTIONS
from ram_tune.search.plan import Maker
from ram_tune.search.record import About, Record
from ram_tune.search.sampling import Sampling
from ram_tune.search.study import OBJECTIVE, Study, open_study


class Books:
    """The study, the record, and the jobs that both are told of by fingerprint (`run`)."""

    def __init__(self, study: Study, record: Record, jobs: Sequence[Job], held: Held, sampling: Sampling | None = None):
        self.study, self.record, self.held, self.sampling = study, record, held, sampling
        self.jobs = {job.fingerprint: job for job in jobs}
        self.gpus: dict[str, tuple[float, float]] = {}  # running job → its GPUs, and when it started
        self.epochs: dict[str, int] = {}  # running job → the last epoch it told of
        self.spent = self.noted = float(study.note("gpu_seconds") or 0)  # GPU-seconds
        self.counted, self.noted_at = time.monotonic(), -math.inf
        self.counting = threading.Lock()  # the desk beats in a thread of its own
        self.left = {  # what ran when another desk was lost, and may be running still
            run: float(known.get("gpus", 0)) for run, known in study.runs().items() if known["state"] == "running"
        }
        self.runs: dict[str, list[str]] = defaultdict(list)  # setting → its runs
        for job in jobs:
            for arm in job.owners:
                self.runs[arm].append(job.fingerprint)
        for run, reason in (sampling.cut_off if sampling else {}).items():  # lost before they could say how they ended
            known = study.runs().get(run)
            if known and known["state"] == "running":
                record.stopped(run, reason)
                study.note_state(run, "pruned", reason)
        for setting, runs in self.runs.items():
            study.settle(setting, runs)  # a driver may have died between the two steps of `Study.ended`

    def more(self) -> list[Job] | None:
        """The jobs of the next run of a sampled search; [] while there is none, None when there never will be one."""
        found = self.sampling.more() if self.sampling else None
        self.jobs |= {job.fingerprint: job for job in found or ()}
        return found

    def known(self, runs: Sequence[str]) -> dict[str, Outcome]:
        """How those of `runs` ended that did."""
        ended = self.study.outcomes()
        return {run: ended[run] for run in runs if run in ended}

    def know(self, job: Job) -> None:
        self.jobs.setdefault(job.fingerprint, job)

    def started(self, run: str, gpus: float = 0.0) -> None:
        self._runs_on(run, gpus)
        self.study.started(self.jobs[run], gpus)
        self.record.started(self.jobs[run])

    def worker(self, run: str, about: Mapping[str, str]) -> None:
        self.record.worker(run, {f"ram_tune.worker.{name}": value for name, value in about.items()})

    def epoch(self, run: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        if run in self.left and run not in self.gpus:  # it goes on, whoever hears of it
            self._runs_on(run, self.left[run])
        self.epochs[run] = max(epoch, self.epochs.get(run, 0))
        return self.record.epoch(run, epoch, dict(metrics))

    def worth_going_on(self, run: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        return self.sampling is None or self.sampling.epoch(run, epoch, metrics)

    def gave_up(self, run: str) -> bool:
        return self.sampling is not None and run in self.sampling.given_up

    def ended(self, run: str, outcome: Outcome) -> Outcome:
        # The record first: what the study does not know of is done again and recorded again, which changes nothing.
        if self.sampling:
            outcome = self.sampling.judged(run, outcome)
        if outcome.state == "finished":
            self.record.finished(run, outcome.metrics, outcome.checkpoint)
        elif outcome.state == "failed":
            self.record.failed(run, outcome.error)
        else:
            self.record.stopped(run, outcome.pruned)
        job = self.jobs[run]
        self._spend()
        with self.counting:
            gpus, since = self.gpus.pop(run, (0.0, time.monotonic()))
        epochs, seconds = self.epochs.pop(run, 0), time.monotonic() - since
        self.study.ended(job, outcome, self.runs, epochs, seconds, gpus)
        if self.sampling:
            self.sampling.ended(run, outcome)
            values = [one.objectives[0] for one in self.sampling.tried() if one.objectives and one.feasible]
            if values and job.kind != "stage1":
                top = max(values) if DIRECTIONS[self.sampling.space.objectives[0]] == "maximize" else min(values)
                self.record.best(self.sampling.metrics[0], top, len(values))
        elif job.kind != "stage1":
            ours = {run for runs in self.runs.values() for run in runs}
            ended = [one for run, one in self.study.outcomes().items() if run in ours and one.state == "finished"]
            values = [one.metrics[OBJECTIVE] for one in ended if math.isfinite(one.metrics[OBJECTIVE])]
            if values:
                self.record.best(OBJECTIVE, max(values), len(values))
        return outcome

    def beat(self) -> str:
        if not self.study.lease.mine(self.held):  # the driver shows it
            return "another driver has taken this search over; this one ends"
        if self.sampling is None:
            return ""
        return self.sampling.spent(self._spend())

    def _spend(self) -> float:
        """GPU-seconds of the whole search, in earlier processes too: a killed one loses a minute of them at most."""
        with self.counting:
            now = time.monotonic()
            self.spent += (now - self.counted) * sum(gpus for gpus, _ in self.gpus.values())
            self.counted = now
        if self.spent > self.noted and now - self.noted_at > 60:
            self.study.set_note("gpu_seconds", self.spent)
            self.noted, self.noted_at = self.spent, now
        return self.spent

    def _runs_on(self, run: str, gpus: float) -> None:
        self._spend()
        with self.counting:
            self.gpus[run] = gpus, time.monotonic()

    def problem(self) -> str:
        return self.record.problem

    def close(self, table: str, status: str, markdown: str) -> None:
        self.study.set_note("gpu_seconds", self._spend())
        self.record.close(table, status, markdown)

    def settle(self, timeout: float) -> list[str]:
        return self.record.settle(timeout)


def open_books(
    storage: str,
    study: str,
    folder: Path,
    about: About,
    tracking_uri: str,
    jobs: Sequence[Job],
    held: Held,
    cwd: str,
    maker: Maker | None = None,
    since: float | None = None,
) -> Books:
    """The books of a study that exists, in the desk's process; `maker`: of a sampled search's jobs; `since`: when it began."""
    os.chdir(cwd)  # MLflow's default store means the folder the user is in
    found = open_study(storage, study, exactly=True)
    assert found is not None
    record = Record(folder, about, tracking_uri)
    record.open()
    record.start_sending()
    return Books(found.keep(), record, jobs, held, sampling_of(found, maker, since) if maker else None)


def sampling_of(study: Study, maker: Maker, since: float | None = None) -> Sampling:
    """A sampled search on its study."""
    training = maker.base.training
    return Sampling(study, maker.space, maker.paper, training.epochs, maker.jobs, training.seed, since=since)
