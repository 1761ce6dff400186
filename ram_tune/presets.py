"""From what a person writes (a preset, a YAML space, `--set a.b=c`) to one `Config`, with errors that name the field."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import yaml
from pydantic import ValidationError

from ram_tune.config import FILES, Config, fields, file_digest
from ram_tune.errors import BadInput, nearest

Fields = Mapping[str, Any]
"""Dotted field name → value."""

PRESETS: dict[str, dict[str, Any]] = {
    # The paper's own two datasets: every other field at the paper's value, which is its default.
    "voc2007": {
        "data.name": "voc2007",
        "data.format": "voc",
        "data.train_split": "trainval",
        "data.test_split": "test",
    },
    "coco2014": {
        "data.name": "coco2014",
        "data.format": "coco",
        "data.train_split": "train2014",
        "data.test_split": "val2014",
    },
    # The embedded dataset at the size of a laptop's CPU: trained from nothing, so at a higher learning rate.
    "scenes": {
        "data.name": "scenes",
        "data.format": "scenes",
        "data.train_split": "train",
        "data.selection_split": "selection",
        "data.test_split": "test",
        "data.image_size": 160,
        "data.crop_margin": 32,
        "data.mirror": False,  # some of its categories are one another's mirror images
        "model.backbone.name": "small",
        "model.backbone.weights": "none",
        "model.projection_size": 256,
        "model.hidden_size": 256,
        "model.feature_size": 256,
        "model.dropout": 0.3,
        # From the Xavier start the regions leave the image before anything is learned of it, with any of these weights.
        "model.localization_init": "centred_half",
        # Binary cross-entropy sums over labels and training is short: at the paper's weights nothing holds the regions.
        "loss.localization_weight": 1.0,
        "loss.anchor_weight": 0.3,
        # The Euclidean loss of a softmax hardly moves a network that starts from nothing.
        "loss.classification": "bce",
        "training.epochs": 12,
        "training.batch_size": 16,
        "training.learning_rate": 1e-3,
        "training.localization_lr_multiplier": 2.0,  # some hundred steps: at 1 the regions follow the images half as much
        "training.clip_norm": 1.0,  # or one of several runs breaks down on a gradient from the edge of a region
        "training.lr_steps": [9],
        "training.select_by": "mAP",  # far into training the loss grows again while the ranking improves
        "stage1.classification": "bce",
        "stage1.dropout": 0.3,
        "stage1.epochs": 24,
        "stage1.batch_size": 32,
        "stage1.learning_rate": 1e-3,
        "stage1.lr_steps": [19],
    },
}
"""What `--data NAME` sets. Expected results and cost of each are in the README."""

ANY_NAME = {"annotations", "data", "dataset", "images", "index", "instances", "labels", "metadata", "train"}
"""Names of files that do not tell one dataset from another."""

FOR_MODEL: dict[str, dict[str, dict[str, Any]]] = {
    "scenes": {
        # As stage 1, for its epochs and the twelve that the other models have after it.
        "whole_image": {"training.epochs": 36, "training.batch_size": 32, "training.lr_steps": [29]},
        "rarl": {
            # Some hundred steps are few for REINFORCE, so the reward must hang on the place. Where the whole image is
            # remembered, or another place makes up for a bad one, or a region is large, it hardly does: nothing is learned.
            "model.reinforced.remember_whole": False,
            "model.reinforced.steps": 1,
            "model.reinforced.sides": [0.2, 0.4],
            "model.reinforced.aspect_ratios": [1.0],
            "model.reinforced.sigma": 0.3,  # a draw is to reach another object
            "model.reinforced.rollouts": 8,
            "training.localization_lr_multiplier": 0.5,  # at 5 all places ran into one corner
            "loss.reinforcement_weight": 1.0,
            # Its cached maps make an epoch cheap, many of which the policy needs.
            "model.backbone.trainable": "none",
            "data.crop": "map",
        },
        # Learning rates: the best on selection of three each, half an order of magnitude apart.
        "csra": {"training.learning_rate": 3e-3},
        "query_decoder": {
            "model.query_decoder.width": 256,
            "model.query_decoder.feed_forward": 1024,
            "training.learning_rate": 3e-4,
        },
    },
}
"""Preset → model → what the preset sets in its place for that model, so that each is trained as suits it. Of `training`
only what stage 1 has of its own (epochs, learning rate, their steps, batch size) or has no part in (the multiplier of the
localisation layer): models then share one stage 1."""


def configure(data: str = "", root: str = "", *layers: Fields, overrides: Fields | None = None) -> Config:
    """Field default < preset (`data`), and what it has for the model (`FOR_MODEL`) < each of `layers` < `overrides`.

    `data` is a preset's name or the path of a CSV or COCO JSON with one's own images; `root` the dataset's folder; both
    may be URLs (see data.remote). Raises BadInput for an unknown preset, an unknown field, or a value of the wrong type.
    """
    usual: Fields = preset(data) if data else {}
    chosen: dict[str, Any] = {"data.root": root} if root else {}
    for layer in (*layers, overrides or {}):
        chosen.update(layer)
    model = str(chosen.get("model.name", Config().model.name))
    values: dict[str, Any] = {**usual, **FOR_MODEL.get(data, {}).get(model, {}), **chosen}
    return from_fields(absolute(values))


def absolute(values: Fields) -> dict[str, Any]:
    """`values`, the paths among them from the root: the same from another folder or process."""
    found = dict(values)
    for field in ("data.root", "data.file", *FILES.values()):
        value = found.get(field)
        if isinstance(value, str) and value and not is_url(value) and (field != FILES["weights"] or is_path(value)):
            found[field] = str(Path(value).expanduser().absolute())
    return found


def is_url(place: str) -> bool:
    """Whether `data.root` or `data.file` is a URL, such as s3://bucket/folder, rather than a path."""
    return bool(re.match(r"[a-z][a-z0-9+.-]*://", place))


def is_path(weights: str) -> bool:
    """Whether `model.backbone.weights` names a file rather than torchvision weights or `none`."""
    return bool(Path(weights).suffix) or "/" in weights


def weights_fingerprint(weights: str) -> dict[str, str]:
    """`{"weights": hash of the file}` where `model.backbone.weights` is a file, for `Config.fingerprint`; else nothing."""
    if not is_path(weights):
        return {}
    path = Path(weights)
    if not path.is_file():
        raise BadInput("model.backbone.weights", found=f"no file {path}", expected="a file with a state dict")
    return {"weights": file_digest(path)}


def edge_fingerprint(edge_model: str) -> dict[str, str]:
    """`{"edges": hash of the file}` where there is a `model.proposals.edge_model`; else nothing. Raises BadInput."""
    if not edge_model:
        return {}
    path = Path(edge_model)
    if not path.is_file():
        raise BadInput(
            FILES["edges"],
            found=f"no file {path}",
            expected="a structured forest (OpenCV's model.yml.gz)",
            remedy="Leave it empty to take edges from the image's gradient.",
        )
    return {"edges": file_digest(path)}


def dataset_name(data: str) -> str:
    """What `--data` is called: a preset's name, a file's, or that of the nearest folder above it (or its bucket) which does
    not suit any dataset. It need not exist.
    """
    if data in PRESETS:
        return data
    url = urlsplit(data)
    place = url.netloc + unquote(url.path) if is_url(data) else Path(data).expanduser().absolute()
    file = Path(os.path.normpath(place))
    names = [file.stem, *(folder.name for folder in file.parents)]
    return next((name for name in names if name and name.lower() not in ANY_NAME), file.stem)


def preset(name: str) -> Fields:
    """The fields that `--data name` sets: a preset, or a single file of one's own."""
    if name in PRESETS:
        return PRESETS[name]
    url = urlsplit(name) if is_url(name) else None
    path = Path(url.path) if url else Path(name).expanduser()
    formats = {".csv": "table", ".json": "coco"}
    if path.suffix.lower() in formats:
        if not url and not path.is_file():
            raise BadInput(
                f"--data {name}", found="no such file", expected="a CSV or COCO JSON file", remedy="Check the path."
            )
        return {
            "data.name": dataset_name(name),
            "data.format": formats[path.suffix.lower()],
            "data.file": name if url else str(path),
            "data.root": urlunsplit(url._replace(path=str(path.parent))) if url else str(path.parent),
            "data.train_split": "train",
            "data.test_split": "test",
        }
    raise BadInput(
        "--data",
        found=repr(name),
        expected=f"one of {', '.join(sorted(PRESETS))}, or the path or URL of a .csv or .json file",
        remedy=nearest(name, PRESETS),
    )


def parse_set(assignments: Iterable[str]) -> dict[str, Any]:
    """`a.b=c` pairs to fields; the value is read as YAML, so `1e-5`, `off`, `[30, 40]` mean what they look like."""
    values: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise BadInput("--set", found=repr(text), expected="field=value, such as training.epochs=5")
        try:
            values[name.strip()] = yaml.safe_load(value) if value.strip() else ""
        except yaml.YAMLError as error:
            raise BadInput(f"--set {name}", found=repr(value), expected="a plain value", remedy="Quote it.") from error
    known_fields(values, "--set")
    return values


def known_fields(values: Iterable[str], where: str) -> None:
    """Raise BadInput for the first name that is no field, naming the nearest one."""
    known = [name for name, _ in fields()]
    for name in values:
        if name not in known:
            last = [field for field in known if field.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
            hint = f"Did you mean {last[0]}?" if last else nearest(name, known)
            raise BadInput(
                where,
                found=f"the unknown field {name!r}",
                expected="a field of the configuration",
                remedy=f"{hint} `python -m ram_tune.train --fields` lists them all.".strip(),
            )


def from_fields(values: Fields, where: str = "configuration") -> Config:
    """A validated Config from dotted fields; what is not named is at its default."""
    known_fields(values, where)
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, where) from None
    kinds = {name: about["annotation"] for name, about in fields()}
    for name, value in values.items():
        several = value if isinstance(value, list | tuple) else [value]
        if kinds[name] is not bool and any(isinstance(one, bool) for one in several):  # to pydantic, True is 1
            raise BadInput(f"{where}: {name}", found=value, expected="a number")
    return config


def from_json(text: str, where: str) -> Config:
    """A Config as `Config.model_dump_json` wrote it, for instance inside a checkpoint."""
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        raise _explain(error, where) from None


def _explain(error: ValidationError, where: str) -> BadInput:
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"])
    more = f" ({error.error_count() - 1} more fields are wrong too.)" if error.error_count() > 1 else ""
    if problem["type"] == "value_error":  # our own validator has written the whole sentence
        return BadInput(where, found="fields that do not go together", expected="fields that do", remedy=problem["msg"])
    description = dict(fields()).get(name, {}).get("description", "")
    message = problem["msg"].removeprefix("Input should be ")
    return BadInput(
        f"{where}: {name}",
        found=repr(problem["input"]),
        expected=message[:1].lower() + message[1:],
        remedy=f"({description}){more}" if description else more.strip(),
    )
