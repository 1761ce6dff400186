"""MS-COCO's JSON, and one's own images written down the same way, through pycocotools."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np

from ram_tune.data.annotations import Annotations, Boxes, folder, inside
from ram_tune.errors import BadInput, nearest

Json = dict[str, Any]

ID = (int, str)
REQUIRED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": ID, "file_name": str},
    "categories": {"id": int, "name": str},
    "annotations": {"id": ID, "image_id": ID, "category_id": int},
}
"""Section → key → type: all that is needed of COCO's format; other keys are ignored."""


def read(root: Path, split: str) -> Annotations:
    """Images, labels and boxes of annotations/instances_{split}.json below `root`; images in {split} or images/{split}.

    Objects marked `iscrowd` count as labels (METHOD 7). Raises BadInput.
    """
    folder(root, "--data-root", "Name the folder that holds `annotations` and the image folders.")
    file = root / "annotations" / f"instances_{split}.json"
    if not file.is_file():
        there = sorted(path.stem.removeprefix("instances_") for path in file.parent.glob("instances_*.json"))
        raise BadInput(
            file,
            found=f"no split {split!r}",
            expected=f"one of {', '.join(there)}" if there else "COCO's annotations folder in --data-root",
            remedy=f"{nearest(split, there)} Set data.train_split, data.selection_split or data.test_split.".strip(),
        )
    places = (split, f"images/{split}")
    for place in places:
        if (root / place).is_dir():
            return _annotations(file, root, f"{place}/")
    raise BadInput(
        root, found=f"no images of {split}", expected=f"the folder {' or '.join(places)}", remedy="Unpack the images."
    )


def read_file(file: Path, root: Path) -> Annotations:
    """Images, labels and boxes of one's own JSON, its `file_name`s relative to `root`. Raises BadInput."""
    folder(root, "--data-root", "Name the folder that the file names in the JSON are relative to.")
    return _annotations(file, root, "")


def _annotations(file: Path, root: Path, prefix: str) -> Annotations:
    coco = _indexed(_validated(file))
    row = {image: index for index, image in enumerate(coco.imgs)}
    column = {category: index for index, category in enumerate(sorted(coco.cats))}
    targets = np.zeros((len(row), len(column)), bool)
    for category, images in coco.catToImgs.items():
        targets[[row[image] for image in images], column[category]] = True
    names = enumerate(image["file_name"] for image in coco.dataset["images"])
    paths = tuple(prefix + inside(name, f"{file}: images[{index}].file_name") for index, name in names)
    _once(paths, f"{file}: images.file_name")
    return Annotations(
        root=root,
        categories=tuple(coco.cats[category]["name"] for category in column),
        ids=tuple(str(image) for image in row),
        paths=paths,
        targets=targets,
        difficult=np.zeros_like(targets),
        boxes=_boxes(coco.dataset["annotations"], row, column, file),
    )


def _indexed(document: Json) -> Any:
    """`document` in pycocotools' index: imgs, cats, catToImgs; where it is not installed, in one of the same shape."""
    try:
        from pycocotools.coco import COCO
    except ImportError:
        images = {image["id"]: image for image in document["images"]}
        categories = {category["id"]: category for category in document["categories"]}
        holding: dict[int, list[int | str]] = {}
        for annotation in document["annotations"]:
            holding.setdefault(annotation["category_id"], []).append(annotation["image_id"])
        return SimpleNamespace(dataset=document, imgs=images, cats=categories, catToImgs=holding)
    coco: Any = COCO()
    coco.dataset = document
    with redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
    return coco


def _boxes(annotations: list[Json], row: dict[int | str, int], column: dict[int, int], file: Path) -> Boxes | None:
    """All boxes, from (x, y, width, height) to corners; None where no annotation has one."""
    rows = []
    for index, annotation in enumerate(annotations):
        if not (box := annotation.get("bbox")):
            continue
        try:
            x, y, width, height = (float(value) for value in box)
            if isinstance(box, str) or width < 0 or height < 0 or not math.isfinite(x + y + width + height):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise BadInput(
                f"{file}: annotations[{index}].bbox",
                found=_short(box),
                expected="[x, y, width, height] in pixels, width and height not negative",
            ) from None
        corners = x, y, x + width, y + height
        rows.append((corners, row[annotation["image_id"]], column[annotation["category_id"]], False))
    return Boxes.of(rows) if rows else None


def _validated(file: Path) -> Json:
    """The file as a dictionary whose three sections are lists of objects that hold and refer to what they must."""
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise BadInput(file, found=error.strerror, expected="a COCO JSON file", remedy="Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            file,
            found=f"what is not JSON, or not all of it ({error})",
            expected="a COCO JSON file",
            remedy="Download or write the file again.",
        ) from error
    if not isinstance(document, dict):
        found = f"a JSON {type(document).__name__}"
        raise BadInput(file, found=found, expected=f"an object with {', '.join(REQUIRED)}")
    for section, keys in REQUIRED.items():
        if not isinstance(document.get(section), list):
            raise BadInput(
                f"{file}: {section}",
                found=_short(document[section]) if section in document else "no such key",
                expected="a list, as in COCO's instances_*.json",
                remedy=nearest(section, document),
            )
        for index, entry in enumerate(document[section]):
            for key, kind in keys.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                    _wrong_entry(entry, key, kind, f"{file}: {section}[{index}]")
    for section in ("images", "categories"):
        if not document[section]:
            raise BadInput(f"{file}: {section}", found="an empty list", expected=f"at least one of the {section}")
        _once((str(entry["id"]) for entry in document[section]), f"{file}: {section}.id")
    _once((category["name"] for category in document["categories"]), f"{file}: categories.name")
    for key, section in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in document[section]}
        for index, annotation in enumerate(document["annotations"]):
            if annotation[key] not in known:
                raise BadInput(
                    f"{file}: annotations[{index}].{key}",
                    found=f"{annotation[key]!r}, which no entry of {section} has as its id",
                    expected=f"the id of one of the {section}",
                    remedy=f"Add it to {section}, or remove the annotation.",
                )
    return document


def _wrong_entry(entry: object, key: str, kind: type | tuple[type, ...], where: str) -> NoReturn:
    if not isinstance(entry, dict):
        raise BadInput(where, found=_short(entry), expected="an object")
    names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
    raise BadInput(f"{where}.{key}", found=_short(entry[key]) if key in entry else "no such key", expected=names)


def _once(values: Iterable[str], where: str) -> None:
    value, times = max(Counter(values).items(), key=lambda item: item[1])
    if times > 1:
        raise BadInput(where, found=f"{value!r} {times} times", expected="each once", remedy="Remove the others.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
