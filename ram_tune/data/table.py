"""A CSV of one's own images: `path,labels` and, if wanted, `split`; labels separated by `;`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ram_tune.data.annotations import Annotations, folder, inside
from ram_tune.errors import BadInput, nearest

COLUMNS = ("path", "labels", "split")
EXAMPLE = "Its first line is `path,labels` or `path,labels,split`; the next ones are like `cats/1.jpg,cat;sofa,train`."


def read(file: Path, root: Path) -> tuple[Annotations, tuple[str, ...] | None]:
    """Images and labels, paths relative to `root`, and the split each image names (None without that column).

    Categories are sorted; an image's id is its path; no labels means an unlabelled image. Raises BadInput naming the
    line.
    """
    folder(root, "--data-root", "Name the folder that the paths in the CSV are relative to.")
    lines: dict[str, int] = {}  # path → its line
    labels: list[set[str]] = []
    splits: list[str] = []
    with_splits = False
    for number, row in _rows(file):
        where = f"{file}:{number}"
        path = inside(row["path"], f"{where}: path")
        if path in lines:
            raise BadInput(
                f"{where}: path",
                found=f"{path!r} again (first on line {lines[path]})",
                expected="each image once",
                remedy="Put all its labels on one line.",
            )
        lines[path] = number
        labels.append({label for part in row["labels"].split(";") if (label := part.strip())})
        if with_splits := "split" in row:
            if not row["split"]:
                raise BadInput(f"{where}: split", found="nothing", expected="a split's name, such as train or test")
            splits.append(row["split"])
    if not lines:
        raise BadInput(f"{file}:1", found="no images", expected="one image per line", remedy=EXAMPLE)
    categories = tuple(sorted(set().union(*labels)))
    if not categories:
        raise BadInput(f"{file}: labels", found="no label in any line", expected="at least one", remedy=EXAMPLE)
    column = {category: index for index, category in enumerate(categories)}
    targets = np.zeros((len(lines), len(categories)), bool)
    for image, names in enumerate(labels):
        targets[image, [column[name] for name in names]] = True
    paths = tuple(lines)
    annotations = Annotations(root, categories, paths, paths, targets, np.zeros_like(targets))
    return annotations, tuple(splits) if with_splits else None


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line it starts on, column → stripped cell) of each row that is not blank."""
    reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    header: list[str] = []
    start = 1
    try:
        for row in reader:
            where, number, start = f"{file}:{start}", start, reader.line_num + 1
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if not header:
                header = _header(cells, where)
                continue
            if len(cells) != len(header):
                raise BadInput(
                    where,
                    found=f"{len(cells)} cells",
                    expected=f"{len(header)} ({','.join(header)})",
                    remedy='Separate labels by ";", and put "quotes" round a cell that holds a comma.',
                )
            yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise BadInput(f"{file}:{start}", found=f"malformed CSV ({error})", expected="CSV", remedy=EXAMPLE) from error
    if not header:
        raise BadInput(f"{file}:1", found="an empty file", expected="a CSV with a header", remedy=EXAMPLE)


def _header(cells: list[str], where: str) -> list[str]:
    for name in cells:
        # An unknown column may be a misspelt `split`, and then a random split would be drawn in silence.
        if name not in COLUMNS or cells.count(name) > 1:
            found = f"the column {name!r}" + (" twice" if name in COLUMNS else "")
            remedy = f"{nearest(name, COLUMNS)} {EXAMPLE}".strip()
            raise BadInput(where, found=found, expected=f"columns among {', '.join(COLUMNS)}", remedy=remedy)
    for name in ("path", "labels"):
        if name not in cells:
            raise BadInput(where, found=f"no column {name!r}", expected="the columns path and labels", remedy=EXAMPLE)
    return cells


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
        return content.decode("utf-8-sig")  # Excel writes the mark
    except OSError as error:
        raise BadInput(file, found=error.strerror, expected="a CSV file", remedy="Check the path.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        remedy = "Save the file as UTF-8."
        raise BadInput(f"{file}:{line}", found=str(error), expected="UTF-8 text", remedy=remedy) from error
