"""What the desk keeps: the study and the record, told of the same things in an order that survives being killed."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ram_tune.search.jobs import Job, Outcome
from ram_tune.search.lease import Held
from ram_tune.search.record import About, Record
from ram_tune.search.study import OBJECTIVE, Study, open_study


class Books:
    """The study, the record, and the jobs that both are told of by fingerprint (`run`)."""

    def __init__(self, study: Study, record: Record, jobs: Sequence[Job], held: Held):
        self.study, self.record, self.held = study, record, held
        self.jobs = {job.fingerprint: job for job in jobs}
        self.runs: dict[str, list[str]] = defaultdict(list)  # setting → its runs
        for job in jobs:
            if job.kind != "stage1":
                self.runs[job.setting].append(job.fingerprint)
        for setting, runs in self.runs.items():
            study.settle(setting, runs)  # a driver may have died between the two steps of `Study.ended`

    def started(self, run: str) -> None:
        self.study.started(self.jobs[run])
        self.record.started(self.jobs[run])

    def worker(self, run: str, about: Mapping[str, str]) -> None:
        self.record.worker(run, {f"ram_tune.worker.{name}": value for name, value in about.items()})

    def epoch(self, run: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        return self.record.epoch(run, epoch, dict(metrics))

    def ended(self, run: str, outcome: Outcome) -> None:
        # The record first: what the study does not know of is done again and recorded again, which changes nothing.
        if outcome.state == "finished":
            self.record.finished(run, outcome.metrics, outcome.checkpoint)
        elif outcome.state == "failed":
            self.record.failed(run, outcome.error)
        else:
            self.record.stopped(run)
        job = self.jobs[run]
        self.study.ended(job, outcome, self.runs[job.setting])
        if job.kind != "stage1":
            ours = {run for runs in self.runs.values() for run in runs}
            ended = [one for run, one in self.study.outcomes().items() if run in ours and one.state == "finished"]
            values = [one.metrics[OBJECTIVE] for one in ended if math.isfinite(one.metrics[OBJECTIVE])]
            if values:
                self.record.best(max(values), len(values))

    def beat(self) -> str:
        return "" if self.study.lease.beat(self.held) else "another driver has taken this search over; this one ends"

    def problem(self) -> str:
        return self.record.problem

    def close(self, table: str, status: str) -> None:
        self.record.close(table, status)

    def settle(self, timeout: float) -> list[str]:
        return self.record.settle(timeout)


def open_books(
    storage: str, study: str, folder: Path, about: About, tracking_uri: str, jobs: Sequence[Job], held: Held, cwd: str
) -> Books:
    """The books of a study that exists, in the desk's process."""
    os.chdir(cwd)  # MLflow's default store means the folder the user is in
    found = open_study(storage, study, exactly=True)
    assert found is not None
    record = Record(folder, about, tracking_uri)
    record.open()
    record.start_sending()
    return Books(found, record, jobs, held)
