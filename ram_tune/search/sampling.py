"""A sampled search: what to try next, which runs a setting needs, and what to give up.

Pure logic on an Optuna study, which holds all that must be remembered: whoever opens it again goes on where another was lost.
A setting is a trial. Its first run is judged by epochs (or, with `fidelity`, preceded by a cheap one that is judged at its
end); later seeds are spent only on settings that are still in the running.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ram_tune.errors import error_line
from ram_tune.search.findings import Tried
from ram_tune.search.jobs import Job, Outcome
from ram_tune.search.judge import Judge
from ram_tune.search.objectives import DIRECTIONS, metric, parse_constraint
from ram_tune.search.parameters import suggest
from ram_tune.search.samplers import judges_epochs, pruner, sampler
from ram_tune.search.settings import STATES, Need, confirmations, tried
from ram_tune.search.space import Space
from ram_tune.search.study import Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

IN_THE_RUNNING = 1 / 3
"""Share of the settings that get a further seed: those of the best values so far. *Decided*."""

ASKS = 50
"""How often in a row the sampler may name a setting that was tried before, until there is nothing new to try."""


class Sampling:
    """One sampled search on its study. `jobs_of` makes a run's jobs, the run itself last, any stage 1 before it."""

    def __init__(
        self,
        study: Study,
        space: Space,
        paper: Mapping[str, Any] | None,
        epochs: int,
        jobs_of: Callable[[Need], list[Job]],
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ):
        """`paper`: the paper's setting, tried first, unless it lies outside the space; `epochs`: of a complete run."""
        self.study, self.space, self.jobs_of, self.seed, self.clock = study, space, jobs_of, seed, clock
        self.optuna = study.study
        self.metrics = [metric(name) for name in space.objectives]
        self.directions = [DIRECTIONS[name] for name in space.objectives]
        self.limits = [parse_constraint(text) for text in space.constraints]
        self.judged_name = judged = space.pruner.judge or space.objectives[0]
        self.by_epoch = judges_epochs(space.pruner.name)
        rule = pruner(space.pruner.name, space.pruner.options, epochs)
        self.judge = Judge(study.name, rule, DIRECTIONS[judged], epochs if self.by_epoch else None)
        self.since = clock()
        self.outcomes = study.outcomes()  # of runs, by fingerprint; nobody else adds to them while we are there
        self.pending: list[Need] = []
        self.running: dict[str, Need] = {}  # fingerprint → what it is for
        self.given_up: dict[str, str] = {}  # fingerprint → why
        self.told: set[tuple[int, int]] = set()  # trial, epoch
        self.ids: dict[int, int] = {}  # trial → what Optuna's storage calls it
        self.exhausted = False
        self.optuna.sampler = self._sampler(0)
        self._restore()
        self.paper = dict(paper) if paper is not None else None
        self._enqueue()

    # what to run

    def more(self) -> list[Job] | None:
        """The jobs of the next run that is wanted; [] while none is, None when there never will be one."""
        while not self.pending:
            if not self.exhausted and len(self._settings()) < self.space.budget.trials:
                self._ask()
            elif self.running:
                return []
            elif not self._confirm():
                return None
        need = self.pending.pop(0)
        jobs = self.jobs_of(need)
        self.running[jobs[-1].fingerprint] = need
        return jobs

    def epoch(self, run: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        """A run has finished an epoch → whether it is worth going on."""
        need = self.running.get(run)
        if need is None or need.trial is None or need.cheap or need.seed or not self.by_epoch or epoch < 1:
            return True
        if run in self.given_up:
            return False
        value = metrics[metric(self.judged_name)]
        if (need.trial, epoch) not in self.told:  # for Optuna's own plots, and for whoever goes on after us
            self.optuna._storage.set_trial_intermediate_value(self._id(need.trial), epoch, value)
            self.told.add((need.trial, epoch))
        verdict = self.judge.report(need.trial, epoch, value)
        if verdict is None:
            return True
        self.given_up[run] = verdict.words(self.judged_name)
        self._note(need.trial, "reason", self.given_up[run])
        return False

    def judged(self, run: str, outcome: Outcome) -> Outcome:
        """How a run ended: one that stopped because we gave it up is a pruned one."""
        if outcome.state == "stopped" and run in self.given_up:
            return replace(outcome, pruned=self.given_up[run])
        return outcome

    def ended(self, run: str, outcome: Outcome) -> None:
        """A run ended, as `judged` says, and the study knows it."""
        self.outcomes[run] = outcome
        self.pending = [need for need in self.pending if self._run(need) != run]
        need = self.running.pop(run, None)
        if need is None or need.trial is None:
            return
        if outcome.state == "pruned" and not self._trial(need.trial).state.is_finished():
            self._tell(need.trial, "pruned")
        elif outcome.state == "failed":
            self._note(need.trial, "reason", error_line(outcome.error))
            self._tell(need.trial, "failed")
        elif outcome.state == "finished":
            self._go_on(need.trial)

    def spent(self, gpu_seconds: float = 0.0) -> str:
        """Why nothing more may be started and running jobs end at their epoch; empty while there is budget."""
        budget = self.space.budget
        if budget.hours and self.clock() - self.since >= 3600 * budget.hours:
            return f"the budget of {budget.hours:g} hours is spent"
        if budget.gpu_hours and gpu_seconds >= 3600 * budget.gpu_hours:
            return f"the budget of {budget.gpu_hours:g} GPU-hours is spent"
        return ""

    # asking

    def _ask(self) -> None:
        """Let the sampler name a setting that is new → pending; or note that there is none."""
        for attempt in range(ASKS):
            number = len(self.optuna.get_trials(deepcopy=False))
            self.optuna.sampler = self._sampler(number, instead="random" if attempt > 2 else "")
            trial = self.optuna.ask()
            values = suggest(trial, self.space.parameters)
            twin = next((one.number for one in self._settings() if one.user_attrs["values"] == values), None)
            if twin is None:
                trial.set_user_attr("values", values)  # from now on it counts: before this it would be half a setting
                self.judge.started(trial.number)
                self.pending.append(self._need(self._trial(trial.number)))
                return
            trial.set_user_attr("duplicate_of", twin)
            self._fail(trial.number)
        self.exhausted = True

    def _sampler(self, number: int, instead: str = ""):
        rule = self.space.sampler
        limits = (lambda trial: trial.user_attrs.get("constraints", [0.0] * len(self.limits))) if self.limits else None
        if instead:
            return sampler(instead, {}, self.seed, number)
        return sampler(rule.name, rule.options, self.seed, number, limits)

    def _enqueue(self) -> None:
        """The paper's setting comes first; once more where a driver died while it asked for it."""
        there = [one for one in self._all() if one.user_attrs.get("paper")]
        if self.paper is not None and all(one.state.name == "FAIL" and "values" not in one.user_attrs for one in there):
            self.optuna.enqueue_trial(self.paper, user_attrs={"paper": True})

    def _restore(self) -> None:
        """Take up what earlier drivers left: judged epochs, open settings, asks that were cut short."""
        past = []
        for trial in self._all():
            state = STATES.get(trial.state.name, "open")
            if state == "open":
                self.told |= {(trial.number, epoch) for epoch in trial.intermediate_values}
            if trial.state.name == "RUNNING" and "values" not in trial.user_attrs:
                self._fail(trial.number)
                state = "failed"
            if trial.state.name != "WAITING":
                value = (
                    trial.values[self._judged_objective()] if trial.values and self._judged_objective() >= 0 else None
                )
                seeds = dict(enumerate(one[0] for one in trial.user_attrs.get("seeds", ())))
                past.append((trial.number, state, trial.intermediate_values if self.by_epoch else seeds, value))
        self.judge.restore(past)
        for trial in self._settings():
            if trial.state.name == "RUNNING":
                if "reason" in trial.user_attrs:  # told to stop, and then somebody was lost
                    self.given_up[self._run(self._need(trial, cheap=False))] = trial.user_attrs["reason"]
                    self._tell(trial.number, "pruned")
                else:
                    self._go_on(trial.number)
        # Only the desk may have been lost: then they are running now.
        self.running = {self._run(need): need for need in self.pending}

    def _judged_objective(self) -> int:
        name = metric(self.judged_name)
        return self.metrics.index(name) if name in self.metrics else -1

    # a setting's runs

    def _need(self, trial: FrozenTrial, seed: int = 0, cheap: bool | None = None) -> Need:
        cheap = bool(self.space.fidelity) if cheap is None else cheap
        return Need(f"#{trial.number}", trial.user_attrs["values"], seed, cheap, trial.number)

    def _go_on(self, number: int) -> None:
        """What a setting needs next → pending; or tell the study how it ended."""
        trial = self._trial(number)
        if self.space.fidelity:
            cheap = self._need(trial, cheap=True)
            outcome = self._ended(cheap)
            if outcome is None:
                return self.pending.append(cheap)
            if not outcome.metrics:
                return self._tell(number, "failed")
            if "cheap" not in trial.user_attrs:
                self._note(number, "cheap", outcome.metrics[self.metrics[0]])
                trial = self._trial(number)
            if not self._promoted(trial):
                return self._tell(number, "pruned")
        values: list[list[float]] = []
        for seed in range(self.space.seeds):
            need = self._need(trial, seed, cheap=False)
            outcome = self._ended(need)
            if outcome is None:
                if seed == 0 or self._in_the_running(trial, seed, values):
                    return self.pending.append(need)
                break
            if not outcome.metrics:
                if seed == 0:
                    return self._tell(number, "failed")
                break
            values.append([outcome.metrics[name] for name in self.metrics])
            self._note(number, "seeds", values)
            self._note(number, "constraints", [_excess(outcome.metrics, limit) for limit in self.limits])
        return self._tell(number, "finished", [sum(one) / len(one) for one in zip(*values, strict=True)])

    def _run(self, need: Need) -> str:
        return self.jobs_of(need)[-1].fingerprint

    def _ended(self, need: Need) -> Outcome | None:
        outcome = self.outcomes.get(self._run(need))
        return outcome if outcome is not None and outcome.state in ("finished", "failed") else None

    def _promoted(self, trial: FrozenTrial) -> bool:
        """Whether a setting's cheap run was among the best so far; decided once."""
        if "promoted" not in trial.user_attrs:
            values = [one.user_attrs["cheap"] for one in self._settings() if "cheap" in one.user_attrs]
            mine = trial.user_attrs["cheap"]
            rank = 1 + sum(self._better(value, mine, 0) for value in values)
            promoted = rank <= max(math.ceil(self.space.promote * len(values)), 1)
            if not promoted:
                self._note(trial.number, "reason", f"not promoted: its cheap run was number {rank} of {len(values)}")
            self._note(trial.number, "promoted", promoted)
            trial = self._trial(trial.number)
        return trial.user_attrs["promoted"]

    def _in_the_running(self, trial: FrozenTrial, seed: int, values: Sequence[Sequence[float]]) -> bool:
        """Whether a setting is worth the seed number `seed`; decided once for each."""
        if trial.user_attrs.get("granted", 0) >= seed:
            return True
        mine = sum(one[0] for one in values) / len(values)
        if self.space.pruner.name == "wilcoxon":
            verdicts = [self.judge.report(trial.number, i, one[0]) for i, one in enumerate(values)]
            granted = verdicts[-1] is None
        else:
            firsts = [one.user_attrs["seeds"][0][0] for one in self._settings() if "seeds" in one.user_attrs]
            rank = 1 + sum(self._better(value, mine, 0) for value in firsts)
            granted = rank <= max(math.ceil(IN_THE_RUNNING * len(firsts)), 1)
        if granted:
            self._note(trial.number, "granted", seed)
        return granted

    def _better(self, one: float, other: float, objective: int) -> bool:
        return one > other if self.directions[objective] == "maximize" else one < other

    def _confirm(self) -> bool:
        """Once the search is over: the best setting and the paper's with seeds that no choice was made by."""
        if not self.space.confirm:
            return False
        missing = [need for need in confirmations(self.space, self.tried(), self.paper) if self._ended(need) is None]
        self.pending += missing
        return bool(missing)

    # what was tried

    def tried(self) -> list[Tried]:
        """Every setting, in the order in which they were named."""
        return tried(self.study)

    # the study

    def _all(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False)

    def _settings(self) -> list[FrozenTrial]:
        """Trials that are settings: no duplicates, no asks that were cut short."""
        return [trial for trial in self._all() if "values" in trial.user_attrs]

    def _trial(self, number: int) -> FrozenTrial:
        return self._all()[number]

    def _note(self, number: int, key: str, value: Any) -> None:
        self.optuna._storage.set_trial_user_attr(self._id(number), key, value)

    def _id(self, number: int) -> int:
        if number not in self.ids:
            self.ids[number] = self._trial(number)._trial_id
        return self.ids[number]

    def _fail(self, number: int) -> None:
        from optuna.trial import TrialState

        self.optuna.tell(number, state=TrialState.FAIL)

    def _tell(self, number: int, state: str, values: Sequence[float] | None = None) -> None:
        from optuna.trial import TrialState

        if values is not None and not all(map(math.isfinite, values)):
            self._note(number, "reason", "a value that is not finite")
            state, values = "failed", None
        if state == "finished":
            self.optuna.tell(number, list(values or ()))
        elif len(self.metrics) > 1 and state == "pruned":  # Optuna takes no pruned trials of several objectives
            self._note(number, "pruned", True)
            self._fail(number)
        else:
            self.optuna.tell(number, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)
        judged = self._judged_objective()
        self.judge.ended(number, state, values[judged] if values and judged >= 0 else None)  # type: ignore[arg-type]


def _excess(metrics: Mapping[str, float], limit: tuple[str, str, float]) -> float:
    """By how much a constraint is broken; 0 or less where it holds."""
    name, relation, bound = limit
    sign = {"<=": operator.pos, ">=": operator.neg}[relation]
    return sign(metrics[metric(name)] - bound)
