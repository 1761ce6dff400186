"""Crops, mirrors and order: cached arrays become batches, the same ones for any number of workers.

Legend: B images, S side of a crop in pixels, C H W feature map, K regions, L labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ram_tune.config import Data

# Pixels are copied once, out of the read-only cache into the batch; PyTorch warns of every tensor on such memory.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class Batch(NamedTuple):
    """What one rank sees of one step."""

    inputs: Tensor  # (B, S, S, 3) uint8 pixels, or (B, C, h, w) bfloat16 maps
    targets: Tensor  # (B, L) float32
    indices: Tensor  # (B,) int64: which images
    crops: Tensor  # (B, 4) int64: left, top, side in pixels of the upright N×N image; 1 if mirrored after cropping
    boxes: Tensor | None = None  # (B, K, 4) float32, see `Source`

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch._make(None if part is None else part.to(device, non_blocking=True) for part in self)

    def chunk(self, pieces: int) -> Iterator[Batch]:
        """The same batch in so many pieces, at most one for each image."""
        pieces = min(pieces, len(self.targets))
        parts = (repeat(None) if part is None else part.tensor_split(pieces) for part in self)
        return map(Batch._make, zip(*parts, strict=False))


@dataclass(frozen=True)
class Source:
    """The images of one role as they lie in the cache."""

    array: np.ndarray  # (n, N, N, 3) uint8 images, or (n, views, C, H, W) uint16 bits of bfloat16 maps
    targets: np.ndarray  # (n, L) bool
    data: Data
    pinned: bool = False  # for a GPU: copies then overlap with computation
    boxes: np.ndarray | None = None
    """(n, K, 4) float32, of a model that is given its regions: x1, y1, x2, y2 on the upright image, whose edges are 0 and 1;
    NaN where there is none."""

    def __len__(self) -> int:
        return len(self.targets)

    def crop(self, indices: np.ndarray, crops: np.ndarray) -> Batch:
        """Cut `crops` (B, 4) out of the images `indices` (B,)."""
        cut = self._map if self.data.crop == "map" else self._pixels
        pieces = [cut(i, *crop) for i, crop in zip(indices.tolist(), crops.tolist(), strict=True)]
        inputs = torch.empty((len(pieces), *pieces[0].shape), dtype=pieces[0].dtype, pin_memory=self.pinned)
        for place, piece, mirrored in zip(inputs, pieces, crops[:, 3].tolist(), strict=True):
            place.copy_(piece.flip(1) if mirrored and self.data.crop == "pixels" else piece)
        targets = torch.from_numpy(self.targets[indices].astype(np.float32))
        boxes = None if self.boxes is None else torch.from_numpy(self.boxes[indices])
        return Batch(inputs, targets, torch.from_numpy(indices), torch.from_numpy(crops), boxes)

    def _pixels(self, index: int, left: int, top: int, side: int, mirrored: int) -> Tensor:
        return torch.from_numpy(self.array[index, top : top + side, left : left + side])  # mirrored where it is copied

    def _map(self, index: int, left: int, top: int, side: int, mirrored: int) -> Tensor:
        stride = self.data.image_size // self.array.shape[-1]
        if mirrored:  # the same pixels, seen from the mirrored image's own left edge
            left = self.data.image_size - side - left
        x, y, cells = left // stride, top // stride, side // stride
        piece = self.array[index, mirrored, :, y : y + cells, x : x + cells]
        return torch.from_numpy(piece).view(torch.bfloat16)


def training_batches(
    source: Source, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """One epoch in random order with random crops and mirrors (METHOD 1), this rank's share of every global batch.

    All draws come from (seed, epoch) for the whole dataset, so the number of workers changes none of them. Shares differ by
    at most one image. A rank for which a batch has none is shown another's, which must not count (`loop.optimise`): it has
    to take every step, or the others would wait for it for ever.
    """
    n, data = len(source), source.data
    draw = np.random.default_rng((seed, epoch))
    order = draw.permutation(n)
    unit = cell(source)
    corners = draw.integers(0, data.crop_margin // unit, size=(n, 2), endpoint=True) * unit
    side = np.full((n, 1), data.image_size - data.crop_margin)
    mirrored = draw.integers(0, 2, size=(n, 1)) * int(data.mirror)
    crops = np.concatenate([corners, side, mirrored], axis=1)
    parts = []
    for start in range(0, n, batch_size):
        part = order[start : start + batch_size]
        parts.append(part[rank::world] if rank < len(part) else part[:1])
    yield from _ahead(source, parts, crops)


def evaluation_batches(source: Source, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """Every image of this rank's share once, in order, cropped in the centre (METHOD 6: a single crop)."""
    n = len(source)
    crops = np.tile(centre_crop(source.data, cell(source)), (n, 1))
    own = np.arange(rank, n, world)
    yield from _ahead(source, [own[i : i + batch_size] for i in range(0, len(own), batch_size)], crops)


def whole_images(source: Source, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Every image of the role uncropped, in order: (B, N, N, 3) uint8, or (B, views, C, H, W) bfloat16 maps; and boxes."""
    for start in range(0, len(source), batch_size):
        part = slice(start, start + batch_size)
        piece = torch.from_numpy(source.array[part].copy())
        boxes = None if source.boxes is None else torch.from_numpy(source.boxes[part].copy())
        yield piece.view(torch.bfloat16) if source.data.crop == "map" else piece, boxes


def centre_crop(data: Data, stride: int) -> np.ndarray:
    """(4,) left, top, side in pixels of an image, and that it is not mirrored: a row of `Batch.crops`. Maps, of `stride`
    pixels a cell, are cropped in whole cells."""
    unit = stride if data.crop == "map" else 1
    corner = data.crop_margin // 2 // unit * unit
    return np.array([corner, corner, data.image_size - data.crop_margin, 0])


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Optimiser steps of one epoch."""
    return -(-n // batch_size)


def cell(source: Source) -> int:
    """Pixels by which crops can move: one, or the stride of a cached map."""
    return source.data.image_size // source.array.shape[-1] if source.data.crop == "map" else 1


def _ahead(source: Source, parts: list[np.ndarray], crops: np.ndarray) -> Iterator[Batch]:
    """The batches of `parts`, each cut by a second thread while the one before is being used."""
    if not parts:
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(source.crop, parts[0], crops[parts[0]])
        for part in parts[1:]:
            batch = waiting.result()
            waiting = pool.submit(source.crop, part, crops[part])
            yield batch
        yield waiting.result()
