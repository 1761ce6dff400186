"""What the regions do, as numbers: the faults that the constraints are for, and whether they attend to objects.

Legend: n images, K regions, m objects; a region is sx, tx, sy, ty where the crop's edges are −1 and 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import numpy as np
import torch

from ram_tune.data.annotations import Boxes
from ram_tune.models.regions import IDENTITY, SX, SY, TX, TY, to_pixels

SMALL = 32**2  # an object of fewer square pixels of the original image is small: COCO's definition, on its box


def region_statistics(regions: np.ndarray, anchors: np.ndarray | None) -> dict[str, float]:
    """regions (n, K, 4), anchors (K−1, 2) or None where nothing pulls them anywhere → means over images and regions.

    `mirrored_share`: regions with sx or sy below 0 (what P cures); `region_area`: 4·|sx·sy| over the crop's area of 4, so
    that the whole crop is 1 (S); `anchor_distance`: of regions 2…K to their anchors, and `outside_share`: regions that
    have no part of the crop (A brings them back); `region_spread`: standard deviation over images of a region's centre,
    the root of the mean over both axes and all regions; `redundancy`: IoU of two regions of one image, mean over all
    pairs (A: regions that collapse onto one another have 1; but so does it fall where they leave the image).
    """
    sx, sy = regions[..., SX], regions[..., SY]
    centres = regions[..., [TX, TY]]
    found = {
        "mirrored_share": ((sx < 0) | (sy < 0)).mean(),
        "region_area": np.abs(sx * sy).mean(),
        "outside_share": (np.abs(centres) - np.abs(regions[..., [SX, SY]]) >= 1).any(-1).mean(),
        "region_spread": np.sqrt(centres.var(axis=0).mean()),
    }
    if regions.shape[1] > 1:
        if anchors is not None:
            found["anchor_distance"] = np.linalg.norm(centres[:, 1:] - anchors, axis=-1).mean()
        found["redundancy"] = pairwise_iou(regions).mean()
    return {name: float(value) for name, value in found.items()}


def pairwise_iou(regions: np.ndarray) -> np.ndarray:
    """regions (n, K, 4) → (n,) mean IoU of an image's K(K−1)/2 pairs, in [0, 1]; K ≥ 2.

    Of the regions as they are, also where they reach beyond the crop; a mirrored one covers what its mirror image does,
    and two without an area have 0.
    """
    centres, half = regions[..., [TX, TY]].astype(np.float64), np.abs(regions[..., [SX, SY]]).astype(np.float64)
    low, high, area = centres - half, centres + half, 4 * half.prod(-1)
    K = regions.shape[1]
    total = np.zeros(len(regions))
    for k in range(K - 1):  # one region with all that follow it: (n, K−1−k), memory grows with K and not with K²
        sides = np.minimum(high[:, k, None], high[:, k + 1 :]) - np.maximum(low[:, k, None], low[:, k + 1 :])
        shared = sides.clip(0).prod(-1)
        union = area[:, k, None] + area[:, k + 1 :] - shared
        total += np.divide(shared, union, out=np.zeros_like(shared), where=union != 0).sum(1)
    return total / (K * (K - 1) / 2)


def attention(
    regions: np.ndarray,
    anchors: np.ndarray,
    boxes: Boxes | None,
    sizes: np.ndarray,
    crops: np.ndarray,
    image_size: int,
    *,
    seed: int = 0,
    draws: int = 10,
    resamples: int = 2000,
) -> dict[str, float]:
    """Do regions lie on objects, and on those of their own image more than on another's? {} where there are no boxes.

    `regions` (n, K, 4) and `crops` (n, 4) as in `to_pixels`, `anchors` (K−1, 2), `sizes` (n, 2) the originals' width and
    height in pixels. An object counts if it is not difficult and its centre lies in the crop, an image if it has such an
    object; their numbers are `objects` (of them `objects_small`) and `images_with_objects`. `coverage` is the share of
    these objects whose centre lies in one of their image's regions. Beside it the same for K boxes of the very same
    sizes, put elsewhere:

    - `coverage_anchors`: on the anchors, the first in the crop's centre;
    - `coverage_centre`: all in the crop's centre;
    - `coverage_random`: uniformly inside the crop (one larger than the crop: in its centre), mean over `draws`;
    - `coverage_shuffled`: the regions of another image, sizes included, relative to the crop; mean over `draws` images,
      or over all others where there are fewer. Absent where there is no other image.

    `coverage_small…`: the same five for objects of fewer than 32² pixels of the original, absent where there are none.

    `coverage_own_minus_shuffled`: own less shuffled share of an image's objects, mean over images (each counts the same,
    unlike in `coverage`), with `…_low` and `…_high`, the 95 % percentile bootstrap interval over images. `attends` is 1
    where all of that interval is above 0, else 0: only then do regions follow what is in their image, and not just where
    objects tend to be. With a handful of images the interval is too narrow to mean much.

    `centres_on_objects`: the other way round, the share of an image's K region centres that lie in the box of any of its
    objects (of all, also difficult ones and those centred beyond the crop), mean over the same images. It does not grow
    with the regions' size and number as `coverage` does. `…_shuffled` is that of the same other images' centres, and
    `…_own_minus_shuffled` the difference with its interval, as above.
    """
    if boxes is None:
        return {}
    corners = _on_crop(boxes, sizes, crops, image_size)
    points, image, small = _centres(boxes, corners)
    if not len(points):
        return {}
    kept, image, objects = np.unique(image, return_inverse=True, return_counts=True)  # images that have objects
    regions, n = regions[kept].astype(np.float64), len(kept)
    rng = np.random.default_rng(seed)
    donors = derangements(n, draws, rng)  # (at most draws, n)

    home = np.zeros((regions.shape[1], 2))
    placed = home.copy()
    placed[1:] = anchors
    room = np.clip(1 - np.abs(regions[..., [SX, SY]]), 0, None)  # how far a centre may go and the box still be inside
    elsewhere = (_moved(regions, room * rng.uniform(-1, 1, room.shape)) for _ in range(draws))
    own = covered(points, regions, image)
    hits = {  # name → in how many of so many tries each object is covered: (m,) int64, tries
        "": (_times([own]), 1),
        "_anchors": (_times([covered(points, _moved(regions, placed), image)]), 1),
        "_centre": (_times([covered(points, _moved(regions, home), image)]), 1),
        "_random": (_times(covered(points, boxed, image) for boxed in elsewhere), draws),
    }
    if len(donors):
        hits["_shuffled"] = _times(covered(points, regions, donor[image]) for donor in donors), len(donors)

    # Whole numbers until the last division: what is equal by definition is then equal to the last bit.
    found = {f"coverage{name}": count.sum() / (tries * len(points)) for name, (count, tries) in hits.items()}
    if small.any():
        for name, (count, tries) in hits.items():
            found[f"coverage_small{name}"] = count[small].sum() / (tries * small.sum())
    found |= {"objects": len(points), "objects_small": small.sum(), "images_with_objects": n, "attends": 0}
    if len(donors):
        others, tries = hits["_shuffled"]
        excess = np.bincount(image, own, n) / objects - np.bincount(image, others, n) / (tries * objects)
        low, high = bootstrap(excess, resamples, rng)
        margin = "coverage_own_minus_shuffled"
        found |= {margin: excess.mean(), f"{margin}_low": low, f"{margin}_high": high, "attends": low > 0}
    found |= _centres_on_objects(regions, corners, boxes.image, kept, donors, resamples, rng)
    return {name: float(value) for name, value in found.items()}


def covered(points: np.ndarray, regions: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Whether points (m, 2) lie in any of the regions (n, K, 4) of their image (m,); all in crop coordinates → (m,) bool."""
    hit = np.zeros(len(points), bool)
    for k in range(regions.shape[1]):  # one region at a time: memory grows with m alone
        sx, tx, sy, ty = regions[image, k].T
        hit |= (np.abs(points[:, 0] - tx) <= np.abs(sx)) & (np.abs(points[:, 1] - ty) <= np.abs(sy))
    return hit


def on_objects(centres: np.ndarray, corners: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Share of the K centres (n, K, 2) of each image that lie in any of its boxes, corners (m, 4) of images (m,) → (n,)."""
    n, K, _ = centres.shape
    hits = np.zeros(n)
    for k in range(K):  # memory grows with m alone
        place = centres[image, k]
        inside = ((corners[:, :2] <= place) & (place <= corners[:, 2:])).all(1)
        hits += np.bincount(image, inside, n) > 0
    return hits / K


def derangements(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(min(count, n − 1), n) permutations of n images; none leaves an image in its place, no two agree on any.

    All images in one random circle, then everyone looks 1, 2, … places ahead.
    """
    circle = rng.permutation(n)
    found = np.empty((max(min(count, n - 1), 0), n), np.int64)
    for ahead, donor in enumerate(found, 1):
        donor[circle] = np.roll(circle, -ahead)
    return found


def bootstrap(values: np.ndarray, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """95 % percentile interval of the mean of values (n,), drawn anew with replacement `resamples` times."""
    n, means = len(values), []
    for first in range(0, resamples, step := max(2**20 // n, 1)):  # about 8 MB at a time
        means.append(values[rng.integers(n, size=(min(step, resamples - first), n))].mean(1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def _centres_on_objects(
    regions: np.ndarray,
    corners: np.ndarray,
    image: np.ndarray,
    kept: np.ndarray,
    donors: np.ndarray,
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Regions (n, K, 4) of the images `kept` (n,), objects as corners (m, 4) of images (m,) of all → see `attention`."""
    place = np.full(max(image.max(), kept.max()) + 1, -1)
    place[kept] = np.arange(len(kept))
    among = place[image] >= 0
    corners, image, centres = corners[among], place[image[among]], regions[..., [TX, TY]]
    name, own = "centres_on_objects", on_objects(centres, corners, image)
    if not len(donors):
        return {name: own.mean()}
    others = np.mean([on_objects(centres[donor], corners, image) for donor in donors], axis=0)
    low, high = bootstrap(own - others, resamples, rng)
    margin = f"{name}_own_minus_shuffled"
    found = {name: own.mean(), f"{name}_shuffled": others.mean(), margin: (own - others).mean()}
    return found | {f"{margin}_low": low, f"{margin}_high": high}


def _on_crop(boxes: Boxes, sizes: np.ndarray, crops: np.ndarray, image_size: int) -> np.ndarray:
    """All objects as x1, y1, x2, y2 (m, 4) where the edges of their image's crop are −1 and 1."""
    whole = torch.tensor(IDENTITY, dtype=torch.float64).expand(len(crops), 1, 4)  # the crop is a region, too
    corners = to_pixels(whole, torch.from_numpy(np.array(crops)), image_size, torch.from_numpy(np.array(sizes)))
    crop = corners[:, 0].numpy()[boxes.image]  # (m, 4) x1, y1, x2, y2 of the object's crop on the original
    low, side = np.tile(crop[:, :2], 2), np.tile(crop[:, 2:] - crop[:, :2], 2)
    found = 2 * (boxes.corners.astype(np.float64) - low) / side - 1
    mirrored = crops[boxes.image, 3] > 0
    found[mirrored] = found[mirrored][:, [2, 1, 0, 3]] * [-1, 1, -1, 1]
    return found


def _centres(boxes: Boxes, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The objects that count: centres (m, 2) in crop coordinates, image (m,), whether small (m,)."""
    objects = boxes.corners.astype(np.float64)
    points = (corners[:, :2] + corners[:, 2:]) / 2
    counts = ~boxes.difficult & (np.abs(points) <= 1).all(1)
    small = (objects[:, 2:] - objects[:, :2]).prod(1) < SMALL
    return points[counts], boxes.image[counts], small[counts]


def _moved(regions: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Regions (n, K, 4) of the same sizes round other centres: (n, K, 2) or (K, 2)."""
    moved = regions.copy()
    moved[..., [TX, TY]] = centres
    return moved


def _times(hits: Iterable[np.ndarray]) -> np.ndarray:
    """How often each object is covered: (m,) bool, once or more → (m,) int64."""
    return reduce(np.add, (hit.astype(np.int64) for hit in hits))  # one at a time in memory
