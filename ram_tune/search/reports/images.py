"""The kept scores of finished runs: their metrics on resampled images, and their labels one by one.

Legend: n images, L labels, R resamples.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ram_tune.config import Config
from ram_tune.errors import BadInput
from ram_tune.evaluation.calibration import Platt, sigmoid
from ram_tune.evaluation.metrics import decide
from ram_tune.evaluation.resampling import f1_scores, mean_average_precisions, multiplicities
from ram_tune.search import reports
from ram_tune.training.results import CALIBRATION, PER_LABEL, SCORES

KEPT = ".resamples-1.npz"
"""Beside the scores, so that a report computes those of a run only once; the number rises where they change. Hidden: it is no
result, and not copied to MLflow."""

THREADS_PAY = 3000
"""Images from which on most of the work is arithmetic, which holds no lock; with fewer, threads only wait for one another."""

METRICS = tuple(metric for metric in reports.METRICS if metric != "mAP_11")
"""Those that are computed on resamples."""


def resampled(folders: Mapping[str, Path], configs: Mapping[str, Config]) -> dict[str, dict[str, np.ndarray]]:
    """Run → metric → its values on the same R resamples of the test images, (R,) shares of 1; of the runs (fingerprint →
    folder) that kept their scores. Raises BadInput for damaged files.
    """
    there = {run: folder for run, folder in folders.items() if (folder / SCORES).is_file()}
    images = next((len(known) for folder in there.values() if (known := ids(folder)) is not None), 0)
    with ThreadPoolExecutor(os.cpu_count() if images >= THREADS_PAY else 1) as pool:
        found = pool.map(lambda run: _resampled(there[run], configs[run]), there)
        return dict(zip(there, found, strict=True))


def ids(folder: Path) -> np.ndarray | None:
    """(n,) the test images of a run; None where it kept no scores."""
    if not (folder / SCORES).is_file():
        return None
    with _scores(folder) as file:
        return file["test_ids"]


def per_label(folder: Path) -> dict[str, float]:
    """Label → AP on test, nan without positives; {} where it was not kept."""
    if not (folder / PER_LABEL).is_file():
        return {}
    with (folder / PER_LABEL).open(encoding="utf-8", newline="") as file:
        return {row["label"]: float(row["AP"]) for row in csv.DictReader(file)}


def _resampled(folder: Path, config: Config) -> dict[str, np.ndarray]:
    with contextlib.suppress(OSError, ValueError, KeyError), np.load(folder / KEPT, allow_pickle=False) as file:
        return {metric: file[metric] for metric in METRICS}
    found = _computed(folder, config)
    partial = folder / f"{KEPT}.{os.getpid()}.partial.npz"
    with contextlib.suppress(OSError):  # of somebody else's results, or on a full disk: computed again the next time
        np.savez(partial, allow_pickle=False, **found)
        partial.replace(folder / KEPT)
    return found


def _computed(folder: Path, config: Config) -> dict[str, np.ndarray]:
    with _scores(folder) as file:
        scores, targets, ignore = (file[f"test_{name}"] for name in ("scores", "targets", "difficult"))
    counts, rule = _counts(len(scores)), config.evaluation
    predicted = decide(_probabilities(folder, scores), rule.top_k, rule.threshold)
    found = {"mAP": mean_average_precisions(scores, targets, ignore, counts)}
    found |= f1_scores(predicted, targets, ignore, counts)
    return {metric: found[metric].astype(np.float32) for metric in METRICS}


def _probabilities(folder: Path, scores: np.ndarray) -> np.ndarray:
    """(n, L), as the run's own decisions were made: calibrated where it kept a calibration (training.results)."""
    if not (folder / CALIBRATION).is_file():
        return sigmoid(scores)
    found = json.loads((folder / CALIBRATION).read_text())
    return Platt(np.array(found["slope"]), np.array(found["intercept"]))(scores)


def _scores(folder: Path) -> Any:
    try:
        return np.load(folder / SCORES, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BadInput(folder / SCORES, found=f"a damaged file ({error})", expected="a run's scores") from error


@functools.lru_cache(maxsize=1)
def _counts(n: int) -> np.ndarray:
    return multiplicities(n)


def mean_per_label(found: list[dict[str, float]]) -> dict[str, float]:
    """Label → mean AP over runs."""
    labels = dict.fromkeys(label for one in found for label in one)
    values = {label: [one[label] for one in found if not math.isnan(one.get(label, math.nan))] for label in labels}
    return {label: math.fsum(some) / len(some) if some else math.nan for label, some in values.items()}
