"""A whole run in this process and one folder: stage 1, epochs, checkpoints, final test, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ram_tune.config import Config
from ram_tune.data.roles import Dataset, load
from ram_tune.errors import BadInput
from ram_tune.training import checkpoint
from ram_tune.training.loop import EpochReport, Progress, finish, fit
from ram_tune.training.results import CONFIG, config_yaml, read_summary, write, write_results
from ram_tune.training.run import cache_images, identity, prepare

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
) -> dict[str, Any]:
    """Train, test and leave everything in `folder` (see results.py); → the content of `metrics.json`.

    What `folder` already holds of this run is taken up where it stopped, so calling it again after an interruption gives
    what an uninterrupted run gives. `stage1` is a `best.pt` of the stage-1 run; without it that run comes first, in
    `folder/stage1`. Raises BadInput, for instance where `folder` holds another run, and NotFiniteError.
    """
    dataset = dataset or load(config.data, cache_dir)
    done = _finished(config, folder, dataset)
    if done is not None:
        return done
    cache_images(config, dataset, cache_dir)
    first = config.stage1_config()
    if first is not None and stage1 is None:
        train_in_folder(first, folder / "stage1", cache_dir, None, on_epoch, progress, dataset)
        stage1 = folder / "stage1" / CHECKPOINTS / checkpoint.BEST

    run = prepare(config, cache_dir, stage1, dataset)
    best, last = (folder / CHECKPOINTS / name for name in (checkpoint.BEST, checkpoint.LAST))
    if last.exists():
        run.restore(checkpoint.load(last, config, run.fingerprint))
    else:
        write(folder / CONFIG, config_yaml(config))
    for report in fit(run, progress):
        if report.is_best:
            checkpoint.save(best, run.weights(), config, run.fingerprint)
        checkpoint.save(last, run.state(), config, run.fingerprint)
        on_epoch("stage1" if first is None and folder.name == "stage1" else config.model.name, config, report)
    run.network.load_state_dict(checkpoint.load(best, config, run.fingerprint)["network"])
    summary = write_results(run, finish(run), folder)
    last.unlink()  # the optimiser's state: only an unfinished run needs it
    return summary


def _finished(config: Config, folder: Path, dataset: Dataset) -> dict[str, Any] | None:
    try:
        summary = read_summary(folder)
    except json.JSONDecodeError as error:
        raise BadInput(folder, found=f"a damaged metrics.json ({error})", expected="a run's folder") from error
    if summary is not None and summary["fingerprint"] != identity(config, dataset):
        raise BadInput(
            folder,
            found="the finished run of another configuration",
            expected="an empty folder, or this run's own",
            remedy="Name another folder with --out.",
        )
    return summary
