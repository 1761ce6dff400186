"""Object proposals: boxes that EdgeBoxes finds in an image by its edges alone ([RMA] Table 3).

Zitnick and Dollár, "Edge Boxes: Locating Object Proposals from Edges", ECCV 2014: a box is likely an object if many
contours lie wholly inside it. Where the edges come from is what its quality hangs on: the structured forest of Dollár and
Zitnick (ICCV 2013), a trained model in a file that the user may give, or without it the image's gradient, which knows
nothing of objects and takes texture for contours.

Legend: n images, M boxes kept of an image, H W a picture's height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ram_tune.config import digest
from ram_tune.config.model import Proposals
from ram_tune.data.annotations import Annotations, states
from ram_tune.data.cache import rows
from ram_tune.data.images import load_image, to_rgb
from ram_tune.data.threads import in_threads
from ram_tune.errors import BadInput
from ram_tune.presets import edge_fingerprint

PROPOSALS_VERSION = 1
"""Raised by hand when the same fields find other boxes."""

NARROWEST = 16
"""A picture with a shorter side, in pixels at `side`, has no boxes: a structured forest sees patches of this side."""

DIVISORS = "stride", "shrinkNumber", "patchInnerSize", "numberOfTrees", "numberOfTreesToEvaluate"


def proposals(annotations: Annotations, fields: Proposals, max_image_pixels: int, cache_dir: Path) -> np.ndarray:
    """(n, M, 4) float32, memory-mapped: each image's boxes (see `EdgeBoxes`), found once, on all CPUs.

    Raises BadInput for what `EdgeBoxes` cannot use, for absent or broken images, and for a disk without room.
    """
    n = len(annotations)
    key = digest(
        {
            "version": PROPOSALS_VERSION,
            "root": str(annotations.root.resolve()),
            "images": [(path, *state) for path, state in zip(annotations.paths, states(annotations), strict=True)],
            "fields": fields.model_dump(exclude={"edge_model"}),
            **edge_fingerprint(fields.edge_model),
        }
    )

    def found() -> Iterator[np.ndarray]:
        find = EdgeBoxes(fields)
        return in_threads(lambda path: find(load_image(path, max_image_pixels)).reshape(1, -1), annotations.files())

    made = rows(cache_dir, f"proposals-{key}", (n, 4 * fields.max_boxes), found, f"looking for objects in {n} images")
    return made.reshape(n, -1, 4)


class EdgeBoxes:
    """An image → its (M, 4) float32 boxes, likeliest object first: x1, y1, x2, y2 on the image, whose edges are 0 and 1.

    M is `max_boxes`; NaN where there are fewer, as in an image of one colour. Safe to call from several threads. Raises
    BadInput without OpenCV's contributed modules, and for an edge model that cannot be read.
    """

    def __init__(self, fields: Proposals):
        self.fields, self.cv2 = fields, _opencv()
        content = edge_fingerprint(fields.edge_model).get("edges")
        self.forest = _forest(fields.edge_model, content) if content else None

    def __call__(self, image: Image.Image) -> np.ndarray:
        from torch import from_numpy
        from torchvision.ops import nms

        fields, boxes = self.fields, np.full((self.fields.max_boxes, 4), np.nan, np.float32)
        small = to_rgb(image).copy()
        small.thumbnail((fields.side, fields.side), Image.Resampling.BILINEAR)
        if min(small.size) < NARROWEST:
            return boxes
        edges, orientation = self.edges(np.asarray(small))
        search = self.cv2.ximgproc.createEdgeBoxes(  # keeps what it works on: one for each image
            alpha=fields.alpha, beta=fields.beta, maxBoxes=fields.max_boxes, minBoxArea=fields.min_area
        )
        found, scores = search.getBoundingBoxes(edges, orientation)
        if scores is not None:
            found = np.asarray(found, np.float32)
            found[:, 2:] += found[:, :2]  # x, y, width, height
            kept = nms(from_numpy(found), from_numpy(np.asarray(scores, np.float32).ravel()), fields.nms).numpy()
            boxes[: len(kept)] = (found[kept] / np.tile(small.size, 2)).clip(0, 1)
        return boxes

    def edges(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 → strength of the edge, thinned to its ridge, and direction across it in [0, π): (H, W) float32."""
        if self.forest is None:
            return self._gradient(image)
        edges = self.forest.detectEdges(image.astype(np.float32) / 255)
        orientation = self.forest.computeOrientation(edges)
        return self.forest.edgesNms(edges, orientation), orientation

    def _gradient(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the channel that changes most there; the strongest of the image is 1."""
        cv2 = self.cv2
        levels = image.astype(np.float32) - image[0, 0]  # in one colour rounding then leaves no edges
        smooth = cv2.GaussianBlur(levels, (0, 0), self.fields.blur)
        dx, dy = (cv2.Scharr(smooth, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
        strength = np.hypot(dx, dy)
        most = strength.argmax(2)[..., None]
        strength, dx, dy = (np.take_along_axis(each, most, 2)[..., 0] for each in (strength, dx, dy))
        strength /= max(strength.max(), np.finfo(np.float32).tiny)
        return self._ridge(strength, dx, dy), np.arctan2(dy, dx) % np.float32(np.pi)

    def _ridge(self, strength: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        """Strengths (H, W), 0 where a larger one lies across the edge, as near as OpenCV looks in a forest's edges."""
        H, W = strength.shape
        x, y = np.meshgrid(np.arange(W, dtype=np.float32), np.arange(H, dtype=np.float32))
        length = np.maximum(np.hypot(dx, dy), np.finfo(np.float32).tiny)
        thin = strength.copy()
        for distance in (-2, -1, 1, 2):
            where = x + distance * dx / length, y + distance * dy / length
            beside = self.cv2.remap(strength, *where, self.cv2.INTER_LINEAR, borderMode=self.cv2.BORDER_REPLICATE)
            thin[strength < beside] = 0
        return thin


@cache
def _forest(file: str, content: str) -> Any:
    """The structured forest in `file`; `content`, its hash, is there so that another one is read anew."""
    cv2 = _opencv()
    try:
        store = cv2.FileStorage(file, cv2.FILE_STORAGE_READ)
        options = store.getNode("options")  # OpenCV divides by these, and looks at nothing before it does
        whole = all(options.getNode(name).real() >= 1 for name in DIVISORS) and not store.getNode("childs").empty()
    except (cv2.error, SystemError):
        whole = False
    if not whole:
        raise BadInput(
            "model.proposals.edge_model",
            found=f"{file}, which holds no such forest",
            expected="a structured forest as OpenCV's ximgproc reads it (model.yml.gz)",
            remedy="Leave it empty to take edges from the image's gradient.",
        )
    return cv2.ximgproc.createStructuredEdgeDetection(file)


def _opencv() -> Any:
    try:
        import cv2
        import cv2.ximgproc  # only in the package with the contributed modules
    except ImportError as error:
        raise BadInput(
            "model.name=proposals",
            found=f"no EdgeBoxes ({error})",
            expected="OpenCV with its contributed modules",
            remedy="Install it: python -m pip install opencv-contrib-python-headless (the extra `proposals`).",
        ) from error
    return cv2
