"""The options every command line has in common, under the same names, and the places they name."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ram_tune.errors import BadInput
from ram_tune.presets import PRESETS


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """--data, --data-root, --set, --cache-dir."""
    names = ", ".join(f"{name} (default)" if name == "scenes" else name for name in sorted(PRESETS))
    parser.add_argument(
        "--data", metavar="NAME|FILE", help=f"{names}, or the path of a CSV or COCO JSON with one's own images"
    )
    parser.add_argument("--data-root", default="", metavar="DIR", help="the dataset's folder (default: the file's own)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="set fields, such as data.limit=600 model.regions=3",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="scenes, resized images and feature maps (default: $RAM_TUNE_CACHE, else ~/.cache/ram_tune)",
    )


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
