"""`python -m ram_tune.search NAME`: train the arms of a search, and say which is best."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ram_tune.config import Config
from ram_tune.errors import BadInput, command_line
from ram_tune.options import add_data_options, cache_dir, results_dir
from ram_tune.presets import parse_set
from ram_tune.search import space as spaces
from ram_tune.search.space import Published, Space

EXAMPLES = """\
examples:
  python -m ram_tune.search constraints                     the five arms on the embedded dataset
  python -m ram_tune.search constraints --seeds 3 --arms none A+S+P
  python -m ram_tune.search constraints --data voc2007 --data-root ~/data
  python -m ram_tune.search --list                          the searches that come with the package
  mlflow ui                                                 browse the runs, in the same folder

exit code: 0 every run finished, 1 some failed, 2 the options or files cannot be used"""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.list or not options.search:
        for name in spaces.names():
            print(f"{name:<14} {spaces.read(name).question}")
        return 0
    space = _chosen(spaces.read(options.search), options.arms)
    name = Path(options.search).stem
    overrides = parse_set(options.set)
    data = options.data or "scenes"
    seeds = space.seeds if options.seeds is None else options.seeds
    if seeds < 1:
        raise BadInput("--seeds", found=seeds, expected="at least 1")

    from ram_tune.search.plan import base_config

    base = base_config(space, data, options.data_root, overrides)
    caches, results = cache_dir(options.cache_dir), results_dir(options.results)

    from ram_tune.data.roles import load
    from ram_tune.search.plan import plan
    from ram_tune.training.run import make_ready

    dataset = load(base.data, caches)
    jobs = plan(space, data, options.data_root, overrides, seeds, dataset)
    for config in {(job.config.model.backbone, job.config.data): job.config for job in jobs}.values():
        make_ready(config, dataset, caches)

    from ram_tune.search.executor import execute, ray_cluster
    from ram_tune.search.record import Record

    console = Console()
    started = time.perf_counter()
    storage = results / f"{name}-{dataset.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    record = Record(name, space, dataset.name, base)
    trained = sum(job.kind == "train" for job in jobs)
    console.print(
        f"{space.title} on {dataset.name}: {trained} runs and {len(jobs) - trained} stage 1\n"
        f"results  {storage}\ncaches   {caches}",
        highlight=False,
        soft_wrap=True,
    )
    try:
        with ray_cluster() as there:
            outcomes = execute(jobs, there, storage, caches, [record, Display(console)])
        table = results_table(space, base, jobs, outcomes)
    except BaseException:
        record.abandon()
        raise
    console.print(table)
    failures = [job for job in jobs if outcomes[job.fingerprint].error]
    for job in failures:
        console.print(f"FAILED {job.name}: {_last_line(outcomes[job.fingerprint].error)}", markup=False, soft_wrap=True)
    with console.capture() as text:
        console.print(table)
    record.close(text.get(), failed=bool(failures))
    console.print(
        f"{time.perf_counter() - started:.0f} s. Browse the runs: mlflow ui, in this folder, then http://127.0.0.1:5000",
        highlight=False,
        soft_wrap=True,
    )
    return 1 if failures else 0


class Display:
    """A line for everything that happens; a Listener of the executor."""

    def __init__(self, console: Console):
        self.console = console

    def started(self, job: Any) -> None:
        self._say(f"{job.name:<16} started")

    def epoch(self, job: Any, metrics: dict[str, Any]) -> None:
        show = " ".join(f"{name} {metrics[f'selection/{name}']:.3f}" for name in ("loss", "mAP", "CF1", "OF1"))
        epochs = job.config.training.epochs
        self._say(
            f"{job.name:<16} epoch {metrics['epoch']:>3}/{epochs}  loss {metrics['train/loss']:.4f}  selection {show}"
        )

    def finished(self, job: Any, outcome: Any) -> None:
        found = _last_line(outcome.error) if outcome.error else f"test mAP {outcome.metrics['test/mAP']:.4f}"
        self._say(f"{job.name:<16} {'FAILED' if outcome.error else 'finished'}  {found}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def results_table(space: Space, base: Config, jobs: list[Any], outcomes: dict[str, Any]) -> Table:
    """Arm, seed, test metrics, and the published number, marked with what it is a number of."""
    columns = ("arm", "seed", "mAP", "CF1", "OF1", "best epoch", "published mAP")
    marks: dict[str, str] = {}  # how a published number was measured → its mark
    rows = []
    for job in jobs:
        found = outcomes[job.fingerprint].metrics
        values = [f"{100 * found[f'test/{name}']:.1f}" if found else "failed" for name in ("mAP", "CF1", "OF1")]
        best = f"{found['best_epoch']:.0f}" if found else ""
        entry = published(space, job.setting, base.data.name) if job.kind == "train" else None
        note = f"{entry.mAP:.1f} {marks.setdefault(entry.protocol(), '*' * (1 + len(marks)))}" if entry else ""
        rows.append((job.setting, str(job.config.training.seed), *values, best, note))
    footnotes = [f"{mark} {how}" for how, mark in marks.items()]
    caption = "\n".join(["measured: test, single crop, the network's own scores", *footnotes])
    table = Table(title=f"{space.title} on {base.data.name}, in percent", caption=caption)
    for column in columns:
        table.add_column(column, justify="left" if column == "arm" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def published(space: Space, arm: str, dataset: str) -> Published | None:
    """The published mAP of an arm: on this dataset, else on the first that has one."""
    known = [entry for entry in space.published if entry.arm == arm and entry.mAP is not None]
    return next((entry for entry in known if entry.dataset == dataset), known[0] if known else None)


def _chosen(space: Space, arms: list[str] | None) -> Space:
    for arm in arms or ():
        if arm not in space.arms:
            from ram_tune.errors import nearest

            found, known = repr(arm), ", ".join(space.arms)
            raise BadInput("--arms", found=found, expected=f"among {known}", remedy=nearest(arm, space.arms))
    return space.model_copy(update={"arms": {arm: space.arms[arm] for arm in arms}}) if arms else space


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ram_tune.search",
        description="Train every arm of a search with Ray, record the runs in MLflow, and print what each arm is worth.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("search", nargs="?", help="a search that comes with the package, or the path of a YAML file")
    parser.add_argument("--list", action="store_true", help="list the searches that come with the package, and exit")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms (default: all)")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each arm (default: the search's own)")
    add_data_options(parser)
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="checkpoints and logs (default: $RAM_TUNE_RESULTS, else ram_tune_runs)",
    )
    return parser


if __name__ == "__main__":
    command_line(main)
