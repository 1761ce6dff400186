"""The settings of a sampled search, as its study holds them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from ram_tune.errors import BadInput
from ram_tune.search.findings import Tried, best
from ram_tune.search.objectives import DIRECTIONS
from ram_tune.search.parameters import changes, plain
from ram_tune.search.space import Space
from ram_tune.search.study import Study

if TYPE_CHECKING:
    from ram_tune.search.jobs import Job
    from ram_tune.search.plan import Maker

STATES: dict[str, Any] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
"""Optuna's → ours; others are open."""


VALUES = "values"
"""The note by which a trial is a setting: field → value."""

PAPERS = "the paper's, confirmed"


@dataclass(frozen=True)
class Need:
    """A run that is wanted."""

    name: str  # the setting's
    values: dict[str, Any]  # field → value, of the parameters that apply
    seed: int  # counted from the base configuration's
    cheap: bool = False  # as `fidelity` has it
    trial: int | None = None  # None: one of those that confirm, no trial


def tried(study: Study) -> list[Tried]:
    """Every setting of a sampled search, in the order in which they were named."""
    epochs: Counter[str] = Counter()  # of complete runs: a cheap one has a name of its own
    for run in study.runs().values():
        epochs[run["setting"].partition(" (")[0]] += run.get("epochs", 0)
    found = []
    for trial in study.study.get_trials(deepcopy=False):
        attrs = trial.user_attrs
        if VALUES not in attrs:
            continue
        state = STATES.get(trial.state.name, "open")
        if attrs.get("pruned"):
            state = "pruned"
        found.append(
            Tried(
                number=trial.number,
                values=attrs[VALUES],
                state=state,
                objectives=tuple(trial.values or ()) if state == "finished" else (),
                seeds=tuple(map(tuple, attrs.get("seeds", ()))),
                feasible=all(excess <= 0 for excess in attrs.get("constraints", ())),
                reason=attrs.get("reason", ""),
                epochs=epochs[f"#{trial.number}"],
                paper=bool(attrs.get("paper")),
                cheap="cheap" in attrs and not attrs.get("promoted"),
            )
        )
    return found


def count_tried(study: Study) -> int:
    """Settings that have ended."""
    return sum(one.state != "open" for one in tried(study))


def confirmations(space: Space, tried: Sequence[Tried], paper: Mapping[str, Any] | None) -> list[Need]:
    """The runs that confirm: of the best setting, and of the paper's where that is another one."""
    chosen = best(tried, [DIRECTIONS[name] for name in space.objectives])
    if chosen is None:
        return []
    used = max([space.seeds, *(len(one.seeds) for one in tried)])  # by today's search or an earlier one
    fresh = range(used, used + space.confirm)
    needs = [Need(PAPERS, dict(paper or {}), seed) for seed in fresh]
    if not chosen.paper:
        needs += [Need(f"#{chosen.number}, confirmed", chosen.values, seed) for seed in fresh]
    return needs


def agree(study: Study, space: Space, seed: int = 0) -> None:
    """Note what the settings of this study are drawn from, and the seed of their first runs. Raises BadInput where it was
    something else before.
    """
    mine = {
        "training.seed": seed,
        "parameters": plain(space.parameters),
        "objectives": list(space.objectives),
        "constraints": list(space.constraints),
        "fidelity": dict(space.fidelity),
    }
    known = study.note("space")
    if known is None:
        study.set_note("space", mine)
        return
    differ = changes(known["parameters"], mine["parameters"])
    differ += [
        f"{key}: {known[key]} before, {mine[key]} now"
        for key in mine
        if key != "parameters" and known.get(key, mine[key]) != mine[key]
    ]
    if differ:
        raise BadInput(
            f"search space of study {study.name}",
            found="; ".join(differ),
            expected="what its settings were drawn from before",
            remedy="Start anew with --fresh, or under another name.",
        )


def planned(maker: Maker, study: Study | None) -> list[Job]:
    """The jobs that a sampled search will have run at its end, less those of settings that ended before: all of the size of
    the paper's setting.
    """
    space, names = maker.space, count()
    there = count_tried(study) if study else 0

    def run(cheap: bool = False) -> Job:
        return replace(maker.jobs(Need("", {}, 0, cheap))[-1], fingerprint=str(next(names)))

    settings = max(space.budget.trials - there, 0)
    jobs = [] if there else maker.jobs(Need("", {}, 0))[:-1]
    full = math.ceil(settings * space.promote) if space.fidelity else settings
    jobs += [run(cheap=True) for _ in range(settings if space.fidelity else 0)]
    return jobs + [run() for _ in range(full * space.seeds + 2 * space.confirm)]
