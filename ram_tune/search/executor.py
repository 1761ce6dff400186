"""Ray Tune runs the ready jobs on whatever cluster there is; it decides, retries and remembers nothing."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.search import Searcher

from ram_tune.distribution.desk import Event
from ram_tune.distribution.trial import DRIVER_RESOURCES, TrialConfig, run_trial
from ram_tune.distribution.worker import ERROR, Order
from ram_tune.search.jobs import NOT_RUN, RUNS, Job, Outcome, Queue
from ram_tune.search.layout import Layout, fits, workers_of
from ram_tune.search.watchdog import Watchdog, holders, usage
from ram_tune.training.checkpoint import LAST

POLL_SECONDS = 0.3
USAGE_SECONDS = 5.0  # between two looks at what of the cluster is in use
UNPLACED = ("PENDING", "RESCHEDULING")  # of a placement group
MAX_LOSSES = 2
"""How often a run may lose the process that drives it and go on from its last checkpoint."""


@dataclass(frozen=True)
class Work:
    """What is to be run, where, and whom it is told."""

    queue: Queue
    laid_out: Layout
    desk: Any  # the actor
    desk_name: str
    folder: Path  # the study's
    cache_dir: Path
    checkpoints: dict[str, str]  # fingerprint → folder of what is finished; grows
    keep_all: bool
    patience: float = 0  # seconds without progress after which it is said; 0: never


def execute(work: Work, handle: Callable[[Event], None]) -> dict[str, Outcome]:
    """Run what the queue hands out → how each ended. Jobs that need a failed one are not run, and fail.

    `handle` is told of all that happens. Ctrl-C (or SIGTERM) once: running jobs end at their epoch and can go on later;
    twice: KeyboardInterrupt.
    """
    feed = _Feed(work)
    # More trials than fit would only start drivers that wait.
    config = tune.TuneConfig(
        search_alg=feed,
        num_samples=-1,
        max_concurrent_trials=work.laid_out.at_once,
        reuse_actors=True,  # also under Ray Train: nothing is stopped from outside
        trial_dirname_creator=lambda trial: f"{trial.config['job']['order']['run']}-{trial.trial_id}",
    )
    trainable = tune.with_resources(run_trial, _trial_resources)
    tuner = tune.Tuner(
        trainable,
        tune_config=config,
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(work.folder / "tune"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    with _interruptible(work.queue, handle) as stopping, _listening(feed, handle, stopping):
        try:
            tuner.fit()
        except BaseException:
            work.queue.close()
            feed.abandon()
            raise
    return feed.ended


def _trial_resources(config: dict[str, TrialConfig]) -> tune.PlacementGroupFactory:
    job = config["job"]
    needed = DRIVER_RESOURCES if job["workers"] else {name: n for name, n in job["resources"].items() if n}
    return tune.PlacementGroupFactory([needed])


class _Feed(Searcher):
    """Hands the queue's jobs to Tune, and tells queue and desk how they ended."""

    def __init__(self, work: Work):
        super().__init__()
        self.work, self.queue, self.desk = work, work.queue, work.desk
        self.running: dict[str, Job] = {}  # Tune's trial id → job
        self.lost: Counter[str] = Counter()
        self.ended: dict[str, Outcome] = {}

    def suggest(self, trial_id: str) -> Any:
        job = self.queue.next(self._has_room)
        if job is None:
            return Searcher.FINISHED if self.queue.empty else None
        self.running[trial_id] = job
        needed = self.work.laid_out.of(job)
        ray.get(self.desk.started.remote(job.fingerprint, needed["GPU"] * max(workers_of(job), 1), job))
        order = Order(
            kind=job.kind,
            run=job.fingerprint,
            config=job.config.model_dump_json(),
            cache_dir=str(self.work.cache_dir),
            starts=[self.work.checkpoints[need] for need in job.needs],
            desk=self.work.desk_name,
            keep_all=self.work.keep_all,
        )
        workers, fewest = workers_of(job), job.config.execution.fewest_workers
        storage = str(self.work.folder / RUNS)
        return {"job": TrialConfig(order=order, storage=storage, workers=workers, fewest=fewest, resources=needed)}

    def _has_room(self, job: Job) -> bool:
        """A driver that waits beside a running job would hold nothing, and start nothing."""
        laid_out = self.work.laid_out
        at_work = [needed for other in self.running.values() for needed in laid_out.all_of(other)]
        return fits(laid_out.nodes, [*at_work, *laid_out.all_of(job)]) or not at_work

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        job = self.running.pop(trial_id)
        if error or not result:
            self.lost[job.fingerprint] += 1
            if self.lost[job.fingerprint] <= MAX_LOSSES and not self.queue.closed:
                self.queue.again(job)
                return
            lost = Outcome(error="the process that drove this run was lost: see Ray's logs")
            outcome, history = Outcome() if self.queue.closed else lost, []
        elif result["error"]:
            outcome, history = Outcome(error=result["error"]), []
        else:
            outcome, history = read_outcome(result["checkpoint"])
            if outcome.state == "stopped" and not ray.get(self.desk.told_to_stop.remote(job.fingerprint)):
                outcome = Outcome(error="it ended without a result, and nobody had asked it to stop")
        outcome = self._end(job, outcome, history)
        left = result["checkpoint"] if result else ""
        if outcome.state == "pruned" and left and not self.work.keep_all:
            (Path(left) / LAST).unlink(missing_ok=True)  # it never goes on: its optimiser is of no use
        for dropped in self.queue.ended(job, outcome):
            if outcome.state in ("failed", "pruned"):
                how = "failed" if outcome.state == "failed" else "was given up"
                self._end(dropped, Outcome(error=f"{NOT_RUN}{job.name}, which it starts from, {how}"), [])

    def _end(self, job: Job, outcome: Outcome, history: list[dict[str, float]]) -> Outcome:
        outcome = ray.get(self.desk.ended.remote(job.fingerprint, outcome, history, job))
        self.ended[job.fingerprint] = outcome
        self.work.checkpoints[job.fingerprint] = outcome.checkpoint
        return outcome

    def stalled(self, run: str, text: str) -> str:
        """What to say of a run that has not moved."""
        laid_out, running = self.work.laid_out, list(self.running.values())
        name = next((job.name for job in running if job.fingerprint == run), run)
        held = [(job.name, _together(laid_out.all_of(job))) for job in running]
        try:
            groups = ray.util.placement_group_table().values()
            waiting = [_together(group["bundles"].values()) for group in groups if group["state"] in UNPLACED]
            return f"{name} {text}. {holders(ray.cluster_resources(), ray.available_resources(), held, waiting)}"
        except (RayError, RuntimeError) as error:  # the very thing that is wrong may be Ray
            return f"{name} {text}. Ray does not say who holds what: {error}"

    def abandon(self) -> None:
        """The search ends here and now; what ran can go on later."""
        for job in self.running.values():
            self._end(job, Outcome(), [])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study remembers."""

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its searcher; this one lives in the driver only


def usage_now() -> str:
    """What of the cluster is in use; nothing where Ray does not say."""
    try:
        return usage(ray.cluster_resources(), ray.available_resources())
    except (RayError, RuntimeError):
        return ""


def _together(bundles: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """CPUs and GPUs of several workers."""
    bundles = list(bundles)
    return {name: sum(bundle.get(name, 0) for bundle in bundles) for name in ("CPU", "GPU")}


def read_outcome(checkpoint: str) -> tuple[Outcome, list[dict[str, float]]]:
    """How the job ended that left this folder (see distribution.worker), and its epochs."""
    from ram_tune.training.results import METRICS, epochs

    if not checkpoint:
        return Outcome(), []
    from ray.train import Checkpoint

    with Checkpoint(checkpoint).as_directory() as found:
        folder = Path(found)
        if (folder / ERROR).exists():
            return Outcome(error=(folder / ERROR).read_text()), []
        if not (folder / METRICS).exists():
            return Outcome(), []
        summary = json.loads((folder / METRICS).read_text())
    metrics = {
        f"{role}/{name}": value
        for role in ("selection", "test", "cost")
        for name, value in summary.get(role, {}).items()
    }
    return Outcome({**metrics, "best_epoch": summary["best_epoch"]}, checkpoint), epochs(summary)


@contextmanager
def _interruptible(queue: Queue, handle: Callable[[Event], None]) -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM sets the event and closes the queue, the second raises KeyboardInterrupt."""
    stopping = threading.Event()

    def stop(number: int, frame: Any) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        queue.close()
        again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
        handle({"type": "notice", "text": f"stopping: running jobs end with this epoch{again}"})

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _listening(feed: _Feed, handle: Callable[[Event], None], stopping: threading.Event) -> Iterator[None]:
    """Hands on what the desk hears, until the search ends; tells the desk to stop, or hears it from the desk. Says what has
    not moved for long."""
    done, desk, queue = threading.Event(), feed.desk, feed.queue
    watchdog = Watchdog(feed.work.patience)

    def listen() -> None:
        life, seen, looked = "", 0, -USAGE_SECONDS
        while True:
            last = done.is_set()
            try:
                now, events, stop = ray.get(desk.poll.remote(life, seen, stopping.is_set()), timeout=30)
            except RayError:  # it is being restarted; what it heard is on disk
                now, events, stop = life, [], False
            if stop:
                queue.close()
            life, seen = now, (seen if now == life else 0) + len(events)
            for event in events:
                watchdog.note(event)
            found = [{"type": "stalled", "text": feed.stalled(*run)} for run in watchdog.silent()]
            if time.monotonic() > looked + USAGE_SECONDS:
                looked, found = time.monotonic(), [*found, {"type": "cluster", "text": usage_now()}]
            for event in [*events, *found]:
                try:
                    handle(event)
                except Exception:  # a line that cannot be shown must not keep Ctrl-C from the workers
                    logging.getLogger("ray").exception("progress that could not be shown: %s", event)
            if last:
                return
            done.wait(POLL_SECONDS)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        done.set()
        listener.join(timeout=60)
