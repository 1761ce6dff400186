"""Regions drawn on images: what a person looks at to see where a model looked.

Legend: K regions, L labels, T places (of a model that looks at several regions round each).
"""

from __future__ import annotations

import io
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ram_tune.data.annotations import Annotations
from ram_tune.data.images import load_image
from ram_tune.models.regions import to_pixels

# Okabe and Ito's colours, told apart with any colour vision: orange, sky blue, bluish green, yellow, vermilion, reddish
# purple, blue (their black is lost on photographs). Region k has the k-th; from the eighth on they come again, so that
# every tag carries its region's number as well.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
WHITE_ON = "#0072B2"  # the one too dark for black letters
SIDE = 512  # pixels of a picture's longest side
LETTERS, LINE, GAP = 1 / 30, 1 / 170, 1 / 64  # font size, line width, space between pictures, over the longest side
CAPTION_LINES = 3

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Area = tuple[int, int, int, int]  # x1, y1, x2, y2


def pick(annotations: Annotations, count: int = 8, seed: int = 0) -> np.ndarray:
    """Which images to draw: (count,) ascending indices, always the same for the same images and seed.

    Drawn from those with two labels or more, where a single region does not do; from the others where these run out.
    """
    order = np.random.default_rng(seed).permutation(len(annotations))
    several = annotations.targets[order].sum(1) > 1
    return np.sort(order[np.argsort(~several, kind="stable")][:count])


def picture(
    annotations: Annotations,
    index: int,
    regions: np.ndarray,
    scores: np.ndarray,
    crop: np.ndarray,
    image_size: int,
    max_pixels: int,
    steps: int = 0,
) -> Image.Image:
    """Image `index` with its regions (K, 4), what each scored (K, L) highest, and the true labels as its caption.

    `crop` (4,) and `image_size` as in `to_pixels`, `steps` as in `draw`; with it, of each place only the region of the
    highest score says what it is. Raises BadInput as `load_image` does.
    """
    image = load_image(annotations.files()[index], max_pixels)
    found = torch.from_numpy(np.array(regions, np.float64))[None]
    boxes = to_pixels(found, torch.from_numpy(np.array(crop))[None], image_size, torch.tensor([image.size]))[0]
    true = [annotations.categories[label] for label in np.flatnonzero(annotations.targets[index])]
    texts = tags(scores, annotations.categories)
    if steps:
        best = scores.max(1).reshape(steps, -1)
        spoken = best.argmax(1) + np.arange(steps) * best.shape[1]
        texts = [text if k in spoken else "" for k, text in enumerate(texts)]
    return draw(image, boxes.numpy(), texts, ", ".join(true), steps=steps)


def tags(scores: np.ndarray, categories: Sequence[str]) -> list[str]:
    """`number label score` of the label that each region scored highest: scores (K, L), L names → K texts."""
    best = scores.argmax(1)
    return [f"{k + 1} {categories[label]} {scores[k, label]:.2f}" for k, label in enumerate(best)]


def draw(
    image: Image.Image,
    boxes: np.ndarray,
    labels: Sequence[str],
    caption: str = "",
    side: int = SIDE,
    steps: int = 0,
) -> Image.Image:
    """`image` (RGB) made to fit `side`×`side`, with boxes (K, 4) in its own pixels, K labels, and a caption below it.

    Boxes are clipped: one that reaches beyond the image is closed along its edge; one that lies wholly outside it is not
    drawn, and its label says so. Text too long is cut short, and left out where the image is too small for any.

    `steps`: T where the boxes lie round so many places, K/T round each, one after another: those of a place then have one
    colour, a dot in it marks the place, and a line joins the T. 0: none.
    """
    scale = side / max(image.size)
    size = width, height = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    drawn = image.resize(size, Image.Resampling.BICUBIC)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(max(side * LETTERS, 1))
    line = max(round(side * LINE), 1)

    stretch = np.array([width / image.width, height / image.height] * 2)
    corners = np.clip(np.rint(boxes * stretch), 0, [width, height] * 2).astype(int).tolist()
    seen = np.all((boxes[:, :2] < np.array(image.size)) & (boxes[:, 2:] > 0), axis=1).tolist()
    each = len(boxes) // steps if steps else 1  # boxes of one colour
    colours = [COLOURS[k // each % len(COLOURS)] for k in range(len(boxes))]
    for (x1, y1, x2, y2), colour, visible in zip(corners, colours, seen, strict=True):
        if visible:  # black on either side of the line, so that it shows on its own colour too
            right, bottom = max(x2 - 1, x1), max(y2 - 1, y1)
            pen.rectangle((x1, y1, right, bottom), outline="black", width=line + 2)
            inner = x1 + 1, y1 + 1, max(right - 1, x1 + 1), max(bottom - 1, y1 + 1)
            pen.rectangle(inner, outline=colour, width=line)
    if steps:
        places = (boxes[::each, :2] + boxes[::each, 2:]) / 2 * stretch[:2]
        _join(pen, np.clip(places, 0, [width - 1, height - 1]), colours[::each], line)
    _tag(pen, font, size, line, list(zip(corners, colours, labels, seen, strict=True)))
    return _captioned(drawn, caption, font) if caption else drawn


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Pictures, at least one, row by row in cells as large as the largest, on white."""
    columns = min(columns, len(pictures))
    width, height = max(one.width for one in pictures), max(one.height for one in pictures)
    gap = max(round(max(width, height) * GAP), 1)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for number, one in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = gap + column * (width + gap), gap + row * (height + gap)
        sheet.paste(one, (left + (width - one.width) // 2, top))
    return sheet


def encode(picture: Image.Image) -> bytes:
    """A picture as JPEG."""
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=80, subsampling=0)  # halved colours would blur the thin coloured lines
    return target.getvalue()


def _join(pen: ImageDraw.ImageDraw, places: np.ndarray, colours: Sequence[str], line: int) -> None:
    """A line through places (T, 2) in pixels, black and white so that it shows on anything, and a dot on each."""
    way = [(float(x), float(y)) for x, y in places]
    pen.line(way, fill="black", width=line + 2)
    pen.line(way, fill="white", width=line)
    for (x, y), colour in zip(way, colours, strict=True):
        pen.circle((x, y), 2 * line + 1, fill=colour, outline="black")


def _tag(
    pen: ImageDraw.ImageDraw,
    font: Font,
    size: tuple[int, int],
    pad: int,
    boxes: list[tuple[Area, str, str, bool]],
) -> None:
    """Write each (box, colour, text, whether visible) in a tag of its colour, at a corner of the box that is still free."""
    width, height = size
    high = _height(font)
    taken: list[Area] = []
    for (x1, y1, x2, y2), colour, text, visible in boxes:
        text = _shortened(text if visible else f"{text} (outside)", font, width - 4 * pad)
        if not text or high > height:
            continue
        wide = round(font.getlength(text)) + 4 * pad
        # Its corners, then down the left edge of the box and up again, as many steps as there are tags.
        places = [(x1, y1), (x2 - wide, y1), (x1, y2 - high), (x2 - wide, y2 - high)]
        places += [(x1, y1 + sign * step * high) for step in range(1, len(boxes) + 1) for sign in (1, -1)]
        areas = [_within(x, y, wide, high, width, height) for x, y in places]
        area = min(areas, key=lambda one: sum(_overlap(one, other) for other in taken))  # the first with least
        taken.append(area)
        pen.rectangle((area[0], area[1], area[2] - 1, area[3] - 1), fill=colour)
        ink = "white" if colour == WHITE_ON else "black"
        pen.text((area[0] + 2 * pad, (area[1] + area[3]) / 2), text, fill=ink, font=font, anchor="lm")


def _captioned(image: Image.Image, caption: str, font: Font) -> Image.Image:
    """The image with black text on white below it, in as many lines as it needs up to CAPTION_LINES."""
    pad = image.width // 100
    room = image.width - 2 * pad
    lines: list[str] = []
    for word in caption.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    lines[CAPTION_LINES - 1 :] = [" ".join(lines[CAPTION_LINES - 1 :])] if len(lines) >= CAPTION_LINES else []
    high = _height(font)
    whole = Image.new("RGB", (image.width, image.height + len(lines) * high), "white")
    whole.paste(image)
    pen = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        middle = image.height + (number + 0.5) * high
        pen.text((pad, middle), _shortened(line, font, room), fill="black", font=font, anchor="lm")
    return whole


def _shortened(text: str, font: Font, width: int) -> str:
    """`text` on one line of at most `width` pixels: as many letters as fit, and `…` where some do not.

    Without accents: Pillow's own font has none. It shows letters other than Latin ones as boxes.
    """
    text = "".join(letter for letter in unicodedata.normalize("NFD", text) if not unicodedata.combining(letter))
    text = " ".join(text.split())  # Pillow measures no text with a line break
    if font.getlength(text) <= width:
        return text
    fit = bisect_right(range(len(text)), width, key=lambda n: font.getlength(f"{text[:n]}…"))
    return f"{text[: fit - 1]}…" if fit else ""


def _height(font: Font) -> int:
    """Pixels from line to line."""
    return round(font.getbbox("Åg|", anchor="ls")[3] - font.getbbox("Åg|", anchor="ls")[1]) + 4


def _within(x: int, y: int, wide: int, high: int, width: int, height: int) -> Area:
    """A tag of wide × high at (x, y), or as near to it as the image allows."""
    x, y = min(max(x, 0), width - wide), min(max(y, 0), height - high)
    return x, y, x + wide, y + high


def _overlap(one: Area, other: Area) -> int:
    """Pixels that two areas share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0) * max(high, 0)
