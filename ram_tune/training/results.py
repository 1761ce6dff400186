"""What a finished run leaves in its folder: metrics, per-label AP, every image's scores.

config.yaml              the whole configuration
metrics.json             fingerprints, best epoch, selection and test metrics, the history of epochs
per_label.csv            AP of each label on test
calibration.json         slope and intercept of each label's probability, where it is not the sigmoid of the score
calibration_single.json  the same of single crops, by which a model is used alone, where scores.npz has others (of ten views,
                         several scales, SVMs)
scores.npz               ids, labels, scores and regions of every selection and test image (plain arrays, nothing pickled)
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ram_tune.config import Config
from ram_tune.errors import BadInput
from ram_tune.evaluation.metrics import average_precision, average_precision_11
from ram_tune.presets import from_json

if TYPE_CHECKING:  # who only reads results need not import torch
    from ram_tune.training.judging import Judged, Scores
    from ram_tune.training.run import Run

CONFIG, METRICS, PER_LABEL, SCORES = "config.yaml", "metrics.json", "per_label.csv", "scores.npz"
CALIBRATION, SINGLE = "calibration.json", "calibration_single.json"
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""What `yaml.safe_load` reads with, in C where there is libyaml: a report reads hundreds of configurations."""


def write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def config_yaml(config: Config) -> str:
    """The configuration as YAML, the groups as in the tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def read_config(folder: Path) -> Config:
    """The configuration of the run in `folder`. Raises BadInput."""
    path = folder / CONFIG
    try:
        tree = SAFE_LOADER(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(path, found="no readable file", expected="the configuration of a run") from error
    return from_json(json.dumps(tree, default=str), str(path))


def write_results(run: Run, judged: Judged, folder: Path) -> dict[str, Any]:
    """Write all files of a finished run into `folder`; → what `metrics.json` says."""
    write(folder / CONFIG, config_yaml(run.config))
    write(folder / SCORES, _scores(run, judged))
    write(folder / PER_LABEL, _per_label(run, judged.scores["test"]))
    if judged.platt:
        write(folder / CALIBRATION, judged.platt.text())
    if judged.single and judged.single is not judged.platt:
        write(folder / SINGLE, judged.single.text())
    summary = {
        "fingerprint": run.fingerprint,
        "dataset": run.dataset.fingerprint,
        "best_epoch": run.best_epoch,
        "images": {role: len(run.annotations(role)) for role in ("train", "selection", "test")},
        **judged.metrics,
        "cost": judged.cost,
        **({"edges": run.config.model.edges} if run.config.model.edges else {}),
        "start": run.start,
        "history": run.history,
    }
    write(folder / METRICS, json.dumps(summary, indent=1))  # last: its presence says that the run is finished
    return summary


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What `write_results` returned, or None where the run in `folder` is not finished."""
    path = folder / METRICS
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except ValueError as error:
        raise BadInput(path, found=f"a damaged file ({error})", expected="what a finished run wrote") from error


def epochs(summary: dict[str, Any]) -> list[dict[str, float]]:
    """The epochs of a finished run, before them as epoch 0 what its regions did at the start."""
    return [*([{"epoch": 0, **summary["start"]}] if summary["start"] else []), *summary["history"]]


def _scores(run: Run, judged: Judged) -> bytes:
    arrays: dict[str, np.ndarray] = {"categories": np.array(run.dataset.categories)}
    for role, found in judged.scores.items():
        images = run.annotations(role)
        arrays |= {
            f"{role}_ids": np.array(images.ids),
            f"{role}_scores": found.scores,
            f"{role}_targets": images.targets,
            f"{role}_difficult": images.difficult,
        }
        if found.regions is not None:
            arrays[f"{role}_regions"] = found.regions
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _per_label(run: Run, found: Scores) -> str:
    images = run.annotations("test")
    arguments = found.scores, images.targets, images.difficult
    stream = io.StringIO()
    table = csv.writer(stream)
    table.writerow(["label", "positives", "AP", "AP_11"])
    columns = images.targets.sum(0), average_precision(*arguments), average_precision_11(*arguments)
    for label, positives, ap, ap_11 in zip(run.dataset.categories, *columns, strict=True):
        table.writerow([label, int(positives), f"{ap:.6f}", f"{ap_11:.6f}"])
    return stream.getvalue()
