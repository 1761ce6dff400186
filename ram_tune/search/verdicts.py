"""Whether to believe what a sampled search found, and whether to go on: plain sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from ram_tune.errors import error_line
from ram_tune.search.findings import (
    FEWEST_FOR_TREND,
    PERCENT,
    Confirmed,
    Direction,
    Tried,
    _number,
    best,
    gains_of,
    measured,
    pareto,
    plural,
    worded,
)
from ram_tune.search.statistics import half_width


def verdict(best: Confirmed, paper: Confirmed, metric: str, direction: Direction = "maximize") -> str:
    """Is the best setting better than the paper's, by more than seeds make a difference? One sentence.

    Seeds are paired: the mean of best − paper over the seeds that both finished, and its 95 % Student interval.
    """
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(best.values, paper.values, strict=True)
        if math.isfinite(ours) and math.isfinite(theirs)
    ]
    n, asked = len(pairs), len(best.values)
    where = "test " if metric in PERCENT else ""  # the loss is that of selection, and costs know no images
    if best.number == paper.number:
        scale, unit = (100, " %") if metric in PERCENT else (1, "")
        own = [scale * value for value in paper.values if math.isfinite(value)]
        if not own:
            return (
                f"the best setting is the paper's own (number {best.number}), and none of {asked} fresh seeds finished"
            )
        half = f" ± {half_width(own):.3g}" if len(own) > 1 else ""
        return (
            f"the best setting is the paper's own (number {best.number}): {where}{metric} {mean(own):.3g}{half}{unit} over "
            f"{plural(len(own), 'fresh seed')}"
        )
    if not pairs:
        return (
            f"nothing is confirmed: neither of {asked} fresh seeds finished for both the best setting and the paper's"
        )
    scale, unit = (100, " points") if metric in PERCENT else (1, "")
    differences = [scale * (ours - theirs) for ours, theirs in pairs]
    ours, theirs = (worded(metric, mean(values)) for values in zip(*pairs, strict=True))
    seeds = f"{plural(n, 'fresh seed')}{f' of {asked}' if n < asked else ''}"
    head = (
        f"{where}{metric} {ours} of the best setting (number {best.number}) against {theirs} of the paper's, over {seeds}: "
        f"a difference of {_signed(metric, mean(differences))}{unit}"
    )
    if n == 1:
        return f"{head}; one seed says nothing about noise"
    half = half_width(differences)
    low, high = mean(differences) - half, mean(differences) + half
    better, worse = (low > 0, high < 0) if direction == "maximize" else (high < 0, low > 0)
    judged = "better by more" if better else "worse by more" if worse else "not better"
    return f"{head} [{_signed(metric, low)}, {_signed(metric, high)}], 95 % interval: {judged} than seed noise"


def unconfirmed(tried: Sequence[Tried], directions: Sequence[Direction], objective: str, seeds: int = 3) -> str:
    """What the best setting's value is worth before it is confirmed, and how to confirm it with `seeds` fresh seeds."""
    chosen, n = best(tried, directions), sum(measured(one) and one.feasible for one in tried)
    if chosen is None:
        return "there is no best setting to confirm"
    value = f"{objective} {worded(objective, chosen.objectives[0])} of setting {chosen.number}"
    how = (
        f"train it and the paper's with {seeds} fresh seeds and compare them on the test images with --confirm {seeds}"
    )
    if n == 1:
        return f"{value} is the only one to have finished, and not confirmed: {how}"
    return (
        f"{value} is the best of {n} on the selection images, and flattered by having been picked (the winner's curse): "
        f"{how}"
    )


def verdicts(
    tried: Sequence[Tried],
    parameters_edges: Callable[[dict[str, Any]], list[str]],
    directions: Sequence[Direction],
    objectives: Sequence[str],
    horizon: int,
) -> list[str]:
    """What a person should know of the search, one sentence each.

    `parameters_edges`: a setting's values → a phrase for each that lies at the edge of its domain. `horizon`: epochs that a
    setting trains, over its seeds, if it is not given up.
    """
    if not tried:
        return ["no setting has been tried yet"]
    chosen, finished = best(tried, directions), sum(map(measured, tried))
    said = []
    if not finished:
        said.append("no setting has finished yet")
    elif chosen is None:
        said.append(f"no setting keeps the constraints, of {finished} that finished")
    else:
        said += [f"{edge}: a wider domain may hold a better one" for edge in parameters_edges(dict(chosen.values))]
        said.append(_trend(tried, directions))
    said.append(_papers(tried, directions, objectives[0]))
    return [*said, *_given_up(tried), _epochs(tried, horizon)]


def _trend(tried: Sequence[Tried], directions: Sequence[Direction]) -> str:
    """Did the last third of the finished settings bring a better one?"""
    ordered = sorted(filter(measured, tried), key=lambda one: one.number)
    n, last = len(ordered), len(ordered) // 3
    if n < FEWEST_FOR_TREND:
        return f"{plural(n, 'setting')} finished: too few to tell whether more would help"
    places = {one.number: place for place, one in enumerate(ordered, 1)}
    first: dict[tuple[float, ...], Tried] = {}  # as good as an earlier one is no improvement
    for one in sorted(pareto(tried, directions), key=lambda one: one.number):
        first.setdefault(gains_of(one, directions), one)
    newest = max(first.values(), key=lambda one: one.number)
    several = len(directions) > 1
    if places[newest.number] <= n - last:
        what = "no new setting on the Pareto front" if several else "no better setting"
        return f"{what} in the last {last} of {n} finished: more will hardly help"
    what = "the newest setting on the Pareto front" if several else "the best setting"
    place = f"place {places[newest.number]} of {n} finished"
    return f"{what} ({newest.number}) came at {place}: still improving, go on with --trials {2 * len(tried)}"


def _papers(tried: Sequence[Tried], directions: Sequence[Direction], objective: str) -> str:
    """Was the paper's setting among them, and how good is it?"""
    one = min((one for one in tried if one.paper), key=lambda one: not measured(one), default=None)
    if one is None:
        return "the paper's setting was not among the tried"
    who = f"the paper's setting (number {one.number})"
    if not measured(one):
        states = {"pruned": "was pruned", "failed": "failed", "open": "has not finished"}
        return f"{who} {states.get(one.state, 'has no value of a full run')}"
    if not one.feasible:
        return f"{who} breaks a constraint"
    gains = [gains_of(other, directions)[0] for other in tried if measured(other) and other.feasible]
    rank = 1 + sum(gain > gains_of(one, directions)[0] for gain in gains)
    where = ""
    if len(directions) > 1:
        where = ", on the Pareto front" if one in pareto(tried, directions) else ", not on the Pareto front"
    value = f"{objective} {worded(objective, one.objectives[0])} on the selection images"
    return f"{who} ranks {rank} of {len(gains)}, with {value}{where}"


def _given_up(tried: Sequence[Tried]) -> list[str]:
    """How many were given up, after how many epochs; how many failed, and why; how many had a cheap run only."""
    said = []
    pruned = Counter(one.epochs for one in tried if one.state == "pruned")
    if pruned:
        after = ", ".join(f"{plural(epochs, 'epoch')} ({count})" for epochs, count in sorted(pruned.items()))
        said.append(f"{pruned.total()} of {plural(len(tried), 'setting')} pruned, after {after}")
    failed = Counter(error_line(one.reason) or "no error noted" for one in tried if one.state == "failed")
    if failed:
        why = "; ".join(f"{count} × {line}" for line, count in failed.most_common())
        said.append(f"{failed.total()} of {plural(len(tried), 'setting')} failed: {why}")
    cheap = [one.epochs for one in tried if one.state == "finished" and one.cheap]
    if cheap:
        said.append(
            f"{len(cheap)} of {plural(len(tried), 'setting')} had only a cheap run ({plural(sum(cheap), 'epoch')})"
        )
    return said


def _epochs(tried: Sequence[Tried], horizon: int) -> str:
    """Epochs trained, and what pruning saved. Cheap runs are not counted: their epochs are shorter."""
    trained = sum(one.epochs for one in tried if not one.cheap)
    saved = sum(max(0, horizon - one.epochs) for one in tried if one.state == "pruned" and not one.cheap)
    pruning = f"pruning saved {saved} of {trained + saved}" if saved else "pruning saved none"
    return f"{plural(trained, 'epoch')} trained; {pruning}"


def _signed(metric: str, difference: float) -> str:
    return f"{difference:+z.1f}" if metric in PERCENT else f"{'' if difference < 0 else '+'}{_number(difference)}"
