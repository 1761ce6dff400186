"""PASCAL VOC 2007: split lists and one XML per image."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ram_tune.data.annotations import Annotations, Boxes, folder, inside
from ram_tune.errors import BadInput, nearest

CATEGORIES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The 20 classes, alphabetically, which is also VOC's own order."""

LAYOUTS = ("VOCdevkit/VOC2007", "VOC2007", ".")
"""Where VOC2007 may lie below the folder a person names."""

Corners = tuple[float, float, float, float]


def read(root: Path, split: str) -> Annotations:
    """Images, labels and boxes of one of VOC's split lists (`train`, `val`, `trainval`, `test`).

    `root` is the folder that holds VOCdevkit, VOCdevkit itself, or VOC2007 itself. A label counts as there when one
    object that is not difficult has it, and as difficult when all its objects are. Raises BadInput.
    """
    home = _home(root)
    names = _names(home, split)
    column = {category: index for index, category in enumerate(CATEGORIES)}
    seen = np.zeros((2, len(names), len(CATEGORIES)), bool)  # clear, difficult
    rows: list[tuple[Corners, int, int, bool]] = []
    for image, name in enumerate(names):
        for category, difficult, corners in _objects(home / "Annotations" / f"{name}.xml"):
            seen[int(difficult), image, column[category]] = True
            rows.append((corners, image, column[category], difficult))
    clear, hard = seen
    paths = tuple(f"JPEGImages/{name}.jpg" for name in names)
    return Annotations(home, CATEGORIES, tuple(names), paths, clear, hard & ~clear, Boxes.of(rows))


def _home(root: Path) -> Path:
    """The VOC2007 folder in or at `root`."""
    remedy = "Name the folder that holds VOCdevkit, VOCdevkit itself or VOC2007 itself."
    folder(root, "--data-root", remedy)
    for layout in LAYOUTS:
        if (root / layout / "ImageSets" / "Main").is_dir():
            return root / layout
    found = f"no VOC2007/ImageSets/Main in {root}"
    raise BadInput("--data-root", found=found, expected="PASCAL VOC 2007", remedy=remedy)


def _names(home: Path, split: str) -> list[str]:
    """The images' names in a split list, in its order."""
    lists = home / "ImageSets" / "Main"
    file = lists / f"{split}.txt"
    if not split or not file.is_file():
        # The lists per class (cat_train.txt) are not splits of their own; `train` is both a class and a split.
        per_class = tuple(f"{category}_" for category in CATEGORIES)
        there = sorted(path.stem for path in lists.glob("*.txt") if not path.stem.startswith(per_class))
        raise BadInput(
            file,
            found=f"no split {split!r}",
            expected=f"one of {', '.join(there) or 'none, the folder is empty'}",
            remedy=f"{nearest(split, there)} Set data.train_split, data.selection_split or data.test_split.".strip(),
        )
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(file, found=f"an unreadable file ({error})", expected="one image name per line") from error
    names: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not (name := line.strip()):
            continue
        if name in names:
            raise BadInput(f"{file}:{number}", found=f"{name} again (line {names[name]})", expected="each image once")
        if inside(f"Annotations/{name}.xml", f"{file}:{number}") != f"Annotations/{name}.xml":
            raise BadInput(f"{file}:{number}", found=repr(name), expected="an image's name, such as 000005")
        names[name] = number
    if not names:
        raise BadInput(file, found="an empty list", expected="one image name per line", remedy="Restore the file.")
    return list(names)


def _objects(file: Path) -> list[tuple[str, bool, Corners]]:
    """(category, difficult, corners) of each object in an image's XML."""
    found = []
    for index, node in enumerate(_parse(file).findall("object"), 1):
        where = f"{file}: object {index}"
        category = _text(node, "name", where)
        if category not in CATEGORIES:
            raise BadInput(
                f"{where}: name",
                found=f"the unknown category {category!r}",
                expected="one of VOC's 20 classes",
                remedy=nearest(category, CATEGORIES) or "Use a CSV or COCO JSON for categories of your own.",
            )
        difficult = _number(node, "difficult", where) != 0 if node.find("difficult") is not None else False
        x1, y1, x2, y2 = (_number(node, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
        if x2 < x1 or y2 < y1:
            raise BadInput(
                f"{where}: bndbox",
                found=f"({x1:g}, {y1:g}, {x2:g}, {y2:g})",
                expected="xmin ≤ xmax and ymin ≤ ymax",
                remedy="Swap the corners.",
            )
        # VOC counts pixels from 1 and includes the last one: pixel p covers (p - 1, p).
        found.append((category, difficult, (x1 - 1, y1 - 1, x2, y2)))
    return found


def _parse(file: Path) -> ElementTree.Element:
    try:
        text = file.read_text(encoding="utf-8")
        # Entities can make a small file expand to gigabytes; VOC has none.
        if any(sign in text.upper() for sign in ("<!DOCTYPE", "<!ENTITY")):
            raise BadInput(file, found="a DOCTYPE or ENTITY", expected="plain XML", remedy="Remove the declaration.")
        return ElementTree.fromstring(text)
    except FileNotFoundError as error:
        raise BadInput(
            file, found="no such file", expected="the image's annotation", remedy="Unpack VOC again, with Annotations."
        ) from error
    except (OSError, UnicodeDecodeError, ElementTree.ParseError) as error:
        raise BadInput(file, found=f"unreadable XML ({error})", expected="XML", remedy="Restore the file.") from error


def _text(node: ElementTree.Element, field: str, where: str) -> str:
    text = (node.findtext(field) or "").strip()
    if not text:
        raise BadInput(f"{where}: {field}", found="nothing", expected="a value", remedy="Restore the file.")
    return text


def _number(node: ElementTree.Element, field: str, where: str) -> float:
    text = _text(node, field, where)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"{where}: {field}", found=repr(text), expected="a number", remedy="Restore the file.")
    return number
