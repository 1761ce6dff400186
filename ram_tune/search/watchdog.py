"""What has not moved for long, and who holds what it may be waiting for. Nothing here knows Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOVES = ("started", "state", "step", "epoch")
ENDS = ("finished", "failed", "pruned", "stopped")


@dataclass
class _Known:
    """Of a running job."""

    moved: float  # when
    last: Mapping[str, Any]  # the event
    said: bool = False  # that it has not moved since


class Watchdog:
    """Told of all events, it finds jobs of which none was new for `patience` seconds; 0: never."""

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic):
        self.patience, self.clock = patience, clock
        self.known: dict[str, _Known] = {}

    def note(self, event: Mapping[str, Any]) -> None:
        """What a worker says twice, as one does that was lost and replaced, is no progress the second time."""
        run, kind = event.get("run", ""), event["type"]
        if kind in ENDS:
            self.known.pop(run, None)
        elif kind in MOVES and (run not in self.known or dict(event) != dict(self.known[run].last)):
            self.known[run] = _Known(self.clock(), event)

    def silent(self) -> list[tuple[str, str]]:
        """Jobs that have become silent since the last call: run, and what there is to say of it."""
        found, now = [], self.clock()
        for run, known in self.known.items():
            if self.patience and not known.said and now - known.moved >= self.patience:
                known.said = True
                found.append((run, f"has not moved for {(now - known.moved) / 60:.0f} min, {_last(known.last)}"))
        return found


def _last(event: Mapping[str, Any]) -> str:
    if event["type"] == "started":
        return "and has no worker yet"
    if event["type"] == "state":
        return f"since “{event['text']}”"
    step = f", step {event['step']} of {event['steps']}" if event["type"] == "step" else ""
    return f"since epoch {event['epoch']}{step}"


def usage(total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """`3 of 4 CPU, 1 of 2 GPU in use`; empty of a cluster that has neither."""
    names = [name for name in ("CPU", "GPU") if total.get(name)]
    used = [f"{total[name] - free.get(name, 0):g} of {total[name]:g} {name}" for name in names]
    return f"{', '.join(used)} in use" if used else ""


def holders(
    total: Mapping[str, float],
    free: Mapping[str, float],
    running: Sequence[tuple[str, Mapping[str, float]]],
    waiting: Iterable[Mapping[str, float]],
) -> str:
    """Who holds the cluster's CPUs and GPUs: `running` jobs by name with what they hold if they run, and others; and what
    else waits for some."""
    names = [name for name in ("CPU", "GPU") if total.get(name)]
    if not names:
        return "The cluster has no CPU and no GPU now."
    share = ", ".join(f"{free.get(name, 0):g} of {total[name]:g} {name}" for name in names)
    ours = {name: sum(held.get(name, 0) for _, held in running) for name in names}
    others = {name: total[name] - free.get(name, 0) - ours[name] for name in names}
    held = [f"{name} ({_amounts(needed)})" for name, needed in running]
    held += [f"others ({_amounts(others)})"] if any(amount > 0.01 for amount in others.values()) else []
    waits = [_amounts(needed) for needed in waiting]
    return (
        f"Free: {share}."
        + (f" Held or wanted by {', '.join(held)}." if held else "")
        + (f" Waiting for room: {'; '.join(waits)}." if waits else "")
    )


def _amounts(needed: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in needed.items() if amount > 0.01) or "nothing"
