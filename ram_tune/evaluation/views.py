"""One image seen in one crop or in ten, as one representation and one vector of scores (METHOD 6).

Legend: B images, N image side in pixels, V views, K regions, L labels, D representation, C H W feature map.

The two kinds of view do not compute the same. The single crop is cut out of the *pixels* and then convolved, as in
training and in selection. Ten views are cut out of the *feature map* of the whole image, as the paper does to convolve
once instead of five times: cells near a crop's edge then see the pixels beyond it, where a crop by itself has zeros.
With VGG-16 that reaches 6 cells, so only the inner 12×12 of 24×24 cells cannot tell. Cached maps are always cropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ram_tune.config import Config
from ram_tune.errors import BadInput
from ram_tune.models.network import Network
from ram_tune.models.regions import of_crops

AT_ONCE = 64
"""Crops that the head sees at once. It reads its weights, which are large, for all of them together; its memory is bounded."""

Crop = tuple[int, int, int, int]
"""left, top, side in pixels of the upright N×N image; 1 if mirrored after cropping (a row of `Batch.crops`)."""


@dataclass(frozen=True)
class Plan:
    """Which views of an image are taken."""

    image_size: int  # N, pixels
    crop_margin: int  # pixels by which a crop's side is less than N
    views: Literal["one", "ten"]
    mirror: Literal["exact", "feature"]

    @classmethod
    def of(cls, config: Config) -> Plan:
        """The plan of a run."""
        data, rule = config.data, config.evaluation
        return cls(data.image_size, data.crop_margin, rule.views, rule.mirror)


class Views(NamedTuple):
    """What a network says of a batch, over its views."""

    representations: Tensor  # (B, D) float32: region features, their maximum over regions, then the mean over views
    scores: Tensor  # (B, L) float32: the network's own fused scores, the mean over views
    regions: Tensor | None  # (B, V, K, 4) float32, each on the crop it was found on; None without regions
    crops: Tensor  # (V, 4) int64, as in `Batch.crops`: with regions[:, v], crops[v] of every image for `to_pixels`


def offsets(image_size: int, crop_margin: int, stride: int, views: Literal["one", "ten"]) -> list[tuple[int, int]]:
    """(left, top) of each view on the upright image's feature map, in cells of `stride` pixels.

    `one`: the centre, floored where the margin is an odd number of cells. `ten`: top left, top right, bottom left,
    bottom right and centre, then the same five once more, to be mirrored after cropping. At N = 512 and 640 with a margin
    of 64 and stride 16 they are 0, 2 and 4. Raises BadInput for sizes that are not whole cells.
    """
    for name, pixels in (("image_size", image_size), ("crop_margin", crop_margin)):
        if pixels % stride:
            raise BadInput(
                f"data.{name}",
                found=pixels,
                expected=f"a multiple of {stride} pixels, the backbone's stride, where the feature map is cropped",
                remedy="Change it, or set evaluation.views=one with data.crop=pixels.",
            )
    far = crop_margin // stride
    middle = far // 2
    five = [(0, 0), (far, 0), (0, far), (far, far), (middle, middle)]
    return five[-1:] if views == "one" else five * 2


@torch.inference_mode()
def represent(network: Network, inputs: Tensor, plan: Plan, boxes: Tensor | None = None) -> Views:
    """One batch through `network` (in evaluation mode), under the caller's autocast.

    `inputs`: whole images (B, N, N, 3) uint8, or their maps (B, 1 or 2, C, H, W) as they lie in the cache: the upright
    image's and, needed for ten views with `mirror` exact, the mirrored image's. Ten views of pixels take one convolution
    pass on the images and one on their mirrors (`mirror` feature: none), and few of the head. `boxes` (B, K, 4) on the whole
    images, as in `Source`, are seen by every view.
    """
    crops, maps = zip(*_maps(network, inputs, plan), strict=True)
    B, own = len(inputs), torch.tensor(crops, device=inputs.device)
    views = max(AT_ONCE // B, 1)
    features, scores, regions = [], [], []
    for first in range(0, len(maps), views):
        some = own[first : first + views]
        given = None if boxes is None else boxes.repeat(len(some), 1, 1)
        seen = of_crops(given, some.repeat_interleave(B, dim=0), plan.image_size)
        prediction = network(torch.cat(maps[first : first + views]).float(), seen)
        features.append(prediction.features.float().amax(dim=1).unflatten(0, (-1, B)))
        scores.append(prediction.scores.float().unflatten(0, (-1, B)))
        if prediction.regions is not None:
            regions.append(prediction.regions.float().unflatten(0, (-1, B)))
    return Views(
        torch.cat(features).mean(dim=0),
        torch.cat(scores).mean(dim=0),
        torch.cat(regions).transpose(0, 1) if regions else None,
        own,
    )


def _maps(network: Network, inputs: Tensor, plan: Plan) -> Iterator[tuple[Crop, Tensor]]:
    """Each view's crop and feature map (B, C, h, w)."""
    N, side = plan.image_size, plan.image_size - plan.crop_margin
    pixels = inputs.dtype == torch.uint8
    if pixels and plan.views == "one":
        corner = plan.crop_margin // 2
        cut = slice(corner, corner + side)
        yield (corner, corner, side, 0), network.backbone(inputs[:, cut, cut])
        return

    stride = network.backbone.stride
    cells, width = side // stride, N // stride
    places = offsets(N, plan.crop_margin, stride, plan.views)
    f = network.backbone(inputs) if pixels else inputs[:, 0]
    for x, y in places[:5]:
        yield (x * stride, y * stride, side, 0), f[:, :, y : y + cells, x : x + cells]
    if plan.views == "one":
        return
    if plan.mirror == "feature":
        f = f.flip(3)
    else:
        f = network.backbone(inputs.flip(2)) if pixels else inputs[:, 1]
    for x, y in places[5:]:
        seen = width - cells - x  # the same pixels, from the mirrored image's own left edge
        yield (x * stride, y * stride, side, 1), f[:, :, y : y + cells, seen : seen + cells]
