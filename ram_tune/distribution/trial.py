"""The function Ray Tune runs for a job: it starts a Ray Train run and waits for it, or works itself.

Under Ray Train it takes no CPU of its own (on a machine of two, two drivers would starve their workers for ever), stays on
the head, and does not import torch: `DataParallelTrainer` with a worker that imports it is enough.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any, TypedDict

from ram_tune.distribution.worker import Order, train_worker, work_in_folder

DRIVER_RESOURCES = {"node:__internal_head__": 0.001}

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also how long every report waits; 2 s by default
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "86400",  # others may hold the machines for long; no reason to fail
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what they meant to the user
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search, not only Tune's loop
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""For every process of a search; why: see each line."""


class TrialConfig(TypedDict):
    """Tune's config of one trial."""

    order: Order
    storage: str  # the folder of all runs
    workers: int
    fewest: int  # workers with which it may go on; 0: all
    resources: dict[str, float]  # CPU and GPU of a worker


def run_trial(config: dict[str, TrialConfig]) -> None:
    """Tune's trainable: the job in `config["job"]`; Tune hears only its end."""
    from ray import tune

    tune.report(run_job(config["job"]))


def run_job(job: TrialConfig) -> dict[str, Any]:
    """Run a job to its end → `checkpoint`, the folder with what it left (empty: nothing), and `error`.

    Raises RayActorError where Train's controller was lost: the job can go on from its last checkpoint.
    """
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import WorkerGroupError

    from ram_tune.distribution.failures import words

    try:
        if job["workers"] == 0:
            folder = Path(job["storage"]) / job["order"]["run"]
            work_in_folder(job["order"], folder)
            return {"checkpoint": str(folder), "error": ""}
        return {"checkpoint": _train(job), "error": ""}
    except RayActorError:
        raise
    except WorkerGroupError as error:
        return {"checkpoint": "", "error": words(error, job["order"]["config"]) or traceback.format_exc()}
    except Exception:  # whatever it is, it ended this job and none other
        return {"checkpoint": "", "error": traceback.format_exc()}


def _train(job: TrialConfig) -> str:
    os.environ.update(ENVIRONMENT)
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # ray.train's own imports torch with it

    from ram_tune.distribution.failures import Retries

    # By default the controller would try for ever.
    failures = FailureConfig(max_failures=2, controller_failure_limit=3)

    class Trainer(DataParallelTrainer):
        """Without the actor that would serve Ray Data's datasets to the workers: there are none. With retries of our own."""

        def _initialize_and_run_controller(self, **how):
            how["failure_policy"] = Retries(failures)
            return super()._initialize_and_run_controller(**how)

        def _create_default_callbacks(self):
            return [one for one in super()._create_default_callbacks() if not isinstance(one, DatasetsCallback)]

    resources = {name: amount for name, amount in job["resources"].items() if amount}
    result = Trainer(
        train_worker,
        train_loop_config=dict(job["order"]),
        scaling_config=ScalingConfig(
            num_workers=(job["fewest"], job["workers"]) if 0 < job["fewest"] < job["workers"] else job["workers"],
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            # The same name in the same place goes on from its last checkpoint, whoever was lost.
            name=job["order"]["run"],
            storage_path=job["storage"],
            failure_config=failures,
            checkpoint_config=CheckpointConfig(num_to_keep=None if job["order"]["keep_all"] else 1),
        ),
    ).fit()
    return result.checkpoint.path if result.checkpoint else ""
