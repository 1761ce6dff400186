"""Sampled searches from end to end, and an evaluation in a worker of a cluster."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from searches import DRAWN, Searches

from ram_tune.presets import configure, parse_set
from ram_tune.training.local import train_in_folder

pytestmark = [pytest.mark.drill, pytest.mark.ray]


def test_drawn_settings_are_run_extended_and_said_to_be_what_they_are(pictures, tiny, tmp_path):
    fields = [field for field in tiny if not field.startswith("model.regions")]
    searches = Searches(tmp_path, pictures, [*fields, "execution.cpus_per_worker=1"])
    space = tmp_path / "drawn.yaml"
    space.write_text(DRAWN)
    first = searches.run(str(space), "--workers", "0")
    assert first.returncode == 0, first.stdout + first.stderr
    _, children = searches.children("drawn-pictures")
    assert set(children) == {"stage 1", *(f"#{number} · seed 0" for number in range(3))}
    for name, run in children.items():
        if name != "stage 1" and run.info.status == "FINISHED":
            assert run.data.metrics["cost/parameters"] > 0
            assert run.data.params["model.regions"] in ("1", "2")
    said = " ".join(first.stdout.split())
    assert "3 settings" in said and "winner's curse" in said
    assert "optuna-dashboard sqlite:///" in first.stdout

    more = searches.run(str(space), "--workers", "0", "--trials", "4")
    assert more.returncode == 0, more.stdout + more.stderr
    _, children = searches.children("drawn-pictures")
    assert set(children) == {"stage 1", *(f"#{number} · seed 0" for number in range(4))}
    assert "#3 · seed 0" in more.stdout and "#2 · seed 0  started" not in more.stdout

    space.write_text(DRAWN.replace("0.2", "0.3"))
    refused = searches.run(str(space), "--workers", "0")
    assert refused.returncode == 2
    assert "loss.scale_threshold" in refused.stderr and "--fresh" in refused.stderr


def test_an_evaluation_in_a_clusters_worker_finds_what_one_here_finds(ray_cluster, pictures, tiny, tmp_path):
    import ray

    fields = [*tiny, "model.name=whole_image", "training.epochs=1", "training.precision=fp32", "execution.threads=1"]
    train_in_folder(configure(str(pictures), overrides=parse_set(fields)), tmp_path / "run", tmp_path / "cache")
    command = [sys.executable, "-m", "ram_tune.evaluate", "run", "--views", "ten", "--classifier", "svm"]
    command += ["--set", "execution.cpus_per_worker=1", "--cache-dir", "cache", "--out"]
    address = ray.get_runtime_context().gcs_address
    for more in (["here"], ["there", "--address", address]):
        done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "ten views, svm" in done.stdout
    here, there = (tmp_path / name for name in ("here", "there"))
    assert {"metrics.json", "scores.npz", "per_label.csv"} <= {file.name for file in there.iterdir()}
    assert {file.name for file in there.iterdir()} == {file.name for file in here.iterdir()}
    assert json.loads((there / "metrics.json").read_text())["test"] == pytest.approx(
        json.loads((here / "metrics.json").read_text())["test"]
    )
    lost = subprocess.run(
        [*command, "lost", "--split", "nosuch", "--address", address], cwd=tmp_path, capture_output=True, text=True
    )
    assert lost.returncode == 2 and "nosuch" in lost.stderr
