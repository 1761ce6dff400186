"""Which weights stay, and which arm's is best: on folders as runs leave them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ram_tune.config import Config, Training
from ram_tune.search.jobs import Job, Keep, Outcome
from ram_tune.search.study import OBJECTIVE
from ram_tune.search.weights import best_of, best_of_arms, disk_use, drop, register


class Left:
    """Runs as a search leaves them: arm → values of its seeds."""

    def __init__(self, folder: Path, **arms: list[float]):
        self.folder = folder
        self.jobs = [Job("stage1", "stage 1", Config(), "s", "data")]
        self.outcomes = {"s": self.left("s", 0.99)}
        for arm, values in arms.items():
            for seed, value in enumerate(values):
                config = Config(training=Training(seed=seed))
                self.jobs.append(Job("train", arm, config, f"{arm}{seed}", "data", ("s",)))
                self.outcomes[f"{arm}{seed}"] = self.left(f"{arm}{seed}", value)

    def left(self, run: str, value: float) -> Outcome:
        (self.folder / run).mkdir()
        (self.folder / run / "best.pt").write_bytes(bytes(1000))
        (self.folder / run / "metrics.json").write_bytes(bytes(10))
        return Outcome({OBJECTIVE: value, "test/mAP": value - 0.1, "best_epoch": 1.0}, str(self.folder / run))

    def weights(self) -> set[str]:
        return {file.parent.name for file in self.folder.rglob("best.pt")}


@pytest.fixture
def left(tmp_path) -> Left:
    return Left(tmp_path, a=[0.5, 0.7, 0.6], b=[0.4, 0.3, 0.2])


def test_the_best_run_of_each_arm_is_chosen_on_selection(left):
    assert {arm: job.fingerprint for arm, job in best_of_arms(left.jobs, left.outcomes).items()} == {
        "a": "a1",
        "b": "b0",
    }
    best = best_of(left.jobs, left.outcomes)
    assert best == {"arm": "a", "seed": 1, OBJECTIVE: 0.7, "test/mAP": pytest.approx(0.6)}


def test_what_failed_or_only_evaluates_has_no_weights_of_its_own(left):
    left.outcomes["a1"] = Outcome(error="no")
    left.jobs.append(Job("evaluate", "c", Config(), "c0", "data", ("b0",)))
    left.outcomes["c0"] = left.left("c0", 0.9)
    assert {arm: job.fingerprint for arm, job in best_of_arms(left.jobs, left.outcomes).items()} == {
        "a": "a2",
        "b": "b0",
    }
    assert best_of([], {}) == {}


def test_arms_that_share_a_run_share_its_weights_be_it_stage_1s(left):
    shared = [replace(job, also=("whole_image",)) if job.kind == "stage1" else job for job in left.jobs]
    shared = [replace(job, also=("twin",)) if job.setting == "b" else job for job in shared]
    found = {arm: job.fingerprint for arm, job in best_of_arms(shared, left.outcomes).items()}
    assert found == {"a": "a1", "b": "b0", "twin": "b0", "whole_image": "s"}


class Store:
    """Of MLflow: how often it was asked for a version, which of them bears the alias, and whether it is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.versions, self.alias, self.away = 0, "", False
        monkeypatch.setattr("ram_tune.search.model.card", lambda *_: "")
        monkeypatch.setattr("ram_tune.search.model.log_model", lambda *_: "")
        monkeypatch.setattr("ram_tune.search.model.register", lambda *_: self.new())
        monkeypatch.setattr("mlflow.MlflowClient", lambda uri: self)

    def new(self) -> str:
        self.versions += 1
        return str(self.versions)

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        if self.away:
            raise ConnectionError("MLflow is away")
        self.alias = version


class Noted:
    """A study's notes and outcomes."""

    def __init__(self, outcomes: dict[str, Outcome]):
        self.notes: dict[str, Any] = {}
        self.set_note, self.note, self.outcomes = self.notes.__setitem__, self.notes.get, lambda: outcomes


RECORD: Any = SimpleNamespace(uri="", run_id=lambda run: run)
ABOUT: Any = SimpleNamespace(experiment="regions-photos", title="Regions")


def test_an_alias_that_could_not_be_set_is_set_by_the_next_command_and_then_no_more(left, monkeypatch):
    store = Store(monkeypatch)
    study: Any = Noted(left.outcomes)
    store.away = True
    (said,) = register(left.jobs, left.outcomes, study, RECORD, ABOUT)
    assert "MLflow is away. The same command tries again" in said and store.versions == 2
    store.away = False
    (said,) = register(left.jobs, left.outcomes, study, RECORD, ABOUT)
    assert said == "Registered in MLflow: the best by selection mAP is regions-photos@best."
    assert store.alias == "1" and store.versions == 2  # a's seed 1
    store.away = True
    assert register(left.jobs, left.outcomes, study, RECORD, ABOUT) == []


def test_of_a_drawn_setting_that_evaluates_its_training_is_the_best(left, monkeypatch):
    store = Store(monkeypatch)
    study: Any = Noted(left.outcomes)
    register(left.jobs, left.outcomes, study, RECORD, ABOUT)
    trained = replace(left.jobs[-1], sampled=True, setting="#3")  # b2, which is far from the best
    drawn = [trained, Job("evaluate", "#3", Config(), "e", "data", ("b2",), sampled=True)]
    left.outcomes["e"] = left.left("e", 0.2)
    (said,) = register(drawn, left.outcomes, study, RECORD, ABOUT)
    assert said == (
        "Registered in MLflow: 1 version of regions-photos; the best by the search's objective is regions-photos@best."
    )
    assert store.versions == 3 and store.alias == "3"


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        ("all", {"s", "a0", "a1", "a2", "b0", "b1", "b2"}),
        ("best", {"s", "a0", "a1", "a2", "b0", "b1", "b2"}),
        ("arms", {"s", "a1", "b0"}),
        ("none", {"s"}),
    ],
)
def test_what_a_rule_keeps(left, keep: Keep, stay):
    drop(keep, left.jobs, left.outcomes)
    assert left.weights() == stay
    assert len(list(left.folder.rglob("metrics.json"))) == 7  # what is known of a run always stays


@pytest.mark.parametrize("keep", ["arms", "none"])
def test_what_an_evaluation_needs_stays(left, keep: Keep):
    left.jobs.append(Job("evaluate", "c", Config(), "c0", "data", ("a0",)))
    drop(keep, left.jobs, left.outcomes)
    assert "a0" in left.weights()


def test_an_evaluations_own_best_run_stays_and_of_others_every_scale_goes(left):
    for seed, value in enumerate((0.3, 0.8)):
        config = Config(training=Training(seed=seed))
        left.jobs.append(Job("evaluate", "both scales", config, f"e{seed}", "data", (f"a{seed}",)))
        left.outcomes[f"e{seed}"] = left.left(f"e{seed}", value)
        (left.folder / f"e{seed}" / "best-2.pt").write_bytes(bytes(1000))
    drop("arms", left.jobs, left.outcomes)
    assert {"e1"} == {name for name in left.weights() if name.startswith("e")}
    assert not (left.folder / "e0" / "best-2.pt").exists() and (left.folder / "e1" / "best-2.pt").exists()


def test_disk_use_is_what_the_files_take(left):
    assert (
        disk_use(left.folder)
        == "On disk: 7.07 kB, of it 7 kB in 7 files of weights (--keep-checkpoints); MLflow's copies apart."
    )
