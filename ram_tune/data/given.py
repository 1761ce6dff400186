"""Regions that a model is given instead of finding them: boxes on every image.

Legend: n images, N image side in pixels, K regions.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ram_tune.config import Config, digest
from ram_tune.data.annotations import Annotations
from ram_tune.data.cache import rows
from ram_tune.data.proposals import EdgeBoxes, proposals

GIVEN = "random", "proposals"
"""Models that are given each image's own regions."""


def content(boxes: np.ndarray | None) -> str:
    """Hash of boxes, "" where there are none."""
    return "" if boxes is None else hashlib.sha256(boxes.tobytes()).hexdigest()[:16]


def boxes_of(config: Config, annotations: Annotations, images: np.memmap, cache_dir: Path) -> np.ndarray | None:
    """(n, K, 4) float32, as in `Source`: made once for all runs; None for a model that is not given its regions.

    `images` is what `resized_images` gave of the annotated ones. Raises BadInput, see `proposals`.
    """
    model, n = config.model, len(annotations)
    if model.name == "proposals":
        return proposals(annotations, model.proposals, config.data.max_image_pixels, cache_dir)[:, : model.regions]
    if model.name != "random":
        return None
    what = [Path(str(images.filename)).stem, model.regions, model.random_sides, config.training.seed]
    found = rows(
        cache_dir,
        f"random-{digest(what)}",
        (n, 4 * model.regions),
        lambda: (boxes.reshape(1, -1) for boxes in _drawn(config, images)),
        f"drawing regions of {n} images",
    )
    return found.reshape(n, -1, 4)


def boxes_of_new(config: Config, images: Sequence[Image.Image], resized: np.ndarray) -> np.ndarray | None:
    """The same of images that are of no dataset; `resized` (n, N, N, 3) are these."""
    if config.model.name == "proposals":
        find = EdgeBoxes(config.model.proposals)
        return np.stack([find(image)[: config.model.regions] for image in images])
    return np.stack(list(_drawn(config, resized))) if config.model.name == "random" else None


def _drawn(config: Config, images: np.ndarray) -> Iterator[np.ndarray]:
    model = config.model
    return (random_boxes(image, model.regions, model.random_sides, config.training.seed) for image in images)


def random_boxes(image: np.ndarray, count: int, sides: tuple[float, float], seed: int) -> np.ndarray:
    """(K, 4) float32: x1, y1, x2, y2 on the image, whose edges are 0 and 1; of sides and at places drawn uniformly.

    `image` (N, N, 3) uint8 is what the draw comes from, with the seed: an image has the same boxes in every role, in any
    batch, and when it is shown to the trained model alone.
    """
    draw = np.random.default_rng((seed, zlib.crc32(image.tobytes())))
    side = draw.uniform(*sides, (count, 2))
    corner = draw.uniform(0, 1 - side)
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)
