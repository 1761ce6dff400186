"""Every kind of picture people have loads right, or is refused by one clear message."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from ram_tune.data.images import load_image
from ram_tune.errors import BadInput

LIMIT = 100_000_000


def ramp(width=40, height=30) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 6, y * 8, (x + y) * 3], -1).astype(np.uint8))


def loaded(image: Image.Image, path, **options) -> np.ndarray:
    image.save(path, **options)
    rgb = load_image(path, LIMIT)
    assert rgb.mode == "RGB"
    return np.asarray(rgb).astype(int)


def test_rgb_and_greyscale(tmp_path):
    np.testing.assert_array_equal(loaded(ramp(), tmp_path / "a.png"), np.asarray(ramp()))
    grey = ramp().convert("L")
    np.testing.assert_array_equal(loaded(grey, tmp_path / "b.png")[..., 2], np.asarray(grey))


def test_cmyk_jpeg_has_its_true_colours(tmp_path):
    found = loaded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=95)  # red
    assert np.abs(found - [255, 0, 0]).max() < 12


def test_palette_and_transparency_on_white(tmp_path):
    palette = ramp().quantize(16)
    np.testing.assert_array_equal(loaded(palette, tmp_path / "a.png"), np.asarray(palette.convert("RGB")))
    clear = ramp().convert("RGBA")
    clear.putalpha(0)
    assert (loaded(clear, tmp_path / "b.png") == 255).all()
    assert (loaded(palette, tmp_path / "c.gif", transparency=int(np.asarray(palette)[0, 0]))[0, 0] == 255).all()


def test_sixteen_bits_keep_their_range(tmp_path):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = loaded(Image.fromarray(values), tmp_path / "a.png")
    np.testing.assert_allclose(found[..., 0], values / 257, atol=1)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    found = loaded(ramp(), tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(found, np.rot90(np.asarray(ramp()), -1))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with next to no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    stream = io.BytesIO()
    ramp(200, 200).save(stream, "JPEG")
    return stream.getvalue()


def odd_exif() -> bytes:
    """A JPEG to be turned, whose EXIF has a text where a resolution belongs: Pillow raises TypeError."""
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112], exif[0x010F] = 6, "maker"
    ramp(20, 20).save(stream, "JPEG", exif=exif.tobytes().replace(b"\x01\x0f\x00\x02", b"\x01\x1a\x00\x02"))
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (odd_exif(), "damaged"),
        (b"not an image", "no image"),
        (b"", "no image"),
        (jpeg()[:-900], "damaged"),
        (png_header(20_000, 20_000), "pixels"),
        (png_header(10_001, 10_000), "10001×10000 pixels"),
    ],
)
def test_bad_files_are_named(tmp_path, content, words):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=words) as caught:
        load_image(path, LIMIT)
    assert str(path) in str(caught.value)


def test_an_absent_file(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        load_image(tmp_path / "gone.jpg", LIMIT)
