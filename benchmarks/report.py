"""`python -m benchmarks.report [--images N] [--labels L]`: how long a report of 200 finished runs takes, and their list.

The runs are as the tests make them: 40 arms of 5 seeds each, with what training would have left of 400 test images and 16
labels, as `scenes` has (VOC 2007: 4,952 and 20). Every figure is of a command of its own, from its start to its end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from finished import Finished, space

ARMS, SEEDS = 40, 5
ASKED = {"list": 1.0, "text": 5.0, "text, once more": 5.0, "html": 5.0}
"""Command → seconds that it is to stay below."""

COMMANDS = {
    "list": [],
    "text": ["bench"],
    "text, once more": ["bench"],
    "html": ["bench", "--format", "html", "--out", "report.html"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="test images of every run (default: 400)")
    parser.add_argument("--labels", type=int, default=16, help="labels (default: 16)")
    options = parser.parse_args()
    arms = {f"arm {number}": {"loss.anchor_weight": 0.01 * (1 + number)} for number in range(ARMS)}
    table = Table(title=f"{ARMS * SEEDS} finished runs, {options.images:,} test images, {options.labels} labels")
    for column in ("command", "seconds", "of them CPU", "to be below", "ratio"):
        table.add_column(column, justify="left" if column == "command" else "right")
    with tempfile.TemporaryDirectory(prefix="ram_tune-bench-") as folder:
        Finished(
            Path(folder),
            space(arms=arms, seeds=SEEDS),
            name="bench-scenes-00000000",
            images=options.images,
            labels=options.labels,
        ).all(seeds=SEEDS)
        for name, command in COMMANDS.items():
            seconds, cpu = timed(command, folder)
            table.add_row(name, f"{seconds:.2f}", f"{cpu:.2f}", f"{ASKED[name]:.0f}", f"{seconds / ASKED[name]:.2f}")
    Console().print(table)


def timed(command: list[str], folder: str) -> tuple[float, float]:
    """Seconds that passed, and of a processor."""
    import resource

    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ram_tune.report", *command, "--results", folder], check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu


if __name__ == "__main__":
    main()
