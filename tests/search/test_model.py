"""A trained model in MLflow: what is logged, that it can be loaded without the run, and says the same."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from forest import write_forest
from PIL import Image

from ram_tune.errors import BadInput
from ram_tune.models.network import build
from ram_tune.presets import configure, parse_set
from ram_tune.search.model import answers, card, log_model, read, register, required, write
from ram_tune.training.local import train_in_folder
from ram_tune.training.trained import Trained

CARD = "# The best model\n\nTrained on pictures, mAP 0.5 on test; ImageNet weights from torchvision."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def run(pictures, tiny, folders):
    """A trained run's folder, trained once."""
    quick = ["training.epochs=1", "stage1.epochs=1", "execution.pictures=0", "training.precision=fp32"]
    if not (folders / "run").exists():
        train_in_folder(
            configure(str(pictures), overrides=parse_set([*tiny, *quick])), folders / "run", folders / "cache"
        )
    return folders / "run"


@pytest.fixture
def logged(run, folders):
    """(client, run id, model URI) of a registered model in a store that is not the process's own."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{folders / 'mlflow.db'}"
    client = MlflowClient(uri)
    if not (folders / "uri").exists():
        experiment = client.create_experiment("e", artifact_location=(folders / "artifacts").as_uri())
        run_id = client.create_run(experiment).info.run_id
        model = log_model(uri, run_id, run, "constraints", CARD)
        assert register(uri, model, "constraints", CARD, {"arm": "A+S+P"}) == "1"
        (folders / "uri").write_text(f"{run_id} {model}")
    return client, *(folders / "uri").read_text().split()


def artifacts(client, uri):
    location = client.get_logged_model(uri.removeprefix("models:/")).artifact_location
    return Path(location.removeprefix("file://"))


def png(size, colour):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


IMAGES = [png((40, 30), "red"), png((1, 1), "blue"), png((200, 300), "green")]


def said_by(trained, images):
    return answers(trained, [Image.open(io.BytesIO(image)).convert("RGB") for image in images])


def close(one, other):
    """Two answers, up to rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == pytest.approx(other, abs=2e-5) if isinstance(one, float) else one == other


@pytest.mark.parametrize("weights", ["/gone/weights.pth", "/gone/weights", "IMAGENET1K_V1", "none"])
def test_a_model_is_read_without_the_weights_its_backbone_started_from(tmp_path, weights):
    name, layer = "model.backbone.name=shufflenet_v2_x0_5", "model.backbone.layer=stage2"
    small = name, layer, "model.projection_size=8", "model.hidden_size=8", "model.feature_size=8"
    config = configure("voc2007", overrides=parse_set([*small, f"model.backbone.weights={weights}"]))
    state = build(config, 2, pretrained=False).state_dict()
    write(Trained.of(config, ["a", "b"], state, None, "cpu", "here"), tmp_path / "model")
    assert "gone" not in (tmp_path / "model" / "config.json").read_text()
    again = read(tmp_path / "model", "cpu")
    assert again.network.state_dict().keys() == state.keys()


def test_plain_files_hold_the_whole_model(run, tmp_path):
    trained = Trained.load(run)
    write(trained, tmp_path / "content")
    names = {"weights.safetensors", "config.json", "categories.json", "calibration.json"}
    assert {file.name for file in (tmp_path / "content").iterdir()} == names
    again = read(tmp_path / "content", "cpu")
    assert again.categories == trained.categories
    assert said_by(again, IMAGES) == said_by(trained, IMAGES)
    assert str(run.parent) not in (tmp_path / "content" / "config.json").read_text()  # nor any other place
    (tmp_path / "content" / "calibration.json").unlink()
    assert not read(tmp_path / "content").has_probabilities


def test_a_model_of_proposals_takes_its_edge_model_along(pictures, tiny, tmp_path):
    pytest.importorskip("cv2.ximgproc")
    forest = write_forest(tmp_path / "model.yml")
    fields = ["model.name=proposals", "stage1.epochs=0", "training.epochs=1", "training.precision=fp32"]
    fields += [f"model.proposals.edge_model={forest}", "model.proposals.min_area=60"]
    train_in_folder(
        configure(str(pictures), overrides=parse_set([*tiny, *fields])), tmp_path / "run", tmp_path / "cache"
    )
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["edges"] == "structured forest"
    assert "2 regions (edges: structured forest)" in card(tmp_path / "run", "proposals")
    trained = Trained.load(tmp_path / "run", "cpu")
    said = said_by(trained, IMAGES)
    write(trained, tmp_path / "content")
    assert str(tmp_path) not in (tmp_path / "content" / "config.json").read_text()
    assert any("opencv-contrib" in name for name in required(trained.config))
    forest.unlink()
    assert said_by(read(tmp_path / "content", "cpu"), IMAGES) == said
    with pytest.raises(BadInput, match=r"model\.proposals\.edge_model: found no file"):
        said_by(trained, IMAGES)


def test_the_card_says_data_splits_metrics_and_weights(run, tmp_path):
    text = card(run, "constraints")
    final = json.loads((run / "metrics.json").read_text())
    for words in (
        "# constraints",
        "pictures (fingerprint",
        "train: 20 images",
        "selection: 8 images",
        "test: 8 images",
        "backbone small from none, then 1 epochs of stage 1; epoch 1 of 1",
        f"| {final['test']['mAP']:.4f} |",
        final["fingerprint"],
    ):
        assert words in text, words
    assert str(run.parent) not in text
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(BadInput, match="unfinished"):
        card(tmp_path, "constraints")


def test_what_is_logged(logged, run):
    client, run_id, uri = logged
    folder = artifacts(client, uri)
    assert (folder / "README.md").read_text() == CARD
    content = folder / "artifacts" / "content"
    assert {file.name for file in content.iterdir()} >= {"weights.safetensors", "config.json", "categories.json"}
    assert not [file for file in folder.rglob("*") if file.suffix in (".pkl", ".pt", ".pyc")]
    described = yaml.safe_load((folder / "MLmodel").read_text())
    assert json.loads(described["signature"]["inputs"]) == [{"name": "image", "type": "binary", "required": True}]
    assert {column["name"] for column in json.loads(described["signature"]["outputs"])} == {"size", "labels"}
    assert (folder / "input_example.json").is_file()
    requirements = (folder / "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements) and not any(
        line.startswith(("ray", "optuna")) for line in requirements
    )

    (version,) = client.search_model_versions("name='constraints'")
    model = client.get_logged_model(uri.removeprefix("models:/"))
    assert (version.run_id, version.description, version.source) == (run_id, CARD, model.artifact_location)
    record = client.get_run(run_id)
    assert record.info.status == "RUNNING"  # logging neither ends nor reopens it
    assert [output.model_id for output in record.outputs.model_outputs] == [model.model_id]
    assert model.source_run_id == run_id and str(model.status) == "READY"


def test_a_second_model_is_the_next_version(logged, run, folders):
    client, run_id, _ = logged
    uri = f"sqlite:///{folders / 'mlflow.db'}"
    another = log_model(uri, run_id, run, "constraints", "another")
    assert len(client.search_model_versions("name='constraints'")) == 1  # logged, not registered
    assert register(uri, another, "constraints", "another", {"arm": "none"}) == "2"
    found = {each.version: each for each in client.search_model_versions("name='constraints'")}
    assert {version: each.tags for version, each in found.items()} == {1: {"arm": "A+S+P"}, 2: {"arm": "none"}}
    assert {each.run_id for each in found.values()} == {run_id}


def test_loaded_it_says_what_the_run_says(logged, run):
    import pandas as pd
    from mlflow import pyfunc

    client, _, uri = logged
    model = pyfunc.load_model(str(artifacts(client, uri)))
    expected = said_by(Trained.load(run, "cpu"), IMAGES)
    assert expected[0]["labels"][0]["probability"] is not None and len(expected[0]["labels"][0]["box"]) == 4
    for encoded in (IMAGES, [base64.b64encode(image).decode() for image in IMAGES]):
        assert close(model.predict(pd.DataFrame({"image": encoded})), expected)
    with pytest.raises(BadInput, match=r"image 1: found a file that is no image; expected a JPEG"):
        model.predict(pd.DataFrame({"image": [IMAGES[0], b"no image"]}))
    with pytest.raises(BadInput, match="image 0: found"):
        model.predict(pd.DataFrame({"image": ["*"]}))


def test_a_model_without_regions_or_probabilities(pictures, tiny, tmp_path):
    import pandas as pd
    from mlflow import MlflowClient, pyfunc

    fields = [*tiny, "model.name=whole_image", "training.epochs=1"]
    train_in_folder(configure(str(pictures), overrides=parse_set(fields)), tmp_path / "run", tmp_path / "cache")
    (tmp_path / "run" / "calibration.json").unlink(missing_ok=True)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(store)
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    uri = log_model(store, client.create_run(experiment).info.run_id, tmp_path / "run", "model", CARD)
    (said,) = pyfunc.load_model(str(artifacts(client, uri))).predict(pd.DataFrame({"image": IMAGES[:1]}))
    assert {(row["probability"], row["region"], row["box"]) for row in said["labels"]} == {(None, None, None)}
    assert np.isfinite([row["score"] for row in said["labels"]]).all()
