"""The work of a job in a plain process: stopped, resumed, broken, evaluated in another way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ram_tune.config import Config
from ram_tune.data.roles import Dataset, load
from ram_tune.data.storage import Unreachable
from ram_tune.distribution.worker import Folder, Order, work
from ram_tune.presets import configure, parse_set
from ram_tune.training import run
from ram_tune.training.run import identity


class Ear:
    """Hears what a worker says; tells it to stop after `stop_after` epochs."""

    def __init__(self, stop_after: int = 99):
        self.stop_after = stop_after
        self.epochs: list[int] = []
        self.metrics: list[dict[str, float]] = []
        self.said: list[str] = []

    def report(self, epoch: int, metrics: dict[str, float], past: bool = False) -> bool:
        self.epochs.append(epoch)
        self.metrics.append(metrics)
        return epoch < self.stop_after

    def worker(self, about: dict[str, str]) -> None:
        assert about["device"].startswith("cpu")

    def progress(self, **values: Any) -> None:
        self.said.append(values.get("text", ""))


@pytest.fixture
def config(pictures, tiny) -> Config:
    return configure(str(pictures), overrides=parse_set([*tiny, "stage1.epochs=0", "training.epochs=4"]))


@pytest.fixture
def dataset(config, tmp_path) -> Dataset:
    return load(config.data, tmp_path)


def order(config: Config, dataset: Dataset, cache: Path, kind: str = "train", start: str = "") -> Order:
    return Order(
        kind=kind,
        run=identity(config, dataset),
        config=config.model_dump_json(),
        cache_dir=str(cache),
        starts=[start] if start else [],
        desk="",
        keep_all=False,
    )


def do(what: Order, folder: Path, stop_after: int = 99, keep_all: bool = False) -> Ear:
    ear = Ear(stop_after)
    folder.mkdir(parents=True, exist_ok=True)
    work(what, Folder(folder, keep_all), ear)  # type: ignore[arg-type]
    return ear


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_stopped_and_resumed_it_ends_as_an_undisturbed_run(config, dataset, tmp_path):
    what = order(config, dataset, tmp_path)
    assert sorted(do(what, tmp_path / "whole").epochs) == [0, 1, 2, 3, 4]  # 0: before training
    assert sorted(do(what, tmp_path / "parts", stop_after=2).epochs) == [0, 1, 2]
    assert files(tmp_path / "parts") == {"best.pt", "last.pt", "config.yaml", "pictures"}
    again = do(what, tmp_path / "parts")
    assert again.epochs == [1, 2, 3, 4]  # what the desk may have missed is told again
    assert results(tmp_path / "parts")["test"] == results(tmp_path / "whole")["test"]
    assert "last.pt" not in files(tmp_path / "parts")
    assert do(what, tmp_path / "parts").epochs == []  # nothing is left to do


def test_told_to_stop_at_its_last_epoch_it_is_finished(config, dataset, tmp_path):
    do(order(config, dataset, tmp_path), tmp_path / "run", stop_after=4)
    assert "metrics.json" in files(tmp_path / "run")


def test_epochs_say_what_the_worker_used(config, dataset, tmp_path):
    ear = do(order(config, dataset, tmp_path), tmp_path / "run")
    for metrics in (metrics for epoch, metrics in zip(ear.epochs, ear.metrics, strict=True) if epoch):
        assert 0 < metrics["system/cpu_cores"] < 64
        assert 0.05 < metrics["system/memory_gb"] < 64
        assert "epoch" not in metrics


def test_a_loss_that_is_not_finite_leaves_its_error_and_what_was_trained(config, dataset, tmp_path):
    broken = config.model_copy(
        update={"training": config.training.model_copy(update={"localization_lr_multiplier": 1e30})}
    )
    what = order(broken, dataset, tmp_path)
    for _ in range(2):  # a retry finds its own error and replaces it
        do(what, tmp_path / "run")
        assert "NotFiniteError" in (tmp_path / "run" / "error.txt").read_text()
        assert "metrics.json" not in files(tmp_path / "run")


def test_a_dataset_behind_a_url_is_fetched_and_told_of(pictures, tiny, tmp_path):
    config = configure(f"file://{pictures}", overrides=parse_set([*tiny, "stage1.epochs=0"]))
    planned = load(config.data, tmp_path / "head")
    ear = do(order(config, planned, tmp_path / "worker"), tmp_path / "run")
    assert ear.epochs and ear.said[0].startswith(f"fetching file://{pictures.parent} at ")
    assert results(tmp_path / "run")["dataset"] == planned.fingerprint


def test_a_place_that_may_answer_later_is_no_last_word(config, dataset, tmp_path, monkeypatch):
    def unreachable(*_) -> None:
        raise Unreachable("s3://x", found="nothing", expected="an answer")

    with monkeypatch.context() as patch:
        patch.setattr(run, "load_planned", unreachable)
        with pytest.raises(Unreachable):
            do(order(config, dataset, tmp_path), tmp_path / "run")
    assert do(order(config, dataset, tmp_path), tmp_path / "run").epochs  # and no error was left


def test_every_epochs_checkpoint_is_kept_where_asked(config, dataset, tmp_path):
    do(order(config, dataset, tmp_path), tmp_path / "run", keep_all=True)
    assert files(tmp_path / "run" / "epochs") == {"001", "002", "003", "004"}
    kept = torch.load(tmp_path / "run" / "epochs" / "003" / "last.pt", weights_only=True)
    assert kept["epoch"] == 3


def test_another_evaluation_takes_the_trained_weights_and_trains_nothing(config, dataset, tmp_path):
    do(order(config, dataset, tmp_path), tmp_path / "trained")
    other = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"top_k": 1})})
    what = order(other, dataset, tmp_path, "evaluate", str(tmp_path / "trained"))
    assert do(what, tmp_path / "other").epochs == []
    ours, theirs = results(tmp_path / "other"), results(tmp_path / "trained")
    assert ours["test"]["mAP"] == theirs["test"]["mAP"]
    assert ours["test"]["CF1_all"] == theirs["test"]["CF1_all"]
    assert ours["best_epoch"] == theirs["best_epoch"]
    assert ours["fingerprint"] == what["run"] != theirs["fingerprint"]


def test_weights_of_another_model_are_not_evaluated(config, dataset, tmp_path):
    do(order(config, dataset, tmp_path), tmp_path / "trained")
    other = config.model_copy(update={"loss": config.loss.model_copy(update={"anchor": False})})
    do(order(other, dataset, tmp_path, "evaluate", str(tmp_path / "trained")), tmp_path / "other")
    assert "loss.anchor True there, False here" in (tmp_path / "other" / "error.txt").read_text()
