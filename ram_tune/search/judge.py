"""Which runs to give up, by what they report while they train.

Optuna's pruners judge the trials of a study of one objective, and read that study at every report. The judge keeps such a
study of its own, in memory: searches with several objectives are judged too, and no database is asked at every epoch.
Nothing here outlasts the process: `restore` makes a judge that has seen what an earlier one saw.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import optuna
from optuna.trial import TrialState

State = Literal["open", "finished", "pruned", "failed"]


@dataclass(frozen=True)
class Verdict:
    """That a run is to be given up, and how it stood among the others that reached the same step."""

    step: int
    value: float
    """NaN where the run reported no finite number."""
    rank: int
    """1 is the best of all values at this step; equal ones share a rank, and NaN comes last."""
    of: int
    """Trials with a value at this step, this one among them."""
    best: float
    """The best value at this step; NaN where none is finite."""

    def words(self, metric: str, unit: str = "epoch") -> str:
        """One line for people, such as `given up after epoch 3: mAP 0.4120 there, rank 7 of 9 (best 0.5610)`."""
        value = f"{metric} not a number" if math.isnan(self.value) else f"{metric} {self.value:.4f}"
        best = "" if math.isnan(self.best) else f" (best {self.best:.4f})"
        return f"given up after {unit} {self.step}: {value} there, rank {self.rank} of {self.of}{best}"


class Judge:
    """Tells, value by value, whether a trial is to be given up.

    Numbers are those of the search's trials, and `name` is that of its study: Hyperband draws a trial's bracket from the
    two. Steps are epochs counted from 1, all of which are reported, or for the Wilcoxon pruner seeds. No verdict falls at
    `horizon` or later: a run that has trained for all of its epochs is finished, whatever its rank. Without a pruner
    nothing is given up.
    """

    def __init__(
        self,
        name: str,
        pruner: optuna.pruners.BasePruner | None,
        direction: Literal["maximize", "minimize"],
        horizon: int | None = None,
    ):
        self._judges, self._horizon, self._maximize = pruner is not None, horizon, direction == "maximize"
        self._study = optuna.create_study(
            study_name=name, pruner=pruner, direction=direction, sampler=optuna.samplers.RandomSampler()
        )
        self._trials: list[optuna.Trial] = []  # by number
        self._ended: set[int] = set()
        self._given_up: dict[int, int] = {}  # number → the step after which

    def started(self, number: int) -> None:
        """Trial `number` is being run; once or again."""
        # Those between are open trials without values, which no pruner counts, until they start as well, if they do.
        while len(self._trials) <= number:
            self._trials.append(self._study.ask())

    def report(self, number: int, step: int, value: float) -> Verdict | None:
        """Note the trial's `value` at `step`: None to go on, else why the trial is to be given up.

        A step reported before, as a run does that resumes from an earlier checkpoint, keeps its first value. A value
        that is not finite counts as NaN, which is the worst: halving pruners give it up, those that look at a run's best
        value so far do when it has none. Once given up, a trial remains so, and what comes after its end is not noted.
        """
        if not self._judges:
            return None
        self.started(number)
        steps = self._values(number)
        if number not in self._given_up and number not in self._ended and step not in steps:
            self._trials[number].report(value if math.isfinite(value) else math.nan, step)
            if (self._horizon is None or step < self._horizon) and self._to_be_given_up(number):
                self._given_up[number] = step
        return self._verdict(number, self._given_up[number]) if number in self._given_up else None

    def ended(self, number: int, state: Literal["finished", "pruned", "failed"], value: float | None) -> None:
        """Trial `number` has ended, if that was not known, with the objective's `value` where it finished.

        A trial that finished without a finite value counts as failed.
        """
        self.started(number)
        if number in self._ended:
            return
        self._ended.add(number)
        trial = self._trials[number]
        if state == "finished" and value is not None and math.isfinite(value):
            self._study.tell(trial, value)
        elif state == "pruned":
            self._study.tell(trial, state=TrialState.PRUNED)
            if steps := self._values(number):
                self._given_up.setdefault(number, max(steps))
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def restore(self, trials: Iterable[tuple[int, State, Mapping[int, float], float | None]]) -> None:
        """See what an earlier judge saw: (number, state, step → value, value) of each trial, in any order.

        For a judge that has seen nothing yet. It then judges as the earlier one would have; a verdict on a trial that
        is still open is forgotten, so that it is judged again at its next step.
        """
        if not self._judges:
            return
        for number, state, values, value in sorted(trials, key=lambda trial: trial[0]):
            self.started(number)
            for step in sorted(values):
                # What pruners keep of a trial depends on its own values; whether they would go on does not matter here.
                self.report(number, step, values[step])
                self._given_up.pop(number, None)
            if state != "open":
                self.ended(number, state, value)

    def _values(self, number: int) -> dict[int, float]:
        trials = self._study.get_trials(deepcopy=False)
        return trials[number].intermediate_values

    def _to_be_given_up(self, number: int) -> bool:
        with warnings.catch_warnings():  # of a trial that has no number but NaN
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
            return self._trials[number].should_prune()

    def _verdict(self, number: int, step: int) -> Verdict:
        trials = self._study.get_trials(deepcopy=False)
        value = trials[number].intermediate_values[step]
        there = [trial.intermediate_values[step] for trial in trials if step in trial.intermediate_values]
        numbers = [other for other in there if not math.isnan(other)]
        best = (max if self._maximize else min)(numbers, default=math.nan)
        better = [
            other for other in numbers if math.isnan(value) or (other > value if self._maximize else other < value)
        ]
        return Verdict(step, value, 1 + len(better), len(there), best)
