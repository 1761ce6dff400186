"""MLflow: the record that people read. One parent run for a search, one child for each of its runs."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from ram_tune.config import Config
from ram_tune.search.executor import Outcome
from ram_tune.search.plan import Job
from ram_tune.search.space import Space
from ram_tune.training import checkpoint

PARAMS_PER_CALL = 100  # MLflow's limit


class Record:
    """A search in MLflow's own default store (or wherever MLFLOW_TRACKING_URI points); a Listener of the executor.

    All writing happens here, in the driver: many writers would wait for one another.
    """

    def __init__(self, name: str, space: Space, dataset: str, base: Config):
        from mlflow import MlflowClient

        self.client = MlflowClient()
        experiment = f"{name}-{dataset}"
        found = self.client.get_experiment_by_name(experiment)
        self.experiment = found.experiment_id if found else self.client.create_experiment(experiment)
        self.parent = self._run(space.title, {"ram_tune.role": "search", "mlflow.note.content": space.question})
        self._params(self.parent, base)
        self.children: dict[str, str] = {}
        self.best = -math.inf
        self.done = 0

    def started(self, job: Job) -> None:
        tags = {
            "mlflow.parentRunId": self.parent,
            "ram_tune.role": job.kind,
            "ram_tune.setting": job.setting,
            "ram_tune.seed": str(job.config.training.seed),
            "ram_tune.fingerprint": job.fingerprint,
        }
        self.children[job.fingerprint] = self._run(job.name, tags)
        self._params(self.children[job.fingerprint], job.config)

    def epoch(self, job: Job, metrics: dict[str, Any]) -> None:
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self._metrics(self.children[job.fingerprint], values, metrics["epoch"])

    def finished(self, job: Job, outcome: Outcome) -> None:
        if job.fingerprint not in self.children:  # it was never started
            self.started(job)
        run = self.children[job.fingerprint]
        if outcome.error:
            self.client.log_text(run, outcome.error, "traceback.txt")
            self.client.set_terminated(run, "FAILED")
            return
        self._metrics(run, outcome.metrics, 0)
        self._artifacts(run, outcome.checkpoint)
        self.client.set_terminated(run, "FINISHED")
        if job.kind == "train":  # a parent without metrics has no chart
            self.done += 1
            self.best = max(self.best, outcome.metrics["test/mAP"])
            self._metrics(self.parent, {"best/test_mAP": self.best}, self.done)

    def abandon(self) -> None:
        """End everything that has not ended: the search was interrupted."""
        for run in (*self.children.values(), self.parent):
            if self.client.get_run(run).info.status == "RUNNING":
                self.client.set_terminated(run, "KILLED")

    def close(self, table: str, failed: bool) -> None:
        """End the parent run with its table."""
        self.client.log_text(self.parent, table, "table.txt")
        self.client.set_terminated(self.parent, "FAILED" if failed else "FINISHED")

    def _run(self, name: str, tags: dict[str, str]) -> str:
        return self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id

    def _params(self, run: str, config: Config) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in config.flat().items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self.client.log_batch(run, params=params[start : start + PARAMS_PER_CALL])

    def _metrics(self, run: str, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def _artifacts(self, run: str, place: str) -> None:
        """The files of training.results; weights stay with Ray's results."""
        from ray.train import Checkpoint

        with Checkpoint(place).as_directory() as found, tempfile.TemporaryDirectory() as parcel:
            for file in Path(found).iterdir():
                if file.name != checkpoint.BEST and file.is_file():
                    shutil.copy(file, parcel)
            self.client.log_artifacts(run, parcel)
