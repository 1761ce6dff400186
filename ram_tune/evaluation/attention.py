"""What the regions do, as numbers: the faults that the three constraints are for.

Legend: n images, K regions; a region is sx, tx, sy, ty.
"""

from __future__ import annotations

import numpy as np

from ram_tune.models.regions import SX, SY, TX, TY


def region_statistics(regions: np.ndarray, anchors: np.ndarray) -> dict[str, float]:
    """regions (n, K, 4), anchors (K−1, 2) → means over images and regions.

    `mirrored_share`: regions with sx or sy below 0 (what P cures); `region_area`: 4·|sx·sy| over the crop's area of 4, so
    that the whole crop is 1 (S); `anchor_distance`: of regions 2…K to their anchors (A); `region_spread`: standard
    deviation over images of a region's centre, the root of the mean over both axes and all regions.
    """
    sx, sy = regions[..., SX], regions[..., SY]
    centres = regions[..., [TX, TY]]
    found = {
        "mirrored_share": ((sx < 0) | (sy < 0)).mean(),
        "region_area": np.abs(sx * sy).mean(),
        "region_spread": np.sqrt(centres.var(axis=0).mean()),
    }
    if regions.shape[1] > 1:
        found["anchor_distance"] = np.linalg.norm(centres[:, 1:] - anchors, axis=-1).mean()
    return {name: float(value) for name, value in found.items()}
