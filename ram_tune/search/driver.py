"""One search from its plan to its table: what is missing is run, everything else is read from the study."""

from __future__ import annotations

import logging
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ram_tune.errors import BadInput
from ram_tune.search.display import Display
from ram_tune.search.findings import best
from ram_tune.search.jobs import RUNS, Job, Keep, Outcome, Queue, located, missing
from ram_tune.search.lease import Held
from ram_tune.search.notify import NOBODY, Notifier
from ram_tune.search.objectives import DIRECTIONS
from ram_tune.search.plan import Maker
from ram_tune.search.record import About, Record
from ram_tune.search.reports.page import leave as leave_report
from ram_tune.search.settings import Need, tried
from ram_tune.search.study import Study
from ram_tune.search.weights import has_weights

if TYPE_CHECKING:
    from ram_tune.distribution.desk import Event
    from ram_tune.search.summary import Summary

MLFLOW_SECONDS = 60.0
"""How long the end of a search waits for what is still to be sent, while MLflow answers."""

IN_A_HURRY_SECONDS = 5.0
STOPPED = Outcome()

LOG = "search.log"
DESCRIBED = 4000
"""Characters of tables in a parent's description; `table.txt` has them all."""


@dataclass(frozen=True)
class Places:
    """Where a search keeps what it makes."""

    storage: str  # Optuna's, a URL
    tracking_uri: str  # MLflow's
    folder: Path  # checkpoints, logs and the outbox of this study
    cache_dir: Path


@dataclass(frozen=True)
class Manner:
    """How a search is carried out."""

    address: str = ""  # of a running cluster; empty: a Ray of our own
    concurrency: int = 0  # runs at once; 0: as many as fit
    keep: Keep = "best"
    patience: float = 600  # seconds without progress after which it is said; 0: never
    quiet: bool = False  # of what happens only what somebody must know of
    notifier: Notifier = NOBODY


def known_outcomes(jobs: Sequence[Job], known: Mapping[str, Outcome], folder: Path) -> dict[str, Outcome]:
    """Fingerprint → how that run of the plan ended in an earlier search, whose `folder` may have been moved since; `known` are
    a study's."""
    return {
        job.fingerprint: located(known[job.fingerprint], job.fingerprint, folder)
        for job in jobs
        if job.fingerprint in known
    }


def to_do(jobs: Sequence[Job], known: Mapping[str, Outcome]) -> list[Job]:
    """The jobs of the plan that must run."""
    finished = {run for run, outcome in known.items() if outcome.state == "finished"}
    return missing(jobs, finished, {run for run in finished if has_weights(known[run].checkpoint)})


def carry_out(
    jobs: Sequence[Job],
    known: Mapping[str, Outcome],
    study: Study,
    held: Held,
    places: Places,
    manner: Manner,
    about: About,
    summed_up: Callable[[Mapping[str, Outcome]], Summary],
    console: Console,
    maker: Maker | None = None,
) -> tuple[dict[str, Outcome], str]:
    """Run what is missing of the plan `jobs` → every outcome of it, those `known` before among them, and why not all had
    their turn (interrupted, a budget spent); empty where they had.

    Of a sampled search there is no plan: `maker` makes its jobs as they are wanted. The caller holds the study's lease with
    `held`, and keeps it alive. Raises BadInput for a job that can never be placed.
    """
    import ray

    from ram_tune.distribution import desk as desks
    from ram_tune.search.books import open_books
    from ram_tune.search.executor import Work, execute
    from ram_tune.search.layout import layout
    from ram_tune.search.machines import ray_cluster

    todo = {job.fingerprint for job in to_do(jobs, known)}
    for run in todo & {run for run, outcome in known.items() if outcome.state == "finished"}:
        shutil.rmtree(places.folder / RUNS / run, ignore_errors=True)  # without its weights the rest only misleads
    _log_to(places.folder / LOG)
    with ray_cluster(manner.address) as machines:
        typical = _typical(maker) if maker else list(jobs)
        laid_out = layout(typical, machines.all, manner.concurrency)
        if machines.may_come:
            _say(
                console,
                [f"{len(machines.alive)} machines are there; up to {len(machines.may_come)} more come as runs wait."],
            )
        if maker and maker.space.budget.gpu_hours and not laid_out.of(typical[-1])["GPU"]:
            raise BadInput(
                "--gpu-hours", found="runs without a GPU", expected="a cluster with GPUs", remedy="Use --hours."
            )
        name = f"desk of {study.name} {held['holder'][:8]}"  # nobody else's on a shared cluster, no dead driver's
        here = str(Path.cwd())
        books = (
            places.storage,
            study.name,
            places.folder,
            about,
            places.tracking_uri,
            list(jobs),
            held,
            here,
            maker,
            time.time(),
        )
        desk = desks.start(name, open_books, *books)
        made = {run: outcome.checkpoint for run, outcome in known.items()}

        def more() -> list[Job] | None:
            found: list[Job] | None = ray.get(desk.more.remote())
            if found:
                ended: Any = ray.get(desk.known.remote([job.fingerprint for job in found]))
                before = known_outcomes(found, ended, places.folder)
                made.update({run: outcome.checkpoint for run, outcome in before.items()})
                wanted = {job.fingerprint for job in to_do(found, before)}
                for run in wanted & {run for run, outcome in before.items() if outcome.state == "finished"}:
                    shutil.rmtree(places.folder / RUNS / run, ignore_errors=True)  # its weights are gone
                queue.finished |= {job.fingerprint for job in found if job.fingerprint not in wanted}
                display.expect([job for job in found if job.fingerprint in wanted])
            return found

        done = [job.fingerprint for job in jobs if job.fingerprint not in todo]
        queue = Queue(jobs, done, more if maker else None, typical[-1])
        budget = maker.space.budget.trials if maker else 0
        before = sum(one.state != "open" for one in tried(study)) if maker else len(queue.finished)
        display = Display(console, jobs, before, total=budget, quiet=manner.quiet)

        def handle(event: Event) -> None:
            display.handle(event)
            if event["type"] == "stalled":  # whoever is told may answer late, and progress is to be shown meanwhile
                tell = partial(manner.notifier.post, "stalled", event["text"])
                threading.Thread(target=tell, daemon=True).start()

        keep_all = manner.keep == "all"
        work = Work(queue, laid_out, desk, name, places.folder, places.cache_dir, made, keep_all, manner.patience)
        try:
            with display:
                ended = execute(work, handle)
        except BaseException:  # Ctrl-C twice, or a fault of ours: the record is to say so
            ray.get(desk.close.remote("", "KILLED", IN_A_HURRY_SECONDS))
            raise
        outcomes = {**known, **ended}
        wanted = queue.jobs.keys() - queue.finished
        complete = all(ended.get(run, STOPPED).state != "stopped" for run in wanted) and not queue.more
        failed = settings_failed(study) if maker else any_failed(outcomes)
        status = "KILLED" if not complete else "FAILED" if failed else "FINISHED"
        reason: Any = "" if complete else ray.get(desk.why_stopped.remote())
        why = "" if complete else str(reason or "it was interrupted")
        _say(console, filter(None, [leave_report(study, places.folder)]))
        found = summed_up(outcomes)
        unsent = ray.get(desk.close.remote(found.text(), status, MLFLOW_SECONDS, found.markdown(DESCRIBED)))
    _say(console, unsent)
    return outcomes, why


def chosen_jobs(study: Study, maker: Maker) -> list[Job]:
    """The run of the best setting of a sampled search, after those it needs."""
    chosen = best(tried(study), [DIRECTIONS[name] for name in maker.space.objectives])
    return maker.jobs(Need(f"#{chosen.number}", chosen.values, 0, trial=chosen.number)) if chosen else []


def _typical(maker: Maker) -> list[Job]:
    """As many jobs as a sampled search may have at once, each as large as any of them."""
    *first, run = maker.jobs(Need("paper", {}, 0))
    several = range(min(maker.space.budget.trials, 64))
    return [*first, *(replace(run, fingerprint=f"{run.fingerprint} {number}") for number in several)]


def send_what_waits(places: Places, about: About, found: Summary, status: str, console: Console) -> None:
    """Without any run: what an earlier search could not send, and the parent's end where that search was killed."""
    record = Record(places.folder, about, places.tracking_uri)
    if not record.opened:  # what was found lies in a storage that others share
        record.open()
    if record.status != status:
        record.close(found.text(), status, found.markdown(DESCRIBED))
    _say(console, record.settle(MLFLOW_SECONDS))
    record.stop()


def settings_failed(study: Study) -> bool:
    """Of a sampled search: did what its settings share fail, or what was to confirm, or every setting? One that fails by
    itself is a result.
    """
    states = [one.state for one in tried(study)]
    others = [run for run in study.runs().values() if run["kind"] == "stage1" or "confirmed" in run["setting"]]
    return any(run["state"] == "failed" for run in others) or (bool(states) and set(states) <= {"failed"})


def any_failed(outcomes: Mapping[str, Outcome]) -> bool:
    return any(outcome.state == "failed" for outcome in outcomes.values())


def _say(console: Console, sentences: Iterable[str]) -> None:
    for sentence in sentences:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _log_to(path: Path) -> None:
    """The course of the search, and what libraries have to say, are kept beside its results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    logging.getLogger("ram_tune").setLevel(logging.INFO)
    for name in ("ram_tune", "ray", "py.warnings", "optuna", "mlflow", "alembic"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
