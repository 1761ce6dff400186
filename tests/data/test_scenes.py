"""The embedded dataset: what is drawn, and that it is written whole, once, and always the same."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ram_tune.data import scenes
from ram_tune.data.scenes import KINDS, SPLITS, Spec, compose, ensure, stencil
from ram_tune.errors import BadInput

TINY = Spec(train=3, selection=2, test=2)
MEDIUM = Spec(train=110, selection=100, test=100)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure(tmp_path_factory.mktemp("cache"), MEDIUM)


@pytest.fixture(scope="module")
def composed() -> list[scenes.Scene]:
    return [compose(np.random.default_rng(seed)) for seed in range(150)]


def read(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ── On disk ──


@pytest.mark.parametrize("split", SPLITS)
def test_pycocotools_reads_it(root, split):
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(root / "annotations" / f"instances_{split}.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(KINDS)
    assert set(coco.getCatIds()) == {found["category_id"] for found in coco.dataset["annotations"]}
    labelled = {found["image_id"] for found in coco.dataset["annotations"]}
    asked = getattr(MEDIUM, split)
    assert (len(labelled), len(coco.getImgIds())) == (asked, asked + asked // 100)


@pytest.mark.parametrize("split", SPLITS)
def test_every_image_is_there_with_its_boxes_inside(root, split):
    coco = read(root, split)
    images = {image["id"]: image for image in coco["images"]}
    assert {path.name for path in (root / split).iterdir()} == {image["file_name"] for image in images.values()}
    for image in images.values():
        with Image.open(root / split / image["file_name"]) as opened:
            opened.load()
            assert (opened.format, opened.mode, opened.size) == ("JPEG", "RGB", (image["width"], image["height"]))
    for found in coco["annotations"]:
        (x, y, w, h), image = found["bbox"], images[found["image_id"]]
        assert 0 <= x < x + w <= image["width"] and 0 <= y < y + h <= image["height"]
        assert 0 < found["area"] <= w * h and found["iscrowd"] == 0


def test_ids_are_unique_in_the_whole_dataset(root):
    ids = [image["id"] for split in SPLITS for image in read(root, split)["images"]]
    assert len(ids) == len(set(ids))


def test_same_bytes_whatever_the_number_of_threads(tmp_path):
    one, four = ensure(tmp_path / "one", TINY, workers=1), ensure(tmp_path / "four", TINY, workers=4)
    assert one.name == four.name
    assert contents(one) == contents(four)
    assert len(contents(one)) == 3 + 3 + 2 + 2


def test_another_seed_is_another_dataset(tmp_path):
    first, second = ensure(tmp_path, TINY), ensure(tmp_path, Spec(train=3, selection=2, test=2, seed=1))
    assert first != second
    assert not set(contents(first).values()) & set(contents(second).values())


def test_splits_share_no_image(root):
    pictures = [path.read_bytes() for path in root.rglob("*.jpg")]
    assert len(pictures) == len(set(pictures))


def test_rendered_once(tmp_path, monkeypatch):
    root = ensure(tmp_path, TINY)
    monkeypatch.setattr(scenes, "_render", lambda *_: pytest.fail("rendered again"))
    assert ensure(tmp_path, TINY) == root


def test_what_an_interrupted_rendering_left_does_not_count(tmp_path, monkeypatch):
    whole = contents(ensure(tmp_path / "other", TINY))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scenes, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure(tmp_path, TINY)
    (partial,) = tmp_path.glob("*.partial")
    (partial / "train" / "stale.jpg").write_bytes(b"half")
    assert contents(ensure(tmp_path, TINY)) == whole
    assert not list(tmp_path.glob("*.partial"))


def test_two_processes_at_once_make_one_whole_dataset(tmp_path):
    code = (
        "import pathlib, sys; from ram_tune.data.scenes import *; "
        "print(ensure(pathlib.Path(sys.argv[1]), Spec(40, 4, 4)))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    (root,) = {Path(out.strip()) for out, _ in said}
    assert sum("Rendering" in err for _, err in said) == 1
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [root]
    assert len(list(root.rglob("*.jpg"))) == 48


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6, 1000))
    with pytest.raises(BadInput, match="MB free"):
        ensure(tmp_path, TINY)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_cache_folder_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cache-dir"):
        ensure(tmp_path / "file" / "cache", TINY)


# ── What is drawn ──


def labels(composed: list[scenes.Scene]) -> dict[str, np.ndarray]:
    return {name: np.array([any(o.name == name for o in scene.objects) for scene in composed]) for name in KINDS}


def test_labels_per_image_and_prevalence(composed):
    present = labels(composed)
    count = np.stack(list(present.values())).sum(0)
    assert count.min() == 1 and count.max() == 5 and 2.2 < count.mean() < 2.8
    assert all(0.06 < there.mean() < 0.35 for there in present.values())


@pytest.mark.parametrize(("host", "companion"), [(host, about[0]) for host, about in scenes.COMPANIONS.items()])
def test_companions_come_together_far_more_often_than_by_chance(composed, host, companion):
    present = labels(composed)
    both = (present[host] & present[companion]).mean()
    assert both / (present[host].mean() * present[companion].mean()) > 2
    assert 0.3 < both / present[host].mean() < 0.95  # yet the one does not give the other away


@pytest.mark.parametrize("name", ["hook", "flag"])
def test_handed_categories_are_mirror_images(name):
    left, right = KINDS[f"{name}_left"], KINDS[f"{name}_right"]
    drawn, other = (stencil(kind.parts, 90, flip=bool(kind.flip))[:, :, 0] for kind in (left, right))
    assert (left.flip, right.flip) == (False, True) and left[1:3] == right[1:3]

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())

    assert overlap(drawn[:, ::-1], other) > 0.95
    assert overlap(drawn, other) < 0.6


def test_sizes_span_tiny_to_most_of_the_image(composed):
    share = np.array([o.box[2] * o.box[3] / (s.width * s.height) for s in composed for o in s.objects])
    assert share.min() < (16 / 200) ** 2 and share.max() > 0.5
    assert (share < (32 / 200) ** 2).mean() > 0.2  # COCO's "small", at this size of image
    assert (share > 0.25).mean() > 0.02


def test_boxes_are_tight_and_objects_stay_visible(composed):
    for scene in composed[:60]:
        for number, placed in enumerate(scene.objects, 1):
            ys, xs = np.nonzero(scene.owner == number)
            x, y, w, h = placed.box
            assert len(xs) == placed.shown >= scenes.VISIBLE * placed.drawn
            assert x <= xs.min() and xs.max() < x + w and y <= ys.min() and ys.max() < y + h
            if placed.shown == placed.area:  # nothing hides it: what is seen of it fills its box
                assert placed.box == (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)


def test_an_unlabelled_scene_has_no_objects():
    assert not compose(np.random.default_rng(0), labelled=False).objects


def test_colour_says_nothing_about_the_label(composed):
    lightness: dict[str, list[float]] = {name: [] for name in KINDS}
    for scene in composed:
        for number, placed in enumerate(scene.objects, 1):
            lightness[placed.name].append(float(scene.pixels[scene.owner == number].mean()))
    everything = np.concatenate([np.array(values) for values in lightness.values()])
    for values in lightness.values():
        assert abs(np.mean(values) - everything.mean()) < everything.std()
