"""How the runs of a search look in MLflow's own pages: a view that puts the figures of interest beside the runs' names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ram_tune.options import masked

KEY = "ram_tune"
TAG = f"mlflow.sharedViewState.{KEY}"
"""The tag of an experiment that holds a view which MLflow's page shows for `?viewStateShareKey=KEY`."""

COLUMNS = (
    "metrics.`test/mAP`",
    "metrics.`test/CF1`",
    "metrics.`test/OF1`",
    "metrics.`selection/mAP`",
    "metrics.`best_epoch`",
    "tags.`ram_tune.setting`",
    "tags.`ram_tune.seed`",
    "attributes.`Dataset`",
)


def view() -> str:
    """Of all that is recorded these columns, the best run first: sorted by a metric MLflow folds no run under its parent."""
    return json.dumps({"orderByKey": COLUMNS[0], "orderByAsc": False, "selectedColumns": COLUMNS})


def browse(tracking_uri: str, experiment: str | None) -> str:
    """What to type, and where to look, to see the runs of the experiment of that id."""
    page = f"/#/experiments/{experiment}/runs?viewStateShareKey={KEY}" if experiment else ""
    if tracking_uri.startswith(("http:", "https:")):
        return masked(tracking_uri).rstrip("/") + page
    if not tracking_uri.startswith("sqlite:"):
        return masked(tracking_uri)
    command = Path(sys.executable).with_name("mlflow")  # the environment need not be active
    here = Path.cwd()
    command = command.relative_to(here) if command.is_relative_to(here) else command
    store = "" if tracking_uri == f"sqlite:///{here / 'mlflow.db'}" else f" --backend-store-uri {tracking_uri}"
    return f"{command} ui{store}, then http://127.0.0.1:5000{page}"
