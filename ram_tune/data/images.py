"""One image file → upright 8-bit RGB, whatever it was written as."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ram_tune.errors import BadInput

ORIENTATION = 0x0112  # EXIF's tag

Image.MAX_IMAGE_PIXELS = None  # load_image has its own limit, asked before anything is decoded


def load_image(path: Path, max_pixels: int) -> Image.Image:
    """Decode `path` wholly: RGB, 8 bits, turned upright by its EXIF orientation, transparency laid on white.

    Raises BadInput naming the file when it is absent, no image, truncated, or has more than `max_pixels` pixels (said by
    its header, before anything is decoded).
    """
    remedy = "Replace or remove the file; `python -m ram_tune.data check` lists all such files."
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadInput(
                    path,
                    found=f"an image of {width}×{height} pixels",
                    expected=f"at most {max_pixels:,} pixels",
                    remedy="Make it smaller, or raise data.max_image_pixels.",
                )
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise BadInput(path, found="no such file", expected="an image", remedy="Check --data-root.") from error
    except UnidentifiedImageError as error:
        raise BadInput(path, found="a file that is no image", expected="JPEG, PNG, …", remedy=remedy) from error
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # on damaged files Pillow's decoders and its reader of EXIF raise a dozen kinds
        raise BadInput(path, found=f"a damaged image ({error})", expected="a whole image", remedy=remedy) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as 8-bit RGB."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit greyscale: Pillow's own conversion clips at 255
        high = np.asarray(image).astype(np.float64)
        return Image.fromarray((high / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def upright_sizes(files: Sequence[Path]) -> np.ndarray:
    """(n, 2) int64: width and height of each image as it is seen, from its header alone."""

    def size(path: Path) -> tuple[int, int]:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, 1) >= 5  # by a quarter
        return (height, width) if turned else (width, height)

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(size, files)), np.int64).reshape(-1, 2)
