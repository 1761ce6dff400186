"""Trained models in MLflow: found by the id of their run, and logged as a model that can be loaded and served.

What is logged is a pyfunc from code (served_model.py), with this package beside it and plain files: weights as safetensors,
the rest as JSON. Nothing in it is pickled.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ram_tune
from ram_tune.config import Config, Execution
from ram_tune.errors import BadInput
from ram_tune.options import tracking_uri
from ram_tune.presets import from_json, is_path
from ram_tune.search.sender import masked, prepare, sqlite_file

if TYPE_CHECKING:  # the command lines look a run up before they import torch
    from PIL.Image import Image

    from ram_tune.training.trained import Trained

CHECKPOINT = "ram_tune.checkpoint"
"""The tag of an MLflow run that says where its weights are."""

WEIGHTS, CONFIG, CATEGORIES, CALIBRATION = "weights.safetensors", "config.json", "categories.json", "calibration.json"
CARD = "README.md"
MODELS = "models:/"  # how the URI of a logged model begins

METRICS = "mAP", "mAP_11", "CP", "CR", "CF1", "OP", "OR", "OF1"  # in the card

# All that the served model imports, at the versions it was trained with.
REQUIREMENTS = (
    "filelock",
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "pyyaml",
    "rich",
    "safetensors",
    "torch",
    "torchvision",
)


def required(config: Config) -> list[str]:
    """The distributions that a model of `config` needs; OpenCV's has several names."""
    return [*REQUIREMENTS, *(metadata.packages_distributions()["cv2"][:1] if config.model.edges else ())]


def find_run(name: str) -> Path:
    """The folder or file that a RUN on a command line means: a path, the id of a run in MLflow, or a registered model's
    name and alias, `constraints-scenes@best`. Raises BadInput.
    """
    path, is_id = Path(name).expanduser(), re.fullmatch(r"[0-9a-f]{32}|[\w.+-]+@[\w-]+", name)
    try:
        if path.exists():
            return path
        places = {path.parent, Path(os.environ.get("RAM_TUNE_RESULTS") or "ram_tune_runs")} if not is_id else ()
        known = {each.name: each for place in places if place.is_dir() for each in place.iterdir()}
    except OSError as error:  # a name too long, a folder without permission
        found = f"{error.filename} ({error.strerror})"
        raise BadInput("RUN", found=found, expected="the folder of a run that can be read") from error
    if is_id:
        return _folder_of(name)
    near = difflib.get_close_matches(path.name, known, n=1, cutoff=0.5)
    raise BadInput(
        "RUN",
        found=f"{name}, which is not there",
        expected="the folder of a run, its best.pt, the 32 hex digits of its id in MLflow, or NAME@best",
        remedy=f"Did you mean {known[near[0]]}?" if near else "",
    )


def _folder_of(name: str) -> Path:
    uri = tracking_uri("")
    file, place = sqlite_file(uri), f"MLflow at {masked(uri)}"
    remedy = "Set MLFLOW_TRACKING_URI to where it was recorded, or name the run's folder."
    if file and not file.is_file():  # MLflow would make one
        raise BadInput(f"RUN {name}", found=f"no file {file}", expected="MLflow's record", remedy=remedy)
    prepare()
    from mlflow import MlflowClient

    try:
        client, (model, _, alias) = MlflowClient(uri), name.partition("@")
        run_id = client.get_model_version_by_alias(model, alias).run_id if alias else name
        tags = client.get_run(str(run_id)).data.tags
    except Exception as error:  # MLflow's, SQLAlchemy's, the network's
        reason = masked(str(error)).strip().partition("\n")[0]
        expected = f"a registered model in {place}" if "@" in name else f"a run in {place}"
        raise BadInput(f"RUN {name}", found=f"{reason}", expected=expected, remedy=remedy) from error
    if CHECKPOINT not in tags:
        raise BadInput(
            f"RUN {name}",
            found=f"a run without the tag {CHECKPOINT} in {place}",
            expected="a finished training run",
            remedy="A search's own run has no weights: name one of those below it.",
        )
    folder = Path(tags[CHECKPOINT])
    if not folder.exists():
        raise BadInput(
            f"RUN {name}",
            found=f"no folder {folder}",
            expected="its weights there",
            remedy="They are on another machine?",
        )
    return folder


def log_model(tracking_uri: str, run_id: str, folder: Path, name: str, card: str) -> str:
    """Log the trained model in `folder` to the MLflow run `run_id` → its URI. `card` is its README.

    Every call logs another model. Raises BadInput, and what MLflow raises.
    """
    prepare()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import pandas as pd
    from mlflow import MlflowClient, pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, infer_signature
    from PIL import Image

    from ram_tune.training.trained import Trained

    trained = Trained.load(folder, "cpu")
    client = MlflowClient(tracking_uri)
    run = client.get_run(run_id)
    image = Image.new("RGB", (32, 32), "grey")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    example = pd.DataFrame({"image": [stream.getvalue()]})
    signature = infer_signature(example, answers(trained, [image]))

    # Not mlflow.pyfunc.log_model: it reopens the run, and goes by the process's one tracking URI.
    made = client.create_logged_model(run.info.experiment_id, name, run_id, model_type="ram_tune")
    with tempfile.TemporaryDirectory(prefix="ram_tune-model-") as parent:
        content, model = Path(parent) / "content", Path(parent) / "model"
        write(trained, content)
        pyfunc.save_model(
            model,
            mlflow_model=Model(run_id=run_id, model_uuid=made.model_id, model_id=made.model_id),
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"content": str(content)},
            code_paths=[str(Path(ram_tune.__file__).parent)],
            pip_requirements=[
                f"{name}=={metadata.version(name).partition('+')[0]}" for name in required(trained.config)
            ],
            signature=signature,
            input_example=example,
        )
        (model / CARD).write_text(card, encoding="utf-8")
        client.log_model_artifacts(made.model_id, str(model))
    client.finalize_logged_model(made.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
    return f"{MODELS}{made.model_id}"


def register(tracking_uri: str, model: str, name: str, card: str, tags: Mapping[str, str]) -> str:
    """Make a logged model the next version of the registered one of that name → the version's number."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    made = client.get_logged_model(model.removeprefix(MODELS))
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    # Not by its URI: MLflow would look that up in the process's own store.
    place, run_id = made.artifact_location, made.source_run_id
    version = client.create_model_version(name, place, run_id, dict(tags), description=card, model_id=made.model_id)
    return str(version.version)


def card(folder: Path, name: str) -> str:
    """The README of the finished run in `folder`: its data, splits and metrics, and where its weights come from."""
    from ram_tune.training.results import read_config, read_summary

    config, summary = read_config(folder), read_summary(folder)
    if summary is None:
        raise BadInput(folder, found="an unfinished run", expected="a finished one", remedy="Wait for its end.")
    data, model, backbone, images = config.data, config.model, config.model.backbone, summary["images"]
    regions = f", {model.region_count} regions" if model.region_count else ""
    regions += f" (edges: {model.edges})" if model.edges else ""
    weights = f"backbone {backbone.name} from {Path(backbone.weights).name}"
    weights += f", then {config.stage1.epochs} epochs of stage 1" if config.stage1_config() else ""
    metrics = [(metric, summary["test"][metric]) for metric in METRICS]
    return f"""# {name}

Multi-label image recognition with `{model.name}`{regions}, by ram_tune {ram_tune.__version__}.

| data | {data.name} (fingerprint {summary["dataset"]}) |
|---|---|
| train | {data.train_split}: {images["train"]} images |
| selection | {data.selection_split or f"{data.selection_fraction:.0%} of train"}: {images["selection"]} images |
| test | {data.test_split}: {images["test"]} images |
| weights | {weights}; epoch {summary["best_epoch"]} of {config.training.epochs} |
| loss, seed | {config.loss.classification}, {config.training.seed} |
| fingerprint | {summary["fingerprint"]} |

On test, read once ({config.evaluation.views} view, {config.evaluation.classifier}; mAP is the area, mAP_11 the 11-point one):

| {" | ".join(metric for metric, _ in metrics)} |
|{"---|" * len(metrics)}
| {" | ".join(f"{value:.4f}" for _, value in metrics)} |

In: a column `image` of encoded images (JPEG, PNG, …; base64 in JSON). Out, for each: `size` in pixels and `labels`, likeliest
first, each with its probability, score, region and box (x1, y1, x2, y2 in pixels). The network sees the centre crop alone.
"""


def write(trained: Trained, folder: Path) -> None:
    """A `Trained` as plain files: what `read` reads."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    state = {name: tensor.cpu().contiguous() for name, tensor in trained.network.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / CONFIG).write_text(_portable(trained.config).model_dump_json(indent=1))
    (folder / CATEGORIES).write_text(json.dumps(trained.categories))
    if trained.config.model.edges and (edge_model := trained.config.model.proposals.edge_model):
        shutil.copy(edge_model, folder)
    if trained.platt:
        (folder / CALIBRATION).write_text(trained.platt.text())


def read(folder: Path, device: str = "auto") -> Trained:
    """The `Trained` in a folder that `write` wrote."""
    from safetensors.torch import load_file

    from ram_tune.evaluation.calibration import Platt
    from ram_tune.training.trained import Trained

    config = _with_edges(from_json((folder / CONFIG).read_text(), str(folder / CONFIG)), folder)
    categories = json.loads((folder / CATEGORIES).read_text())
    file = folder / CALIBRATION
    platt = Platt.read(file, len(categories)) if file.is_file() else None
    return Trained.of(config, categories, load_file(folder / WEIGHTS), platt, device, str(folder))


def answers(trained: Trained, images: Sequence[Image]) -> list[dict[str, Any]]:
    """What the served model says of each image: its `size` and all its `labels` (see `Trained.labels`), likeliest first."""
    found = trained.predict(images)
    return [{"size": list(each.size), "labels": trained.labels(each)} for each in found]


def _portable(config: Config) -> Config:
    """Without the places it knows on this machine."""
    backbone = config.model.backbone
    weights = Path(backbone.weights).name
    if is_path(backbone.weights) and not is_path(weights):  # else it would pass for one of torchvision's names
        weights = f"./{weights}"
    backbone = backbone.model_copy(update={"weights": weights})
    model = _with_edges(config, Path()).model.model_copy(update={"backbone": backbone})
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": "", "file": Path(config.data.file).name}),
            "model": model,
            "execution": Execution(),
        }
    )


def _with_edges(config: Config, folder: Path) -> Config:
    """`config` with its edge model, where it has one, in `folder`."""
    proposals = config.model.proposals
    file = proposals.edge_model and str(folder / Path(proposals.edge_model).name)
    proposals = proposals.model_copy(update={"edge_model": file})
    return config.model_copy(update={"model": config.model.model_copy(update={"proposals": proposals})})
