"""The cache: right, built once, whole or not there, and refused where it has no room."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from ram_tune.config import Data
from ram_tune.data import cache
from ram_tune.data.annotations import Annotations
from ram_tune.data.progress import telling
from ram_tune.errors import BadInput


def dataset(root, n=6, size=(50, 40)) -> Annotations:
    random = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(root / f"{i}.png")
    names = tuple(f"{i}.png" for i in range(n))
    return Annotations(root, ("a", "b"), names, names, np.eye(n, 2, dtype=bool), np.zeros((n, 2), bool))


def test_images_are_resized_to_squares_and_shared(tmp_path):
    images, data = dataset(tmp_path), Data(image_size=32, crop_margin=0)
    array = cache.resized_images(images, data, tmp_path / "cache")
    assert array.shape == (6, 32, 32, 3)
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable
    expected = Image.open(tmp_path / "3.png").resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(array[3], np.asarray(expected))
    (file,) = (tmp_path / "cache").glob("*.npy")
    before = file.stat().st_mtime_ns
    cache.resized_images(images, data, tmp_path / "cache")
    assert file.stat().st_mtime_ns == before  # not built again


def test_who_asks_is_told_of_long_work(tmp_path, capfd):
    told = []
    with telling(lambda *what: told.append(what)):
        cache.resized_images(dataset(tmp_path), Data(image_size=32, crop_margin=0), tmp_path / "cache")
    assert told == [("resizing 6 images", done, 6) for done in range(1, 7)]
    assert capfd.readouterr().err == ""


def test_a_changed_image_or_size_is_another_cache(tmp_path):
    images = dataset(tmp_path)
    cache.resized_images(images, Data(image_size=32, crop_margin=0), tmp_path / "cache")
    cache.resized_images(images, Data(image_size=48, crop_margin=0), tmp_path / "cache")
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")
    again = cache.resized_images(images, Data(image_size=32, crop_margin=0), tmp_path / "cache")
    assert not again[0].any()
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 3


def test_broken_images_are_named_and_nothing_half_written_stays(tmp_path):
    images = dataset(tmp_path)
    (tmp_path / "2.png").write_bytes(b"no image")
    (tmp_path / "4.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"2\.png.*no image.*1 more"):
        cache.resized_images(images, Data(image_size=32, crop_margin=0), tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(BadInput, match=r"free.*expected.*GB for the cache.*--cache-dir"):
        cache.resized_images(dataset(tmp_path), Data(image_size=32, crop_margin=0), tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_a_disk_that_fills_meanwhile_is_bad_input_and_not_the_end_of_the_process(tmp_path, monkeypatch):
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BadInput, match=r"free \(No space left on device\).*GB for the cache.*--cache-dir"):
        cache.resized_images(dataset(tmp_path), Data(image_size=32, crop_margin=0), tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_room_is_reserved_before_anything_is_computed(tmp_path):
    seen = []

    def pieces():
        (file,) = (tmp_path / "cache").glob("*.partial")
        seen.append(file.stat())
        yield np.ones((1000, 100), np.float32)

    cache.rows(tmp_path / "cache", "ones", (1000, 100), pieces, "counting")
    assert seen[0].st_blocks * 512 >= seen[0].st_size > 400_000  # a file with holes has fewer blocks


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match="--cache-dir"):
        cache.resized_images(dataset(tmp_path), Data(image_size=32, crop_margin=0), tmp_path / "file" / "cache")


BUILD = """
import sys, pathlib, numpy as np
from ram_tune.config import Data
from ram_tune.data import cache
from ram_tune.data.annotations import Annotations
root, builds, build = pathlib.Path(sys.argv[1]), [], cache._build
cache._build = lambda *args: (builds.append(1), build(*args))
names = tuple(f"{i}.png" for i in range(40))
images = Annotations(root, ("a",), names, names, np.ones((40, 1), bool), np.zeros((40, 1), bool))
input()  # both start at once
array = cache.resized_images(images, Data(image_size=64, crop_margin=0), root / "cache")
print(len(builds), int(np.asarray(array, np.int64).sum()))
"""


def test_two_processes_build_one_cache(tmp_path):
    dataset(tmp_path, 40)
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, **options) for _ in range(2)]
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    (built, total), (also_built, same_total) = (worker.communicate(timeout=60)[0].split() for worker in workers)
    assert int(built) + int(also_built) == 1
    assert total == same_total != "0"


def test_maps_are_the_encoder_of_the_image_and_of_its_mirror(tmp_path):
    images = cache.resized_images(dataset(tmp_path), Data(image_size=32, crop_margin=0), tmp_path / "cache")

    def encode(batch: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(batch.permute(0, 3, 1, 2).float(), 16)

    maps = cache.feature_maps(images, encode, "mean", True, tmp_path / "cache")
    assert maps.shape == (6, 2, 3, 2, 2)
    plain = torch.from_numpy(maps[:, 0].copy()).view(torch.bfloat16)
    torch.testing.assert_close(plain, encode(torch.from_numpy(images.copy())).bfloat16())
    mirrored = torch.from_numpy(maps[:, 1].copy()).view(torch.bfloat16)
    torch.testing.assert_close(mirrored, plain.flip(3))  # this encoder commutes with mirroring
    other = cache.feature_maps(images, lambda b: 0 * encode(b), "zero", False, tmp_path / "cache")
    assert other.shape == (6, 1, 3, 2, 2)
    assert not other.any()
