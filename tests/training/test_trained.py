"""A trained network without its dataset says what its run said: scores, regions, probabilities."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model

from ram_tune.data.images import load_image
from ram_tune.data.roles import load
from ram_tune.errors import BadInput
from ram_tune.evaluation.calibration import Platt, sigmoid
from ram_tune.models.regions import to_pixels
from ram_tune.presets import configure, parse_set
from ram_tune.training import checkpoint
from ram_tune.training.local import train_in_folder
from ram_tune.training.results import CALIBRATION
from ram_tune.training.trained import Trained

MAP = ["data.crop=map", "model.backbone.trainable=none"]


@pytest.fixture
def train(pictures, tiny, tmp_path):
    """Train a run in a second → its configuration and folder."""

    def work(*fields):
        quick = ["training.epochs=1", "stage1.epochs=1", "execution.pictures=0"]
        config = configure(str(pictures), overrides=parse_set([*tiny, *quick, *fields]))
        train_in_folder(config, tmp_path / "run", tmp_path / "cache")
        return config, tmp_path / "run"

    return work


def test_images(config, tmp_path):
    """The test images as Pillow's, in the order of scores.npz."""
    files = load(config.data, tmp_path / "cache").test.files()
    return [load_image(file, 10**6) for file in files]


test_images.__test__ = False


@pytest.mark.parametrize(
    ("name", "precision", "crop"),
    [
        ("rma", "fp32", []),
        ("rma", "fp32", ["data.crop_margin=10"]),
        ("rma", "fp32", MAP),
        ("rma", "fp32", [*MAP, "data.crop_margin=32"]),
        ("rma", "bf16", []),
        ("rma", "bf16", MAP),
        ("rarl", "fp32", []),
        ("anchors", "fp32", []),
        ("random", "fp32", []),
        ("random", "fp32", MAP),
        ("proposals", "fp32", ["model.proposals.min_area=60"]),
        ("whole_image", "fp32", []),
        ("whole_image", "bf16", MAP),
        ("csra", "fp32", []),
        ("csra", "bf16", MAP),
        ("query_decoder", "fp32", []),
        ("query_decoder", "bf16", MAP),
    ],
)
def test_scores_and_regions_are_those_of_the_run(train, tmp_path, name, crop, precision):
    config, folder = train(f"model.name={name}", f"training.precision={precision}", *crop)
    found = Trained.load(folder, "cpu").predict(test_images(config, tmp_path))
    said = np.load(folder / "scores.npz")
    tolerance = 1e-5 if precision == "fp32" else 1e-2  # a batch of another size is summed in another order
    np.testing.assert_allclose([each.scores for each in found], said["test_scores"], rtol=0, atol=tolerance)
    assert found[0].scores.dtype == np.float32
    if not config.model.region_count:
        assert all(each.region is None and each.boxes.shape == (0, 4) for each in found)
        return
    side = config.data.image_size - config.data.crop_margin
    corner = config.data.crop_margin // 2
    if "data.crop=map" in crop:  # whole cells
        corner = corner // 16 * 16
    crops = torch.tensor([[corner, corner, side, 0]]).expand(len(found), 4)
    sizes = torch.full((len(found), 2), 64)
    expected = to_pixels(torch.from_numpy(said["test_regions"]), crops, 64, sizes)
    np.testing.assert_allclose([each.boxes for each in found], expected, rtol=0, atol=64 * tolerance)


@pytest.mark.parametrize("crop", [[], MAP])
@pytest.mark.parametrize("fields", [["loss.classification=bce"], ["evaluation.normalize=off"]])
def test_other_losses_and_raw_scores(train, tmp_path, crop, fields):
    config, folder = train("training.precision=fp32", *crop, *fields)
    found = Trained.load(folder).predict(test_images(config, tmp_path))
    said = np.load(folder / "scores.npz")["test_scores"]
    np.testing.assert_allclose([each.scores for each in found], said, rtol=0, atol=1e-5)
    if fields[0].endswith("bce"):
        for each in found:
            np.testing.assert_allclose(each.probabilities, sigmoid(each.scores))


def test_a_label_comes_from_the_region_that_scored_it_highest(train, tmp_path):
    config, folder = train("training.precision=fp32", "model.regions=4")
    trained = Trained.load(folder)
    images = test_images(config, tmp_path)
    N, corner = 64, 8
    for image, found in zip(images, trained.predict(images), strict=True):
        pixels = torch.from_numpy(np.asarray(image.resize((N, N), Image.Resampling.BILINEAR)).copy())
        with torch.no_grad():
            said = trained.network(pixels[None, corner : N - corner, corner : N - corner])
        assert found.region.tolist() == said.region_scores[0].argmax(0).tolist()
    rows = trained.labels(found)
    assert [row["label"] for row in rows] == [trained.categories[i] for i in np.argsort(-found.likely)]
    for row in rows:
        label = trained.categories.index(row["label"])
        assert row["region"] == found.region[label] + 1
        assert row["box"] == pytest.approx(found.boxes[found.region[label]], abs=0.051)
        assert row["score"] == pytest.approx(found.scores[label], abs=1e-6)


def test_boxes_are_in_pixels_of_each_original(train, tmp_path):
    _, folder = train("training.precision=fp32", "model.localization_init=identity", "training.learning_rate=1e-12")
    images = [Image.new("RGB", size, "red") for size in [(1, 1), (640, 64), (3, 1000)]]
    for image, found in zip(images, Trained.load(folder).predict(images), strict=True):
        assert found.size == image.size
        width, height = image.size  # the crop is 8 to 56 of 64 pixels
        np.testing.assert_allclose(
            found.boxes[0], np.array([width, height] * 2) * [1 / 8, 1 / 8, 7 / 8, 7 / 8], rtol=1e-5
        )


def test_any_mode_and_any_number_of_images(train):
    _, folder = train()
    trained = Trained.load(folder)
    assert trained.predict([]) == []
    assert len(trained.predict([Image.new(mode, (5, 4)) for mode in ("L", "RGBA", "P", "CMYK", "I;16", "1")])) == 6
    assert len(trained.predict([Image.new("RGB", (8, 8))] * 70)) == 70


def test_probabilities_need_a_calibration(train, tmp_path):
    config, folder = train()
    (folder / CALIBRATION).unlink(missing_ok=True)
    image = test_images(config, tmp_path)[:1]
    (raw,) = Trained.load(folder).predict(image)
    assert raw.probabilities is None
    assert not Trained.load(folder).has_probabilities
    rows = Trained.load(folder).labels(raw, top=2, threshold=0.9)
    assert len(rows) == 2 and {row["probability"] for row in rows} == {None}

    platt = Platt(np.array([1.0, 2.0, -0.5]), np.array([0.5, 0.0, -9.0]))
    text = json.dumps({"slope": platt.slope.tolist(), "intercept": platt.intercept.tolist()})
    for place in (folder, folder / "checkpoint"):
        (place / CALIBRATION).write_text(text)
        for path in (folder, folder / "checkpoint", folder / "checkpoint" / "best.pt"):
            trained = Trained.load(path)
            (found,) = trained.predict(image)
            np.testing.assert_allclose(found.probabilities, platt(raw.scores))
        (place / CALIBRATION).unlink()
    order = [trained.categories[label] for label in np.argsort(-found.probabilities)]
    assert [row["label"] for row in trained.labels(found)] == order
    limit = float(np.sort(found.probabilities)[1])
    assert [row["label"] for row in trained.labels(found, threshold=limit)] == order[:2]
    assert [row["label"] for row in trained.labels(found, top=1)] == order[:1]
    assert trained.labels(found, threshold=1.0) == []


@pytest.mark.parametrize("how", ["evaluation.views=ten", "evaluation.classifier=svm"])
def test_a_model_used_alone_has_the_calibration_of_what_it_then_sees(train, tmp_path, how):
    config, folder = train("training.precision=fp32")
    image = test_images(config, tmp_path)[:1]
    (wanted,) = Trained.load(folder).predict(image)
    shutil.rmtree(folder)
    train("training.precision=fp32", how)  # the same network, judged in another way
    (found,) = Trained.load(folder).predict(image)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"slope": [1, 1], "intercept": [1, 1]}', '{"slope": [1,1,NaN], "intercept": [1,1,1]}']
)
def test_a_damaged_calibration(train, text):
    _, folder = train()
    (folder / CALIBRATION).write_text(text)
    with pytest.raises(BadInput, match=r"calibration\.json: found a damaged file.*3 numbers each"):
        Trained.load(folder)


def test_neither_dataset_nor_backbone_weights_are_needed(train, tmp_path):
    state = tmp_path / "weights.pt"
    torch.save(get_model("shufflenet_v2_x0_5", weights=None).state_dict(), state)
    backbone = [
        "model.backbone.name=shufflenet_v2_x0_5",
        "model.backbone.layer=stage3",
        f"model.backbone.weights={state}",
    ]
    config, folder = train(*backbone, "training.precision=fp32")
    images = test_images(config, tmp_path)
    said = np.load(folder / "scores.npz")["test_scores"]
    state.unlink()
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    shutil.rmtree(folder)
    np.testing.assert_allclose([each.scores for each in Trained.load(moved).predict(images)], said, atol=1e-5)


def test_what_cannot_be_loaded(train, tmp_path):
    config, folder = train()
    best = folder / "checkpoint" / "best.pt"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadInput, match=r"without best\.pt or checkpoint/best\.pt"):
        Trained.load(empty)
    with pytest.raises(BadInput, match="no such file"):
        Trained.load(tmp_path / "gone.pt")
    (empty / "best.pt").write_bytes(best.read_bytes()[:1000])
    with pytest.raises(BadInput, match="no checkpoint"):
        Trained.load(empty)
    with pytest.raises(BadInput, match="'abacus'"):
        Trained.load(folder, "abacus")
    content = checkpoint.load(best)
    checkpoint.save(empty / "best.pt", {"network": content["network"], "epoch": 1}, config, "f")
    with pytest.raises(BadInput, match=r"a training under way.*Name its best\.pt"):
        Trained.load(empty)
    del content["network"]["head.localization.bias"]
    checkpoint.save(empty / "best.pt", content, config, "f")
    with pytest.raises(BadInput, match="localization"):
        Trained.load(empty / "best.pt")
