"""Peak memory of a training step, whole and as `execution` can have it. Each in a process of its own: a peak stays.

python -m benchmarks.memory IMAGES SIDE PROJECTION [FIELD=VALUE …]    one of them: seconds and MiB, as JSON
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.measure import Row, seconds
from benchmarks.steps import batch_of, made, step
from ram_tune.presets import parse_set
from ram_tune.training.device import device_of

SAVING = ["execution.accumulate=8"]


def one(images: int, side: int, projection: int, fields: list[str]) -> dict[str, float]:
    """Seconds of a step; MiB at its peak: weights, gradients, the optimiser's and what lies between; and MiB of the libraries,
    which a GPU's memory does not hold and which are not in the peak here either.
    """
    libraries = _peak(device_of("auto"))
    overrides = {name.replace(".", "__"): value for name, value in parse_set(fields).items()}
    run = made(model__projection_size=projection, **overrides)
    run.network.train()
    batch = batch_of(run, images, side)
    work = step(run, batch)
    work()
    times = [seconds(work) for _ in range(2)]
    return {"seconds": median(times), "peak": _peak(run.device) - libraries, "libraries": libraries}


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def saved(images: int, side: int, projection: int, fields: list[str] = SAVING) -> Iterator[Row]:
    def measured(*more: str) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.memory", str(images), str(side), str(projection), *more]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    whole, saving = measured(), measured(*fields)
    slower = saving["seconds"] / whole["seconds"]
    what = f"a VGG-16 step, {side}², batch {images}, projection {projection}"
    said = (
        f"{saving['peak']:,.0f} MiB, {whole['peak']:,.0f} MiB; beside them the libraries, {whole['libraries']:,.0f} MiB"
    )
    yield Row(
        f"peak memory of {what} with `{' '.join(fields)}`",
        "without",
        saving["peak"] / whole["peak"],
        0.5,
        False,
        "weights, gradients and Adam's moments stay",
        said,
    )
    yield Row("its time", "without", slower, 1.35, False, "", f"{saving['seconds']:.1f} s, {whole['seconds']:.1f} s")


if __name__ == "__main__":
    print(json.dumps(one(*map(int, sys.argv[1:4]), sys.argv[4:])))
