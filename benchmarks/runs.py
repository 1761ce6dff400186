"""What a search costs beside the training itself. Every search here is the command a user types, in a process of its own.

Needs Ray, Optuna and MLflow, and nothing else beside it on the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.inputs import table
from benchmarks.measure import Row

ARMS = "none", "S+P", "A+S", "A+P", "A+S+P"
TINY = [
    "data.selection_split=selection",
    "data.image_size=64",
    "data.crop_margin=16",
    "model.backbone.name=small",
    "model.backbone.weights=none",
    "model.regions=2",
    "model.sample_size=3",
    "model.projection_size=16",
    "model.hidden_size=16",
    "model.feature_size=16",
    "training.epochs=1",
    "training.batch_size=8",
    "stage1.epochs=0",
]
"""A run whose training takes nothing."""

RECIPE = """
import json, sys, time
import ray, ray.train, torch
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

folder, runs = sys.argv[1], int(sys.argv[2])

def worker(config):
    layer = torch.nn.Linear(8, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    loss = layer(torch.ones(4, 8)).sum()
    loss.backward()
    optimizer.step()
    ray.train.report({"loss": loss.item(), "first": time.time()})

def trial(config):
    TorchTrainer(
        worker,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            name=f"run{config['number']}", storage_path=folder + "/train", callbacks=[TuneReportCallback()]
        ),
    ).fit()

ray.init(address="local", log_to_driver=False, logging_level="ERROR")
found = tune.Tuner(
    trial,
    param_space={"number": tune.grid_search(list(range(runs)))},
    tune_config=tune.TuneConfig(max_concurrent_trials=1),
    run_config=tune.RunConfig(name="tune", storage_path=folder, verbose=0),
).fit()
print(json.dumps(sorted(one.metrics["first"] for one in found)))
"""
"""Tune over Train as Ray's documentation has it, everything at its default."""


def command(module: str, *arguments: str, folder: Path, **variables: str) -> tuple[float, str]:
    """Seconds of a command typed in `folder`, and what it printed; SystemExit where it fails."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, "RAM_TUNE_CACHE": str(folder / "cache"), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)}\n{done.stdout}")
    return time.perf_counter() - began, done.stdout


class Heard(NamedTuple):
    """What the record says of a run, in seconds since 1970."""

    started: float
    epochs: list[float]  # when each was over
    ended: float


def heard_of(folder: Path, experiment: str) -> list[Heard]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = [one for one in client.search_runs([found.experiment_id]) if one.data.tags["ram_tune.role"] == "train"]
    return [
        Heard(
            (run.info.start_time or 0) / 1000,
            sorted(point.timestamp / 1000 for point in client.get_metric_history(run.info.run_id, "train/loss")),
            (run.info.end_time or 0) / 1000,
        )
        for run in runs
    ]


def between_first_steps(times: Sequence[float]) -> float:
    """What one run after another takes where training takes nothing; the first, for which processes start, left out."""
    return median(later - earlier for earlier, later in pairwise(sorted(times)[1:]))


def fixed_cost() -> Iterator[Row]:
    from PIL import Image

    with tempfile.TemporaryDirectory(prefix="ram_tune-bench-") as name:
        folder = Path(name)
        for number in range(24):
            Image.effect_noise((64, 64), 80).convert("RGB").save(folder / f"{number}.jpg")
        data = str(table(folder, [folder / f"{number}.jpg" for number in range(24)]))
        script = folder / "recipe.py"
        script.write_text(RECIPE)
        done = subprocess.run(
            [sys.executable, str(script), str(folder / "recipe"), str(len(ARMS))],
            capture_output=True,
            text=True,
            check=True,
        )
        plain = between_first_steps(json.loads(done.stdout.splitlines()[-1]))
        taken = {}
        for workers in ("1", "0"):
            place = folder / workers
            place.mkdir()
            options = "constraints", "--data", data, "--workers", workers, "--concurrency", "1", "--set", *TINY
            command("ram_tune.search", *options, folder=place)
            taken[workers] = between_first_steps([run.epochs[0] for run in heard_of(place, "constraints-pictures")])
    yield Row(
        "fixed cost of a run, Tune → Train worker → first step",
        "the plain nested recipe",
        taken["1"] / plain,
        0.6,
        False,
        "one process to start, that loads PyTorch",
        f"{taken['1']:.1f} s, {plain:.1f} s",
    )
    yield Row(
        "the same with `--workers 0`, after the first",
        "half a second",
        taken["0"] / 0.5,
        1.0,
        False,
        "the tiny training itself is in it",
        f"{taken['0']:.2f} s",
    )


def efficiency(epochs: int, workers: str, cpus: int = 2) -> Iterator[Row]:
    """Ten runs, two at a time, a core each: how much of these cores' time the search made epochs of."""
    with tempfile.TemporaryDirectory(prefix="ram_tune-bench-") as name:
        folder = Path(name)
        options = ["constraints", "--seeds", "2", "--concurrency", str(cpus), "--workers", workers]
        options += ["--set", "stage1.epochs=0", "execution.cpus_per_worker=1", f"training.epochs={epochs}"]
        command("ram_tune.data", "check", "--fast", folder=folder)  # which draws the images, once for a machine
        wall, _ = command("ram_tune.search", *options, folder=folder)
        runs = heard_of(folder, "constraints-scenes")
    # What lies between the first and the last epoch is training; each run has one epoch more than that.
    trained = [(run.epochs[-1] - run.epochs[0]) * epochs / (epochs - 1) for run in runs]
    after = sum(run.ended - run.epochs[-1] for run in runs)
    before = sum(run.ended - run.started for run in runs) - sum(trained) - after
    yield Row(
        f"training seconds of {len(trained)} runs of {median(trained):.0f} s, {cpus} at a time, `--workers {workers}`",
        "slots × seconds of the whole command",
        sum(trained) / (cpus * wall),
        0.90,
        True,
        "Ray's start, the final tests and the report",
        f"{sum(trained):.0f} s, {cpus} × {wall:.0f} s; before first epochs {before:.0f} s, after last ones {after:.0f} s",
    )


def sharing(images: int) -> Iterator[Row]:
    """A search of five arms against a script for each, with nothing shared."""
    few = [f"data.limit={images}"]
    with tempfile.TemporaryDirectory(prefix="ram_tune-bench-") as name:
        folder = Path(name)
        (folder / "search").mkdir()
        searched, _ = command(
            "ram_tune.search", "constraints", "--workers", "0", "--set", *few, folder=folder / "search"
        )
        alone = 0.0
        for arm in ARMS:
            place = folder / arm
            place.mkdir()
            off = [
                f"loss.{name}={'on' if name[0].upper() in arm.split('+') else 'off'}"
                for name in ("anchor", "scale", "positive")
            ]
            alone += command("ram_tune.train", "--set", *few, *off, folder=place)[0]
    yield Row(
        f"five arms in one search, stage 1 and caches shared, `--workers 0` (scenes, {images} images of each role)",
        "`ram_tune.train` for each, one after another",
        searched / alone,
        0.65,
        False,
        "five trainings and one stage 1 against five of both",
        f"{searched:.0f} s, {alone:.0f} s",
    )
