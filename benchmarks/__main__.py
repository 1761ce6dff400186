"""`python -m benchmarks [NAME …]`: the measurements, one table. Each is a ratio of two things measured in one run; each group
runs in a process of its own. Beside other work the ratios say little.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import Row, as_json, from_json, markdown


def _steps() -> Iterator[Row]:
    from benchmarks import steps

    yield from steps.training(images=16, side=448, rounds=3)


def _views() -> Iterator[Row]:
    from benchmarks import steps

    yield from steps.views(images=4, size=512, rounds=3)


def _memory() -> Iterator[Row]:
    from benchmarks import memory

    yield from memory.saved(16, 448, 512)


def _pipeline() -> Iterator[Row]:
    from benchmarks import inputs

    yield from inputs.pipeline(count=400, rounds=3)


def _maps() -> Iterator[Row]:
    from benchmarks import inputs

    yield from inputs.maps(count=160, rounds=3)


def _metrics() -> Iterator[Row]:
    from benchmarks import numbers

    yield from numbers.metrics(40_137, 80, rounds=2)


def _svm() -> Iterator[Row]:
    from benchmarks import numbers

    yield from numbers.machines(2_500, 80, 512, rounds=3)


def _fixed() -> Iterator[Row]:
    from benchmarks import runs

    yield from runs.fixed_cost()


def _efficiency() -> Iterator[Row]:
    from benchmarks import runs

    for workers in ("0", "1"):
        yield from runs.efficiency(epochs=5, workers=workers)


def _sharing() -> Iterator[Row]:
    from benchmarks import runs

    yield from runs.sharing(images=400)


def _desk() -> Iterator[Row]:
    from benchmarks import desk

    yield from desk.growth(runs=1000)


GROUPS: dict[str, tuple[Callable[[], Iterator[Row]], str]] = {
    "steps": (_steps, ""),
    "views": (_views, ""),
    "memory": (_memory, ""),
    "pipeline": (_pipeline, ""),
    "maps": (_maps, ""),
    "metrics": (_metrics, "torchmetrics"),
    "svm": (_svm, ""),
    "fixed": (_fixed, "ray"),
    "efficiency": (_efficiency, "ray"),
    "sharing": (_sharing, "ray"),
    "desk": (_desk, "mlflow"),
}
"""Name → what is measured, and the package without which it is left out."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(GROUPS)}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="leave table.md and table.json there")
    parser.add_argument("--rows", action="store_true", help=argparse.SUPPRESS)  # one group, for the process that asks
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in GROUPS]:
        parser.error(f"no measurement {unknown[0]!r}; there are {', '.join(GROUPS)}")
    if options.rows:
        (name,) = options.names
        print(as_json(GROUPS[name][0](), {}))
        return 0
    failed: list[str] = []
    rows: list[Row] = []
    for name in options.names or GROUPS:
        needed = GROUPS[name][1]
        if needed and importlib.util.find_spec(needed) is None:
            print(f"{name}: left out, for {needed} is not installed", file=sys.stderr)
            continue
        print(f"{name} …", file=sys.stderr)
        command = [sys.executable, "-m", "benchmarks", name, "--rows"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(name)
            continue
        found = from_json(done.stdout[done.stdout.index("{") :])
        print(markdown(found), file=sys.stderr)
        rows += found
    print(markdown(rows))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "table.md").write_text(markdown(rows))
        (options.out / "table.json").write_text(as_json(rows, machine()))
    if failed:
        print(f"not in the table, for they failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def machine() -> dict[str, str]:
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"cpus": str(cpus), "gpu": gpu, "torch": torch.__version__, "system": platform.platform(terse=True)}


if __name__ == "__main__":
    sys.exit(main())
