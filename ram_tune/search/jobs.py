"""Jobs, and in what order they may run. Pure logic: nothing here knows who runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ram_tune.config import Config

NOT_RUN = "not run: "
"""How the error begins of a job that what it needs was lost to."""

RUNS = "runs"  # below a study's folder, where each job has a folder named by its fingerprint

Kind = Literal["stage1", "train", "evaluate"]

Keep = Literal["best", "arms", "all", "none"]
"""Which weights stay: the best epoch of each run, of each arm's best run, every epoch of each run, or stage 1's alone."""


@dataclass(frozen=True)
class Job:
    """What the executor runs: a stage 1, a training, or another evaluation of a trained model."""

    kind: Kind
    setting: str  # the arm's name, or #7 for the trial of that number
    config: Config
    fingerprint: str
    dataset: str  # the dataset's fingerprint
    needs: tuple[str, ...] = ()  # fingerprints of the jobs whose weights it starts from
    sampled: bool = False  # its setting was drawn, not named: see sampling.py
    also: tuple[str, ...] = ()  # other arms that compute the same, and share its run

    @property
    def seed(self) -> int:
        return self.config.training.seed

    @property
    def arms(self) -> str:
        """All whose run it is: `attended = centred_half`."""
        return " = ".join((self.setting, *self.also))

    @property
    def owners(self) -> tuple[str, ...]:
        """The arms whose run it is; a stage 1 may be none's, or that of whole-image arms."""
        return self.also if self.kind == "stage1" else (self.setting, *self.also)

    @property
    def name(self) -> str:
        """What people call it: `A+S+P · seed 2`."""
        return self.arms if self.kind == "stage1" and self.seed == 0 else f"{self.arms} · seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with metrics and a checkpoint, with an error, given up, or asked to stop (nothing of these)."""

    metrics: dict[str, float] = field(default_factory=dict)  # `test/…`, `selection/…` of the best epoch, `best_epoch`
    checkpoint: str = ""  # folder with best.pt and the files of training.results
    error: str = ""  # traceback
    pruned: str = ""  # at which epoch, against which value and rank it lost

    @property
    def state(self) -> Literal["finished", "failed", "pruned", "stopped"]:
        if self.error:
            return "failed"
        return "finished" if self.metrics else "pruned" if self.pruned else "stopped"


def located(outcome: Outcome, run: str, folder: Path) -> Outcome:
    """The outcome of the job of that fingerprint, with its checkpoint where it is now: the study's `folder` may have been
    moved since.
    """
    noted, here = Path(outcome.checkpoint), folder / RUNS / run
    if not outcome.checkpoint or noted.exists():
        return outcome
    found = here if noted.name == run else here / noted.name
    return replace(outcome, checkpoint=str(found)) if found.exists() else outcome


class Queue:
    """Which job next: those of a plan that are not finished, each after what it needs.

    `finished` are the fingerprints of the jobs that an earlier search has finished. `more`, where there is one, names
    further jobs once all are handed out ([]: none now, None: none ever again), as large as `like`.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        finished: Iterable[str] = (),
        more: Callable[[], Sequence[Job] | None] | None = None,
        like: Job | None = None,
    ):
        self.jobs = {job.fingerprint: job for job in jobs}
        self.finished = set(finished) & set(self.jobs)
        self.waiting = [job for job in jobs if job.fingerprint not in self.finished]
        self.running: set[str] = set()
        self.closed = False
        self.more, self.like = more, like

    def next(self, fits: Callable[[Job], bool] = lambda job: True) -> Job | None:
        """A job all of whose needs are finished, in the plan's order; None while there is none, or no room for it."""
        while not self.closed:
            for job in self.waiting:
                if set(job.needs) <= self.finished:
                    if not fits(job):  # a smaller one that overtook it again and again could keep it waiting for ever
                        return None
                    self.waiting.remove(job)
                    self.running.add(job.fingerprint)
                    return job
            # What is drawn later is drawn with more knowledge; but one that waits should not idle all machines.
            if self.more is None or len(self.waiting) > len(self.running) or (self.like and not fits(self.like)):
                return None
            found = self.more()
            if not found:
                self.more = None if found is None else self.more
                return None
            self.waiting += [job for job in found if job.fingerprint not in self.jobs.keys() | self.finished]
            self.jobs |= {job.fingerprint: job for job in found}
        return None

    def again(self, job: Job) -> None:
        """`job` was lost with its process: it goes on before others start."""
        self.running.discard(job.fingerprint)
        self.waiting.insert(0, job)

    def ended(self, job: Job, outcome: Outcome) -> list[Job]:
        """Note how `job` ended → the jobs that can no longer run because they need it, directly or not."""
        self.running.discard(job.fingerprint)
        if outcome.state == "finished":
            self.finished.add(job.fingerprint)
            return []
        lost, dropped = {job.fingerprint}, []
        for other in list(self.waiting):  # a plan lists a job after those it needs
            if lost & set(other.needs):
                lost.add(other.fingerprint)
                dropped.append(other)
                self.waiting.remove(other)
        return dropped

    def close(self) -> None:
        """Hand out no more."""
        self.closed = True

    @property
    def empty(self) -> bool:
        """Nothing more will be handed out, not even a running job once more."""
        return self.closed or not (self.waiting or self.running or self.more)


def missing(jobs: Sequence[Job], finished: Iterable[str], usable: Iterable[str]) -> list[Job]:
    """The jobs that must run: those not finished, and finished ones whose weights are gone but needed by such a one.

    `finished` and `usable` are fingerprints: of finished jobs, and of those among them whose weights are still there.
    """
    finished, usable = set(finished), set(usable)
    todo = {job.fingerprint for job in jobs if job.fingerprint not in finished}
    for job in reversed(jobs):  # those that need come after those that are needed
        if job.fingerprint in todo:
            todo |= {need for need in job.needs if need not in usable}
    return [job for job in jobs if job.fingerprint in todo]
