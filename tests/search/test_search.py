"""The main job from end to end: real Ray, real MLflow, a real table."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ram_tune.errors import BadInput
from ram_tune.search import space as spaces
from ram_tune.search.__main__ import main

pytestmark = pytest.mark.ray


DIVERGES = "  diverges: {training.localization_lr_multiplier: 1.0e+30}\n\nseeds"


def test_arms_end_up_in_mlflow_with_what_a_plain_run_gives(pictures, tiny, tmp_path):
    from mlflow import MlflowClient

    from ram_tune.train import main as train

    environment = {**os.environ, "RAM_TUNE_CACHE": str(tmp_path / "cache")}
    space = tmp_path / "three.yaml"
    space.write_text((spaces.folder() / "constraints.yaml").read_text().replace("\nseeds", DIVERGES))
    arms = "none", "A+S+P", "diverges"
    command = [sys.executable, "-m", "ram_tune.search", str(space), "--data", str(pictures), "--arms", *arms]
    one_thread = "execution.cpus_per_worker=1"
    done = subprocess.run(
        [*command, "--set", *tiny, one_thread],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr  # one arm failed

    # One parent, a stage 1 and the arms below it, in the store that a bare `mlflow ui` here would open.
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("three-labels")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if run.data.tags["ram_tune.role"] == "search")
    children = {run.data.tags["ram_tune.setting"]: run for run in runs if run is not parent}
    assert {setting: run.info.status for setting, run in children.items()} == {
        "stage 1": "FINISHED",
        "none": "FINISHED",
        "A+S+P": "FINISHED",
        "diverges": "FAILED",
    }
    assert [item.path for item in client.list_artifacts(children["diverges"].info.run_id)] == ["traceback.txt"]
    assert "FAILED diverges · seed 0: NotFiniteError: epoch 1, batch 2: the" in done.stdout
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}

    arm = children["A+S+P"]
    assert arm.info.run_name == "A+S+P · seed 0"
    assert arm.data.params["loss.anchor"] == "True"
    assert children["none"].data.params["loss.anchor"] == "False"
    for name in (
        "train/loss",
        "train/scale",
        "selection/mAP",
        "selection/CF1",
        "selection/OF1",
        "selection/mirrored_share",
    ):
        steps = [point.step for point in client.get_metric_history(arm.info.run_id, name)]
        assert steps == [1, 2, 3], name
    assert "train/scale" not in children["none"].data.metrics  # the part is not built
    assert {"config.yaml", "metrics.json", "per_label.csv", "scores.npz"} <= {
        item.path for item in client.list_artifacts(arm.info.run_id)
    }

    # The same figures as the same settings give in one plain process, and in the table.
    places = ["--cache-dir", str(tmp_path / "cache"), "--out", str(tmp_path / "plain")]
    train(["--data", str(pictures), *places, "--set", *tiny, "execution.threads=1"])
    plain = json.loads((tmp_path / "plain" / "metrics.json").read_text())["test"]
    for name in ("mAP", "CF1", "OF1"):
        assert arm.data.metrics[f"test/{name}"] == pytest.approx(plain[name], abs=1e-9)
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("│ A+S+P"))
    assert f" {100 * plain['mAP']:.1f} " in row
    assert "91.3 *" in row
    assert "* RMA Table 4: voc2007 test, N=512, ten views, svm" in done.stdout  # not what was measured here


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["constrains"], "Did you mean constraints"),
        (["constraints", "--arms", "A+S+Q"], "Did you mean A"),
        (["constraints", "--seeds", "0"], "--seeds: found 0"),
        (["constraints", "--set", "data.image_size=170"], "multiple of 16"),
        (["constraints", "--set", "model.backbone.name=vgg17"], "model.backbone.name"),
        (["constraints", "--set", "loss.anchor=off"], "arm 'none' sets"),
        (["constraints", "--data", "voc2007", "--data-root", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAM_TUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BadInput) as caught:
        main(arguments)
    assert words in str(caught.value)
    assert not (tmp_path / "mlflow.db").exists()


def test_list_names_every_search_and_its_question(capsys):
    assert main(["--list"]) == 0
    assert "constraints    Which of the anchor" in capsys.readouterr().out
