"""The settings of a sampled search, as its study holds them."""

from __future__ import annotations

import math
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
    runs = study.runs()
    found = []
    for trial in study.study.get_trials(deepcopy=False):
        attrs = trial.user_attrs
        if "values" not in attrs:
            continue
        state = STATES.get(trial.state.name, "open")
        if attrs.get("pruned"):
            state = "pruned"
        mine = [run for run in runs.values() if run["setting"] == f"#{trial.number}"]
        found.append(
            Tried(
                number=trial.number,
                values=attrs["values"],
                state=state,
                objectives=tuple(trial.values or ()) if state == "finished" else (),
                seeds=tuple(map(tuple, attrs.get("seeds", ()))),
                feasible=all(excess <= 0 for excess in attrs.get("constraints", ())),
                reason=attrs.get("reason", ""),
                epochs=sum(run.get("epochs", 0) for run in mine),
                paper=bool(attrs.get("paper")),
                cheap="cheap" in attrs and not attrs.get("promoted"),
            )
        )
    return found


def confirmations(space: Space, tried: Sequence[Tried], paper: Mapping[str, Any] | None) -> list[Need]:
    """The runs that confirm: of the best setting, and of the paper's where that is another one."""
    chosen = best(tried, [DIRECTIONS[name] for name in space.objectives])
    if chosen is None:
        return []
    fresh = range(space.seeds, space.seeds + space.confirm)
    needs = [Need(PAPERS, dict(paper or {}), seed) for seed in fresh]
    if not chosen.paper:
        needs += [Need(f"#{chosen.number}, confirmed", chosen.values, seed) for seed in fresh]
    return needs


def agree(study: Study, space: Space) -> None:
    """Note what the settings of this study are drawn from. Raises BadInput where it was something else before."""
    mine = {
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
        if key != "parameters" and known[key] != mine[key]
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
    there = sum(one.state != "open" for one in tried(study)) if study else 0

    def run(cheap: bool = False) -> Job:
        return replace(maker.jobs(Need("", {}, 0, cheap))[-1], fingerprint=str(next(names)))

    settings = max(space.budget.trials - there, 0)
    jobs = [] if there else maker.jobs(Need("", {}, 0))[:-1]
    full = math.ceil(settings * space.promote) if space.fidelity else settings
    jobs += [run(cheap=True) for _ in range(settings if space.fidelity else 0)]
    return jobs + [run() for _ in range(full * space.seeds + 2 * space.confirm)]
