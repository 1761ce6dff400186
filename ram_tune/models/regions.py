"""Regions: where they are, what is under them, and where that is on the original image.

A region is M = [[sx, 0, tx], [0, sy, ty]] in coordinates where the crop's edges are −1 and 1: centre (tx, ty), half-size
(sx, sy); negative sizes mirror. Everywhere it is kept as four numbers in the order sx, tx, sy, ty (METHOD 2, 3).

Legend: B images, K regions (k of them at a time), C H W feature map, P side of the sampled grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SX, TX, SY, TY = range(4)
IDENTITY = (1.0, 0.0, 1.0, 0.0)
CENTRED_HALF = (0.5, 0.0, 0.5, 0.0)


def sample(f: Tensor, regions: Tensor, size: int) -> Tensor:
    """What lies under a region: f (B, C, H, W), regions (B, 4) → (B, C, P, P), [RMA] equation 2.

    Bilinear, zero outside the map; ±1 are the map's outer edges (`align_corners=False`), so the grid's points are the
    centres of P×P equal bins of the region.
    """
    return sample_each(f, regions[:, None], size)[:, 0]


def sample_each(f: Tensor, regions: Tensor, size: int) -> Tensor:
    """The same for several regions of each image: f (B, C, H, W), regions (B, k, 4) → (B, k, C, P, P)."""
    k = regions.shape[1]
    sx, tx, sy, ty = regions.flatten(0, 1).unbind(1)
    zero = torch.zeros_like(sx)
    M = torch.stack([sx, zero, tx, zero, sy, ty], dim=1).view(-1, 2, 3)
    with torch.autocast(f.device.type, enabled=False):  # under it the grid would be in bfloat16: a tenth of a cell off
        grid = F.affine_grid(M, [len(M), f.shape[1], size, size], align_corners=False)
        grid = grid.view(len(f), k * size, size, 2).to(f.dtype)  # one above the other: the map is not copied k times
        found = F.grid_sample(f, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return found.unflatten(2, (k, size)).transpose(1, 2)


def anchors(regions: int, radius: float) -> Tensor:
    """(K−1, 2) centres (cx, cy) to which regions 2…K are pulled, evenly on a circle; empty for K = 1 (METHOD 4).

    For K = 5 in the paper's order; any other K counter-clockwise from 45°.
    """
    if regions == 5:  # 45°, −45°, 135°, 225°: [RMA] lists them in this order
        degrees = [45.0, -45.0, 135.0, 225.0]
    else:
        degrees = [45.0 + 360.0 * i / (regions - 1) for i in range(regions - 1)]
    points = [(radius * math.cos(math.radians(d)), radius * math.sin(math.radians(d))) for d in degrees]
    return torch.tensor(points, dtype=torch.float64).view(-1, 2)


def anchored(regions: int, radius: float) -> Tensor:
    """(K, 4) regions of half the crop's size: the first in its centre, the others on their `anchors`."""
    placed = torch.tensor(CENTRED_HALF).repeat(regions, 1)
    placed[1:, TX::2] = anchors(regions, radius).float()
    return placed


def of_crops(boxes: Tensor | None, crops: Tensor, image_size: int) -> Tensor | None:
    """Boxes on the images as regions of their crops: (B, K, 4) x1, y1, x2, y2, where the image's edges are 0 and 1, and
    crops (B, 4) as in `Batch` → (B, K, 4); the inverse of `to_pixels`. None stays None.

    A box of NaN is one that is not there: its place is taken by the whole crop. Regions may reach beyond the crop, or lie
    outside, where boxes do.
    """
    if boxes is None:
        return None
    left, top, side, mirrored = (crops[:, None, i].to(boxes.dtype) for i in range(4))
    x1, y1, x2, y2 = (boxes * image_size).unbind(-1)
    tx, ty = (x1 + x2 - 2 * left) / side - 1, (y1 + y2 - 2 * top) / side - 1
    found = torch.stack([(x2 - x1) / side, torch.where(mirrored > 0, -tx, tx), (y2 - y1) / side, ty], dim=-1)
    whole = boxes.new_zeros(4)  # IDENTITY, made where it is needed: a copy from the host would be waited for
    whole[SX::2].fill_(1)
    return torch.where(found.isnan(), whole, found)


def to_pixels(regions: Tensor, crops: Tensor, image_size: int, sizes: Tensor) -> Tensor:
    """Regions as boxes on the original images: (B, K, 4) and crops (B, 4) → (B, K, 4) x1, y1, x2, y2 in pixels.

    `crops` are as in `Batch`: left, top, side on the upright N×N image, and whether the crop was mirrored afterwards;
    `sizes` (B, 2) are the originals' width and height. Boxes may reach beyond the image where regions do; a mirrored
    region covers the same pixels as its mirror image.
    """
    left, top, side, mirrored = (crops[:, None, i].to(regions.dtype) for i in range(4))
    tx = torch.where(mirrored > 0, -regions[..., TX], regions[..., TX])
    half_x, half_y = regions[..., SX].abs(), regions[..., SY].abs()
    x1, x2 = (left + side * (1 + tx + d) / 2 for d in (-half_x, half_x))
    y1, y2 = (top + side * (1 + regions[..., TY] + d) / 2 for d in (-half_y, half_y))
    width, height = (sizes[:, None, i].to(regions.dtype) / image_size for i in range(2))
    return torch.stack([x1 * width, y1 * height, x2 * width, y2 * height], dim=-1)
