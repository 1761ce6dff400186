"""How the runs of a search look in MLflow's own pages: a view that puts the figures of interest beside the runs' names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ram_tune.options import masked

PICTURES = "regions"  # what MLflow calls the images that runs log
KEY = "ram_tune"
TAG = f"mlflow.sharedViewState.{KEY}"
"""The tag of an experiment that holds a view which MLflow's page shows for `?viewStateShareKey=KEY`."""

COLUMNS = (
    "metrics.`test/mAP`",
    "metrics.`test/CF1`",
    "metrics.`test/OF1`",
    "metrics.`selection/mAP`",
    "tags.`ram_tune.setting`",
    "tags.`ram_tune.seed`",
)

CURVES = {
    "Recognition": ("selection/mAP", "selection/CF1", "selection/OF1"),
    "Regions": ("selection/mirrored_share", "selection/region_area", "selection/anchor_distance"),
    "Training": ("train/loss", "selection/loss", "train/images_per_second"),
}
"""Section of charts → the metrics whose curves it has. Beside the regions' stand the regions themselves."""

CURVE = {
    "type": "LINE",
    "lineSmoothness": 0,
    "xAxisKey": "step",
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "range": {},
    "yAxisKey": "metric",
    "yAxisExpressions": [],
}


def view() -> str:
    """Of all that is recorded the columns and charts that matter, in the words of MLflow's own pages (version 3.17).

    The best run comes first: sorted by a metric MLflow folds no run under its parent.
    """
    charts: list[dict[str, Any]] = []
    for section, metrics in CURVES.items():
        common = {"metricSectionId": section, "deleted": False, "isGenerated": False, "runsCountToCompare": 20}
        if section == "Regions":
            charts.append(
                {
                    **common,
                    "uuid": "pictures",
                    "type": "IMAGE",
                    "imageKeys": [PICTURES],
                    "step": 1,
                    "showRunParams": False,
                }
            )
        charts += [
            {**common, **CURVE, "uuid": name, "metricKey": name, "selectedMetricKeys": [name]} for name in metrics
        ]
    sections = [
        {"uuid": name, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": False}
        for name in CURVES
    ]
    shown = {"orderByKey": COLUMNS[0], "orderByAsc": False, "selectedColumns": COLUMNS}
    # Reordered, or MLflow's own sections, of all other metrics, would come before these.
    return json.dumps(
        {**shown, "compareRunCharts": charts, "compareRunSections": sections, "isAccordionReordered": True}
    )


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
