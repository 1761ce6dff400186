"""Whole sampled searches in milliseconds: runs with analytic learning curves, no Ray, no model."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna

from ram_tune.config import Config, Training, digest
from ram_tune.search.jobs import Job, Outcome
from ram_tune.search.sampling import Sampling
from ram_tune.search.settings import Need, agree
from ram_tune.search.space import Space
from ram_tune.search.study import Study

Curve = Callable[[Mapping[str, Any], int, int], float]
"""values, seed, epoch → selection mAP."""

EPOCHS = 27


def jobs_of(need: Need) -> list[Job]:
    fingerprint = digest([need.values, need.seed, need.cheap])
    config = Config(training=Training(seed=need.seed))
    return [Job("train", need.name, config, fingerprint, "data", sampled=True)]


def space(**values: Any) -> Space:
    parameters = {"loss.anchor_weight": {"float": [0.0, 1.0]}}
    given = {"version": 1, "title": "T", "parameters": parameters, "pruner": "none", **values}
    return Space.model_validate(given)


def memory(name: str = "simulated", objectives: int = 1) -> Study:
    return Study(optuna.create_study(study_name=name, directions=["maximize"] * objectives))


@dataclass
class Simulated:
    """A search and a cluster on which an epoch takes a second."""

    study: Study
    space: Space
    curve: Curve
    paper: Mapping[str, Any] | None = None
    seed: int = 0
    epochs: int = EPOCHS
    extra: Callable[[Mapping[str, Any], int], dict[str, float]] = lambda values, seed: {}
    started: list[Need] = field(default_factory=list)
    trained: int = 0  # epochs, of all runs
    now: float = 0.0

    def __post_init__(self) -> None:
        agree(self.study, self.space)
        self.open()

    def open(self) -> None:
        """As a driver does that takes the study up, the first one or after another was lost."""
        self.sampling = Sampling(
            self.study, self.space, self.paper, self.epochs, jobs_of, self.seed, clock=lambda: self.now
        )

    def run(self, slots: int = 1, epochs: int | None = None) -> Simulated:
        """Until nothing is left to be run, or `epochs` were trained (then everybody is lost where they stand)."""
        order, working, limit = itertools.count(), [], float("inf") if epochs is None else self.trained + epochs
        while True:
            while len(working) < slots and not self.sampling.spent():
                jobs = self.sampling.more()
                if not jobs:
                    break
                need = self.sampling.running[jobs[-1].fingerprint]
                self.started.append(need)
                self.study.started(jobs[-1])
                heapq.heappush(working, (self.now + 1, next(order), jobs[-1], need, 1))
            if not working or self.trained >= limit:
                return self
            self.now, _, job, need, epoch = heapq.heappop(working)
            self.trained += 1
            value = self.curve(need.values, need.seed, epoch)
            go = self.sampling.epoch(job.fingerprint, epoch, {"selection/mAP": value})
            last = self.epochs // 3 if need.cheap else self.epochs
            if self.sampling.spent() or not go or epoch == last:
                more = self.extra(need.values, need.seed)
                metrics = {"selection/mAP": value, "test/mAP": value, "best_epoch": epoch, **more}
                stopped = not go or (epoch < last and self.sampling.spent())
                self.end(job, Outcome() if stopped else Outcome(metrics), epoch)
            else:
                heapq.heappush(working, (self.now + 1, next(order), job, need, epoch + 1))

    def end(self, job: Job, outcome: Outcome, epoch: int) -> None:
        """As the desk does it."""
        outcome = self.sampling.judged(job.fingerprint, outcome)
        self.study.ended(job, outcome, epochs=epoch)
        self.sampling.ended(job.fingerprint, outcome)

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The values of all settings, in the order in which they were named."""
        return [one.values for one in self.sampling.tried()]

    @property
    def best(self) -> float:
        return max(one.objectives[0] for one in self.sampling.tried() if one.objectives)
