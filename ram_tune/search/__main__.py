"""`python -m ram_tune.search NAME`: train the arms of a search, and say which is best."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.text import Text

from ram_tune.config import Config
from ram_tune.errors import BadInput, command_line
from ram_tune.options import (
    cache_dir,
    masked,
    results_dir,
    study_storage,
    tracking_uri,
)
from ram_tune.search import space as spaces
from ram_tune.search.arguments import check_sampled, chosen, limited, overrides_of, parser, positive
from ram_tune.search.space import Space
from ram_tune.search.submission import settle_in

if TYPE_CHECKING:  # torch, Optuna and MLflow are imported only once the options are right
    from ram_tune.data.roles import Dataset
    from ram_tune.search.driver import Places
    from ram_tune.search.jobs import Job, Outcome
    from ram_tune.search.plan import Maker
    from ram_tune.search.study import Study


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.jobs or options.follow or options.stop:
        from ram_tune.search.job_server import manage

        return manage(options)
    if options.list or not (options.search or options.submit is not None):
        for name in spaces.names():
            print(f"{name:<14} {spaces.read(name).question}")
        return 0
    if not options.search:
        raise BadInput("--submit", found="no search", expected="its name first", remedy="`--list` lists them.")
    data = options.data or "scenes"
    positive("--seeds", options.seeds)
    positive("--concurrency", options.concurrency)
    space = limited(chosen(spaces.read(options.search).on(data), options.arms), options)
    name = Path(options.search).stem
    overrides = overrides_of(options)
    if options.submit is not None:
        from ram_tune.search.job_server import submit

        return submit(options, space, overrides)
    settle_in(options, space, overrides)

    from ram_tune.search.plan import base_config

    base = base_config(space, data, options.data_root, overrides)
    if space.parameters:
        check_sampled(space, base, overrides, options)
    caches, results = cache_dir(options.cache_dir), results_dir(options.results)
    storage, record = study_storage(options.study_storage, results), tracking_uri(options.tracking_uri)

    from ram_tune.data.roles import load
    from ram_tune.search.driver import Places, known_outcomes, to_do
    from ram_tune.search.objectives import DIRECTIONS
    from ram_tune.search.plan import Maker, plan, study_name
    from ram_tune.search.settings import Need, agree, count_tried, planned
    from ram_tune.search.study import open_study
    from ram_tune.training.run import make_ready

    dataset = load(base.data, caches)
    wanted = study_name(name, base, dataset)
    study = open_study(storage, wanted, options.fresh, create=False)
    maker = Maker(space, data, options.data_root, overrides, dataset.fingerprint) if space.parameters else None
    if maker:
        if study:
            agree(study, space, base.training.seed)
        jobs = maker.jobs(Need("the paper's", {}, 0))
    else:
        jobs = plan(space, data, options.data_root, overrides, space.seeds, dataset)
    todo = to_do(jobs, known_outcomes(jobs, study, results / study.name if study else results))

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # the tables' own width, in a file as well
    what = count_of(jobs, todo)
    if maker:
        before = count_tried(study) if study else 0
        what = f"{space.budget.trials} settings" + (f", {before} of them tried before" if before else "")
    if options.dry_run:
        from ram_tune.search.answer import space_table
        from ram_tune.search.estimate import expected
        from ram_tune.search.report import plan_table

        console.print(f"{space.title} on {dataset.name}: {what}", highlight=False)
        console.print(space_table(maker) if maker else plan_table(jobs, {job.fingerprint for job in todo}, base))
        if maker:
            todo = planned(maker, study)
        gpus = base.execution.gpus_per_worker
        said = expected(todo, study, caches, float(_has_gpu()) if gpus is None else gpus)
        console.print(said, highlight=False, soft_wrap=True)
        return 0
    for config in {(job.config.model, job.config.data): job.config for job in todo}.values():
        make_ready(config, dataset, caches)
    # Made only now that everything else is right.
    study = open_study(storage, wanted, options.fresh, directions=[DIRECTIONS[one] for one in space.objectives])
    assert study is not None
    if maker:
        agree(study, space, base.training.seed)
    else:
        study.agree(space.arms)
    places = Places(storage, record, results / study.name, caches)
    _greet(console, f"{space.title} on {dataset.name}: {what}", places)
    return _search(options, name, space, base, dataset, [] if maker else jobs, study, places, console, maker)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


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
    maker: Maker | None,
) -> int:
    """Run what is missing, print the table → the exit code."""
    from ram_tune.search.answer import answer, is_complete, plot_command
    from ram_tune.search.driver import (
        Manner,
        any_failed,
        carry_out,
        chosen_jobs,
        drop_all_weights,
        drop_weights,
        histories,
        known_outcomes,
        register_best,
        send_what_waits,
        settings_failed,
        to_do,
    )
    from ram_tune.search.lease import this_process
    from ram_tune.search.record import REPORT, About
    from ram_tune.search.report import attention_table, failed_runs, failures, mechanism_table, results_table
    from ram_tune.search.reports.kept import note
    from ram_tune.search.reports.page import leave as leave_report
    from ram_tune.search.settings import count_tried

    def tables(outcomes: Mapping[str, Outcome]) -> Group:
        if maker:
            found, said = answer(study, maker)
            return Group(*found, *(Text(f"· {sentence}") for sentence in said))
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
        note(study, name, dataset.name, space, masked(about.command), base.training.epochs)
        known = known_outcomes(jobs, study, places.folder)  # once more: another driver may have finished since
        why = ""
        if not is_complete(study, maker) if maker else to_do(jobs, known):
            manner = Manner(options.address, options.concurrency or 0, options.keep_checkpoints, 60 * options.watchdog)
            outcomes, why = carry_out(jobs, known, study, held, places, manner, about, summarise, console, maker)
        else:
            outcomes = known
            if not (places.folder / REPORT).is_file() and (problem := leave_report(study, places.folder)):
                console.print(problem, markup=False, highlight=False, soft_wrap=True)
            send_what_waits(places, about, summarise(outcomes), "FINISHED", console)
        if maker:
            jobs, outcomes = chosen_jobs(study, maker), study.outcomes()
        said = register_best(jobs, outcomes, study, places, about) if not why else ""
        if not why and options.keep_checkpoints == "none":
            drop_all_weights(study) if maker else drop_weights(jobs, outcomes)
    finally:
        study.lease.release(held)

    console.print(tables(outcomes))
    for line in failed_runs(study) if maker else failures(jobs, outcomes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if said:
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    took = f"{time.perf_counter() - started:.0f} s"
    console.print(f"{took}. Browse the runs: {browse(places.tracking_uri)}", highlight=False, soft_wrap=True)
    if (report := places.folder / REPORT).is_file():
        console.print(f"Report: {report}", highlight=False, soft_wrap=True, markup=False)
    if maker:
        look = f"Look at the study: {plot_command(study, masked(places.storage))}"
        console.print(look, highlight=False, soft_wrap=True, markup=False)
    if why:
        again = "The same command without --fresh" if options.fresh else "The same command"
        console.print(f"Stopped before the end: {why}. {again} goes on from here.", soft_wrap=True)
        if maker and space.confirm and (there := count_tried(study)):
            console.print(f"With --trials {there} it confirms what there is, and ends.", highlight=False)
        return 0 if why.startswith("the budget") else 130
    failed = settings_failed(study) if maker else any_failed(outcomes)
    return 1 if failed else 0


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


def _greet(console: Console, what: str, places: Places) -> None:
    console.print(
        f"{what}\nresults  {places.folder}"
        f"\nstudy    {masked(places.storage)}\nrecord   {masked(places.tracking_uri)}\ncaches   {places.cache_dir}"
        f"\nlogs     {places.folder / 'search.log'}, {os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_latest/logs",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    command_line(main)
