"""The final evaluation: views, scales and classifiers, against what their parts say by themselves."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC

from ram_tune.config import Config
from ram_tune.errors import BadInput
from ram_tune.evaluate import main
from ram_tune.models.network import Network
from ram_tune.presets import configure, from_fields, from_json, parse_set
from ram_tune.training import checkpoint
from ram_tune.training.judging import evaluate, finish
from ram_tune.training.local import train_in_folder
from ram_tune.training.results import read_config
from ram_tune.training.run import Run, load_trained


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> dict[int, Path]:
    """Folders of runs at two image sizes."""
    place = tmp_path_factory.mktemp("trained")
    found = {}
    for size in (64, 96):
        train_in_folder(at(pictures, size), place / str(size), place / "cache")
        found[size] = place / str(size)
    return found


TINY = [
    *(
        "data.selection_split=selection",
        "data.crop_margin=32",
        "model.backbone.name=small",
        "model.backbone.weights=none",
    ),
    *("model.regions=2", "model.sample_size=3", "model.projection_size=16", "model.hidden_size=16"),
    *("model.feature_size=16", "training.epochs=2", "training.batch_size=8", "training.learning_rate=1e-3"),
    *("training.precision=fp32", "stage1.epochs=0", "execution.threads=1"),
]


def at(pictures: Path, size: int, *more: str) -> Config:
    return configure(str(pictures), overrides=parse_set([*TINY, f"data.image_size={size}", *more]))


def best(folder: Path) -> Path:
    return folder / "checkpoint" / "best.pt"


def runs(
    trained: dict[int, Path], pictures: Path, tmp_path: Path, *more: str, sizes: tuple[int, ...] = (64,)
) -> list[Run]:
    scales = f"evaluation.scales=[{','.join(map(str, sizes))}]" if len(sizes) > 1 else "evaluation.scales=[]"
    config = at(pictures, sizes[0], scales, *more)
    return load_trained(config, tmp_path, [best(trained[size]) for size in sizes], "x")


def test_one_view_by_the_network_is_what_training_reported(trained, pictures, tmp_path):
    judged = finish(runs(trained, pictures, tmp_path))
    reported = json.loads((trained[64] / "metrics.json").read_text())
    assert judged.metrics["test"] == pytest.approx(reported["test"])
    assert judged.platt is not None  # the Euclidean loss's scores have no probability of their own
    kept = json.loads((trained[64] / "calibration.json").read_text())
    np.testing.assert_allclose(judged.platt.slope, kept["slope"])


def test_ten_views_are_the_mean_of_ten_passes(trained, pictures, tmp_path):
    (run,) = runs(trained, pictures, tmp_path, "evaluation.views=ten", "evaluation.normalize=off")
    judged = finish([run])
    images = torch.from_numpy(run.test.array[:].copy())
    wanted = np.zeros_like(judged.scores["test"].scores)
    with torch.inference_mode():
        for pixels in (images, images.flip(2)):
            f = run.network.backbone(pixels)
            places = [(0, 0), (2, 0), (0, 2), (2, 2), (1, 1)]  # cells: a margin of 32 pixels is two
            for x, y in places:
                wanted += run.network.head(f[:, :, y : y + 2, x : x + 2]).scores.numpy() / 10
    np.testing.assert_allclose(judged.scores["test"].scores, wanted, atol=1e-5)


def test_svms_are_scikit_learns_on_the_representations_of_train(trained, pictures, tmp_path):
    (run,) = runs(trained, pictures, tmp_path, "evaluation.classifier=svm", "evaluation.svm_c=[1]")
    judged = finish([run])
    assert judged.platt is None

    def representations(role: str) -> np.ndarray:
        images = torch.from_numpy(getattr(run, role).array[:, 16:48, 16:48].copy())
        with torch.inference_mode():
            features = run.network(images).features
        z = features.amax(1).numpy().astype(float)
        return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)

    targets = run.annotations("train").targets
    for label in range(targets.shape[1]):
        machine = LinearSVC(C=1.0, dual=False).fit(representations("train"), targets[:, label])
        wanted = machine.decision_function(representations("test"))
        np.testing.assert_allclose(judged.scores["test"].scores[:, label], wanted, atol=1e-3)
    found = judged.scores["test"].scores
    areas = [average_precision_score(run.annotations("test").targets[:, i], found[:, i]) for i in range(3)]
    assert judged.metrics["test"]["mAP"] == pytest.approx(np.mean(areas))


@pytest.mark.parametrize("classifier", ["network", "svm"])
def test_two_scales_are_the_mean_of_their_decisions(trained, pictures, tmp_path, classifier):
    rule = f"evaluation.classifier={classifier}", "evaluation.views=ten", "evaluation.svm_c=[1]"
    both = finish(runs(trained, pictures, tmp_path, *rule, sizes=(64, 96)))
    each = [finish(runs(trained, pictures, tmp_path, *rule, sizes=(size,))) for size in (64, 96)]
    wanted = np.mean([one.scores["test"].scores for one in each], axis=0)
    np.testing.assert_allclose(both.scores["test"].scores, wanted, atol=1e-5)


def test_scales_side_by_side_are_another_classifier(trained, pictures, tmp_path):
    rule = "evaluation.classifier=svm", "evaluation.svm_c=[1]"
    apart = finish(runs(trained, pictures, tmp_path, *rule, sizes=(64, 96)))
    beside = finish(runs(trained, pictures, tmp_path, *rule, "evaluation.scale_fusion=concatenate", sizes=(64, 96)))
    assert apart.scores["test"].scores.shape == beside.scores["test"].scores.shape
    assert not np.allclose(apart.scores["test"].scores, beside.scores["test"].scores)


def test_what_was_seen_is_kept_and_shared_by_classifiers(trained, pictures, tmp_path, monkeypatch):
    finish(runs(trained, pictures, tmp_path, "evaluation.views=ten"))
    monkeypatch.setattr("ram_tune.training.judging.represent", lambda *_: pytest.fail("seen again"))
    finish(runs(trained, pictures, tmp_path, "evaluation.views=ten"))
    with pytest.raises(pytest.fail.Exception):  # train has not been seen yet: only SVMs need it
        finish(runs(trained, pictures, tmp_path, "evaluation.views=ten", "evaluation.classifier=svm"))


def test_cached_maps_of_ten_views_have_their_mirrors(pictures, tmp_path):
    more = "data.crop=map", "model.backbone.trainable=none", "stage1.trainable=none"
    config = at(pictures, 64, *more, "evaluation.views=ten")
    summary = train_in_folder(config, tmp_path / "maps", tmp_path / "cache")
    again = finish(load_trained(config, tmp_path / "cache", [best(tmp_path / "maps")], "x"))
    assert again.metrics["test"]["mAP"] == pytest.approx(summary["test"]["mAP"])


@pytest.mark.parametrize("name", ["csra", "query_decoder"])
def test_a_head_without_regions_starts_from_stage_1_and_is_judged_in_every_way(pictures, tmp_path, name):
    more = "data.crop=map", "model.backbone.trainable=none", "stage1.trainable=all", "stage1.epochs=1"
    ways = "evaluation.views=ten", "evaluation.classifier=svm"
    config = at(pictures, 64, *more, *ways, f"model.name={name}")
    summary = train_in_folder(config, tmp_path / "run", tmp_path / "cache")
    assert summary["start"] == {}
    first, ours = (torch.load(best(folder))["network"] for folder in (tmp_path / "run" / "stage1", tmp_path / "run"))
    convolutions = {name: tensor for name, tensor in first.items() if name.startswith("backbone.")}
    torch.testing.assert_close(convolutions, {key: ours[key] for key in convolutions}, rtol=0, atol=0)
    again = finish(load_trained(config, tmp_path / "cache", [best(tmp_path / "run")], "x"))
    assert again.metrics["test"]["mAP"] == pytest.approx(summary["test"]["mAP"])


def test_a_whole_image_on_cached_maps_trains_in_single_precision(pictures, tmp_path):
    more = "data.crop=map", "model.backbone.trainable=none", "model.name=whole_image"
    summary = train_in_folder(at(pictures, 64, *more), tmp_path / "maps", tmp_path / "cache")
    assert summary["start"] == {}


def test_models_of_other_settings_or_labels_are_refused(trained, pictures, tmp_path):
    with pytest.raises(BadInput, match=r"model\.regions 2 there, 3 here"):
        load_trained(at(pictures, 64, "model.regions=3"), tmp_path, [best(trained[64])], "x")
    other = tmp_path / "two.csv"
    lines = pictures.read_text().replace("blue", "red").splitlines()
    other.write_text("\n".join([lines[0], *(line.replace("red;red", "red") for line in lines[1:])]))
    config = from_fields(at(pictures, 64).flat() | {"data.file": str(other)})
    with pytest.raises(BadInput, match=r"a model of 3 labels.*expected the 2 labels"):
        load_trained(config, tmp_path, [best(trained[64])], "x")


def test_the_start_is_what_the_regions_do_before_training(trained, pictures, tmp_path):
    from ram_tune.training.judging import region_metrics
    from ram_tune.training.run import prepare

    summary = json.loads((trained[64] / "metrics.json").read_text())
    run = prepare(at(pictures, 64), tmp_path)
    wanted = region_metrics(run, "selection", evaluate(run, run.selection))
    assert {name.removeprefix("selection/"): value for name, value in summary["start"].items()} == pytest.approx(wanted)


def test_the_command_line_prints_and_keeps_what_it_found(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--views", "ten", "--classifier", "svm", "--cache-dir", "cache", "--out", "out"]
    assert main([str(trained[64]), str(trained[96]), *options, "--scales", "64,96"]) == 0
    said = capsys.readouterr().out
    assert "N=64, 96, ten views, svm" in said
    assert {"metrics.json", "per_label.csv", "scores.npz"} <= {file.name for file in (tmp_path / "out").iterdir()}
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["test"]
    assert f"{100 * found['mAP']:.1f}" in said


@pytest.mark.parametrize("how", [[], ["--views", "ten", "--classifier", "svm"]])
def test_a_network_that_is_broken_or_does_not_fit_is_one_line(trained, tmp_path, monkeypatch, capsys, how):
    content = checkpoint.load(best(trained[64]))
    content["network"]["head.feature.bias"].fill_(torch.nan)
    config = from_json(content["config"], "test")
    checkpoint.save(tmp_path / "best.pt", content, config, content["fingerprint"])
    places = ["--cache-dir", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert main([str(tmp_path / "best.pt"), *places, *how]) == 1
    assert re.fullmatch(r"error: .*not finite.*\n", capsys.readouterr().err.splitlines(keepends=True)[-1])

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Network, "forward", full)
    assert main([str(trained[64]), *places, *how]) == 1
    assert "lower execution.evaluation_batch_size" in capsys.readouterr().err.splitlines()[-1]


def test_what_was_seen_of_images_is_seen_anew_where_they_change(pictures, tmp_path):
    shutil.copytree(pictures.parent, tmp_path / "own")
    config = at(tmp_path / "own" / "labels.csv", 64, "evaluation.views=ten", "model.name=whole_image")
    train_in_folder(config, tmp_path / "run", tmp_path / "cache")

    def scores() -> np.ndarray:
        return finish(load_trained(config, tmp_path / "cache", [best(tmp_path / "run")], "x")).scores["test"].scores

    before, picture = scores(), tmp_path / "own" / "35.png"
    size = picture.stat().st_size
    Image.new("RGB", (64, 64), "white").save(picture)  # of the same size in bytes, as a BMP saved anew would be
    picture.write_bytes(picture.read_bytes() + bytes(size - picture.stat().st_size))
    after = scores()
    assert picture.stat().st_size == size
    np.testing.assert_array_equal(after[:-1], before[:-1])
    assert np.abs(after[-1] - before[-1]).max() > 1e-4


def test_paths_are_kept_from_the_root(trained, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    folders = ["--cache-dir", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    main([str(trained[64]), *folders, "--set", f"data.file={pictures.name}"])
    assert read_config(tmp_path / "out").data.file == str(pictures)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere"),
        (["{64}", "{64}"], "models of the scales"),
        (["{64}", "--scales", "64,96"], r"models of the scales \[64\]"),
        (["{64}", "--split", "nosuch"], "nosuch"),
        (["{64}", "--set", "model.regions=3"], "model.regions"),
    ],
)
def test_bad_input(trained, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    arguments = [text.replace("{64}", str(trained[64])) for text in arguments]
    with pytest.raises(BadInput, match=words):
        main([*arguments, "--cache-dir", "cache"])


# --- RARL


RARL = "model.name=rarl", "model.reinforced.steps=2", "model.reinforced.aspect_ratios=[1]"


@pytest.fixture(scope="module")
def reinforced(pictures, tmp_path_factory) -> dict[int, Path]:
    """Folders of RARL's runs at two image sizes: 2 places, 3 regions round each."""
    place = tmp_path_factory.mktemp("reinforced")
    for size in (64, 96):
        train_in_folder(at(pictures, size, *RARL), place / str(size), place / "cache")
    return {size: place / str(size) for size in (64, 96)}


def test_rarl_records_what_its_policy_learns_and_leaves_what_rma_leaves(reinforced):
    folder = reinforced[64]
    summary = json.loads((folder / "metrics.json").read_text())
    for epoch in summary["history"]:
        for part in ("loss", "classification", "policy", "baseline", "reward", "log_probability", "entropy"):
            assert np.isfinite(epoch[f"train/{part}"]) and np.isfinite(epoch[f"selection/{part}"])
        assert 0 <= epoch["train/reward"] <= 1
        assert epoch["train/entropy"] == pytest.approx(1 + np.log(2 * np.pi * 0.11**2), abs=1e-4)
        assert epoch["selection/policy"] == epoch["selection/entropy"] == 0  # nothing is drawn
    assert {"region_area", "redundancy", "region_spread"} <= summary["test"].keys()
    assert "anchor_distance" not in summary["test"]
    assert np.load(folder / "scores.npz")["test_regions"].shape == (8, 6, 4)
    assert list((folder / "pictures").glob("*.jpg"))


def test_rarl_ends_alike_twice(reinforced, pictures, tmp_path):
    again = train_in_folder(at(pictures, 64, *RARL), tmp_path / "again", tmp_path / "cache")
    first = json.loads((reinforced[64] / "metrics.json").read_text())
    timed = "train/images_per_second"
    assert [e | {timed: 0} for e in first["history"]] == [e | {timed: 0} for e in again["history"]]


@pytest.mark.parametrize("classifier", ["network", "svm"])
def test_rarl_has_ten_views_and_two_scales(reinforced, pictures, tmp_path, classifier):
    rule = *RARL, "evaluation.views=ten", f"evaluation.classifier={classifier}", "evaluation.svm_c=[1]"
    both = finish(runs(reinforced, pictures, tmp_path, *rule, sizes=(64, 96)))
    each = [finish(runs(reinforced, pictures, tmp_path, *rule, sizes=(size,))) for size in (64, 96)]
    wanted = np.mean([one.scores["test"].scores for one in each], axis=0)
    np.testing.assert_allclose(both.scores["test"].scores, wanted, atol=1e-5)
    assert both.scores["test"].regions.shape == (8, 6, 4)


def test_rarl_starts_from_stage_1_and_says_where_its_labels_come_from(pictures, tmp_path):
    from ram_tune.training.trained import Trained

    more = *RARL, "stage1.epochs=1", "model.reinforced.rollouts=2"
    train_in_folder(at(pictures, 64, *more), tmp_path / "run", tmp_path / "cache")
    trained = Trained.load(tmp_path / "run")
    (found,) = trained.predict([Image.open(pictures.parent / "30.png")])
    assert found.steps == 2 and found.boxes.shape == (6, 4)
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    np.testing.assert_allclose(centres[:3], centres[:1].repeat(3, axis=0), atol=1e-6)
    assert set(trained.labels(found)[0]) == {"label", "probability", "score", "region", "box"}
