"""A sampled search: which runs a setting needs, and what to give up.

Pure logic on an Optuna study, which holds all that must be remembered: whoever opens it again goes on where another was lost.
A setting is a trial. Its first run is judged by epochs (or, with `fidelity`, preceded by a cheap one that is judged at its
end); later seeds are spent only on settings that are still in the running.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ram_tune.errors import error_line
from ram_tune.search.asking import Asker
from ram_tune.search.jobs import NOT_RUN, Job, Outcome
from ram_tune.search.judge import Judge
from ram_tune.search.objectives import DIRECTIONS, excess, metric, parse_constraint
from ram_tune.search.samplers import judges_epochs, pruner, sampler
from ram_tune.search.settings import STATES, VALUES, Need, confirmations, tried
from ram_tune.search.space import Space
from ram_tune.search.study import Study
from ram_tune.search.trials import Trials

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from ram_tune.search.findings import Tried

IN_THE_RUNNING = 1 / 3
"""Share of the settings that get a further seed: those of the best values so far. *Decided*."""


class Sampling:
    """One sampled search on its study. `jobs_of` makes a run's jobs, the run itself last, what it needs before it."""

    def __init__(
        self,
        study: Study,
        space: Space,
        paper: Mapping[str, Any] | None,
        epochs: int,
        jobs_of: Callable[[Need], list[Job]],
        seed: int = 0,
        clock: Callable[[], float] = time.time,
        since: float | None = None,
    ):
        """`paper`: the paper's setting, tried first, unless it lies outside the space; `epochs`: of a complete run; `since`:
        when the search began, for its budget (default: now).
        """
        self.study, self.space, self.paper, self.jobs_of, self.clock = study, space, paper, jobs_of, clock
        self.metrics = [metric(name) for name in space.objectives]
        self.limits = [parse_constraint(text) for text in space.constraints]
        self.judged_by = space.pruner.judge or space.objectives[0]
        self.place = space.objectives.index(self.judged_by)  # type: ignore[arg-type]
        self.by_epoch = judges_epochs(space.pruner.name)
        rule = pruner(space.pruner.name, space.pruner.options, epochs)
        self.judge = Judge(study.name, rule, DIRECTIONS[self.judged_by], epochs if self.by_epoch else None)
        limits = (lambda trial: trial.user_attrs.get("constraints", [0.0] * len(self.limits))) if self.limits else None
        method = space.sampler
        self.trials = Trials(
            study, len(self.metrics), lambda number: sampler(method.name, method.options, seed, number, limits)
        )
        self.since = clock() if since is None else since
        # Of runs, by fingerprint; nobody else adds to them while we are there. What was not run may be run now.
        self.outcomes = {run: one for run, one in study.outcomes().items() if not one.error.startswith(NOT_RUN)}
        self.pending: list[Need] = []
        self.running: dict[str, Need] = {}  # fingerprint → what it is for
        self.models: dict[str, Need] = {}  # the same of trainings that a run evaluates
        self.broken: set[str] = set()  # jobs that others need and that failed here
        self.confirming: set[str] = set()  # runs that confirm, each tried once here
        self.given_up: dict[str, str] = {}  # fingerprint → why
        self.cut_off: dict[
            str, str
        ] = {}  # the same of those that were lost before they could say that they had stopped
        self.told: set[tuple[int, int]] = set()  # trial, epoch
        self._restore()
        self.asker = Asker(self.trials, space, paper, lambda values: self._check(values), seed)

    # what to run

    def more(self) -> list[Job] | None:
        """The jobs of the next run that is wanted; [] while none is, None when there never will be one."""
        while True:
            while not self.pending:
                if not self.asker.exhausted and len(self.trials.settings()) < self.space.budget.trials:
                    number = self.asker.ask()
                    if number is not None:
                        self.judge.started(number)
                        self._go_on(number)
                elif self.running:
                    return []
                elif not self._confirm():
                    return None
            need = self.pending.pop(0)
            jobs = self.jobs_of(need)
            if lost := [job for job in jobs[:-1] if job.fingerprint in self.broken]:
                if lost[0].kind == "stage1" and lost[0].fingerprint in self._usual:
                    return None  # each setting would lose by it; they stay open, for whoever tries that again
                self._end(need, "failed", f"{lost[0].name}, which it needs, failed")
            elif given_up := [job for job in jobs[:-1] if self._state(job.fingerprint) == "pruned"]:
                self._end(need, "pruned", f"{given_up[0].name}, which it evaluates, was given up")
            elif need.trial is not None and self._ended(need):  # another setting's model is this very run
                self._go_on(need.trial)
            else:
                self.running[jobs[-1].fingerprint] = need
                self.models |= {job.fingerprint: need for job in jobs[:-1] if job.kind == "train"}
                return jobs

    def epoch(self, run: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        """A run has finished an epoch → whether it is worth going on."""
        if run in self.given_up:
            return False
        need = self.running.get(run) or self.models.get(run)
        if need is None or need.trial is None or need.cheap or need.seed or not self.by_epoch or epoch < 1:
            return True
        value = metrics[metric(self.judged_by)]
        if self.trials[need.trial].state.is_finished():  # its model goes on for another setting
            return True
        if (need.trial, epoch) not in self.told:
            self.trials.report(need.trial, epoch, value)
            self.told.add((need.trial, epoch))
        verdict = self.judge.report(need.trial, epoch, value)
        if verdict is None:
            return True
        self.given_up[run] = verdict.words(self.judged_by)
        self.trials.note(need.trial, "reason", self.given_up[run])
        return False

    def judged(self, run: str, outcome: Outcome) -> Outcome:
        """How a run ended: one that stopped because we gave it up is a pruned one."""
        if outcome.state == "stopped" and run in self.given_up:
            return replace(outcome, pruned=self.given_up[run])
        return outcome

    def ended(self, run: str, outcome: Outcome) -> None:
        """A job ended, as `judged` says, and the study knows it."""
        self.outcomes[run] = outcome
        self.pending = [need for need in self.pending if self._run(need) != run]
        need = self.running.pop(run, None)
        if need is None:
            if outcome.state == "failed":
                self.broken.add(run)
            return
        if need.trial is None or self.trials[need.trial].state.is_finished():
            return
        if outcome.state == "pruned":
            self._end(need, "pruned", outcome.pruned)
        elif outcome.error.startswith(NOT_RUN):
            del self.outcomes[run]
            self.pending.append(need)  # `more` says what becomes of it
        elif outcome.state != "stopped":
            self._go_on(need.trial)

    def spent(self, gpu_seconds: float = 0.0) -> str:
        """Why nothing more may be started and running jobs end at their epoch; empty while there is budget."""
        budget = self.space.budget
        if budget.hours and self.clock() - self.since >= 3600 * budget.hours:
            return f"the budget of {budget.hours:g} hours is spent"
        if budget.gpu_hours and gpu_seconds >= 3600 * budget.gpu_hours:
            return f"the budget of {budget.gpu_hours:g} GPU-hours is spent"
        return ""

    def tried(self) -> list[Tried]:
        """Every setting, in the order in which they were named."""
        return tried(self.study)

    # a setting's runs

    def _go_on(self, number: int) -> None:
        """What a setting needs next → pending; or tell the study how it ended."""
        trial = self.trials[number]
        if self.space.fidelity:
            cheap = self._need(trial, cheap=True)
            outcome = self._ended(cheap)
            if outcome is None:
                self.pending.append(cheap)
                return
            if reason := self._fault(outcome):
                self._end(cheap, "failed", reason)
                return
            if "cheap" not in trial.user_attrs:
                self.trials.note(number, "cheap", outcome.metrics[self.metrics[self.place]])
            if not self._promoted(self.trials[number]):
                self._end(cheap, "pruned", "")
                return
        values: list[list[float]] = []
        for seed in range(self.space.seeds):
            need = self._need(trial, seed)
            outcome = self._ended(need)
            if outcome is None:
                if seed == 0 or self._in_the_running(trial, seed, values):
                    self.pending.append(need)
                    return
                break
            if reason := self._fault(outcome):
                if seed == 0:
                    self._end(need, "failed", reason)
                    return
                break  # what the other seeds found is worth no less
            values.append([outcome.metrics[name] for name in self.metrics])
            self.trials.note(number, "seeds", values)
            self.trials.note(number, "constraints", [excess(outcome.metrics, limit) for limit in self.limits])
        means = [sum(one) / len(one) for one in zip(*values, strict=True)]
        self.judge.ended(number, self.trials.tell(number, "finished", means), means[self.place])  # type: ignore[arg-type]

    def _end(self, need: Need, state: str, reason: str) -> None:
        if need.trial is not None:
            self.judge.ended(need.trial, self.trials.tell(need.trial, state, reason=reason), None)  # type: ignore[arg-type]

    def _fault(self, outcome: Outcome) -> str:
        """Why a run that ended has no value, or empty."""
        wanted = [*self.metrics, *(metric(name) for name, _, _ in self.limits)]
        missing = [name for name in wanted if name not in outcome.metrics]
        if outcome.error or not missing:
            return error_line(outcome.error)
        return f"its result has no {missing[0]}"

    def _need(self, trial: FrozenTrial, seed: int = 0, cheap: bool = False) -> Need:
        name = f"#{trial.number}, cheap" if cheap else f"#{trial.number}"
        return Need(name, trial.user_attrs[VALUES], seed, cheap, trial.number)

    @cached_property
    def _usual(self) -> set[str]:
        """What the settings share that do not change stage 1."""
        return {job.fingerprint for job in self.jobs_of(Need("", {}, 0))[:-1]}

    def _run(self, need: Need) -> str:
        return self.jobs_of(need)[-1].fingerprint

    def _state(self, run: str) -> str:
        return self.outcomes[run].state if run in self.outcomes else ""

    def _ended(self, need: Need) -> Outcome | None:
        run = self._run(need)
        return self.outcomes[run] if self._state(run) in ("finished", "failed") else None

    def _check(self, values: dict[str, Any]) -> None:
        """Raise BadInput for values that do not go together."""
        for cheap in (False, True) if self.space.fidelity else (False,):
            self.jobs_of(Need("", values, 0, cheap))

    def _promoted(self, trial: FrozenTrial) -> bool:
        """Whether a setting's cheap run was among the best so far; decided once."""
        if "promoted" not in trial.user_attrs:
            values = [one.user_attrs["cheap"] for one in self.trials.settings() if "cheap" in one.user_attrs]
            rank = self._rank(trial.user_attrs["cheap"], values)
            promoted = rank <= max(math.ceil(self.space.promote * len(values)), 1)
            if not promoted:
                reason = f"not promoted: its cheap run was number {rank} of {len(values)}"
                self.trials.note(trial.number, "reason", reason)
            self.trials.note(trial.number, "promoted", promoted)
            return promoted
        return trial.user_attrs["promoted"]

    def _in_the_running(self, trial: FrozenTrial, seed: int, values: Sequence[Sequence[float]]) -> bool:
        """Whether a setting is worth the seed number `seed`; decided once for each."""
        granted = trial.user_attrs.get("granted", {})
        if str(seed) in granted:
            return granted[str(seed)]
        mine = [one[self.place] for one in values]
        if self.space.pruner.name == "wilcoxon":
            worth = all(self.judge.report(trial.number, i, value) is None for i, value in enumerate(mine))
        else:
            noted = [one.user_attrs["seeds"] for one in self.trials.settings() if "seeds" in one.user_attrs]
            firsts = [seeds[0][self.place] for seeds in noted]
            worth = self._rank(sum(mine) / len(mine), firsts) <= max(math.ceil(IN_THE_RUNNING * len(firsts)), 1)
        self.trials.note(trial.number, "granted", {**granted, str(seed): worth})
        return worth

    def _rank(self, value: float, values: Sequence[float]) -> int:
        """1 is the best, by the objective that judges."""
        more = DIRECTIONS[self.judged_by] == "maximize"
        return 1 + sum(other > value if more else other < value for other in values)

    def _confirm(self) -> bool:
        """Once the search is over: the best setting and the paper's with seeds that no choice was made by."""
        needs = confirmations(self.space, self.tried(), self.paper) if self.space.confirm else []
        runs = {self._run(need): need for need in needs}
        missing = [need for run, need in runs.items() if self._state(run) != "finished" and run not in self.confirming]
        self.confirming |= runs.keys()
        self.pending += missing
        return bool(missing)

    def _restore(self) -> None:
        """Take up what earlier drivers left: judged epochs, open settings, asks that were cut short."""
        past: list[Any] = []
        for trial in self.trials.all():
            state = STATES.get(trial.state.name, "open")
            if state == "open":
                self.told |= {(trial.number, epoch) for epoch in trial.intermediate_values}
            if trial.state.name == "RUNNING" and VALUES not in trial.user_attrs:
                state = self.trials.tell(trial.number, "failed", reason="its driver was lost before it was named")
            if trial.state.name != "WAITING":
                seeds = dict(enumerate(one[self.place] for one in trial.user_attrs.get("seeds", ())))
                steps = trial.intermediate_values if self.by_epoch else seeds
                past.append((trial.number, state, steps, trial.values[self.place] if trial.values else None))
        self.judge.restore(past)
        for trial in self.trials.settings():
            if trial.state.name == "RUNNING":
                need = self._need(trial)
                if (
                    "reason" in trial.user_attrs and self._ended(need) is None
                ):  # told to stop, and then somebody was lost
                    self.given_up[self._run(need)] = self.cut_off[self._run(need)] = trial.user_attrs["reason"]
                    self._end(need, "pruned", trial.user_attrs["reason"])
                else:
                    self._go_on(trial.number)
        # Only the desk may have been lost: then they are running now.
        for need in self.pending:
            *before, run = self.jobs_of(need)
            self.running[run.fingerprint] = need
            self.models |= {job.fingerprint: need for job in before if job.kind == "train"}
