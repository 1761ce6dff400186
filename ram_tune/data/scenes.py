"""The embedded dataset: cluttered scenes of drawn objects, rendered once as real JPEGs with COCO JSON beside them.

Nothing is downloaded, and what the constraints on regions (METHOD 4) are there to prevent can go wrong here too:
- objects go from ten pixels to most of the image, so a region must zoom in, yet neither vanish nor take in everything;
- what belongs together (cup and saucer, lock and key, a bird in a tree, a lantern by a house) comes together but not on
  one spot, so regions that collapse onto one another miss some of the labels;
- `hook_left`/`hook_right` and `flag_left`/`flag_right` are mirror images, so a mirrored region confuses them. **Training
  must not mirror these images** either: a mirrored `hook_left` keeps its label and looks like `hook_right`. The preset
  `scenes` sets `data.mirror` to false.
Colour and texture are drawn at random, in contrast to what is underneath, and say nothing about the label.

2,020 images, rendered in seconds. What a model reaches on them: README, the table that `make demo` printed.
"""

from __future__ import annotations

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ram_tune.config import digest
from ram_tune.errors import BadInput

SCENES_VERSION = 1  # raised by hand whenever a change of this file changes what is rendered
SPLITS = ("train", "selection", "test")
LABELS_PER_IMAGE = (0.28, 0.34, 0.22, 0.11, 0.05)  # chance of 1, 2, … 5 categories; a companion may add one to 1 … 4
AGAIN = 0.35  # chance that an object is followed by another of its category, unless it is a large one
SIZES = ((192, 192), (224, 192), (192, 224), (208, 192), (224, 176))  # width, height of an image
VISIBLE = 0.6  # least share of an annotated object's pixels that stays inside the image and uncovered
CONTRAST = (95.0, 25.0)  # least difference of lightness (0–255) from what is underneath: objects, clutter
BEHIND, IN_FRONT = (2, 6), (0, 3)  # how many shapes of no category, from and below
SUPERSAMPLING = 3
BYTES_PER_IMAGE = 24_000  # twice what is used; compared with the free space of the disk


@dataclass(frozen=True)
class Spec:
    """What is rendered: labelled images per split (one without a label comes on top of every hundred), and the seed."""

    train: int = 1200
    selection: int = 400
    test: int = 400
    seed: int = 0


MAIN, ACCENT, HOLE = (255, 0, 0), (255, 255, 0), (0, 0, 0)  # first channel: object; second: in its second colour
Parts = tuple[tuple[np.ndarray, tuple[int, int, int]], ...]  # (n, 2) corners and a tone, painted in this order
Range = tuple[float, float]
Box = tuple[int, int, int, int]  # x, y, width, height

SHAPES = {
    "house": "box .72 .08 .82 .4; box .1 .42 .9 1; +poly 0 .45 .5 0 1 .45; +box .55 .64 .75 1; +box .2 .56 .42 .76",
    "tree": "+box .43 .55 .57 1; oval .5 .24 .26 .24; oval .28 .46 .26 .2; oval .72 .46 .26 .2; oval .5 .44 .25 .24",
    "ladder": "box .26 0 .34 1; box .66 0 .74 1; box .3 .1 .7 .18; box .3 .34 .7 .42; box .3 .58 .7 .66; box .3 .82 .7 .9",
    "cup": "arc .7 .45 .2 .1 -90 90; poly .1 .12 .74 .12 .64 .9 .2 .9; +oval .42 .13 .32 .08",
    "saucer": "oval .5 .5 .5 .17; +oval .5 .47 .26 .07; box .35 .64 .65 .7",
    "lock": "arc .5 .42 .26 .12 175 365; box .12 .42 .88 1; +oval .5 .64 .09 .09; +poly .46 .66 .54 .66 .58 .86 .42 .86",
    "key": "oval .22 .5 .22 .22; -oval .2 .5 .11 .11; box .42 .44 1 .56; box .72 .5 .8 .72; box .9 .5 1 .76",
    "fish": "poly .7 .5 1 .26 1 .74; oval .4 .5 .4 .22; poly .3 .32 .56 .16 .56 .32; -oval .18 .45 .05 .05;"
    "+arc .2 .5 .16 .05 -50 50",
    "ring": "oval .5 .5 .5 .5; -oval .5 .5 .26 .26",
    "star": "poly .5 0 .62 .34 .98 .35 .69 .57 .79 .9 .5 .7 .21 .9 .31 .57 .02 .35 .38 .34",
    "bird": "poly .3 .5 0 .3 .04 .62; +poly .88 .3 1 .38 .86 .42; oval .45 .56 .3 .2; oval .76 .36 .15 .14;"
    "+poly .28 .5 .58 .5 .3 .78",
    "lantern": "arc .5 .2 .13 .07 180 360; poly .2 .34 .5 .16 .8 .34; box .27 .34 .73 .86; +box .37 .42 .63 .78;"
    "box .18 .86 .82 .98",
    "hook": "oval .66 .1 .12 .1; -oval .66 .1 .05 .05; box .6 .18 .72 .72; arc .43 .71 .23 .12 0 190",
    "flag": "box .72 0 .8 1; poly .74 .04 .52 .1 .36 .02 .1 .09 .2 .28 .1 .48 .36 .4 .52 .48 .74 .42; +oval .48 .25 .1 .1",
}
"""Outlines in the unit square (x right, y down; an arc: centre, radius, width, from and to degrees, 0: right, 90: down).
`+` paints in the second colour, `-` cuts a hole."""


def _turn(start: float, stop: float, n: int = 24) -> np.ndarray:
    degrees = np.radians(np.linspace(start, stop, n))
    return np.stack([np.cos(degrees), np.sin(degrees)], 1)


OUTLINES = {
    "poly": lambda *xy: np.reshape(xy, (-1, 2)),
    "box": lambda x1, y1, x2, y2: np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]),
    "oval": lambda x, y, rx, ry: _turn(0, 351, 40) * (rx, ry) + (x, y),
    "arc": lambda x, y, r, w, a, b: np.r_[_turn(a, b) * (r + w / 2), _turn(b, a) * (r - w / 2)] + (x, y),
}


def shape(name: str) -> Parts:
    """The polygons of SHAPES[name]."""
    words, tones = [part.split() for part in SHAPES[name].split(";")], {"+": ACCENT, "-": HOLE}
    return tuple((OUTLINES[w[0].lstrip("+-")](*map(float, w[1:])), tones.get(w[0][0], MAIN)) for w in words)


class Kind(NamedTuple):
    """A category: its shape, the side of its unit square in pixels (log-uniform), how often a scene starts with it."""

    parts: Parts
    size: Range
    weight: float
    flip: bool | None = None  # drawn as in a mirror; None: half of the time


KINDS = {
    "house": Kind(shape("house"), (70, 180), 1.4),
    "tree": Kind(shape("tree"), (70, 180), 1.2),
    "ladder": Kind(shape("ladder"), (70, 170), 0.6),
    "cup": Kind(shape("cup"), (32, 90), 1.2),
    "saucer": Kind(shape("saucer"), (44, 110), 0.35),
    "lock": Kind(shape("lock"), (34, 92), 1.0),
    "key": Kind(shape("key"), (30, 80), 0.35),
    "fish": Kind(shape("fish"), (30, 110), 1.2),
    "ring": Kind(shape("ring"), (26, 84), 0.9),
    "star": Kind(shape("star"), (14, 42), 2.0),
    "bird": Kind(shape("bird"), (16, 42), 0.35),
    "lantern": Kind(shape("lantern"), (16, 44), 0.35),
    "hook_left": Kind(shape("hook"), (40, 120), 0.9, flip=False),
    "hook_right": Kind(shape("hook"), (40, 120), 0.9, flip=True),
    "flag_left": Kind(shape("flag"), (40, 120), 0.9, flip=False),
    "flag_right": Kind(shape("flag"), (40, 120), 0.9, flip=True),
}
COMPANIONS = {  # what often comes with a category, its chance, its centre's x and y and its size, in units of the host's box
    "house": ("lantern", 0.65, (-0.35, 1.35), (0.6, 0.9), (0.15, 0.26)),
    "tree": ("bird", 0.65, (-0.15, 1.15), (-0.1, 0.3), (0.15, 0.26)),
    "cup": ("saucer", 0.75, (0.3, 0.6), (1.0, 1.2), (1.0, 1.5)),
    "lock": ("key", 0.75, (-0.7, 1.7), (0.1, 1.2), (0.75, 1.1)),
}
NAMES = tuple(KINDS)
WEIGHTS = np.array([kind.weight for kind in KINDS.values()])
FRAGMENTS = [points for kind in KINDS.values() if len(kind.parts) > 2 for points, _ in kind.parts]


def stencil(parts: Parts, size: float, angle: float = 0.0, squash: float = 1.0, flip: bool = False) -> np.ndarray:
    """A shape drawn tightly: (h, w, 2) float32 in [0, 1], how much of a pixel is object, and how much is accent.

    `size` is the side of the unit square in pixels, `angle` a rotation in radians, `squash` a factor on the width.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = size * np.array([[cos, sin], [-sin, cos]]) * [[-squash if flip else squash], [1]]
    drawn = [((points - 0.5) @ matrix, tone) for points, tone in parts]
    every = np.concatenate([points for points, _ in drawn])
    width, height = np.ceil(np.ptp(every, axis=0) + 1).astype(int).tolist()
    origin = (every.min(0) + every.max(0) - (width, height)) / 2  # centred, so that a mirror image is one to the pixel
    sheet = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    pen = ImageDraw.Draw(sheet)
    for points, tone in drawn:
        pen.polygon([(x, y) for x, y in ((points - origin) * SUPERSAMPLING).tolist()], fill=tone)
    return np.asarray(sheet.reduce(SUPERSAMPLING), np.float32)[:, :, :2] / 255


@dataclass
class Placed:
    """An annotated object; counts are of pixels."""

    name: str
    box: Box  # tight, inside the image
    drawn: int  # the whole shape, also what is outside the image
    area: int  # inside the image
    shown: int  # inside the image and not covered by what was painted later


class Scene:
    """A canvas that is painted from back to front and knows which pixel shows which object."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.width, self.height = SIZES[rng.integers(len(SIZES))]
        self.pixels = _background(rng, self.width, self.height)  # (H, W, 3) float32
        self.owner = np.zeros((self.height, self.width), np.int16)  # 1 + index into objects; 0: none
        self.objects: list[Placed] = []

    def paint(self, stamp: np.ndarray, x: float, y: float, name: str = "") -> bool:
        """Paint a stencil round (x, y), as an object of category `name` or as clutter; False where it must not be."""
        h, w = stamp.shape[:2]
        left, top = round(x - w / 2), round(y - h / 2)
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + w, self.width), min(top + h, self.height)
        if x1 >= x2 or y1 >= y2:
            return False
        seen = stamp[y1 - top : y2 - top, x1 - left : x2 - left]
        mask = seen[:, :, 0] > 0.5
        owner, drawn, area = self.owner[y1:y2, x1:x2], int((stamp[:, :, 0] > 0.5).sum()), int(mask.sum())
        covered = np.bincount(owner[mask], minlength=len(self.objects) + 1)[1:].tolist()
        hides = any(c and o.shown - c < VISIBLE * o.drawn for c, o in zip(covered, self.objects, strict=True))
        if hides or (name and area < 0.8 * drawn):
            return False
        for count, placed in zip(covered, self.objects, strict=True):
            placed.shown -= count
        if name:
            xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            corner = x1 + int(xs[0]), y1 + int(ys[0])
            self.objects.append(Placed(name, (*corner, int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1), drawn, area, area))
        owner[mask] = len(self.objects) if name else 0
        under, rng = self.pixels[y1:y2, x1:x2], self.rng
        main = _colour(rng, float(under.mean()), CONTRAST[0 if name else 1])
        accent = _colour(rng, float(main.sum()) / 3, 50)
        texture = _waves(rng, x2 - x1, y2 - y1, rng.uniform(0.1, 1.2)) * np.float32(rng.uniform(0, 14))
        under += seen[:, :, :1] * (main + texture - under) + seen[:, :, 1:] * (accent - main)
        return True


def compose(rng: np.random.Generator, labelled: bool = True) -> Scene:
    """A scene: background, clutter, objects (large ones first, companions right after their hosts), more clutter."""
    scene = Scene(rng)
    for _ in range(rng.integers(*BEHIND)):
        _clutter(scene, (8, 90))
    while labelled and not scene.objects:
        labels = 1 + rng.choice(len(LABELS_PER_IMAGE), p=LABELS_PER_IMAGE)
        chosen = [NAMES[i] for i in rng.choice(len(NAMES), labels, replace=False, p=WEIGHTS / WEIGHTS.sum())]
        for name in sorted(chosen, key=lambda name: -KINDS[name].size[1]):
            present = {placed.name for placed in scene.objects}
            if name not in present and len(present) < labels:
                _place(scene, name, in_company=len(present) + 2 <= len(LABELS_PER_IMAGE))
    for _ in range(rng.integers(*IN_FRONT)):
        _clutter(scene, (6, 40))
    scene.pixels += rng.standard_normal((scene.height, scene.width, 1), np.float32) * np.float32(rng.uniform(2, 7))
    return scene


def _place(scene: Scene, name: str, in_company: bool) -> None:
    """Try to paint a category, perhaps its companion, and perhaps more of its likes; what finds no room is left out."""
    rng, kind = scene.rng, KINDS[name]
    size = math.exp(rng.uniform(*np.log(kind.size)))
    if not _fit(scene, name, size, (0, 0, scene.width, scene.height), (0.1, 0.9), (0.1, 0.9)):
        return
    if in_company and name in COMPANIONS:
        companion, chance, x, y, scale = COMPANIONS[name]
        if rng.random() < chance:
            _fit(scene, companion, size * rng.uniform(*scale), scene.objects[-1].box, x, y)
    if kind.size[1] <= 120 and rng.random() < AGAIN:
        _place(scene, name, in_company=False)


def _fit(scene: Scene, name: str, size: float, frame: Box, x: Range, y: Range) -> bool:
    """Paint a category, jittered a little, with its centre in the ranges `x`, `y` of `frame`; False: there is no room."""
    rng, kind, (left, top, width, height) = scene.rng, KINDS[name], frame
    for shrink in 0.9 ** np.arange(12):
        flip = rng.random() < 0.5 if kind.flip is None else kind.flip
        angle, squash = rng.normal(0, 0.1), math.exp(rng.normal(0, 0.12))
        stamp = stencil(kind.parts, max(shrink * size, kind.size[0]), angle, squash, flip)
        if scene.paint(stamp, left + rng.uniform(*x) * width, top + rng.uniform(*y) * height, name):
            return True
    return False


def _clutter(scene: Scene, size: Range) -> None:
    """Try to paint something of no category: a blob, a line, a bow, or a fragment of an object, turned at random."""
    rng = scene.rng
    corners = np.sort(rng.uniform(0, 2 * np.pi, (rng.integers(3, 9), 1)), axis=0)
    outline = (
        0.5 + rng.uniform(0.2, 0.5, corners.shape) * np.concatenate([np.cos(corners), np.sin(corners)], 1),
        OUTLINES["box"](0, 0.5, 1, 0.5 + rng.uniform(0.02, 0.15)),
        OUTLINES["arc"](0.5, 0.5, 0.4, rng.uniform(0.05, 0.2), 0, rng.uniform(60, 250)),
        FRAGMENTS[rng.integers(len(FRAGMENTS))],
    )[rng.integers(4)]
    stamp = stencil(((outline, MAIN),), math.exp(rng.uniform(*np.log(size))), rng.uniform(0, 2 * np.pi))
    scene.paint(stamp, rng.uniform(0, scene.width), rng.uniform(0, scene.height))


def _waves(rng: np.random.Generator, width: int, height: int, frequency: float) -> np.ndarray:
    """(height, width, 1) float32 stripes in [-1, 1] in a random direction; a gradient where the frequency is low."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    return np.sin(x * np.float32(frequency * math.cos(angle)) + y * np.float32(frequency * math.sin(angle)))[:, :, None]


def _colour(rng: np.random.Generator, beside: float, contrast: float) -> np.ndarray:
    """(3,) float32 random colour whose lightness differs from `beside` by `contrast` at least."""
    colour = rng.uniform(0, 255, 3)
    while abs(float(colour.sum()) / 3 - beside) < contrast:
        colour = rng.uniform(0, 255, 3)
    return colour.astype(np.float32)


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(height, width, 3) float32: a gradient between two dark colours, large soft spots, and faint stripes."""
    first, last = rng.uniform(20, 110, (2, 1, 1, 3)).astype(np.float32)
    spots = Image.fromarray(rng.standard_normal((6, 6), np.float32) * np.float32(rng.uniform(0, 16)))
    texture = np.asarray(spots.resize((width, height), Image.Resampling.BICUBIC))[:, :, None]
    texture = texture + _waves(rng, width, height, rng.uniform(0.15, 1.0)) * np.float32(rng.uniform(0, 6))
    return first + (_waves(rng, width, height, 0.008) + 1) / 2 * (last - first) + texture


def ensure(cache_dir: Path, spec: Spec = Spec(), workers: int = 2) -> Path:
    """The dataset's root, with `annotations/instances_<split>.json` and a folder of JPEGs per split; rendered if need be.

    It is rendered beside it and renamed when complete: a root that exists is whole. One core is the limit: `workers`,
    threads, only hide a slow disk. Raises BadInput where `cache_dir` cannot be written or its disk is too full.
    """
    from filelock import FileLock

    root = cache_dir / f"scenes-{digest({'version': SCENES_VERSION, **asdict(spec)})}"
    partial = root.with_suffix(".partial")
    if root.is_dir():  # asked before locking: a cache that is shared may not be writable
        return root
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(root.with_suffix(".lock")):
            if not root.is_dir():  # another process may have rendered it meanwhile
                shutil.rmtree(partial, ignore_errors=True)  # left by a process that was stopped
                _render(partial, spec, workers)
                partial.rename(root)
    except OSError as error:
        raise BadInput(cache_dir, found=error, expected="a folder to write to", remedy="Choose --cache-dir.") from error
    return root


def _render(root: Path, spec: Spec, workers: int) -> None:
    """Write the whole dataset below `root`."""
    from rich.console import Console
    from rich.progress import track

    jobs = [(split, i, i < n) for split in SPLITS for n in [getattr(spec, split)] for i in range(n + n // 100)]
    free, needed = shutil.disk_usage(root.parent).free, len(jobs) * BYTES_PER_IMAGE
    if free < needed:
        found, expected = f"{free / 1e6:.0f} MB free", f"{needed / 1e6:.0f} MB for the embedded dataset"
        raise BadInput(f"cache folder {root.parent}", found=found, expected=expected, remedy="Choose --cache-dir.")
    for name in (*SPLITS, "annotations"):
        (root / name).mkdir(parents=True)
    with ThreadPoolExecutor(workers) as pool:
        written = pool.map(lambda job: _write(root, spec.seed, *job), jobs)
        entries = list(track(written, "Rendering the embedded dataset", len(jobs), console=Console(stderr=True)))
    for split in SPLITS:
        mine = [entry for entry, job in zip(entries, jobs, strict=True) if job[0] == split]
        objects = [found for _, several in mine for found in several]
        coco = {
            "info": {"description": f"ram_tune scenes, version {SCENES_VERSION}", **asdict(spec)},
            "images": [image for image, _ in mine],
            "annotations": [{"id": number, **found} for number, found in enumerate(objects, 1)],
            "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco), encoding="utf-8")


def _write(root: Path, seed: int, split: str, index: int, labelled: bool) -> tuple[dict, list[dict]]:
    """Render and save one image; its COCO entry and its objects' (without ids)."""
    number = SPLITS.index(split) * 1_000_000 + index + 1  # unique in the dataset, not in its split alone
    scene = compose(np.random.default_rng((seed, number)), labelled)
    file = f"{split}_{index + 1:06d}.jpg"
    Image.fromarray(np.clip(scene.pixels, 0, 255).astype(np.uint8)).save(root / split / file, quality=88)
    about = {"image_id": number, "iscrowd": 0}
    return {"id": number, "file_name": file, "width": scene.width, "height": scene.height}, [
        {**about, "category_id": 1 + NAMES.index(o.name), "bbox": [*map(float, o.box)], "area": float(o.area)}
        for o in scene.objects
    ]
