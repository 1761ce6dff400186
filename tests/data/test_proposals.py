"""EdgeBoxes: what it finds in pictures whose objects are known, where there is nothing to find, and the cache of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forest import write_forest
from PIL import Image
from torchvision.ops import box_iou

from ram_tune.config.model import Proposals
from ram_tune.data import proposals as module
from ram_tune.data import voc
from ram_tune.data.annotations import Annotations
from ram_tune.data.images import load_image
from ram_tune.data.proposals import EdgeBoxes, proposals
from ram_tune.errors import BadInput

pytest.importorskip("cv2.ximgproc")


def square(size=(400, 300), box=(120, 80, 300, 200), colour=(255, 40, 40)) -> Image.Image:
    image = Image.new("RGB", size, (20, 20, 60))
    image.paste(colour, box)
    return image


def pixels(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return boxes[~np.isnan(boxes[:, 0])] * np.tile(size, 2)


def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return box_iou(torch.from_numpy(one).double(), torch.from_numpy(other).double()).numpy()


def forest_file(folder: Path) -> str:
    return str(write_forest(folder / "model.yml"))


@pytest.mark.parametrize("edges", ["gradient", "forest"])
@pytest.mark.parametrize("turned", [False, True])
def test_an_object_is_found_first(tmp_path, edges, turned):
    """And with axes the right way round: the picture is no square."""
    fields = Proposals(edge_model=forest_file(tmp_path) if edges == "forest" else "")
    image, wanted = square(), (120, 80, 300, 200)
    if turned:
        image, wanted = image.transpose(Image.Transpose.TRANSPOSE), (80, 120, 200, 300)
    boxes = EdgeBoxes(fields)(image)
    assert boxes.shape == (200, 4) and boxes.dtype == np.float32
    assert iou(np.array([wanted]), pixels(boxes, image.size)[:3]).max() > 0.75


@pytest.mark.parametrize("angle", [0, 30, 90, 135, 170])
def test_edges_are_one_line_and_look_across_it(angle):
    """A step seen under an angle, in float64: strongest on the line, and its direction is the normal's."""
    normal = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    y, x = np.mgrid[-40:41, -50:51].astype(float)
    distance = normal[0] * x + normal[1] * y
    image = np.repeat(np.uint8(255 * (1 / (1 + np.exp(-3 * distance))))[..., None], 3, axis=2)
    strength, orientation = EdgeBoxes(Proposals()).edges(image)
    assert strength.max() <= 1 and strength.dtype == orientation.dtype == np.float32
    inner = np.hypot(x, y) < 30
    edge = inner & (strength > 0.9)
    assert edge.sum() >= 40 and (np.abs(distance[edge]) < 1.5).all()
    assert not (strength[inner & (np.abs(distance) > 2)] > 0.1).any()  # thinned: the blur alone would leave more
    off = (np.degrees(orientation[edge]) - angle + 90) % 180 - 90
    assert np.abs(off).max() < 4
    assert (orientation >= 0).all() and (orientation <= np.pi + 1e-6).all()


def test_boxes_overlap_no_more_than_asked_and_are_no_smaller():
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((320, 240))
    for fields in (Proposals(), Proposals(nms=0.3, min_area=4000, max_boxes=60)):
        found = pixels(EdgeBoxes(fields)(noise), noise.size)
        assert 3 < len(found) <= fields.max_boxes
        apart = iou(found, found) - np.eye(len(found))
        assert apart.max() <= fields.nms + 1e-4
        assert ((found[:, 2:] - found[:, :2]).prod(1) >= fields.min_area * 0.95).all()


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (300, 200), "red"),
        Image.new("L", (90, 200), 7),
        Image.new("RGB", (1, 1)),
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 1, 3), dtype=np.uint8)),
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (1, 5000, 3), dtype=np.uint8)),
    ],
    ids=["one colour", "one grey", "a pixel", "one wide", "one high"],
)
@pytest.mark.parametrize("edges", ["gradient", "forest"])
def test_where_nothing_is_found_there_is_no_box(image, edges, tmp_path):
    found = EdgeBoxes(Proposals(edge_model=forest_file(tmp_path) if edges == "forest" else ""))(image)
    assert found.shape == (200, 4) and np.isnan(found).all()


@pytest.mark.parametrize("seed", range(12))
def test_pictures_of_any_shape(seed):
    random = np.random.default_rng(seed)
    height, width = random.integers(1, [60, 900])
    image = Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8))
    boxes = EdgeBoxes(Proposals(min_area=float(random.integers(0, 500))))(image)
    found = pixels(boxes, (1, 1))
    assert (found >= 0).all() and (found <= 1).all() and (found[:, 2:] > found[:, :2]).all()


def dataset(root: Path, n: int = 9) -> Annotations:
    random = np.random.default_rng(1)
    for i in range(n):
        x, y = random.integers(5, 120, 2).tolist()
        square((240, 200), (x, y, x + 60, y + 50)).save(root / f"{i}.png")
    Image.new("RGB", (240, 200), "grey").save(root / "3.png")
    names = tuple(f"{i}.png" for i in range(n))
    return Annotations(root, ("a",), names, names, np.ones((n, 1), bool), np.zeros((n, 1), bool))


def test_in_parallel_and_from_the_cache_are_one_after_another(tmp_path):
    images, fields = dataset(tmp_path), Proposals(max_boxes=20)
    found = proposals(images, fields, 10**6, tmp_path / "cache")
    one_by_one = [EdgeBoxes(fields)(load_image(file, 10**6)) for file in images.files()]
    np.testing.assert_array_equal(found, one_by_one)
    assert np.isnan(found[3]).all() and not np.isnan(found[[0, 8], 0]).any()


def test_looked_for_once_and_anew_after_a_crash_or_a_change(tmp_path, monkeypatch):
    images, cache, looked = dataset(tmp_path), tmp_path / "cache", []
    look = EdgeBoxes.__call__
    monkeypatch.setattr(EdgeBoxes, "__call__", lambda self, image: looked.append(1) or look(self, image))
    found = np.array(proposals(images, Proposals(), 10**6, cache))
    proposals(images, Proposals(), 10**6, cache)
    assert len(looked) == 9
    (file,) = cache.glob("*.npy")
    content = file.read_bytes()
    file.unlink()
    file.with_suffix(".partial").write_bytes(content[: len(content) // 2])  # a process that died while it wrote
    np.testing.assert_array_equal(proposals(images, Proposals(), 10**6, cache), found)
    assert len(looked) == 18 and not list(cache.glob("*.partial"))
    for fields in (Proposals(nms=0.5), Proposals(edge_model=forest_file(tmp_path))):
        assert not np.array_equal(proposals(images, fields, 10**6, cache), found, equal_nan=True)
    write_forest(tmp_path / "model.yml", threshold=0.5)  # the same path, another content
    proposals(images, Proposals(edge_model=str(tmp_path / "model.yml")), 10**6, cache)
    square().save(tmp_path / "0.png")
    os.utime(tmp_path / "0.png", (1, 1))
    again = proposals(images, Proposals(), 10**6, cache)
    assert not np.array_equal(again[0], found[0], equal_nan=True)
    np.testing.assert_array_equal(again[1:], found[1:])
    assert len(looked) == 9 * 6


def test_a_broken_image_is_named(tmp_path):
    images = dataset(tmp_path)
    (tmp_path / "5.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"5\.png.*no image"):
        proposals(images, Proposals(), 10**6, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))


@pytest.mark.parametrize("content", ["", "garbage: [", "%YAML:1.0\n---\na: 1\n", "no divisor"])
def test_an_edge_model_that_is_none(tmp_path, content):
    file = tmp_path / "model.yml"
    file.write_text(content)
    if content == "no divisor":
        write_forest(file, numberOfTrees=0)
    with pytest.raises(BadInput, match=r"model\.proposals\.edge_model: found .*model\.yml, which holds no such forest"):
        EdgeBoxes(Proposals(edge_model=str(file)))
    with pytest.raises(BadInput, match="no file"):
        EdgeBoxes(Proposals(edge_model=str(tmp_path / "gone.yml.gz")))


def test_without_opencv_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2.ximgproc", None)
    with pytest.raises(BadInput, match="pip install opencv-contrib-python-headless"):
        module.EdgeBoxes(Proposals())


def recalls(images: Annotations, boxes: list[np.ndarray]) -> tuple[float, float]:
    """Share of objects, those marked difficult apart, that one of the first 5 and of the first 100 boxes meets at IoU 0.5."""
    hits, objects = np.zeros(2), 0
    for index, found in enumerate(boxes):
        there = images.boxes.corners[(images.boxes.image == index) & ~images.boxes.difficult]
        objects += len(there)
        overlap = iou(there, found) if len(found) else np.zeros((len(there), 1))
        hits += [(overlap[:, :count].max(1) >= 0.5).sum() if len(there) else 0 for count in (5, 100)]
    return tuple(hits / objects)


@pytest.mark.real
def test_recall_on_real_images(real_data, capsys):
    """`pytest -s tests/data/test_proposals.py -k real_images` prints the figures."""
    images = voc.read(real_data, "val")
    images = images.take(np.random.default_rng(0).permutation(len(images))[:100])
    find, random, found, anywhere = EdgeBoxes(Proposals()), np.random.default_rng(0), [], []
    for file in images.files():
        image = load_image(file, 10**8)
        boxes = find(image)
        boxes = boxes[~np.isnan(boxes[:, 0])]
        assert len(boxes) > 5 and (boxes >= 0).all() and (boxes <= 1).all()
        side = boxes[:, 2:] - boxes[:, :2]
        corner = random.uniform(0, 1 - side)  # the same sizes, elsewhere
        found.append(boxes * np.tile(image.size, 2))
        anywhere.append(np.concatenate([corner, corner + side], axis=1) * np.tile(image.size, 2))
    (first, all_), (random_first, random_all) = recalls(images, found), recalls(images, anywhere)
    with capsys.disabled():
        print(
            f"\nrecall at IoU 0.5 by the first 5 and the first 100: {first:.3f} and {all_:.3f}; "
            f"by random boxes of the same sizes {random_first:.3f} and {random_all:.3f}"
        )
    assert all_ > random_all + 0.05 and all_ > 0.5
    assert first > random_first
