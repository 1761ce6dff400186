"""Where the time of a training step goes: its parts by the clock, and a trace of PyTorch's profiler."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ram_tune.training.loop import train_epoch
from ram_tune.training.run import Run

WARM_UP, TIMED, TRACED = 3, 10, 3  # steps
OPERATIONS = 8
TRACE = "profile.json.gz"

INPUT, CONVOLUTIONS, HEAD, OPTIMISER = "input", "convolutions", "head and loss", "optimiser"
PARTS = {
    CONVOLUTIONS: "the backbone, forward and backward",
    HEAD: "all behind the feature map, forward and backward",
    OPTIMISER: "Adam's step",
    INPUT: "waiting for the next batch, and its way to the device",
}


@dataclass(frozen=True)
class Profile:
    """Of a step in the middle of training."""

    seconds: dict[str, float]  # part → seconds of a step
    images_per_second: float
    operations: list[tuple[str, int, float]]
    """Name, calls of a step, seconds of a step within itself; the longest first."""

    def share(self, part: str) -> float:
        """Of a step, from 0 to 1."""
        return self.seconds[part] / sum(self.seconds.values())


class _EnoughError(Exception):
    """Ends the epoch."""


class _Clock:
    """Charges time to the part that has just ended. The device is waited for after each, so that on a GPU a step takes a
    little longer than it does in training, where the host runs ahead.
    """

    def __init__(self, device: torch.device):
        self.device, self.taken, self.last = device, defaultdict[str, float](float), 0.0

    def __call__(self, part: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.taken[part] += now - self.last
        self.last = now


def profiled(run: Run, folder: Path) -> Profile:
    """Train `run` for some steps; the trace is left in `folder` as `profile.json.gz`."""
    clock, step = _Clock(run.device), itertools.count(1)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if run.device.type == "cuda" else [])
    tracer = profile(activities=activities)
    fresh = True  # nothing of this step has been computed yet
    behind_map = False  # the gradient has passed the map: what follows are the convolutions'

    def backward_ended() -> str:
        return CONVOLUTIONS if behind_map else HEAD

    def starts(*_: Any) -> None:  # with a batch, or with the next piece of it
        nonlocal fresh, behind_map
        clock(INPUT if fresh else backward_ended())
        fresh = behind_map = False

    def found_map(module: Any, inputs: Any, f: Tensor) -> None:
        clock(CONVOLUTIONS)
        if f.requires_grad:
            f.register_hook(passed)

    def passed(gradient: Tensor) -> None:
        nonlocal behind_map
        behind_map = True
        clock(HEAD)

    def before_step(*_: Any) -> None:
        clock(backward_ended())

    def after_step(*_: Any) -> None:
        nonlocal fresh
        clock(OPTIMISER)
        fresh = True
        match next(step):
            case n if n == WARM_UP:
                clock.taken.clear()
            case n if n == WARM_UP + TIMED:
                found.update(clock.taken)
                tracer.start()
            case n if n == WARM_UP + TIMED + TRACED:
                tracer.stop()
                raise _EnoughError

    found: dict[str, float] = {}
    network, optimizer, maps = run.network, run.optimizer, run.config.data.crop == "map"  # which no backbone sees
    with ExitStack() as hooks:
        for handle in (
            (network.head if maps else network.backbone).register_forward_pre_hook(starts),
            network.backbone.register_forward_hook(found_map),
            network.head.register_forward_hook(lambda *_: clock(HEAD)),
            optimizer.register_step_pre_hook(before_step),
            optimizer.register_step_post_hook(after_step),
        ):
            hooks.callback(handle.remove)
        try:
            for epoch in itertools.count(1):
                train_epoch(run, epoch, lambda *_: None)
        except _EnoughError:
            pass
    folder.mkdir(parents=True, exist_ok=True)
    tracer.export_chrome_trace(str(folder / TRACE))
    seconds = {part: found.get(part, 0.0) / TIMED for part in PARTS}
    images = min(run.config.training.batch_size, len(run.train))
    return Profile(seconds, images / sum(seconds.values()), _longest(tracer, run.device))


def _longest(tracer: profile, device: torch.device) -> list[tuple[str, int, float]]:
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"  # microseconds
    rows = [(one.key, one.count // TRACED, getattr(one, own) / 1e6 / TRACED) for one in tracer.key_averages()]
    return sorted(rows, key=lambda row: -row[2])[:OPERATIONS]
