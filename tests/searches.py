"""Searches as a user types them, and what MLflow then holds; shared by the end-to-end tests and the drills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DRAWN = """\
version: 1
title: Drawn
parameters:
  model.regions: {int: [1, 2]}
  loss.scale_threshold: {float: [0.2, 1.0]}
objectives: [mAP, parameters]
constraints: [ms_per_image <= 10000]
pruner: {name: successive_halving, judge: mAP}
budget: {trials: 3}
"""
"""A sampled search of two objectives, in seconds."""


LIMIT_SECONDS = 900
STARTED: list[subprocess.Popen[str]] = []


def end(search: subprocess.Popen[str]) -> None:
    """Kill it and what belongs to it, unless it has ended."""
    if search.poll() is None:
        os.killpg(search.pid, signal.SIGKILL)


@dataclass
class Searches:
    """Searches in one folder, on one dataset, with one set of fields."""

    folder: Path
    data: Path
    fields: list[str]
    variables: dict[str, str] = field(default_factory=dict)

    def command(self, space: str, *options: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "ram_tune.search",
            space,
            "--data",
            str(self.data),
            *options,
            "--set",
            *self.fields,
        ]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "RAM_TUNE_CACHE": str(self.folder / "cache"), **self.variables}

    def run(self, space: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(space, *options),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    def start(self, space: str, *options: str) -> subprocess.Popen[str]:
        """In a process group of its own, its output in a pipe; killed when it takes far too long, or at the test's end."""
        search = subprocess.Popen(
            self.command(space, *options),
            cwd=self.folder,
            env={**self.environment, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        guard = threading.Timer(LIMIT_SECONDS, end, [search])
        guard.daemon = True
        guard.start()
        STARTED.append(search)
        return search

    def children(self, experiment: str) -> tuple[Any, dict[str, Any]]:
        """The one parent run, and its children by name, from the store that a bare `mlflow ui` here would open."""
        from mlflow import MlflowClient

        self.client = MlflowClient(f"sqlite:///{self.folder}/mlflow.db")
        found = self.client.get_experiment_by_name(experiment)
        assert found is not None
        runs = self.client.search_runs([found.experiment_id])
        (parent,) = (run for run in runs if run.data.tags["ram_tune.role"] == "search")
        children = [run for run in runs if run is not parent]
        assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parent.info.run_id}
        names = [run.info.run_name for run in children]
        assert len(names) == len(set(names)), "a job has two runs"
        return parent, dict(zip(names, children, strict=True))

    def epochs(self, run: Any, metric: str = "train/loss") -> list[int]:
        """The epochs that the record holds, in order, with repeats if there are any."""
        return sorted(point.step for point in self.client.get_metric_history(run.info.run_id, metric))
