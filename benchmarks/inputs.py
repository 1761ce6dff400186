"""What reaches the model: pixels out of the cache against JPEGs decoded each time, cached maps against convolving.

Legend: B images, N image side in pixels.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from benchmarks.measure import Row, ratio, side_by_side
from ram_tune.data.batches import training_batches
from ram_tune.presets import configure
from ram_tune.training.loop import train_epoch
from ram_tune.training.run import Run, prepare

SIZE, MARGIN, BATCH = 512, 64, 16


def photographs(folder: Path, count: int) -> tuple[list[Path], str]:
    """So many JPEGs of about 500 × 375 pixels, VOC's where RAM_TUNE_TEST_DATA has them, and what they are."""
    voc = Path(os.environ.get("RAM_TUNE_TEST_DATA", "/nowhere")) / "VOCdevkit" / "VOC2007" / "JPEGImages"
    if voc.is_dir():
        return sorted(voc.glob("*.jpg"))[:count], "VOC 2007's"
    draw = np.random.default_rng(0)
    for number in range(count):
        pixels = draw.integers(0, 256, (375, 500, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.5))
        image.save(folder / f"{number}.jpg", quality=90)
    return sorted(folder.glob("*.jpg")), "drawn, 500 × 375"


def table(folder: Path, images: list[Path]) -> Path:
    """A CSV of these images, with labels that mean nothing."""
    split = ["train"] * (len(images) - 16) + ["selection"] * 8 + ["test"] * 8
    lines = [f"{path.name},{'ab'[i % 2]},{split[i]}" for i, path in enumerate(images)]
    (folder / "pictures.csv").write_text("\n".join(["path,labels,split", *lines]))
    return folder / "pictures.csv"


def run_of(images: list[Path], csv: Path, cache: Path, **fields: Any) -> Run:
    values = {name.replace("__", "."): value for name, value in fields.items()}
    usual = {"data.selection_split": "selection", "model.backbone.weights": "none", "stage1.epochs": 0}
    return prepare(configure(str(csv), str(images[0].parent), {**usual, **values}), cache)


def pipeline(count: int, rounds: int) -> Iterator[Row]:
    """Batches of random crops, mirrored half of the time, as the training loop takes them."""
    from torch.utils.data import DataLoader, Dataset
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms import v2

    class Photographs(Dataset):
        def __init__(self, paths: list[Path]):
            self.paths = paths
            self.change = v2.Compose(
                [v2.Resize((SIZE, SIZE)), v2.RandomCrop(SIZE - MARGIN), v2.RandomHorizontalFlip(), v2.PILToTensor()]
            )

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self.change(default_loader(str(self.paths[index])))

    with tempfile.TemporaryDirectory(prefix="ram_tune-bench-") as name:
        folder = Path(name)
        images, kind = photographs(folder, count)
        run = run_of(images, table(folder, images), folder / "cache", model__backbone__name="small")
        source = run.train
        cpus = len(os.sched_getaffinity(0))
        loader = DataLoader(
            Photographs(images[: len(source)]), BATCH, shuffle=True, num_workers=cpus, persistent_workers=True
        )

        def ours() -> None:
            for _ in range(10):  # what a single pass takes is too short to be timed
                for _ in training_batches(source, BATCH, 0, 1):
                    pass

        def theirs() -> None:
            for _ in loader:
                pass

        times = side_by_side([ours, theirs], rounds)
    own, other = 10 * len(source) / median(times[0]), len(source) / median(times[1])
    yield Row(
        f"images/s from the cache, {SIZE}², crop, mirror, batch {BATCH}",
        f"decoding JPEGs ({kind}) with torchvision's loader in {cpus} processes",
        10 * ratio(times[1], times[0]),
        10,
        True,
        f"copying {(SIZE - MARGIN) ** 2 * 3 / 1e6:.1f} MB an image",
        f"{own:,.0f}, {other:,.0f} images/s",
    )


def maps(count: int, rounds: int) -> Iterator[Row]:
    """An epoch of RMA over a frozen VGG-16, from its cached maps and through its convolutions."""
    with tempfile.TemporaryDirectory(prefix="ram_tune-bench-") as name:
        folder = Path(name)
        images, _ = photographs(folder, count + 16)
        frozen = {
            "model__backbone__trainable": "none",
            "data__image_size": 256,
            "data__crop_margin": 32,
            "model__projection_size": 512,
        }
        csv = table(folder, images)
        cached, convolved = (
            run_of(images, csv, folder / "cache", data__crop=crop, **frozen) for crop in ("map", "pixels")
        )
        for run in (cached, convolved):
            run.cache()
        works = [lambda run=run: train_epoch(run, 1, lambda *_: None) for run in (cached, convolved)]
        times = side_by_side(works, rounds)
    yield Row(
        "an epoch over a frozen backbone from cached maps: times faster (VGG-16, 256², projection 512)",
        "convolving each time",
        ratio(times[1], times[0]),
        8,
        True,
        "the head and its optimiser are what is left",
        f"{1000 * median(times[0]) / count:.1f} ms, {1000 * median(times[1]) / count:.1f} ms an image",
    )
