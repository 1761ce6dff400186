"""`python -m ram_tune.train`: one complete run on this machine, without a cluster."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ram_tune.config import Config, fields
from ram_tune.errors import BadInput, NotEnoughMemoryError, command_line
from ram_tune.options import add_data_options, cache_dir, make_folder, results_dir
from ram_tune.presets import configure, parse_set

if TYPE_CHECKING:  # torch is imported only once the options are right
    from ram_tune.data.roles import Dataset
    from ram_tune.training.loop import EpochReport

EXAMPLES = """\
examples:
  python -m ram_tune.train                                  the embedded dataset, a few minutes on a laptop
  python -m ram_tune.train --set model.name=whole_image     the baseline without regions
  python -m ram_tune.train --data voc2007 --data-root ~/data --set model.projection_size=512
  python -m ram_tune.train --data photos/labels.csv         one's own images (path,labels with ; between labels)
  python -m ram_tune.train --profile                        where the time of a training step goes
  python -m ram_tune.train --resume ram_tune_runs/…         go on after an interruption
  python -m ram_tune.train --fields                         every field that --set knows
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ram_tune.train",
        description="Train one model: stage 1, the epochs, the final test, with its files in one folder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_options(parser)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="the run's folder (default: ram_tune_runs/<data>-<model>-<fingerprint>)"
    )
    parser.add_argument("--resume", metavar="DIR", type=Path, help="go on with the run in DIR, with its own settings")
    parser.add_argument("--stage1", metavar="FILE", type=Path, help="best.pt of a stage 1 trained before")
    parser.add_argument(
        "--profile", action="store_true", help="say where the time of a step goes, after some steps, and leave a trace"
    )
    parser.add_argument("--fields", action="store_true", help="list every field with its meaning and default, and exit")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.fields:
        print_fields()
        return 0
    config = _configuration(options)

    from ram_tune.data.roles import load

    caches = cache_dir(options.cache_dir)
    dataset = load(config.data, caches)

    from ram_tune.training.judging import NotFiniteError
    from ram_tune.training.local import train_in_folder
    from ram_tune.training.run import identity

    name = f"{dataset.name}-{config.model.name}-{identity(config, dataset)[:8]}"
    folder = make_folder((options.resume or options.out or results_dir(None) / name).absolute(), "--out")
    console = Console()
    if options.profile:
        try:
            _profile(config, dataset, folder, caches, console)
        except NotEnoughMemoryError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0
    console.print(
        f"{dataset.name}: {len(dataset.train)} train, {len(dataset.selection)} selection, {len(dataset.test)} test images, "
        f"{len(dataset.categories)} labels\nfolder  {folder}\ncaches  {caches}",
        highlight=False,
        soft_wrap=True,
    )
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    started = time.perf_counter()
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("preparing", total=None)

        def on_epoch(stage: str, config: Config, report: EpochReport) -> None:
            line = epoch_line(stage, config, report)
            bars.console.print(line, highlight=False, soft_wrap=True)

        def progress(step: int, steps: int, loss: float) -> None:
            bars.update(bar, description=f"loss {loss:.4f}", completed=step, total=steps)

        try:
            summary = train_in_folder(config, folder, caches, options.stage1, on_epoch, progress, dataset)
        except (NotFiniteError, NotEnoughMemoryError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"interrupted; go on with: python -m ram_tune.train --resume {folder}", file=sys.stderr)
            return 130
    _print_summary(console, summary, folder, time.perf_counter() - started)
    return 0


def _configuration(options: argparse.Namespace) -> Config:
    overrides = parse_set(options.set)
    if overrides.get("evaluation.scales"):
        raise BadInput(
            "--set evaluation.scales",
            found=overrides["evaluation.scales"],
            expected="none: one training has one scale, data.image_size",
            remedy="Train a model at each, then: python -m ram_tune.evaluate RUN RUN; or: python -m ram_tune.search views.",
        )
    if options.profile and options.stage1:
        raise BadInput(
            "--stage1",
            found="both this and --profile",
            expected="--profile alone: a step takes as long whatever weights it starts from",
        )
    if options.resume is None:
        return configure(options.data or "scenes", options.data_root, overrides=overrides)
    for name in ("data", "data_root", "out", "profile"):
        if getattr(options, name):
            raise BadInput(
                f"--{name.replace('_', '-')}",
                found="both this and --resume",
                expected="--resume alone: a run goes on with its own settings",
                remedy="Where its data have moved, add --set data.root=DIR.",
            )
    from ram_tune.training.results import read_config

    if not (options.resume / "config.yaml").is_file():
        found = f"no {options.resume / 'config.yaml'}"
        raise BadInput("--resume", found=found, expected="the folder of a run", remedy="Start one with --out.")
    return configure("", "", read_config(options.resume).flat(), overrides=overrides)


def _profile(config: Config, dataset: Dataset, folder: Path, caches: Path, console: Console) -> None:
    """Some steps of the run itself: a step takes as long with weights that no stage 1 has trained."""
    from rich.table import Table

    from ram_tune.training.memory import telling_what_does_not_fit
    from ram_tune.training.profile import PARTS, TRACE, profiled
    from ram_tune.training.run import make_ready, prepare

    alone = config.model_copy(update={"stage1": config.stage1.model_copy(update={"epochs": 0})})
    make_ready(alone, dataset, caches)
    with telling_what_does_not_fit(config):
        run = prepare(alone, caches, dataset=dataset)
        run.cache()
        found = profiled(run, folder)
    parts = Table(title=f"A step of {config.model.name}: {config.training.batch_size} images, on {run.device}")
    longest = Table(title="Its longest operations, each without what it calls")
    for table, columns in ((parts, ("part", "ms", "share", "")), (longest, ("operation", "calls", "ms"))):
        for column in columns:
            table.add_column(column, justify="right" if column in ("ms", "share", "calls") else "left")
    for part, about in PARTS.items():
        parts.add_row(part, f"{1000 * found.seconds[part]:.1f}", f"{100 * found.share(part):.0f} %", about)
    for name, calls, seconds in found.operations:
        longest.add_row(name, str(calls), f"{1000 * seconds:.1f}")
    console.print(parts, longest)
    console.print(
        f"{found.images_per_second:.0f} images/s. Trace: {folder / TRACE} (chrome://tracing, Perfetto)",
        highlight=False,
        soft_wrap=True,
    )


def epoch_line(stage: str, config: Config, report: EpochReport) -> str:
    """One line of progress; a star marks the best epoch so far."""
    values = report.metrics
    show = {name: values[f"selection/{name}"] for name in ("mAP", "CF1", "OF1")}
    return (
        f"{stage:<11} epoch {report.epoch:>3}/{config.training.epochs}  loss {values['train/loss']:.4f}  "
        f"selection loss {values['selection/loss']:.4f}  "
        + "  ".join(f"{name} {value:.3f}" for name, value in show.items())
        + f"  {values['train/images_per_second']:.0f} images/s{'  *' if report.is_best else ''}"
    )


def _print_summary(console: Console, summary: dict[str, Any], folder: Path, seconds: float) -> None:
    names = "mAP", "mAP_11", "CP", "CR", "CF1", "OP", "OR", "OF1"
    console.print(
        f"test (best epoch {summary['best_epoch']}): "
        + "  ".join(f"{name} {summary['test'][name]:.4f}" for name in names)
        + f"  (chance mAP {summary['test']['chance']:.4f})"
        + f"\n{seconds:.0f} s; files in {folder}: "
        + ", ".join(
            sorted(
                str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
            )
        ),
        highlight=False,
        soft_wrap=True,
    )


def print_fields() -> None:
    """Every field: name, default, meaning."""
    for name, about in fields():
        print(f"{name} = {json.dumps(about['default'])}\n    {about['description']}")


if __name__ == "__main__":
    command_line(main)
