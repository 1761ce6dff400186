"""What is in a dataset, and is all of it there? The work behind `python -m ram_tune.data check`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ram_tune.config import Data
from ram_tune.data.annotations import Annotations
from ram_tune.data.images import load_image
from ram_tune.data.roles import Dataset, load
from ram_tune.data.threads import in_threads
from ram_tune.errors import BadInput
from ram_tune.options import add_data_options, cache_dir
from ram_tune.presets import configure, parse_set

MISSING = "no such file"

LISTED = 10
"""Unusable files that are printed; the others are counted."""

PUBLISHED = {
    "voc": {"train": 2501, "val": 2510, "trainval": 5011, "test": 4952},
    "coco": {"train2014": 82783, "val2014": 40504},
}
"""Images of the paper's datasets, those without a label included: VOC 2007's database statistics, COCO's download page."""

EXAMPLES = """examples:
  python -m ram_tune.data check --data scenes
  python -m ram_tune.data check --data voc2007 --data-root ~/data/VOCdevkit
  python -m ram_tune.data check --data voc2007 --data-root ~/data --set data.train_split=train data.test_split=val
  python -m ram_tune.data check --data my_images.csv --fast
  python -m ram_tune.data check --data coco2014 --data-root s3://BUCKET/coco

exit code: 0 all is well, 1 files are missing or broken, 2 the annotations or options cannot be used"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code; raises BadInput (code 2)."""
    options = _parser().parse_args(arguments)
    data = configure(options.data or "scenes", options.data_root, overrides=parse_set(options.set)).data
    dataset = load(data, cache_dir(options.cache_dir))
    console = Console()
    console.print(contents(dataset))
    unusable = check_files(dataset, data.max_image_pixels, decode=not options.fast)
    total = sum(map(len, dataset.roles.values()))
    if unusable:
        _say(console, f"{len(unusable)} of {total} files are missing or broken:")
        for path, reason in unusable[:LISTED]:
            _say(console, f"  {path}: {reason}")
        if len(unusable) > LISTED:
            _say(console, f"  … and {len(unusable) - LISTED} more")
    else:
        _say(console, f"all {total} files are there{'' if options.fast else ' and decode'}")
    for sentence in [*without_images(dataset), *against_published(data, dataset)]:
        _say(console, sentence)
    missing = any(reason == MISSING for _, reason in unusable)
    fingerprint = "unknown while files are missing" if missing else dataset.fingerprint
    _say(console, f"fingerprint: {fingerprint} · chance-level mAP on test: {dataset.test.chance():.4f}")
    return 1 if unusable else 0


def check_files(dataset: Dataset, max_pixels: int, *, decode: bool) -> list[tuple[Path, str]]:
    """(file, reason) of the images that are not there or, with `decode`, cannot be decoded; in the dataset's order."""

    def reason(path: Path) -> str:
        if not path.is_file():
            return MISSING
        if decode:
            try:
                load_image(path, max_pixels)
            except BadInput as error:
                return error.found
        return ""

    files = [path for images in dataset.roles.values() for path in images.files()]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        reasons = list(progress.track(in_threads(reason, files), len(files), description="reading images"))
    return [(path, why) for path, why in zip(files, reasons, strict=True) if why]


def without_images(dataset: Dataset) -> list[str]:
    """A sentence for each role in which some labels have no image that shows them."""
    sentences = []
    for role, images in dataset.roles.items():
        names = [dataset.categories[label] for label in np.flatnonzero(images.targets.sum(axis=0) == 0)]
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            meaning = "they cannot be learned" if role == "train" else f"the mAP on {role} is without them"
            sentences.append(f"no image for {role} shows {', '.join(names[:LISTED])}{more}: {meaning}")
    return sentences


def against_published(data: Data, dataset: Dataset) -> list[str]:
    """A sentence for every split whose size is known, on whether all of it is here; none for a limited dataset."""
    drawn = () if data.selection_split else (dataset.selection,)
    splits = {data.train_split: (dataset.train, *drawn), data.test_split: (dataset.test,)}
    if data.selection_split:
        splits[data.selection_split] = (dataset.selection,)
    sentences = []
    for split, parts in splits.items():
        wanted = PUBLISHED.get(data.format, {}).get(split) if not data.limit else None
        found = sum(len(part) + part.dropped for part in parts)
        if wanted:
            said = (
                "as published"
                if found == wanted
                else f"not the published {wanted:,}: this is another dataset or a part"
            )
            sentences.append(f"{split}: {found:,} images, {said}")
    return sentences


def contents(dataset: Dataset) -> Table:
    """Images per label and role; below, what each role holds altogether."""
    roles = dataset.roles
    grid = Table(title=escape(dataset.name), caption="+n: n images more with the label only in difficult objects")
    grid.add_column("label", overflow="fold")
    for role in roles:
        grid.add_column(role, justify="right")
    for index, category in enumerate(dataset.categories):
        grid.add_row(escape(category), *(_count(images, index) for images in roles.values()))
    grid.add_section()
    totals = {
        "images": [len(images) for images in roles.values()],
        "unlabelled, dropped": [images.dropped for images in roles.values()],
        "labels": [int(images.targets.sum()) for images in roles.values()],
        "difficult-only labels": [int(images.difficult.sum()) for images in roles.values()],
        "boxes": ["-" if images.boxes is None else len(images.boxes.label) for images in roles.values()],
    }
    for name, values in totals.items():
        grid.add_row(name, *map(str, values))
    return grid


def _count(images: Annotations, label: int) -> str:
    difficult = int(images.difficult[:, label].sum())
    return f"{int(images.targets[:, label].sum())}" + (f" +{difficult}" if difficult else "")


def _say(console: Console, text: str) -> None:
    """One line, whole: no wrapping, and brackets in file names mean nothing."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ram_tune.data", description="Look after a dataset.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="say what is in a dataset, and whether all of it is there",
        description="Count the images of each label and role, and look for missing and broken files.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_options(check)
    check.add_argument("--fast", action="store_true", help="look whether the files are there without decoding them")
    return parser
