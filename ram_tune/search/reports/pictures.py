"""What the regions of every arm are on the same images, cut out of the pictures that its runs left."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ram_tune.search.jobs import Job
from ram_tune.search.reports.compare import rows_of
from ram_tune.search.reports.kept import Kept
from ram_tune.training.results import read_config

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = 4
"""Of a sheet of pictures, as `evaluation.pictures.contact_sheet` lays them out."""

NEARLY_WHITE = 240
"""Of 255: JPEG leaves no cell's margin quite white."""

MOST_IMAGES, PIXELS, QUALITY = 4, 320, 75
"""Shown of each arm, the longest side of each, and its JPEG quality: some 15 kB."""


@dataclass(frozen=True)
class Strip:
    """One arm's pictures of the same few selection images as those of the others."""

    arm: str
    seed: int
    epoch: int
    pictures: list[str]  # for an <img>, the picture itself in it


def strips(kept: Kept) -> list[Strip]:
    """Of the first finished run of each arm that left pictures, after its last pictured epoch."""
    found = []
    for arm, jobs in rows_of(kept):
        for job in jobs:
            strip = _strip(kept, arm, job)
            if strip:
                found.append(strip)
                break
    return found


def _strip(kept: Kept, arm: str, job: Job) -> Strip | None:
    # An evaluation has no pictures of its own: those of the model that it evaluates show the same regions.
    runs = [job.fingerprint, *(job.needs if job.kind == "evaluate" else ())]
    there = [run for run in runs if run in kept.summaries]
    sheets = [(run, path) for run in there for path in sorted(kept.folders[run].glob("pictures/*.jpg"))]
    if not sheets:
        return None
    run, last = sheets[-1]
    from PIL import Image

    # As many as were asked for, or as there are images.
    count = min(read_config(kept.folders[run]).execution.pictures, kept.summaries[run]["images"]["selection"])
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    with Image.open(last) as sheet:
        wide, high = sheet.width / columns, sheet.height / rows  # cells are as large as one another
        places = [divmod(number, columns) for number in range(min(count, MOST_IMAGES))]
        boxes = [
            (round(column * wide), round(row * high), round((column + 1) * wide), round((row + 1) * high))
            for row, column in places
        ]
        return Strip(arm, job.seed, int(last.stem), [_encoded(sheet.crop(box)) for box in boxes])


def _encoded(cell: Image.Image) -> str:
    ink = cell.convert("L").point([255 if level < NEARLY_WHITE else 0 for level in range(256)]).getbbox()
    picture = cell.crop(ink) if ink else cell
    picture.thumbnail((PIXELS, PIXELS))
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
