"""What the desk keeps, as the driver's queue and its workers tell it: restarted at any moment, with failures."""

from __future__ import annotations

import random
from typing import Any

import pytest
from simulated import memory, space

from ram_tune.config import Config, Training, digest
from ram_tune.search.books import Books
from ram_tune.search.jobs import NOT_RUN, Job, Outcome, Queue
from ram_tune.search.lease import this_process
from ram_tune.search.sampling import Sampling
from ram_tune.search.settings import Need
from ram_tune.search.study import Study

EPOCHS = 4
STAGE1 = Job("stage1", "stage 1", Config(), "s", "data")


class Recorder:
    """Remembers what the record is told."""

    def __init__(self):
        self.epochs: dict[str, list[int]] = {}
        self.ends: dict[str, str] = {}

    def started(self, job: Job) -> None: ...

    def epoch(self, run: str, epoch: int, metrics: dict[str, float]) -> bool:
        known = self.epochs.setdefault(run, [])
        if epoch in known:
            return False
        known.append(epoch)
        return True

    def finished(self, run: str, metrics: dict[str, float], checkpoint: str) -> None:
        self.ends[run] = "finished"

    def failed(self, run: str, error: str) -> None:
        self.ends[run] = "failed"

    def stopped(self, run: str, reason: str = "") -> None:
        self.ends[run] = "pruned" if reason else "stopped"

    def best(self, *_: Any) -> None: ...


def jobs_of(need: Need) -> list[Job]:
    config = Config(training=Training(seed=need.seed))
    run = Job("train", need.name, config, digest([need.values, need.seed]), "data", ("s",), sampled=True)
    return [STAGE1, run]


class Driver:
    """A queue and a desk, as in a search, but every epoch is an instant."""

    def __init__(
        self, study: Study, recorder: Recorder, chance: random.Random, failing: float = 0.0, lost: float = 0.0
    ):
        self.study, self.recorder, self.chance, self.failing, self.lost = study, recorder, chance, failing, lost
        self.fields = space(budget={"trials": 9}, pruner="successive_halving", seeds=2, confirm=1, sampler="random")
        self.restart()
        known = {run for run, one in study.outcomes().items() if one.state == "finished"}
        self.queue = Queue([], known, self.more, STAGE1)
        self.done: dict[str, int] = {}  # run → epochs that were trained

    def more(self) -> list[Job] | None:
        found = self.books.more()
        finished = {run for run, one in self.study.outcomes().items() if one.state == "finished"}
        self.queue.finished |= finished & {job.fingerprint for job in found or ()}
        return found

    def restart(self) -> None:
        """The desk is lost, and Ray makes another."""
        sampling = Sampling(self.study, self.fields, {"loss.anchor_weight": 0.5}, EPOCHS, jobs_of)
        self.books = Books(self.study, self.recorder, [], this_process(), sampling)  # type: ignore[arg-type]

    def run(self, most: int = 10_000) -> bool:
        """→ whether it came to its end, within so many epochs."""
        running: dict[str, tuple[Job, int]] = {}
        for _ in range(most):
            while len(running) < 2 and (job := self.queue.next()):
                self.books.know(job)
                self.books.started(job.fingerprint)
                running[job.fingerprint] = job, self.done.get(job.fingerprint, 0)
            if not running:
                return self.queue.empty
            if self.chance.random() < self.lost:
                self.restart()
            run = self.chance.choice(sorted(running))
            job, epoch = running[run]
            value = digest([run]).encode()[0] / 256
            self.books.epoch(run, epoch + 1, {})
            go = self.books.worth_going_on(run, epoch + 1, {"selection/mAP": value})
            self.done[run], running[run] = epoch + 1, (job, epoch + 1)
            if self.chance.random() < self.lost:
                self.restart()
            if self.chance.random() < self.failing:
                self.end(running.pop(run)[0], Outcome(error="ValueError: broken"))
            elif not go:
                self.end(running.pop(run)[0], Outcome())
            elif epoch + 1 == EPOCHS:
                self.end(running.pop(run)[0], Outcome({"selection/mAP": value, "test/mAP": value}))
        return False

    def end(self, job: Job, outcome: Outcome) -> None:
        self.books.know(job)
        if outcome.state == "stopped":
            assert self.books.gave_up(job.fingerprint)
        outcome = self.books.ended(job.fingerprint, outcome)
        for dropped in self.queue.ended(job, outcome):
            if outcome.state in ("failed", "pruned"):
                self.books.know(dropped)
                self.books.ended(
                    dropped.fingerprint, Outcome(error=f"{NOT_RUN}{job.name}, which it starts from, failed")
                )


@pytest.mark.parametrize("seed", range(12))
def test_a_search_comes_to_its_end_whoever_is_lost_and_fails(seed):
    study, recorder, chance = memory(), Recorder(), random.Random(seed)
    for _ in range(40):  # drivers, some of which are lost
        driver = Driver(study, recorder, chance, failing=0.05 if seed % 2 else 0.0, lost=0.2)
        if driver.run(most=chance.randint(1, 30)):
            break
    else:
        driver = Driver(study, recorder, chance)
        assert driver.run()
    if driver.books.sampling and driver.books.sampling.broken & {"s"}:  # its last one failed, and so did the search
        assert Driver(study, recorder, chance).run()
    tried = driver.books.sampling.tried()
    assert len(tried) == 9 and {one.state for one in tried} <= {"finished", "pruned", "failed"}
    assert all(epochs == sorted(set(epochs)) for epochs in recorder.epochs.values())
    states = {run: one["state"] for run, one in study.runs().items()}
    assert "running" not in states.values()
    assert all(recorder.ends[run] == state for run, state in states.items() if state in ("finished", "pruned"))
    finished = {f"#{one.number}" for one in tried if one.state == "finished"}
    assert finished <= {run["setting"] for run in study.runs().values() if run["state"] == "finished"}


def test_a_stage_1_that_fails_ends_the_search_at_once():
    study, recorder = memory(), Recorder()
    driver = Driver(study, recorder, random.Random(0), failing=1.0)
    assert driver.run(most=50)
    assert recorder.ends["s"] == "failed"
    assert {one.state for one in driver.books.sampling.tried()} == {"open"}
    again = Driver(study, recorder, random.Random(0))
    assert again.run()
    assert recorder.ends["s"] == "finished"
    assert {one.state for one in again.books.sampling.tried()} <= {"finished", "pruned"}
