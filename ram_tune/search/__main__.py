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
from rich.text import Text

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
    from ram_tune.search.plan import Maker
    from ram_tune.search.study import Study

EXAMPLES = """\
examples:
  python -m ram_tune.search constraints                     the five arms on the embedded dataset
  python -m ram_tune.search constraints --seeds 3           the same with three seeds each: only what is missing is run
  python -m ram_tune.search constraints --dry-run           what would be run, and with what
  python -m ram_tune.search constraints --data voc2007 --data-root ~/data --set model.projection_size=512
  python -m ram_tune.search my_space.yaml --workers 0       one's own question; many small runs
  python -m ram_tune.search full --workers 0 --trials 24    settings drawn by a sampler; 20 more later: --trials 44
  python -m ram_tune.search full --confirm 3                the best setting and the paper's with 3 fresh seeds, on test
  python -m ram_tune.search --list                          the searches that come with the package
  mlflow ui                                                 browse the runs, in the same folder

The same command goes on after Ctrl-C (once: running jobs end with their epoch; twice: at once), after a crash, and with more
arms, seeds or trials. exit code: 0 every run finished, 1 some failed, 2 the options or files cannot be used, 130 interrupted"""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.list or not options.search:
        for name in spaces.names():
            print(f"{name:<14} {spaces.read(name).question}")
        return 0
    data = options.data or "scenes"
    _positive("--seeds", options.seeds)
    _positive("--concurrency", options.concurrency)
    space = _limited(_chosen(spaces.read(options.search).on(data), options.arms), options)
    name = Path(options.search).stem
    overrides = _overrides(options)

    from ram_tune.search.plan import base_config

    base = base_config(space, data, options.data_root, overrides)
    if space.parameters:
        _check_sampled(space, base, overrides, options)
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


def _check_sampled(space: Space, base: Config, overrides: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Raise BadInput for what a sampler, a pruner or a cheap run cannot do."""
    from ram_tune.search.objectives import parse_constraint
    from ram_tune.search.plan import Maker
    from ram_tune.search.samplers import check_sampler, judges_epochs, pruner
    from ram_tune.search.settings import Need

    check_sampler(space.sampler.name, space.sampler.options, len(space.objectives), bool(space.constraints))
    pruner(space.pruner.name, space.pruner.options, base.training.epochs)
    metrics = {*space.objectives, *(parse_constraint(text)[0] for text in space.constraints)}
    finals = {name for name in space.parameters if name.startswith("evaluation.")}
    rule = base.evaluation
    if "loss" in metrics and (finals or rule.scales or rule.views == "ten" or rule.classifier == "svm"):
        raise BadInput(
            "objectives", found="loss", expected="a metric of the scores, where views, scales or SVMs decide"
        )
    if judges_epochs(space.pruner.name) and (rule.scales or "evaluation.scales" in space.parameters):
        raise BadInput(
            "pruner",
            found=f"{space.pruner.name} for settings of several models each",
            expected="pruner: none",
            remedy="No epoch of one model says what several are worth together.",
        )
    if space.pruner.name == "wilcoxon" and space.seeds < 2:
        raise BadInput(
            "pruner", found="wilcoxon with one seed", expected="several seeds to judge", remedy="Set seeds: 5."
        )
    maker = Maker(space, options.data or "scenes", options.data_root, overrides, "")
    full, cheap = (maker.jobs(Need("", {}, 0, cheap))[-1] for cheap in (False, bool(space.fidelity)))
    if space.fidelity and cheap.fingerprint == full.fingerprint:
        raise BadInput(
            f"fidelity of {options.search}",
            found=", ".join(space.fidelity),
            expected="fields that make a run another one than the full one",
            remedy="Such as training.epochs; --set wins over it.",
        )


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
    from ram_tune.search.answer import answer, plot_command
    from ram_tune.search.driver import (
        Manner,
        any_failed,
        carry_out,
        chosen_jobs,
        drop_all_weights,
        drop_weights,
        failed_runs,
        histories,
        known_outcomes,
        register_best,
        send_what_waits,
        settings_failed,
        to_do,
    )
    from ram_tune.search.lease import this_process
    from ram_tune.search.record import About
    from ram_tune.search.report import attention_table, failures, mechanism_table, results_table
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
        known = known_outcomes(jobs, study, places.folder)  # once more: another driver may have finished since
        why = ""
        if maker or to_do(jobs, known):
            manner = Manner(options.address, options.concurrency or 0, options.keep_checkpoints)
            outcomes, why = carry_out(jobs, known, study, held, places, manner, about, summarise, console, maker)
        else:
            outcomes = known
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
    if maker:
        look = f"Look at the study: {plot_command(study, masked(places.storage))}"
        console.print(look, highlight=False, soft_wrap=True, markup=False)
    if why:
        again = "The same command without --fresh" if options.fresh else "The same command"
        console.print(f"Stopped before the end: {why}. {again} goes on from here.", soft_wrap=True)
        if maker and space.confirm:
            tried = f"--trials {before}" if (before := count_tried(study)) else ""
            console.print(f"To confirm what there is, and end: {tried}.", highlight=False)
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


def _limited(space: Space, options: argparse.Namespace) -> Space:
    """The space with the numbers of the command line. Raises BadInput for options of the other kind of search."""
    given = {name: getattr(options, name) for name in ("trials", "hours", "gpu_hours")}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in {**given, "confirm": options.confirm}.items():
        option = f"--{name.replace('_', '-')}"
        if value is not None and not space.parameters:
            raise BadInput(option, found="a search of named arms", expected="one that draws its settings")
        if value is not None and not (value > 0 or (value == 0 and name == "confirm")):
            raise BadInput(option, found=f"{value:g}", expected="more than 0")
    update: dict[str, Any] = {"budget": space.budget.model_copy(update=given)}
    if options.confirm is not None:
        update["confirm"] = options.confirm
    if options.seeds:
        update["seeds"] = options.seeds
    return space.model_copy(update=update)


def _chosen(space: Space, arms: list[str] | None) -> Space:
    if arms and space.parameters:
        raise BadInput("--arms", found="a search that draws its settings", expected="one of named arms")
    for arm in arms or ():
        if arm not in space.arms:
            found, known = repr(arm), ", ".join(space.arms)
            raise BadInput("--arms", found=found, expected=f"among {known}", remedy=nearest(arm, space.arms))
    return space.model_copy(update={"arms": {arm: space.arms[arm] for arm in arms}}) if arms else space


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """--set, and the options that are short for a field."""
    overrides = parse_set(options.set)
    fewest, most = _workers(options.workers)
    given = {"workers": most, "fewest_workers": fewest, "gpus_per_worker": options.gpus_per_worker}
    for option, value in given.items():
        field = f"execution.{option}"
        if value is not None and overrides.setdefault(field, value) != value:
            raise BadInput(
                f"--{option.replace('_', '-')} {value}",
                found=f"{field}={overrides[field]} in --set too",
                expected="one of them",
            )
    return overrides


def _workers(text: str | None) -> tuple[int | None, int | None]:
    """`4` → (None, 4); `1:4` → (1, 4): fewest and most. Raises BadInput."""
    if text is None:
        return None, None
    fewest, colon, most = text.rpartition(":")
    try:
        found = (int(fewest) if colon else None), int(most)
    except ValueError:
        found = None, -1
    if found[1] < 0 or (colon and not 0 < (found[0] or 0) <= found[1]):
        raise BadInput(
            "--workers", found=repr(text), expected="a number such as 2, or the fewest and the most, such as 1:4"
        )
    return found


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
    what.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="runs of each arm, or of settings in the running (default: the search's own)",
    )
    what.add_argument("--trials", type=int, metavar="N", help="settings in all, those of earlier searches among them")
    what.add_argument("--hours", type=float, metavar="H", help="running jobs end with their epoch after so long")
    what.add_argument("--gpu-hours", type=float, metavar="H", help="the same, hours of all GPUs together")
    what.add_argument(
        "--confirm", type=int, metavar="N", help="fresh seeds of the best setting and the paper's, in the end, on test"
    )
    what.add_argument(
        "--fresh", action="store_true", help="start anew; what earlier searches made is kept, but not used"
    )
    add_data_options(what)
    how = parser.add_argument_group("how to run it")
    how.add_argument(
        "--workers",
        metavar="N",
        help="Ray Train workers of each run, which share its batches (default: 1); 1:4: as many of them as there is room for; "
        "0: many small runs share one process",
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
