"""A job's work: the training loop (or an evaluation) with its checkpoints, and whom it tells.

The work is the same in a Ray Train worker and in the process of a Tune trial; only where checkpoints go differs (`Place`).
A place holds, after every epoch, best.pt (weights) and last.pt (all that is needed to go on); in the end best.pt and the
files of `training.results`; after an error that no second try would mend, error.txt.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

from ram_tune.distribution.desk import Line

ERROR = "error.txt"


class Order(TypedDict):
    """What a worker is told; plain values, for they cross process borders."""

    kind: str  # stage1, train or evaluate
    run: str  # the job's fingerprint
    config: str  # Config as JSON
    cache_dir: str
    starts: list[str]  # folders with the best.pt it starts from, or those it evaluates, one for each scale
    desk: str  # the desk's name
    keep_all: bool  # every epoch's checkpoint


class Place(Protocol):
    """Where a job keeps what must outlive it."""

    folder: Path
    """Holds what was committed before; the job writes here."""

    def commit(self, *names: str, epoch: int = 0) -> None:
        """Make the files of these names what the place holds from now on. `epoch`: they are those of a finished epoch."""
        ...


class Folder:
    """A folder on disk: files are renamed into it one by one, and count at once."""

    def __init__(self, folder: Path, keep_all: bool = False):
        self.folder, self.keep_all = folder, keep_all

    def commit(self, *names: str, epoch: int = 0) -> None:
        if self.keep_all and epoch:
            kept = self.folder / "epochs" / f"{epoch:03}"
            kept.mkdir(parents=True, exist_ok=True)
            for name in (name for name in names if name.endswith(".pt")):
                shutil.copy(self.folder / name, kept)
        for file in self.folder.iterdir():
            if file.is_file() and file.name not in names and file.suffix in (".pt", ".txt"):
                file.unlink()


class TrainCheckpoints:
    """Ray Train's checkpoints: a local folder, whose files the first of its workers hands over at every commit."""

    def __init__(self, folder: Path, writes: bool = True):
        import ray.train

        self.folder, self.writes = folder, writes
        if (kept := ray.train.get_checkpoint()) is not None:
            with kept.as_directory() as found:
                shutil.copytree(found, folder, dirs_exist_ok=True)

    def commit(self, *names: str, epoch: int = 0) -> None:
        import ray.train
        from ray.train import Checkpoint

        if not self.writes:  # all report, or all wait
            ray.train.report({"epoch": epoch})
            return
        with tempfile.TemporaryDirectory(prefix="ram_tune-report-", dir=self.folder.parent) as parcel:
            for name in names:
                (Path(parcel) / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(self.folder / name, Path(parcel) / name)  # gigabytes need not be copied twice
            ray.train.report({"epoch": epoch}, checkpoint=Checkpoint.from_directory(parcel))


def train_worker(order: dict[str, Any]) -> None:
    """The function of a Ray Train worker."""
    with tempfile.TemporaryDirectory(prefix="ram_tune-") as parent:
        folder = Path(parent) / "run"
        folder.mkdir()
        meeting = _meeting()
        first = meeting.rank == 0
        line = Line(order["desk"], order["run"]) if first else Mute()
        work(Order(**order), TrainCheckpoints(folder, first), line, meeting)


class Meeting(NamedTuple):
    """Which of several workers this one is, and where they meet: see training.ranks."""

    rank: int = 0
    world: int = 1
    address: str = ""


BY_ITSELF = Meeting()


def _meeting() -> Meeting:
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero
    from ray.util import get_node_ip_address

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if world == 1:
        return BY_ITSELF
    with socket.socket() as free:
        free.bind(("", 0))
        here = f"tcp://{get_node_ip_address()}:{free.getsockname()[1]}"
    return Meeting(rank, world, broadcast_from_rank_zero(here))


class Mute(Line):
    """The line of a worker that is not the first: that one speaks for all."""

    def __init__(self) -> None: ...

    def report(self, epoch: int, metrics: Mapping[str, float], past: bool = False) -> bool:
        return True

    def worker(self, about: Mapping[str, str]) -> None: ...

    def progress(self, **values: Any) -> None: ...


def work_in_folder(order: Order, folder: Path) -> None:
    """The same in the calling process, with its checkpoints in `folder`."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock", timeout=120):  # a lost driver's process may still be finishing its last step
        work(order, Folder(folder, order["keep_all"]), Line(order["desk"], order["run"]))


def work(order: Order, place: Place, line: Line, meeting: Meeting = BY_ITSELF) -> None:
    """Do what is left of the job. What no second try would mend (bad input, a loss that is not finite) is left as error.txt.

    Raises NotEnoughMemoryError, and bad input of one of several workers, which it may be alone with: the others would wait
    for it. See distribution.failures.
    """
    from ram_tune.data.storage import Unreachable
    from ram_tune.errors import BadInput
    from ram_tune.training import checkpoint
    from ram_tune.training.judging import NotFiniteError
    from ram_tune.training.memory import telling_what_does_not_fit
    from ram_tune.training.results import METRICS, write

    if (place.folder / METRICS).exists():
        (place.folder / checkpoint.LAST).unlink(missing_ok=True)
        return  # it was lost after its last word
    (place.folder / ERROR).unlink(missing_ok=True)
    try:
        with telling_what_does_not_fit(_config(order), meeting.world):
            if order["kind"] == "evaluate":
                _evaluate(order, place, line)
            else:
                _train(order, place, line, meeting)
    except Unreachable:
        raise  # bad input that a second try may mend
    except (BadInput, NotFiniteError) as error:  # a loss that is not finite all workers have
        if meeting.world > 1 and isinstance(error, BadInput):
            raise
        write(place.folder / ERROR, traceback.format_exc())
        left = [name for name in (checkpoint.BEST, checkpoint.LAST) if (place.folder / name).exists()]
        place.commit(ERROR, *left)


def _train(order: Order, place: Place, line: Line, meeting: Meeting) -> None:
    from ram_tune.data.progress import telling
    from ram_tune.distribution.usage import Usage, whereabouts
    from ram_tune.training import checkpoint
    from ram_tune.training.judging import finish, write_pictures
    from ram_tune.training.loop import fit
    from ram_tune.training.ranks import join, leave
    from ram_tune.training.results import CONFIG, config_yaml, write, write_results
    from ram_tune.training.run import device_of, load_planned, prepare

    config, first = _config(order), meeting.rank == 0
    ranks = join(*meeting, device_of(config.execution.device))
    checkpoint.recover(place.folder)
    best, last = place.folder / checkpoint.BEST, place.folder / checkpoint.LAST
    caches, say = Path(order["cache_dir"]), _Seldom(line)
    with _weights(order["starts"]) as stage1, telling(say.state):
        start, going_on = stage1[0] if stage1 else None, last if last.exists() else None
        run = prepare(config, caches, start, load_planned(config, caches, order["run"]), going_on, ranks)
    write(place.folder / CONFIG, config_yaml(config))
    line.worker(whereabouts(run.device))
    for past in run.history:  # the desk may have missed some
        line.report(int(past["epoch"]), _metrics(past), past=True)
    with telling(say.state):
        run.cache()
    usage = Usage(run.device)

    def progress(step: int, steps: int, loss: float) -> None:
        say(type="step", epoch=run.epoch + 1, step=step, steps=steps, loss=loss)

    for epoch in fit(run, progress):
        run.history[-1] |= usage.read()
        if first:
            weights = run.weights() if epoch.is_best else None
            checkpoint.save_epoch(place.folder, weights, run.state(), config, run.fingerprint)
            write_pictures(run, place.folder)
        place.commit(*_files(place.folder), epoch=epoch.epoch)
        if epoch.epoch == 1 and run.start:
            line.report(0, run.start)
        go = ranks.from_first(line.report(epoch.epoch, _metrics(run.history[-1])))
        if not go and run.epoch < config.training.epochs:
            leave()
            return  # told to stop; the same job goes on from here

    line.progress(type="state", text="final test")
    if first:
        run.network.load_state_dict(checkpoint.load(best, config, run.fingerprint)["network"])
    ranks.same(run.network)
    judged = finish([run])
    if first:
        write_results(run, judged, place.folder)
        last.unlink()  # only an unfinished run needs it
    leave()
    place.commit(*_files(place.folder))


def _evaluate(order: Order, place: Place, line: Line) -> None:
    """Evaluate a model trained before, in another way; it leaves what a training leaves."""
    from ram_tune.data.progress import telling
    from ram_tune.distribution.usage import whereabouts
    from ram_tune.training import checkpoint
    from ram_tune.training.judging import finish
    from ram_tune.training.results import write_results
    from ram_tune.training.run import load_trained

    with _weights(order["starts"]) as found:
        with telling(_Seldom(line).state):
            runs = load_trained(_config(order), Path(order["cache_dir"]), found, order["run"])
        line.worker(whereabouts(runs[0].device))
        judged = finish(runs)
        for scale, file in enumerate(found):
            shutil.copy(file, place.folder / (checkpoint.BEST if scale == 0 else f"best-{scale + 1}.pt"))
        write_results(runs[0], judged, place.folder)  # last: by these files a job is known to have ended
    place.commit(*_files(place.folder))


def _files(folder: Path) -> list[str]:
    """All that a place is to hold, by relative path."""
    return sorted(
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and file.name != ERROR and not file.name.startswith(".") and file.suffix != ".partial"
    )


def _config(order: Order):
    from ram_tune.presets import from_json

    return from_json(order["config"], "the run's configuration")


@contextmanager
def _weights(folders: list[str]) -> Iterator[list[Path]]:
    """Local copies of the best.pt of folders in Ray's storage, wherever that is."""
    from ray.train import Checkpoint

    from ram_tune.training.checkpoint import BEST

    with ExitStack() as stack:
        yield [Path(stack.enter_context(Checkpoint(folder).as_directory())) / BEST for folder in folders]


class _Seldom:
    """Says progress once a second at most."""

    def __init__(self, line: Line):
        self.line, self.said = line, 0.0

    def __call__(self, **values: Any) -> None:
        if time.monotonic() - self.said > 1:
            self.said = time.monotonic()
            self.line.progress(**values)

    def state(self, task: str, done: int, total: int) -> None:
        """Long work on data: see data.progress."""
        self(type="state", text=f"{task}: {done}/{total}")


def _metrics(epoch: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in epoch.items() if "/" in name}
