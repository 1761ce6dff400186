"""Optuna's trials as a sampled search uses them: settings, what is noted of each, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ram_tune.search.settings import VALUES
from ram_tune.search.study import Study

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial


class Trials:
    """The trials of one study. `sampler_of` makes the sampler of the ask or tell of that number."""

    def __init__(self, study: Study, objectives: int, sampler_of: Callable[[int], BaseSampler]):
        self.study, self.objectives, self.sampler_of = study.study, objectives, sampler_of
        self.study.sampler = sampler_of(0)
        self.ids: dict[int, int] = {}  # number → what Optuna's storage calls it

    def all(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def settings(self) -> list[FrozenTrial]:
        """Those that are settings: no duplicates, no asks that were cut short."""
        return [trial for trial in self.all() if VALUES in trial.user_attrs]

    def __getitem__(self, number: int) -> FrozenTrial:
        return self.all()[number]

    def __len__(self) -> int:
        return len(self.all())

    def note(self, number: int, key: str, value: Any) -> None:
        """What must be known of a trial if its driver is lost; only of one that is not told yet."""
        self.study._storage.set_trial_user_attr(self._id(number), key, value)

    def report(self, number: int, epoch: int, value: float) -> None:
        """For Optuna's own plots, and for whoever goes on after us; of several objectives `Trial.report` refuses it."""
        self.study._storage.set_trial_intermediate_value(self._id(number), epoch, value)

    def tell(self, number: int, state: str, values: Sequence[float] = (), reason: str = "") -> str:
        """End a trial: finished with values, pruned or failed with a reason → how it ended."""
        from optuna.trial import TrialState

        if not all(map(math.isfinite, values)):
            state, values, reason = "failed", (), "a value that is not finite"
        if reason:
            self.note(number, "reason", reason)
        self.study.sampler = self.sampler_of(number)  # it keeps the constraints, too
        if state == "finished":
            self.study.tell(number, list(values))
        elif state == "pruned" and self.objectives > 1:  # Optuna knows no pruned trials of several objectives
            self.note(number, "pruned", True)
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)
        return state

    def _id(self, number: int) -> int:
        if number not in self.ids:
            self.ids[number] = self[number]._trial_id
        return self.ids[number]
