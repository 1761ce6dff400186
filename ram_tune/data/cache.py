"""Images resized once, and a frozen backbone's maps of them: memory-mapped arrays that every run on the machine shares.

Legend: n images, N image side in pixels, C H W feature map.

An array is written under a temporary name and renamed when it is whole, by one process while the others wait. Its name
is a fingerprint of all that went into it, so an array is never stale; what is no longer wanted can simply be deleted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image

from ram_tune.config import Data, digest
from ram_tune.data.annotations import Annotations, states
from ram_tune.data.images import load_image
from ram_tune.data.progress import Advance, progress
from ram_tune.data.threads import in_threads
from ram_tune.errors import BadInput
from ram_tune.options import make_folder, no_room, require_space

CACHE_VERSION = 1
"""Raised by hand when the content of cached arrays changes."""


def resized_images(annotations: Annotations, data: Data, cache_dir: Path) -> np.memmap:
    """(n, N, N, 3) uint8, read-only and memory-mapped: the images resized to N×N, aspect ratio not kept (METHOD 1).

    Raises BadInput for absent or broken images and for a disk without room.
    """
    N = data.image_size
    key = digest(
        {
            "version": CACHE_VERSION,
            "root": str(annotations.root.resolve()),
            "images": [(path, *state) for path, state in zip(annotations.paths, states(annotations), strict=True)],
            "size": N,
        }
    )

    def fill(array: np.ndarray, advance: Advance) -> None:
        def one(item: tuple[int, Path]) -> BadInput | None:
            index, path = item
            try:
                image = load_image(path, data.max_image_pixels)
            except BadInput as error:
                return error
            array[index] = np.asarray(image.resize((N, N), Image.Resampling.BILINEAR))
            advance(1)
            return None

        if broken := [error for error in in_threads(one, enumerate(annotations.files())) if error]:
            others = f" ({len(broken) - 1} more images cannot be used either.)" if len(broken) > 1 else ""
            first = broken[0]
            raise BadInput(first.where, found=first.found, expected=first.expected, remedy=first.remedy + others)

    shape = (len(annotations), N, N, 3)
    return _shared(cache_dir / f"images-{N}-{key}.npy", shape, np.uint8, fill, f"resizing {len(annotations)} images")


def feature_maps(
    images: np.memmap, encode: Callable[[torch.Tensor], torch.Tensor], encoder: str, mirror: bool, cache_dir: Path
) -> np.ndarray:
    """(n, 1 or 2, C, H, W) uint16, memory-mapped: the bits of the bfloat16 maps of each image and, if asked, its mirror.

    `images` is what `resized_images` gave, `encode` maps (b, N, N, 3) uint8 to (b, C, H, W), `encoder` is its fingerprint.
    """
    key = digest(
        {"version": CACHE_VERSION, "images": Path(str(images.filename)).stem, "encoder": encoder, "mirror": mirror}
    )
    C, H, W = encode(torch.from_numpy(images[:1].copy())).shape[1:]
    views = 2 if mirror else 1

    def fill(array: np.ndarray, advance: Advance) -> None:
        step = 8
        for start in range(0, len(images), step):
            batch = torch.from_numpy(images[start : start + step].copy())
            for view in range(views):
                maps = encode(batch.flip(2) if view else batch).to(torch.bfloat16).contiguous().cpu()
                array[start : start + step, view] = maps.view(torch.uint16).numpy()
            advance(len(batch))

    shape = (len(images), views, C, H, W)
    return _shared(cache_dir / f"maps-{key}.npy", shape, np.uint16, fill, f"convolving {len(images)} images")


def rows(
    cache_dir: Path, name: str, shape: tuple[int, int], produce: Callable[[], Iterable[np.ndarray]], task: str
) -> np.ndarray:
    """(n, D) float32, memory-mapped: what `produce` yields, piece after piece, made once for each `name`."""

    def fill(array: np.ndarray, advance: Advance) -> None:
        start = 0
        for piece in produce():
            array[start : start + len(piece)] = piece
            start += len(piece)
            advance(len(piece))

    return _shared(cache_dir / f"{name}.npy", shape, np.float32, fill, task)


def _shared(
    path: Path, shape: tuple[int, ...], dtype: type, fill: Callable[[np.ndarray, Advance], None], task: str
) -> np.memmap:
    """The array at `path`, made by `fill` if it is not there yet: by one process, the others wait for it."""
    if not path.exists():
        make_folder(path.parent, "--cache-dir")
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _build(path, shape, dtype, fill, task)
    return np.load(path, mmap_mode="r")


def _build(
    path: Path, shape: tuple[int, ...], dtype: type, fill: Callable[[np.ndarray, Advance], None], task: str
) -> None:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    require_space(path.parent, size, "the cache")
    partial = path.with_suffix(".partial")  # the lock is held: whatever bears this name is a dead process's
    try:
        try:
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
            _reserve(partial)
        except OSError as error:
            raise no_room(path.parent, size, "the cache", error.strerror or str(error)) from error
        with progress(task, shape[0]) as advance:
            fill(array, advance)
        array.flush()
        del array
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _reserve(file: Path) -> None:
    """Have the disk's blocks for all of `file`. It has none yet: a disk that fills would end the process (SIGBUS) where a
    memory-mapped page is written."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with file.open("rb+") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that knows of no such thing
                raise
