"""`python -m ram_tune.search NAME`: train the arms of a search, and say which is best."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

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
from ram_tune.search.arguments import check_manner, check_sampled, chosen, limited, overrides_of, parser
from ram_tune.search.browsing import browse
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
    if options.jobs or options.follow is not None or options.stop is not None:
        from ram_tune.search.job_server import manage

        return manage(options)
    if options.list or not (options.search or options.submit is not None):
        for name in spaces.names():
            print(f"{name:<14} {spaces.read(name).question}")
        return 0
    if not options.search:
        raise BadInput("--submit", found="no search", expected="its name first", remedy="`--list` lists them.")
    data = options.data or "scenes"
    check_manner(options)
    whole = limited(spaces.read(options.search).on(data), options)
    space = chosen(whole, options.arms)
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

    from ram_tune.data.progress import telling
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
    before = study.outcomes() if study else {}
    todo = to_do(jobs, known_outcomes(jobs, before, results / study.name if study else results))

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # the tables' own width, in a file as well
    what = count_of(jobs, todo)
    if maker:
        tried = count_tried(study) if study else 0
        what = f"{space.budget.trials} settings" + (f", {tried} of them tried before" if tried else "")
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
    with telling(lambda *_: None) if options.quiet else nullcontext():
        for config in {
            (one.model, one.data, one.evaluation.views): one for one in (job.config for job in todo)
        }.values():
            make_ready(config, dataset, caches)
    # Made only now that everything else is right.
    study = open_study(storage, wanted, options.fresh, directions=[DIRECTIONS[one] for one in space.objectives])
    assert study is not None
    if maker:
        agree(study, space, base.training.seed)
    else:
        study.agree(space.arms)
    places = Places(storage, record, results / study.name, caches)
    if not options.quiet:
        _greet(console, f"{space.title} on {dataset.name}: {what}", places)
    return _search(options, name, whole, space, base, dataset, [] if maker else jobs, study, places, console, maker)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _search(
    options: argparse.Namespace,
    name: str,
    whole: Space,
    space: Space,
    base: Config,
    dataset: Dataset,
    jobs: list[Job],
    study: Study,
    places: Places,
    console: Console,
    maker: Maker | None,
) -> int:
    """Run what is missing of `space`, which holds those arms of `whole` that are asked for, print the table → the exit code."""
    from ram_tune.search import weights
    from ram_tune.search.answer import is_complete, plot_command
    from ram_tune.search.driver import (
        Manner,
        any_failed,
        carry_out,
        chosen_jobs,
        known_outcomes,
        send_what_waits,
        settings_failed,
        to_do,
    )
    from ram_tune.search.lease import this_process
    from ram_tune.search.notify import Notifier, counts
    from ram_tune.search.plan import experiment_name
    from ram_tune.search.record import REPORT, About, Record
    from ram_tune.search.reports.kept import note
    from ram_tune.search.reports.page import leave as leave_report
    from ram_tune.search.settings import count_tried
    from ram_tune.search.summary import Summary, summarise

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def summed_up(outcomes: Mapping[str, Outcome]) -> Summary:
        return summarise(space, dataset.name, jobs, outcomes, study, maker)

    experiment = experiment_name(name, dataset.name)
    about = About(
        experiment=experiment,
        study=study.name,
        title=f"{space.title} · {study.name.removeprefix(f'{experiment}-')}",
        question=space.question,
        command=typed(sys.argv[1:]),
        params=base.flat(),
        dataset=described(dataset, base),
    )
    notifier = Notifier(options.notify, {"search": about.experiment, "study": about.study})
    started = time.perf_counter()
    held = this_process()
    with study.lease.kept(held), notifier.at_the_end(say) as ending:
        note(study, name, dataset.name, whole, masked(about.command), base.training.epochs)
        renamed = study.rename(jobs)
        known = known_outcomes(
            jobs, study.outcomes(), places.folder
        )  # once more: another driver may have finished since
        why = ""
        if not is_complete(study, maker) if maker else to_do(jobs, known):
            manner = Manner(
                address=options.address,
                concurrency=options.concurrency or 0,
                keep=options.keep_checkpoints,
                patience=60 * options.watchdog,
                quiet=options.quiet,
                notifier=notifier,
            )
            outcomes, why = carry_out(jobs, known, study, held, places, manner, about, summed_up, console, maker)
            found, failed = summed_up(outcomes), settings_failed(study) if maker else any_failed(outcomes)
        else:
            outcomes, failed = known, bool(maker) and settings_failed(study)
            if (renamed or not (places.folder / REPORT).is_file()) and (problem := leave_report(study, places.folder)):
                say(problem)
            found = summed_up(outcomes)
            send_what_waits(places, about, found, "FAILED" if failed else "FINISHED", console)
        record = Record(places.folder, about, places.tracking_uri)
        trained, ended = (chosen_jobs(study, maker), study.outcomes()) if maker else (jobs, outcomes)
        registered = [] if why else weights.register(trained, ended, study, record, about)
        if maker and not why:
            weights.drop_sampled(options.keep_checkpoints, study, {job.fingerprint for job in trained})
        elif not why:
            weights.drop(options.keep_checkpoints, jobs, outcomes)
        ending.status = "KILLED" if why else "FAILED" if failed else "FINISHED"
        ending.text = f"stopped: {why}" if why else "ended, with failed runs" if failed else "ended"
        took = time.perf_counter() - started
        ending.about = {"runs": counts(ended.values()), "best": weights.best_of(trained, ended), "seconds": round(took)}

    console.print(found.shown())
    for line in [*found.failed, *registered, weights.disk_use(places.folder)]:
        say(line)
    say(f"{took:.0f} s. Browse the runs: {browse(places.tracking_uri, record.experiment)}")
    if (report := places.folder / REPORT).is_file():
        say(f"Report: {report}")
    if maker:
        say(f"Look at the study: {plot_command(study, masked(places.storage))}")
    if why:
        again = "The same command without --fresh" if options.fresh else "The same command"
        say(f"Stopped before the end: {why}. {again} goes on from here.")
        if maker and space.confirm and (there := count_tried(study)):
            say(f"With --trials {there} it confirms what there is, and ends.")
        return 0 if why.startswith("the budget") else 130
    return 1 if failed else 0


def typed(arguments: Sequence[str]) -> str:
    """The command, without what must not stand in a record: whoever knows the URL of --notify can post there."""
    shown = [
        "***" if before == "--notify" else re.sub(r"^(--notify=).*", r"\1***", word)
        for before, word in zip(["", *arguments], arguments, strict=False)
    ]
    return shlex.join(["python", "-m", "ram_tune.search", *shown])


def described(dataset: Dataset, base: Config) -> dict[str, str]:
    """What MLflow says of a dataset: its name and fingerprint, where it is, how many images have each role."""
    place = base.data.root or base.data.file or dataset.name
    kind = place.partition("://")[0] if "://" in place else "local" if base.data.root else "code"
    roles = {role: len(images) for role, images in dataset.roles.items()}
    profile = {**roles, "labels": len(dataset.categories)}
    return {
        "name": dataset.name,
        "digest": dataset.fingerprint[:36],  # as many as MLflow takes
        "source_type": kind,
        "source": json.dumps({"uri": masked(place)}),
        "profile": json.dumps(profile),
    }


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
