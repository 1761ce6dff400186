"""`python -m ram_tune.search NAME`: train the arms of a search, and say which is best."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group

from ram_tune.config import Config
from ram_tune.errors import BadInput, command_line, nearest
from ram_tune.options import (
    add_data_options,
    add_search_places,
    cache_dir,
    masked,
    results_dir,
    study_storage,
    tracking_uri,
)
from ram_tune.presets import parse_set
from ram_tune.search import space as spaces
from ram_tune.search.space import Space

if TYPE_CHECKING:  # torch, Optuna and MLflow are imported only once the options are right
    from ram_tune.data.roles import Dataset
    from ram_tune.search.driver import Places
    from ram_tune.search.jobs import Job, Outcome
    from ram_tune.search.study import Study

EXAMPLES = """\
examples:
  python -m ram_tune.search constraints                     the five arms on the embedded dataset
  python -m ram_tune.search constraints --seeds 3           the same with three seeds each: only what is missing is run
  python -m ram_tune.search constraints --dry-run           what would be run, and with what
  python -m ram_tune.search constraints --data voc2007 --data-root ~/data --set model.projection_size=512
  python -m ram_tune.search my_space.yaml --workers 0       one's own question; many small runs
  python -m ram_tune.search --list                          the searches that come with the package
  mlflow ui                                                 browse the runs, in the same folder

The same command goes on after Ctrl-C (once: running jobs end with their epoch; twice: at once), after a crash, and with more
arms or seeds. exit code: 0 every run finished, 1 some failed, 2 the options or files cannot be used, 130 interrupted"""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.list or not options.search:
        for name in spaces.names():
            print(f"{name:<14} {spaces.read(name).question}")
        return 0
    data = options.data or "scenes"
    space = _chosen(spaces.read(options.search).on(data), options.arms)
    name = Path(options.search).stem
    overrides = _overrides(options)
    seeds = _positive("--seeds", options.seeds) or space.seeds
    _positive("--concurrency", options.concurrency)

    from ram_tune.search.plan import base_config

    base = base_config(space, data, options.data_root, overrides)
    caches, results = cache_dir(options.cache_dir), results_dir(options.results)
    storage, record = study_storage(options.study_storage, results), tracking_uri(options.tracking_uri)

    from ram_tune.data.roles import load
    from ram_tune.search.driver import Places, known_outcomes, to_do
    from ram_tune.search.plan import plan, study_name
    from ram_tune.search.study import open_study
    from ram_tune.training.run import make_ready

    dataset = load(base.data, caches)
    jobs = plan(space, data, options.data_root, overrides, seeds, dataset)
    wanted = study_name(name, base, dataset)
    study = open_study(storage, wanted, options.fresh, create=False)
    todo = to_do(jobs, known_outcomes(jobs, study, results / study.name if study else results))

    console = Console()
    if options.dry_run:
        from ram_tune.search.report import plan_table

        console.print(f"{space.title} on {dataset.name}: {count_of(jobs, todo)}", highlight=False)
        console.print(plan_table(jobs, {job.fingerprint for job in todo}, base))
        return 0
    for config in {(job.config.model, job.config.data): job.config for job in todo}.values():
        make_ready(config, dataset, caches)
    study = open_study(storage, wanted, options.fresh)  # made only now that everything else is right
    assert study is not None
    study.agree(space.arms)
    places = Places(storage, record, results / study.name, caches)
    _greet(console, space, dataset, jobs, todo, places)
    return _search(options, name, space, base, dataset, jobs, study, places, console)


def _search(
    options: argparse.Namespace,
    name: str,
    space: Space,
    base: Config,
    dataset: Dataset,
    jobs: list[Job],
    study: Study,
    places: Places,
    console: Console,
) -> int:
    """Run what is missing, print the table → the exit code."""
    from ram_tune.search.driver import (
        Manner,
        any_failed,
        carry_out,
        drop_weights,
        histories,
        known_outcomes,
        register_best,
        send_what_waits,
        to_do,
    )
    from ram_tune.search.lease import this_process
    from ram_tune.search.record import About
    from ram_tune.search.report import attention_table, failures, mechanism_table, results_table

    def tables(outcomes: Mapping[str, Outcome]) -> Group:
        parts = (
            results_table(space, dataset.name, jobs, outcomes),
            mechanism_table(jobs, histories(outcomes)),
            attention_table(jobs, outcomes),
        )
        return Group(*(part for part in parts if part))

    def summarise(outcomes: Mapping[str, Outcome]) -> str:
        plain = Console(width=120, color_system=None)
        with plain.capture() as text:
            plain.print(tables(outcomes), *failures(jobs, outcomes), sep="\n", markup=False)
        return text.get()

    about = About(
        experiment=f"{name}-{dataset.name}",
        study=study.name,
        title=f"{space.title} · {study.name.removeprefix(f'{name}-{dataset.name}-')}",
        question=space.question,
        command=shlex.join(["python", "-m", "ram_tune.search", *sys.argv[1:]]),
        params=base.flat(),
    )
    started = time.perf_counter()
    held = this_process()
    study.lease.claim(held)
    try:
        known = known_outcomes(jobs, study, places.folder)  # once more: another driver may have finished since
        complete = True
        if to_do(jobs, known):
            manner = Manner(options.address, options.concurrency or 0, options.keep_checkpoints)
            outcomes, complete = carry_out(jobs, known, study, held, places, manner, about, summarise, console)
        else:
            outcomes = known
            send_what_waits(places, about, summarise(outcomes), "FINISHED", console)
        said = register_best(jobs, outcomes, study, places, about) if complete else ""
        if complete and options.keep_checkpoints == "none":
            drop_weights(jobs, outcomes)
    finally:
        study.lease.release(held)

    console.print(tables(outcomes))
    for line in failures(jobs, outcomes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if said:
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    took = f"{time.perf_counter() - started:.0f} s"
    console.print(f"{took}. Browse the runs: {browse(places.tracking_uri)}", highlight=False, soft_wrap=True)
    if not complete:
        again = "The same command without --fresh" if options.fresh else "The same command"
        console.print(f"Stopped before the end. {again} goes on from here.", soft_wrap=True)
        return 130
    return 1 if any_failed(outcomes) else 0


def browse(tracking_uri: str) -> str:
    """What to type, or where to look, to see the runs."""
    if not tracking_uri.startswith("sqlite:"):
        return masked(tracking_uri)
    command = Path(sys.executable).with_name("mlflow")  # the environment need not be active
    here = Path.cwd()
    command = command.relative_to(here) if command.is_relative_to(here) else command
    store = "" if tracking_uri == f"sqlite:///{here / 'mlflow.db'}" else f" --backend-store-uri {tracking_uri}"
    return f"{command} ui{store}, then http://127.0.0.1:5000"


def count_of(jobs: Sequence[Job], todo: Sequence[Job]) -> str:
    """How many runs there are, and how many of them are done."""
    runs, done = sum(job.kind != "stage1" for job in jobs), len(jobs) - len(todo)
    said = f"{runs} runs and {len(jobs) - runs} stage 1"
    return said + (f", {done} of them finished before" if done else "")


def _greet(
    console: Console, space: Space, dataset: Dataset, jobs: Sequence[Job], todo: Sequence[Job], places: Places
) -> None:
    console.print(
        f"{space.title} on {dataset.name}: {count_of(jobs, todo)}\nresults  {places.folder}"
        f"\nstudy    {masked(places.storage)}\nrecord   {masked(places.tracking_uri)}\ncaches   {places.cache_dir}"
        f"\nlogs     {places.folder / 'search.log'}, {os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_latest/logs",
        highlight=False,
        soft_wrap=True,
    )


def _chosen(space: Space, arms: list[str] | None) -> Space:
    for arm in arms or ():
        if arm not in space.arms:
            found, known = repr(arm), ", ".join(space.arms)
            raise BadInput("--arms", found=found, expected=f"among {known}", remedy=nearest(arm, space.arms))
    return space.model_copy(update={"arms": {arm: space.arms[arm] for arm in arms}}) if arms else space


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """--set, and the options that are short for a field."""
    overrides = parse_set(options.set)
    for option, field in (("workers", "execution.workers"), ("gpus_per_worker", "execution.gpus_per_worker")):
        value = getattr(options, option)
        if value is not None and overrides.setdefault(field, value) != value:
            raise BadInput(
                f"--{option.replace('_', '-')} {value}",
                found=f"{field}={overrides[field]} in --set too",
                expected="one of them",
            )
    return overrides


def _positive(option: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise BadInput(option, found=value, expected="at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ram_tune.search",
        description="Train every arm of a search with Ray, record the runs in MLflow, and print what each arm is worth.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("search", nargs="?", help="a search that comes with the package, or the path of a YAML file")
    parser.add_argument("--list", action="store_true", help="list the searches that come with the package, and exit")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the jobs, what they need and how they differ; run none"
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms (default: all)")
    what.add_argument("--seeds", type=int, metavar="N", help="runs of each arm (default: the search's own)")
    what.add_argument(
        "--fresh", action="store_true", help="start anew; what earlier searches made is kept, but not used"
    )
    add_data_options(what)
    how = parser.add_argument_group("how to run it")
    how.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="1: a Ray Train worker for each run (default); 0: many small runs share one process",
    )
    how.add_argument("--gpus-per-worker", type=float, metavar="N", help="such as 0.5 (default: 1 where there are any)")
    how.add_argument("--concurrency", type=int, metavar="N", help="runs at once (default: as many as fit)")
    how.add_argument(
        "--address", default="", metavar="HOST:PORT", help="a running Ray cluster (default: this machine alone)"
    )
    places = parser.add_argument_group("where it is kept")
    add_search_places(places)
    places.add_argument(
        "--keep-checkpoints",
        choices=("best", "all", "none"),
        default="best",
        help="of each run: the best epoch's weights (default); every epoch's, and its optimiser's state; or none but stage 1's",
    )
    return parser


if __name__ == "__main__":
    command_line(main)
