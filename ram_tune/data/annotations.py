"""Annotations: what is in which image, the same for every format.

Legend: n images, L labels (categories), m boxes.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ram_tune.config import digest
from ram_tune.errors import BadInput


@dataclass(frozen=True)
class Boxes:
    """Objects' boxes, all images in one list, in pixels of the upright original image."""

    corners: np.ndarray  # (m, 4) float32: x1, y1, x2, y2
    image: np.ndarray  # (m,) int64: index of the image
    label: np.ndarray  # (m,) int64: index of the category
    difficult: np.ndarray  # (m,) bool

    @staticmethod
    def of(rows: list[tuple[tuple[float, float, float, float], int, int, bool]]) -> Boxes:
        """From (corners, image, label, difficult) rows."""
        corners, image, label, difficult = zip(*rows, strict=True) if rows else ((), (), (), ())
        return Boxes(
            np.asarray(corners, np.float32).reshape(-1, 4),
            np.asarray(image, np.int64),
            np.asarray(label, np.int64),
            np.asarray(difficult, bool),
        )


@dataclass(frozen=True)
class Annotations:
    """Images × labels of one split or role."""

    root: Path
    categories: tuple[str, ...]  # L names, in the dataset's own order
    ids: tuple[str, ...]  # n names unique in the dataset
    paths: tuple[str, ...]  # n paths below root, with forward slashes
    targets: np.ndarray  # (n, L) bool: the label is there
    difficult: np.ndarray  # (n, L) bool: it is there, but only in objects marked difficult; disjoint from targets
    boxes: Boxes | None = None
    dropped: int = 0  # images left out because they carry no label

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: np.ndarray) -> Annotations:
        """The images at `indices` (n', int), in that order, with their boxes."""
        indices = np.asarray(indices, np.int64)
        boxes = self.boxes
        if boxes is not None:
            place = np.full(len(self), -1, np.int64)
            place[indices] = np.arange(len(indices))
            kept = place[boxes.image] >= 0
            boxes = Boxes(boxes.corners[kept], place[boxes.image[kept]], boxes.label[kept], boxes.difficult[kept])
        return replace(
            self,
            ids=tuple(self.ids[i] for i in indices),
            paths=tuple(self.paths[i] for i in indices),
            targets=self.targets[indices],
            difficult=self.difficult[indices],
            boxes=boxes,
        )

    def without_unlabelled(self, *, difficult_counts: bool) -> Annotations:
        """Leave out, and count, the images that carry no label.

        An image without a label has no target distribution y/|y| (METHOD 4). Where nothing is learned from the images,
        one whose only labels are difficult stays (`difficult_counts`): it is a negative for all the other labels.
        """
        labelled = self.targets.any(1) | (self.difficult.any(1) if difficult_counts else False)
        kept = np.flatnonzero(labelled)
        return replace(self.take(kept), dropped=self.dropped + len(self) - len(kept))

    def chance(self) -> float:
        """mAP of scores that know nothing: the mean prevalence over the labels that are there.

        Difficult-only labels are left out of a label's images, as they are of its AP (METHOD 7).
        """
        positives = self.targets.sum(0)
        prevalence = positives / np.maximum(len(self) - self.difficult.sum(0), 1)
        return float(prevalence[positives > 0].mean()) if positives.any() else 0.0

    def files(self) -> list[Path]:
        """The images' files."""
        return [self.root / path for path in self.paths]

    def fingerprint(self) -> str:
        """Hash of the ids, labels and file sizes: the same images elsewhere have the same one.

        Raises BadInput when an annotated image is not there.
        """
        return digest(
            {
                "categories": self.categories,
                "images": [(name, size) for name, (size, _) in zip(self.ids, states(self), strict=True)],
                "targets": np.packbits(self.targets).tobytes().hex(),
                "difficult": np.packbits(self.difficult).tobytes().hex(),
            }
        )


def states(annotations: Annotations) -> list[tuple[int, int]]:
    """Size in bytes and time of change (ns) of each image's file. Raises BadInput naming the first absent one."""
    found, missing = [], []
    for path in annotations.files():
        try:
            state = path.stat()
            found.append((state.st_size, state.st_mtime_ns))
        except OSError:
            missing.append(path)
    if missing:
        raise BadInput(
            missing[0],
            found=f"no such image ({len(missing)} of {len(annotations)} annotated images are absent)",
            expected="every annotated image in its folder",
            remedy="Check --data-root, or see `python -m ram_tune.data check`.",
        )
    return found


def inside(relative: str, where: object) -> str:
    """`relative` as a clean path below the dataset's root. Raises BadInput where it would leave the root."""
    path = posixpath.normpath(relative.replace("\\", "/"))
    leaves = path in (".", "..") or path.startswith(("/", "../")) or ":" in path.split("/")[0]  # C: is a drive
    nameable = "\0" not in path and not any("\ud800" <= character <= "\udfff" for character in path)
    if leaves or not nameable:
        raise BadInput(
            where,
            found=f"the image path {relative!r}",
            expected="a path inside the dataset's folder",
            remedy="Correct the annotation, or choose a --data-root that holds the images.",
        )
    return path


def folder(path: Path, where: str, remedy: str) -> Path:
    """`path` if it is a folder. Raises BadInput."""
    if not path.is_dir():
        raise BadInput(where, found=f"no folder {path}", expected="the dataset's folder", remedy=remedy)
    return path
