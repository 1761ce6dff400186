"""A finished search as it lies on disk, without any training: a study, and the folders that its runs would have left."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from PIL import Image

from ram_tune.config import Config
from ram_tune.evaluation import metrics
from ram_tune.evaluation.calibration import sigmoid
from ram_tune.presets import from_fields
from ram_tune.search.jobs import RUNS, Job, Outcome
from ram_tune.search.reports.kept import note
from ram_tune.search.space import Space
from ram_tune.search.study import Study
from ram_tune.training.results import CONFIG, METRICS, PER_LABEL, SCORES, config_yaml

Skill = Callable[[str, int], float]
"""Arm, seed → by how much the scores of images that have a label are higher, in standard deviations."""

ARMS: dict[str, dict[str, Any]] = {"none": {"loss.anchor": False}, "A_1": {"loss.anchor": True}}
BASE = {"data.name": "scenes", "data.image_size": 160, "training.epochs": 3, "loss.classification": "bce"}


def space(**values: Any) -> Space:
    given = {"version": 1, "title": "Constraints", "question": "Which?", "arms": ARMS, "seeds": 3, **values}
    return Space.model_validate(given)


class Finished:
    """One search in `results`; every run is on the same `images` test images of `labels` labels."""

    def __init__(
        self,
        results: Path,
        of: Space,
        name: str = "constraints-scenes-0a1b2c3d",
        images: int = 80,
        labels: int = 4,
        dataset: str = "data-print",
        noted: bool = True,
        skill: Skill = lambda arm, seed: 1.0 + 0.5 * (arm != "none") + 0.05 * seed,
    ):
        results.mkdir(parents=True, exist_ok=True)
        self.folder, self.space, self.name, self.dataset, self.skill = results / name, of, name, dataset, skill
        self.storage = f"sqlite:///{results / 'studies.db'}"
        self.study = Study(optuna.create_study(storage=self.storage, study_name=name, direction="maximize"))
        self.study.study.set_user_attr("arms", {arm: dict(fields) for arm, fields in of.arms.items()})
        if noted:
            note(self.study, name.partition("-")[0], "scenes", of, "python -m ram_tune.search constraints", 3)
        random = np.random.default_rng(0)
        self.targets = random.random((images, labels)) < 0.3
        self.noise = random.normal(size=self.targets.shape)  # what all runs find hard
        self.labels = [f"label_{number}" for number in range(labels)]

    def job(self, arm: str, seed: int, kind: Any = "train", needs: Sequence[str] = (), also: Sequence[str] = ()) -> Job:
        fields = next((self.space.arms[name] for name in (arm, *also) if name in self.space.arms), {})
        config = from_fields({**BASE, "training.seed": seed, **fields})
        return Job(kind, arm, config, f"{arm}-{seed}".replace(" ", "-"), self.dataset, tuple(needs), also=tuple(also))

    def run(
        self,
        arm: str,
        seed: int,
        kind: Any = "train",
        needs: Sequence[str] = (),
        pictures: bool = False,
        also: Sequence[str] = (),
    ) -> Job:
        """A run that finished."""
        job = self.job(arm, seed, kind, needs, also)
        folder = self.folder / RUNS / job.fingerprint
        folder.mkdir(parents=True)
        found = self._write(folder, job.config, arm, seed)
        if pictures:
            (folder / "pictures").mkdir()
            colours = np.random.default_rng(seed).integers(0, 200, (8, 3))
            sheet = Image.new("RGB", (4 * 60 + 4, 2 * 60 + 4), "white")
            for number, colour in enumerate(colours.tolist()):
                row, column = divmod(number, 4)
                sheet.paste(Image.new("RGB", (50, 40), tuple(colour)), (4 + 60 * column, 4 + 60 * row))
            sheet.save(folder / "pictures" / "003.jpg")
        self._ended(job, Outcome(found, str(folder)))
        return job

    def failed(self, arm: str, seed: int, error: str = "ValueError: broken") -> None:
        self._ended(self.job(arm, seed), Outcome(error=f'Traceback\n  File "a.py", line 1, in b\n{error}\n'))

    def all(self, seeds: int = 3, **how: Any) -> Finished:
        for seed in range(seeds):
            for arm in self.space.arms:
                self.run(arm, seed, **how)
        return self

    def _ended(self, job: Job, outcome: Outcome) -> None:
        self.study._write(job, {}, outcome.state, outcome, 1, 3, 1.0, 0.0)

    def _write(self, folder: Path, config: Config, arm: str, seed: int) -> dict[str, float]:
        own = np.random.default_rng([seed, len(arm)]).normal(size=self.targets.shape)
        scores = (self.noise + 0.3 * own + self.skill(arm, seed) * self.targets - 1).astype(np.float32)
        rule, none = config.evaluation, np.zeros_like(self.targets)
        found = metrics.summary(scores, sigmoid(scores), self.targets, none, rule.top_k, rule.threshold)
        ids = np.array([f"image-{number}" for number in range(len(scores))])
        arrays = {"ids": ids, "scores": scores, "targets": self.targets, "difficult": none}
        np.savez(folder / SCORES, **{f"test_{name}": value for name, value in arrays.items()})
        (folder / CONFIG).write_text(config_yaml(config))
        with (folder / PER_LABEL).open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["label", "positives", "AP", "AP_11"])
            values = metrics.average_precision(scores, self.targets, none)
            table.writerows([label, 1, f"{value:.6f}", "0"] for label, value in zip(self.labels, values, strict=True))
        regions = {"mirrored_share": 0.1, "region_area": 0.2, "anchor_distance": 0.3}
        history = [
            {"epoch": epoch, "selection/mAP": found["mAP"] * epoch / 3, **_prefixed(regions)} for epoch in (1, 2, 3)
        ]
        images = {"train": 100, "selection": 20, "test": len(scores)}
        summary = {"dataset": self.dataset, "best_epoch": 3, "images": images, "start": {}, "history": history}
        (folder / METRICS).write_text(json.dumps(summary))
        selection = {"selection/mAP": found["mAP"], "best_epoch": 3.0}
        return {f"test/{name}": float(value) for name, value in found.items()} | selection


def _prefixed(values: Mapping[str, float]) -> dict[str, float]:
    return {f"selection/{name}": value for name, value in values.items()}
