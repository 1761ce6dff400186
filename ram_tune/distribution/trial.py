"""The function Ray Tune runs for a job: it starts a Ray Train run and waits for it.

It takes no CPU of its own (on a machine of two, two drivers would starve their workers for ever) and stays on the head.
"""

from __future__ import annotations

import os
from typing import Any, TypedDict

DRIVER_RESOURCES = {"node:__internal_head__": 0.001}

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also how long every report waits; 2 s by default
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what they meant to the user
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search, not only Tune's loop
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""For every process of a search; why: see each line."""


class TrialConfig(TypedDict):
    """Tune's config of one trial."""

    fingerprint: str
    order: dict[str, Any]  # worker.Order
    storage: str
    resources: dict[str, float]  # CPU and GPU of the worker


def run_trial(config: dict[str, TrialConfig]) -> None:
    """Train the job in `config["job"]` with Ray Train; its reports and checkpoint paths go on to Tune."""
    job = config["job"]
    os.environ.update(ENVIRONMENT)
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from ram_tune.distribution.worker import train_worker

    resources = {name: amount for name, amount in job["resources"].items() if amount}
    TorchTrainer(
        train_worker,
        train_loop_config=job["order"],
        scaling_config=ScalingConfig(num_workers=1, use_gpu="GPU" in resources, resources_per_worker=resources),
        run_config=RunConfig(
            name=job["fingerprint"],
            storage_path=job["storage"],
            # By default the controller would try for ever.
            failure_config=FailureConfig(max_failures=2, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[TuneReportCallback()],
            worker_runtime_env={"env_vars": ENVIRONMENT},
        ),
    ).fit()
