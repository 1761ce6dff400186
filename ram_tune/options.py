"""The options every command line has in common, under the same names, and the places they name."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from pathlib import Path

from ram_tune.errors import BadInput
from ram_tune.presets import PRESETS

DATABASES = "sqlite:", "postgresql", "mysql", "mssql"


def add_data_options(parser: argparse._ActionsContainer) -> None:
    """--data, --data-root, --set, --cache-dir."""
    names = ", ".join(f"{name} (default)" if name == "scenes" else name for name in sorted(PRESETS))
    parser.add_argument(
        "--data", metavar="NAME|FILE", help=f"{names}, or the path or URL of a CSV or COCO JSON with one's own images"
    )
    parser.add_argument(
        "--data-root",
        default="",
        metavar="DIR|URL",
        help="the dataset's folder (default: the file's own), or a URL such as s3://BUCKET/FOLDER: see the README",
    )
    add_set_option(parser)
    add_cache_option(parser)


def add_set_option(parser: argparse._ActionsContainer) -> None:
    """--set."""
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="set fields, such as data.limit=600 model.regions=3",
    )


def add_cache_option(parser: argparse._ActionsContainer) -> None:
    """--cache-dir."""
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="scenes, resized images and feature maps (default: $RAM_TUNE_CACHE, else ~/.cache/ram_tune)",
    )


def add_search_places(parser: argparse._ActionsContainer) -> None:
    """--results, --study-storage, --tracking-uri; --cache-dir is a data option."""
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="checkpoints, logs, and what MLflow has not heard yet (default: $RAM_TUNE_RESULTS, else ram_tune_runs)",
    )
    parser.add_argument(
        "--study-storage",
        default="",
        metavar="URL",
        help="Optuna's database (default: $RAM_TUNE_STUDY_STORAGE, else studies.db in --results)",
    )
    parser.add_argument(
        "--tracking-uri",
        default="",
        metavar="URI",
        help="MLflow's server or database (default: $MLFLOW_TRACKING_URI, else MLflow's own, mlflow.db in this folder)",
    )


def study_storage(option: str, results: Path) -> str:
    """The URL of Optuna's database: --study-storage, else $RAM_TUNE_STUDY_STORAGE, else SQLite in `results`."""
    return option or os.environ.get("RAM_TUNE_STUDY_STORAGE") or f"sqlite:///{results / 'studies.db'}"


def tracking_uri(option: str) -> str:
    """Where MLflow keeps the record: --tracking-uri, else $MLFLOW_TRACKING_URI, else MLflow's default, made absolute.

    Raises BadInput for a store that MLflow no longer writes.
    """
    uri = option or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.partition("://")[0] not in ("http", "https", "databricks") and not uri.startswith(DATABASES):
        raise BadInput(
            "--tracking-uri",
            found=repr(uri),
            expected="an http(s) address or a database",
            remedy="Such as http://127.0.0.1:5000 or sqlite:///mlflow.db; plain folders are no longer written by MLflow.",
        )
    head, file = uri[: len("sqlite:///")], uri[len("sqlite:///") :]
    if head != "sqlite:///":
        return uri
    path = make_folder(Path(file).absolute().parent, "--tracking-uri") / Path(file).name
    if path.exists() and not os.access(path, os.W_OK):
        raise BadInput("--tracking-uri", found=f"{path} (not writable)", expected="a database that can be written")
    return head + str(path)


def cache_dir(option: Path | None) -> Path:
    """The folder for caches: --cache-dir, else $RAM_TUNE_CACHE, else ~/.cache/ram_tune; made if it is not there."""
    place = option or Path(os.environ.get("RAM_TUNE_CACHE") or Path.home() / ".cache" / "ram_tune")
    return make_folder(place.expanduser().absolute(), "--cache-dir")


def results_dir(option: Path | None) -> Path:
    """The folder for what runs leave: --results, else $RAM_TUNE_RESULTS, else ram_tune_runs here; made likewise."""
    place = option or Path(os.environ.get("RAM_TUNE_RESULTS") or "ram_tune_runs")
    return make_folder(place.expanduser().absolute(), "--results")


def make_folder(path: Path, option: str) -> Path:
    """Create `path`. Raises BadInput naming the option it comes from when it cannot be written."""
    remedy = "Name another one."
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"{path} ({error.strerror})"
        raise BadInput(option, found=found, expected="a folder that can be written", remedy=remedy) from error
    if not os.access(path, os.W_OK):
        found = f"{path} (not writable)"
        raise BadInput(option, found=found, expected="a folder that can be written", remedy=remedy)
    return path


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise BadInput unless `needed` bytes, and a twentieth more, are free where `folder` is."""
    if shutil.disk_usage(folder).free < needed * 1.05:
        raise no_room(folder, needed, what)


def no_room(folder: Path, needed: int, what: str, reason: str = "") -> BadInput:
    """That `needed` bytes, and a twentieth more, are not to be had where `folder` is."""
    free = shutil.disk_usage(folder).free
    return BadInput(
        folder,
        found=f"{free / 1e9:.2f} GB free" + (f" ({reason})" if reason else ""),
        expected=f"{needed * 1.05 / 1e9:.2f} GB for {what}",
        remedy="Make room, name another disk with --cache-dir (or RAM_TUNE_CACHE), or lower data.limit.",
    )


def masked(text: str) -> str:
    """Without the names and passwords in its URIs."""
    return re.sub(r"(password=)[^&\s]+", r"\1***", re.sub(r"://[^/\s]*@", "://***@", text))
