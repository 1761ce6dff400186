"""Trials and the desk as Ray's own processes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from ram_tune.config import Config
from ram_tune.data.roles import load
from ram_tune.distribution import desk as desks
from ram_tune.distribution.desk import Line
from ram_tune.distribution.trial import DRIVER_RESOURCES, TrialConfig, run_job
from ram_tune.distribution.worker import Order
from ram_tune.presets import configure, parse_set
from ram_tune.search.books import open_books
from ram_tune.search.jobs import Job, Outcome
from ram_tune.search.lease import this_process
from ram_tune.search.record import About, Record
from ram_tune.search.study import open_study
from ram_tune.training.run import identity

pytestmark = pytest.mark.ray


def order(config: Config, run: str, cache: Path, desk: str, start: str = "") -> Order:
    return Order(
        kind="train",
        run=run,
        config=config.model_dump_json(),
        cache_dir=str(cache),
        starts=[start] if start else [],
        desk=desk,
        keep_all=False,
    )


def test_a_driver_of_a_train_run_does_without_torch_and_without_a_desk(ray_cluster, pictures, tiny, tmp_path):
    import ray

    config = configure(str(pictures), overrides=parse_set([*tiny, "model.name=whole_image", "training.epochs=2"]))
    run = identity(config, load(config.data, tmp_path))
    job = TrialConfig(
        order=order(config, run, tmp_path, "nobody"),
        storage=str(tmp_path / "runs"),
        workers=1,
        fewest=0,
        resources={"CPU": 1, "GPU": 0},
    )

    def drive() -> tuple[dict, bool]:
        from ram_tune.distribution.trial import run_job

        return run_job(job), "torch" in sys.modules

    ended, torch_there = ray.get(ray.remote(num_cpus=0, resources=DRIVER_RESOURCES)(drive).remote())
    assert ended["error"] == ""
    assert not torch_there
    folder = Path(ended["checkpoint"])
    assert {"best.pt", "metrics.json", "scores.npz"} <= {file.name for file in folder.iterdir()}
    assert [epoch["epoch"] for epoch in json.loads((folder / "metrics.json").read_text())["history"]] == [1, 2]


def test_a_killed_desk_comes_back_and_remembers(ray_cluster, tmp_path):
    import ray

    storage = f"sqlite:///{tmp_path / 'studies.db'}"
    study = open_study(storage, "killed")
    assert study is not None
    held = this_process()
    study.lease.claim(held)
    job = Job("train", "A", Config(), "a", "dataset")
    about = About("killed", "killed", "Killed", "", "")
    books = storage, "killed", tmp_path, about, f"sqlite:///{tmp_path}/mlflow.db", [job], held, str(tmp_path)
    desk = desks.start("desk of killed", open_books, *books)
    ray.get(desk.started.remote("a"))
    line = Line("desk of killed", "a")
    assert line.report(1, {"train/loss": 1.0})

    ray.kill(desk, no_restart=False)
    until = time.monotonic() + 60
    assert line.report(2, {"train/loss": 0.5})  # heard or not, a worker goes on
    while line.unsent and time.monotonic() < until:
        time.sleep(0.2)
        line.report(2, {"train/loss": 0.5})
    ray.get(desk.ended.remote("a", Outcome({"selection/mAP": 0.5, "test/mAP": 0.4}, str(tmp_path / "nowhere")), []))
    (complaint,) = ray.get(desk.close.remote("table", "FINISHED", 60))
    assert "nowhere is gone" in complaint  # all but the files is recorded
    ray.kill(desk)

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.ram_tune.fingerprint = 'a'")
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5)]
    assert study.outcomes()["a"].state == "finished"
    assert Record(tmp_path, about, f"sqlite:///{tmp_path}/mlflow.db").status == "FINISHED"


def test_what_does_not_fit_into_memory_is_tried_once(ray_cluster, pictures, tiny, tmp_path):
    import ray
    from ray.util.state import list_actors

    def workers() -> int:
        here = ray.get_runtime_context().gcs_address  # there may be other clusters on this machine
        return len(list_actors(here, filters=[("class_name", "=", "RayTrainWorker")], limit=1000))

    huge = parse_set([*tiny, "stage1.epochs=0", "model.hidden_size=400000000"])
    config = configure(str(pictures), overrides=huge)
    job = TrialConfig(
        order=order(config, "huge", tmp_path, "nobody"),
        storage=str(tmp_path / "runs"),
        workers=1,
        fewest=0,
        resources={"CPU": 1, "GPU": 0},
    )
    before = workers()
    ended = ray.get(ray.remote(num_cpus=0, resources=DRIVER_RESOURCES)(run_job).remote(job))
    assert ended["error"].startswith("NotEnoughMemoryError: out of memory with training.batch_size=8")
    assert workers() - before == 1


def test_an_error_ends_the_job_with_its_traceback(tmp_path):
    nowhere = Config(data=Config().data.model_copy(update={"root": str(tmp_path / "nowhere")}))
    job = TrialConfig(order=order(nowhere, "x", tmp_path, "nobody"), storage=str(tmp_path), workers=0, resources={})
    ended = run_job(job)
    assert ended["error"] == ""  # no second try would mend it: it is left in the folder
    assert "BadInput" in (Path(ended["checkpoint"]) / "error.txt").read_text()
    job["order"]["config"] = "{"
    assert "BadInput" in (Path(run_job(job)["checkpoint"]) / "error.txt").read_text()
