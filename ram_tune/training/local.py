"""A whole run in this process and one folder: stage 1, epochs, checkpoints, final test, files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ram_tune.config import Config
from ram_tune.data.roles import Dataset, load
from ram_tune.errors import BadInput
from ram_tune.training import checkpoint
from ram_tune.training.judging import finish, write_pictures
from ram_tune.training.loop import EpochReport, Progress, fit
from ram_tune.training.memory import telling_what_does_not_fit
from ram_tune.training.results import CONFIG, config_yaml, read_config, read_summary, write, write_results
from ram_tune.training.run import identity, make_ready, prepare

CHECKPOINTS = "checkpoint"

Listener = Callable[[str, Config, EpochReport], None]
"""Told of every finished epoch: stage (`stage1` or the model's name), configuration, report."""


def train_in_folder(
    config: Config,
    folder: Path,
    cache_dir: Path,
    stage1: Path | None = None,
    on_epoch: Listener = lambda *_: None,
    progress: Progress = lambda *_: None,
    dataset: Dataset | None = None,
    stage: str = "",
) -> dict[str, Any]:
    """Train, test and leave everything in `folder` (see results.py); → the content of `metrics.json`.

    What `folder` already holds of this run is taken up where it stopped, so calling it again after an interruption gives
    what an uninterrupted run gives. `stage1` is a `best.pt` of the stage-1 run; without it that run comes first, in
    `folder/stage1`. `stage` is what `on_epoch` is told (default: the model's name). Raises BadInput, for instance where
    `folder` holds another run or another process is at work there, NotFiniteError and NotEnoughMemoryError.
    """
    dataset = dataset or load(config.data, cache_dir)
    done = _held(config, folder, dataset)
    if done is not None:
        return done
    make_ready(config, dataset, cache_dir)
    with _alone_in(folder), telling_what_does_not_fit(config):
        write(folder / CONFIG, config_yaml(config))
        checkpoint.recover(folder / CHECKPOINTS)
        best, last = (folder / CHECKPOINTS / name for name in (checkpoint.BEST, checkpoint.LAST))
        first = config.stage1_config()
        if first is not None and stage1 is None and not last.exists():
            train_in_folder(first, folder / "stage1", cache_dir, None, on_epoch, progress, dataset, "stage1")
            stage1 = folder / "stage1" / CHECKPOINTS / checkpoint.BEST

        run = prepare(config, cache_dir, stage1, dataset, last if last.exists() else None)
        run.cache()
        for report in fit(run, progress):
            weights = run.weights() if report.is_best else None
            checkpoint.save_epoch(last.parent, weights, run.state(), config, run.fingerprint)
            write_pictures(run, folder)
            on_epoch(stage or config.model.name, config, report)
        run.network.load_state_dict(checkpoint.load(best, config, run.fingerprint)["network"])
        summary = write_results(run, finish([run]), folder)
        last.unlink()  # the optimiser's state: only an unfinished run needs it
    return summary


def _held(config: Config, folder: Path, dataset: Dataset) -> dict[str, Any] | None:
    """The summary of this very run if `folder` holds it finished. Raises BadInput if it holds another one."""
    if not (folder / CONFIG).exists():
        return None
    if identity(read_config(folder), dataset) != identity(config, dataset):
        raise BadInput(
            folder,
            found="a run of another configuration",
            expected="an empty folder, or this run's own",
            remedy="Name another folder with --out.",
        )
    return read_summary(folder)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two processes in one folder would overwrite each other's checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise BadInput(
            folder,
            found="another process training in it",
            expected="a folder of its own",
            remedy="Wait for it, or name another folder with --out.",
        ) from error
