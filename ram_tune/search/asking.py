"""Which setting next: the paper's, then what the sampler names, each once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ram_tune.errors import BadInput
from ram_tune.search.parameters import combinations, suggest
from ram_tune.search.settings import VALUES
from ram_tune.search.space import Space
from ram_tune.search.trials import Trials

DUPLICATES = 3
"""How often the sampler may name settings that were tried, until one of a finite space is drawn from those left."""

ASKS = 50
"""How often in a row it may name what was tried or cannot be, until there is nothing new to try."""


class Asker:
    """Names settings of a space. `check` raises BadInput for values that do not go together."""

    def __init__(
        self,
        trials: Trials,
        space: Space,
        paper: Mapping[str, Any] | None,
        check: Callable[[dict[str, Any]], None],
        seed: int,
    ):
        self.trials, self.space, self.check, self.seed = trials, space, check, seed
        self.every = combinations(space.parameters)  # None: they are too many to count
        self.exhausted = False
        there = [one for one in trials.all() if one.user_attrs.get("paper")]
        lost = all(one.state.name == "FAIL" and VALUES not in one.user_attrs for one in there)
        if paper is not None and lost:  # once more where a driver died while it asked for it
            trials.study.enqueue_trial(dict(paper), user_attrs={"paper": True})

    def ask(self) -> int | None:
        """The trial of a setting that is new; None where there is none."""
        for attempt in range(ASKS):
            tried = {one.number: one.user_attrs[VALUES] for one in self.trials.settings()}
            left = None if self.every is None else [one for one in self.every if one not in tried.values()]
            if left == []:
                break
            number = len(self.trials)
            if left and attempt >= DUPLICATES:
                draw = np.random.default_rng((self.seed, number))
                self.trials.study.enqueue_trial(left[draw.integers(len(left))])
            self.trials.study.sampler = self.trials.sampler_of(number)
            trial = self.trials.study.ask()
            values = suggest(trial, self.space.parameters)
            twin = next((number for number, others in tried.items() if others == values), None)
            refused = self._refused(values) if twin is None else f"the same as #{twin}"
            if not refused:
                trial.set_user_attr(VALUES, values)  # from now on it counts: before this it would be half a setting
                return trial.number
            if self.every is not None and twin is None:
                self.every = [one for one in self.every if one != values]
            self.trials.tell(trial.number, "failed", reason=refused)
        self.exhausted = True
        return None

    def _refused(self, values: dict[str, Any]) -> str:
        try:
            self.check(values)
        except BadInput as error:
            return str(error)
        return ""
