"""`python -m ram_tune.predict`: the labels of any image, and the region each of them comes from."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ram_tune.errors import BadInput, NotEnoughMemoryError, command_line, nearest
from ram_tune.options import make_folder

if TYPE_CHECKING:  # torch and Pillow are imported only once the options are right
    from PIL import Image

    from ram_tune.training.trained import Found, Trained

EXAMPLES = """\
examples:
  python -m ram_tune.predict cat.jpg --run ram_tune_runs/FOLDER
  python -m ram_tune.predict photos --run ram_tune_runs/FOLDER --save-pictures drawn      a folder, and its pictures
  python -m ram_tune.predict 'photos/**/*.png' --run best.pt --top 1 --threshold 0        the likeliest label of each
  python -m ram_tune.predict photos --run 0123456789abcdef0123456789abcdef --json > found.jsonl    a run in MLflow

A box is x1 y1 x2 y2 in pixels of the image; it may reach beyond the image, as regions do.
exit code: 0 all is well, 1 an image was broken or the model could not be run, 2 the options cannot be used"""

SUFFIXES = ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"
"""What is taken for an image in folders and patterns; a file that is named is read whatever it is called."""

AT_ONCE = 16
"""Images in memory at a time."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ram_tune.predict",
        description="Say the labels of images, how probable they are, and the region each was found in.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "image", nargs="+", metavar="IMAGE", help="a file, a folder with all that is below it, or a pattern"
    )
    parser.add_argument(
        "--run",
        required=True,
        help="the trained model: a run's folder, its best.pt, its id in MLflow, or a registered model such as "
        "constraints-scenes@best ($MLFLOW_TRACKING_URI, else mlflow.db in this folder)",
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="at most so many labels of an image (default: 5)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="P", help="none that is less probable (default: 0.5)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line for each image")
    parser.add_argument("--save-pictures", type=Path, metavar="DIR", help="draw the regions, a JPEG of each image")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default: auto)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code; raises BadInput (code 2)."""
    options = parse(arguments)
    if options.top < 1:
        raise BadInput("--top", found=options.top, expected="1 or more")
    if not 0 <= options.threshold <= 1:
        raise BadInput("--threshold", found=options.threshold, expected="a probability, from 0 to 1")
    try:
        files, base = find_images(options.image, options.save_pictures)
    except OSError as error:  # a name too long, a folder without permission
        found = f"{error.filename} ({error.strerror})"
        raise BadInput("IMAGE", found=found, expected="files and folders that can be read") from error
    names = (
        picture_names(files, base, make_folder(options.save_pictures, "--save-pictures"))
        if options.save_pictures
        else {}
    )

    from ram_tune.search.model import find_run
    from ram_tune.training.judging import NotFiniteError
    from ram_tune.training.memory import telling_what_does_not_fit
    from ram_tune.training.trained import Trained

    trained = Trained.load(find_run(options.run), options.device)
    if not trained.has_probabilities:
        said = "scores are no probabilities; labels are ranked by score, --threshold does not apply"
        print(f"no calibration with the weights: {said}", file=sys.stderr)
    try:
        with telling_what_does_not_fit(trained.config):
            broken = _say_all(trained, files, names, options)
    except (NotFiniteError, NotEnoughMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if broken:
        print(f"{broken} of {len(files)} images could not be read", file=sys.stderr)
    return 1 if broken else 0


def _say_all(trained: Trained, files: Sequence[Path], names: dict[Path, Path], options: argparse.Namespace) -> int:
    """Print what is found in each file, and write its picture where it has a name → how many could not be read."""
    from ram_tune.training.results import write

    broken = 0
    for start in range(0, len(files), AT_ONCE):
        some = files[start : start + AT_ONCE]
        images = dict(_readable(some, trained.config.data.max_image_pixels))
        broken += len(some) - len(images)
        for (file, image), found in zip(images.items(), trained.predict(list(images.values())), strict=True):
            rows = trained.labels(found, options.top, options.threshold)
            if file in names:
                write(names[file], _drawn(image, found, rows))
            text = _json(file, found, rows, names.get(file)) if options.json else _lines(file, found, rows, trained)
            # A name that is no UTF-8 would end it all; stderr escapes such letters by itself.
            print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
    return broken


def find_images(names: Sequence[str], pictures: Path | None = None) -> tuple[list[Path], Path]:
    """The images that files, folders and patterns name, each once, and the folder that all of it lies in.

    A folder's own subfolder `pictures`, in which an earlier call left its pictures, is passed over. Raises BadInput.
    """
    files: dict[Path, Path] = {}
    places: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            found, place = [file for file in _below(path) if not _is_picture(file, path, pictures)], path
        elif path.exists():
            found, place = [path], path.parent
        elif glob.has_magic(name):
            matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute patterns)
            found = [file for file in map(Path, sorted(matches)) if _is_image(file)]
            place = Path(os.path.commonpath([file.parent for file in found])) if found else path
        else:
            near = nearest(path.name, (other.name for other in path.parent.iterdir())) if path.parent.is_dir() else ""
            raise BadInput("IMAGE", found=f"no file {path}", expected="an image, a folder or a pattern", remedy=near)
        if not found:
            raise BadInput("IMAGE", found=f"no image in {name}", expected=f"files such as *{', *'.join(SUFFIXES)}")
        for file in found:
            files.setdefault(_absolute(file), file)
        places.append(_absolute(place))
    return list(files.values()), Path(os.path.commonpath(places))


def picture_names(files: Sequence[Path], base: Path, folder: Path) -> dict[Path, Path]:
    """The picture of each image: in `folder` as the image is in `base`; no two are the same, and none is an image."""
    names: dict[Path, Path] = {}
    taken = {file.resolve() for file in files}
    for file in files:
        stem = (folder / _absolute(file).relative_to(base)).with_suffix("")
        name, number = stem.with_name(f"{stem.name}.jpg"), 1
        while name.resolve() in taken:
            number += 1
            name = stem.with_name(f"{stem.name}-{number}.jpg")
        taken.add(name.resolve())
        names[file] = name
    return names


def _absolute(path: Path) -> Path:
    """From the root and without `..`; unlike `resolve`, a link stays where it is."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if _is_image(file))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _is_picture(file: Path, folder: Path, pictures: Path | None) -> bool:
    """Whether it lies in `pictures`, and that is a subfolder of `folder`."""
    if (
        pictures is None
        or not pictures.resolve().is_relative_to(folder.resolve())
        or pictures.resolve() == folder.resolve()
    ):
        return False
    return file.resolve().is_relative_to(pictures.resolve())


def _readable(files: Sequence[Path], max_pixels: int) -> Iterator[tuple[Path, Image.Image]]:
    """Those that can be read; of the others a line says why."""
    from ram_tune.data.images import load_image

    for file in files:
        try:
            yield file, load_image(file, max_pixels)
        except BadInput as error:
            print(f"{error.where}: found {error.found}; expected {error.expected}", file=sys.stderr)


def _lines(file: Path, found: Found, rows: list[dict[str, Any]], trained: Trained) -> str:
    """`image: label probability region box`, a line for each label."""
    width = max(map(len, trained.categories))
    if not rows:
        (likeliest,) = trained.labels(found, top=1)
        return f"{file}: no label that probable (the likeliest: {_label(likeliest)})"
    return "\n".join(f"{file}: {_label(row, width)}{_place(row)}" for row in rows)


def _label(row: dict[str, Any], width: int = 0) -> str:
    value = row["score"] if row["probability"] is None else row["probability"]
    return f"{row['label']:<{width}}  {'score ' if row['probability'] is None else ''}{value:.3f}".strip()


def _place(row: dict[str, Any]) -> str:
    return f"  region {row['region']}  box {' '.join(str(round(edge)) for edge in row['box'])}" if row["box"] else ""


def _json(file: Path, found: Found, rows: list[dict[str, Any]], picture: Path | None) -> str:
    content = {"path": str(file), "size": list(found.size), "labels": rows}
    return json.dumps(content | ({"picture": str(picture)} if picture else {}))


def _drawn(image: Image.Image, found: Found, rows: list[dict[str, Any]]) -> bytes:
    """The image as JPEG with all its regions, each with the labels that come from it."""
    from ram_tune.evaluation.pictures import draw, encode

    regions = range(1, len(found.boxes) + 1)
    texts = [", ".join(_label(row) for row in rows if row["region"] == region) for region in regions]
    # With many regions round each place, only those from which a label comes have room for a number.
    tags = [
        f"{region} {text}".strip() * bool(text or not found.steps) for region, text in zip(regions, texts, strict=True)
    ]
    return encode(draw(image, found.boxes, tags, ", ".join(_label(row) for row in rows), steps=found.steps))


if __name__ == "__main__":
    command_line(main)
