"""The main job from end to end: real Ray, real Optuna, real MLflow, a real table."""

from __future__ import annotations

import json
import re

import pytest
from searches import DRAWN, Searches

from ram_tune.errors import BadInput
from ram_tune.search import space as spaces
from ram_tune.search.__main__ import main

DIVERGES = "  diverges: {training.localization_lr_multiplier: 1.0e+30}\n  one label: {evaluation.top_k: 1}\n\nseeds"


@pytest.fixture
def searches(pictures, tiny, tmp_path) -> Searches:
    return Searches(tmp_path, pictures, [*tiny, "execution.cpus_per_worker=1"])


@pytest.mark.ray
def test_arms_end_up_in_mlflow_with_what_a_plain_run_gives(searches, pictures, tiny, tmp_path):
    from ram_tune.train import main as train

    space = tmp_path / "three.yaml"
    space.write_text((spaces.folder() / "constraints.yaml").read_text().replace("\nseeds", DIVERGES))
    done = searches.run(str(space), "--arms", "A+S+P", "diverges", "one label")
    assert done.returncode == 1, done.stdout + done.stderr  # one arm failed

    # One parent; a stage 1 and the arms below it.
    parent, children = searches.children("three-pictures")
    assert {name: run.info.status for name, run in children.items()} == {
        "stage 1": "FINISHED",
        "A+S+P · seed 0": "FINISHED",
        "diverges · seed 0": "FAILED",
        "one label · seed 0": "FINISHED",
    }
    assert parent.info.status == "FAILED"
    client = searches.client
    failed = children["diverges · seed 0"]
    assert [item.path for item in client.list_artifacts(failed.info.run_id)] == ["traceback.txt"]
    assert "NotFiniteError" in failed.data.tags["ram_tune.error"]
    assert "FAILED diverges · seed 0: NotFiniteError: epoch 1, batch 2: the" in done.stdout

    arm = children["A+S+P · seed 0"]
    assert arm.data.params["loss.anchor"] == "True"
    assert arm.data.tags["ram_tune.worker.threads"] == "1"
    for name in (
        *("train/loss", "train/scale", "train/learning_rate", "train/images_per_second", "system/cpu_cores"),
        *(f"selection/{metric}" for metric in ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1")),
    ):
        assert searches.epochs(arm, name) == [1, 2, 3], name
    for name in ("mirrored_share", "region_area", "anchor_distance", "redundancy"):
        assert searches.epochs(arm, f"selection/{name}") == [0, 1, 2, 3], name  # 0: before training
    pictures_there = [item.path for item in client.list_artifacts(arm.info.run_id, "images")]
    for step in (1, 2, 3):  # what MLflow's image slider shows
        found = [path for path in pictures_there if re.search(rf"regions[%+]step[%+]{step}[%+]", path)]
        assert len(found) == 2, pictures_there  # the picture, and a small one
    files = {item.path for item in client.list_artifacts(arm.info.run_id)}
    assert {"config.yaml", "metrics.json", "per_label.csv", "scores.npz"} <= files
    # An arm that differs only in its evaluation was not trained again.
    assert children["one label · seed 0"].data.tags["ram_tune.role"] == "evaluate"
    for metric in ("test/mAP", "test/CF1_all"):
        assert children["one label · seed 0"].data.metrics[metric] == arm.data.metrics[metric]
    assert searches.epochs(children["one label · seed 0"]) == []

    # The same figures as the same settings give in one plain process, and in the table.
    places = ["--cache-dir", str(tmp_path / "cache"), "--out", str(tmp_path / "plain")]
    train(["--data", str(pictures), *places, "--set", *tiny, "execution.threads=1"])
    plain = json.loads((tmp_path / "plain" / "metrics.json").read_text())["test"]
    for name in ("mAP", "CF1", "OF1"):
        assert arm.data.metrics[f"test/{name}"] == pytest.approx(plain[name], abs=1e-9)
    assert "1 version of three-pictures; the best by selection mAP is three-pictures@best" in done.stdout
    (version,) = client.search_model_versions("name = 'three-pictures'")
    assert version.run_id == arm.info.run_id and version.tags["ram_tune.setting"] == "A+S+P"
    assert client.get_model_version_by_alias("three-pictures", "best").version == version.version
    (log,) = tmp_path.rglob("search.log")
    assert re.search(r"INFO .*A\+S\+P · seed 0 +epoch   3/3", log.read_text())
    assert re.search(r"On disk: \S+ MB, of it \S+ [kM]B in \d files of weights", done.stdout)

    # What a person meets in MLflow.
    description = parent.data.tags["mlflow.note.content"]
    assert description.startswith(spaces.read(str(space)).question) and "python -m ram_tune.search" in description
    assert "| arm | seeds | mAP |" in description and "FAILED diverges" in description
    for run in (parent, arm):
        (given,) = run.inputs.dataset_inputs
        assert given.dataset.name == "pictures" and given.dataset.digest == arm.data.tags["ram_tune.dataset"]
        profile = json.loads(given.dataset.profile)
        assert profile["labels"] == 3 and profile["train"] > profile["selection"] > 0
    page = f"/#/experiments/{parent.info.experiment_id}/runs?viewStateShareKey=ram_tune"
    assert page in done.stdout

    row = next(line for line in done.stdout.splitlines() if line.startswith("│ A+S+P"))
    assert f" {100 * plain['mAP']:.1f} " in row
    assert "91.3 *" in row
    assert "* RMA Table 4: voc2007 test, N=512, ten views, svm" in done.stdout  # not what was measured here


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (("pruner: {name: successive_halving, judge: mAP}", "sampler: tpee"), [], "tpee.*tpe"),
        (("successive_halving", "hyperbnd"), [], "hyperbnd.*hyperband"),
        (("judge: mAP", "judge: mAP, options: {eta: 3}"), [], "eta"),
        (("pruner: {name: successive_halving, judge: mAP}", "sampler: cmaes"), [], "cmaes"),
        (("[mAP, parameters]", "[mAPP]"), [], "mAPP.*mAP"),
        (("[0.2, 1.0]", "[1.0, 0.2]"), [], "scale_threshold"),
        (("budget: {trials: 3}", "fidelity: {execution.threads: 1}"), [], "fidelity"),
        (("budget: {trials: 3}", "budget: {trials: -3}"), [], "trials"),
        (None, ["--trials", "0"], "--trials"),
        (None, ["--hours", "-1"], "--hours"),
        (None, ["--arms", "none"], "--arms"),
        (None, ["--set", "model.regions=2"], "model.regions.*searched"),
    ],
)
def test_a_sampled_search_is_checked_before_anything_starts(change, arguments, words, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drawn.yaml").write_text(DRAWN.replace(*change) if change else DRAWN)
    with pytest.raises(BadInput, match=words):
        main(["drawn.yaml", "--data", str(pictures), "--cache-dir", "cache", *arguments])
    assert not (tmp_path / "mlflow.db").exists() and not list(tmp_path.glob("ram_tune_runs/*"))


def test_options_of_sampled_searches_are_refused_for_arms(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for option in ("--trials", "--hours", "--gpu-hours", "--confirm"):
        with pytest.raises(BadInput, match=f"{option}.*named arms"):
            main(["constraints", option, "3"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["constrains"], "Did you mean constraints"),
        (["constraints", "--arms", "A+S+Q"], "Did you mean A"),
        (["constraints", "--seeds", "0"], "--seeds: found 0"),
        (["constraints", "--concurrency", "0"], "--concurrency: found 0"),
        (["constraints", "--workers", "-1"], "--workers: found '-1'"),
        (["constraints", "--workers", "0", "--set", "execution.workers=1"], "--workers 0: found execution.workers=1"),
        (["constraints", "--set", "data.image_size=170"], "multiple of 16"),
        (["constraints", "--set", "model.backbone.name=vgg17"], "model.backbone.name"),
        (["constraints", "--set", "loss.anchor=off"], "arm 'none' sets"),
        (["constraints", "--data", "voc2007", "--data-root", "/nowhere"], "/nowhere"),
        (["constraints", "--tracking-uri", "./mlruns"], "plain folders are no longer written"),
        (["constraints", "--study-storage", "sqlite:////nowhere/x.db"], "--study-storage"),
        (["constraints", "--results", "/proc/nowhere"], "--results"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAM_TUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BadInput) as caught:
        main(arguments)
    assert words in str(caught.value)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:10001"])
def test_an_address_without_a_cluster_is_refused_within_seconds(address):
    from ram_tune.search.machines import ray_cluster

    with pytest.raises(BadInput, match=f"--address.*{address.rpartition(':')[2]}"), ray_cluster(address):
        pass


def test_a_dry_run_says_what_would_be_run_and_leaves_nothing(pictures, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["constraints", "--data", str(pictures), "--dry-run", "--cache-dir", str(tmp_path / "cache"), "--set", *tiny])
    said = capsys.readouterr().out
    assert "5 runs and 1 stage 1" in said
    assert said.count("to run") == 6
    assert "expected: 6 trainings, 17 epochs" in said and "timed here" in said  # 5 of 3 epochs, stage 1 of 2
    assert not (tmp_path / "mlflow.db").exists()
    assert not list((tmp_path / "ram_tune_runs").iterdir())


def test_list_names_every_search_and_its_question(capsys):
    assert main(["--list"]) == 0
    assert "constraints    Which of the anchor" in capsys.readouterr().out
