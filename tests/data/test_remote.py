"""Datasets behind URLs: the same as on disk, fetched once, verified, and taken up again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from buckets import ENVIRONMENT, KILLED, Bucket, Server, sums
from PIL import Image

from ram_tune.config import Config
from ram_tune.data import check, remote
from ram_tune.data.progress import telling
from ram_tune.data.remote import CHUNK, Copy
from ram_tune.data.roles import Dataset, load
from ram_tune.errors import BadInput
from ram_tune.presets import configure, parse_set
from ram_tune.training.local import train_in_folder
from ram_tune.training.run import identity, load_planned

LISTING = ""  # as `Bucket.fetched` has it

FETCH = """
import sys
from pathlib import Path
from ram_tune.data.remote import Copy
copy = Copy(sys.argv[1], Path(sys.argv[2]))
with copy.held():
    copy.look()
    copy.fetch(copy.listing)
"""


def fetching(url: str, cache: Path, user: str = ENVIRONMENT["AWS_ACCESS_KEY_ID"]) -> subprocess.Popen:
    """A process that fetches all there is."""
    command, environment = [sys.executable, "-c", FETCH, url, str(cache)], os.environ | {"AWS_ACCESS_KEY_ID": user}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def fetch(url: str, cache: Path, *names: str) -> Copy:
    copy = Copy(url, cache)
    with copy.held():
        copy.look()
        copy.fetch(names or copy.listing)
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture
def table(bucket: Bucket, pictures: Path) -> Bucket:
    """`pictures` and their sums in a bucket, below set/, beside what no run reads."""
    bucket.upload(pictures.parent, "set/")
    bucket.put("set/SHA256SUMS", sums(pictures.parent))
    bucket.put("set/unused/huge.tar", b"never asked for")
    bucket.fetched()
    return bucket


def own(bucket: Bucket, *settings: str) -> Config:
    return configure(f"{bucket.url}/set/labels.csv", overrides=parse_set(["data.selection_split=selection", *settings]))


def roles(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    return {role: images.ids for role, images in dataset.roles.items()}


# ── The same dataset ──


def test_it_is_the_dataset_that_was_uploaded(table: Bucket, pictures: Path, tmp_path: Path):
    config = own(table)
    assert config.data.root == f"{table.url}/set" and config.data.name == "set" and config.data.format == "table"
    dataset = load(config.data, tmp_path)
    original = load(configure(str(pictures), overrides=parse_set(["data.selection_split=selection"])).data, tmp_path)
    assert dataset.fingerprint == original.fingerprint and roles(dataset) == roles(original)
    assert (dataset.name, original.name) == ("set", "pictures")
    for here, there in zip(dataset.test.files(), original.test.files(), strict=True):
        assert here.read_bytes() == there.read_bytes() and here.is_relative_to(tmp_path)
    names = {"set/labels.csv", "set/SHA256SUMS", *(f"set/{index}.png" for index in range(36))}
    assert table.fetched() == {LISTING: 1, **dict.fromkeys(names, 1)}  # each once, and nothing else


def test_what_is_here_is_not_fetched_again(table: Bucket, tmp_path: Path):
    first = load(own(table).data, tmp_path)
    table.fetched()
    assert roles(load(own(table).data, tmp_path)) == roles(first)
    assert table.fetched() == {LISTING: 1}  # has anything changed?
    assert roles(load(own(table, "data.image_size=96").data, tmp_path, kept=True)) == roles(first)
    assert not table.fetched()  # not even asked
    first.test.files()[0].unlink()
    load(own(table).data, tmp_path)
    assert sum(table.fetched().values()) == 2  # the listing and that one


def test_only_images_that_the_run_reads_are_fetched(table: Bucket, tmp_path: Path):
    few = load(own(table, "data.limit=2").data, tmp_path)
    images = {name for name in table.fetched() if name.endswith(".png")}
    assert images == {f"set/{name}" for ids in roles(few).values() for name in ids} and len(images) == 6
    load(own(table, "data.limit=3").data, tmp_path, kept=True)  # another choice of images: not all of it is here
    fetched = table.fetched()
    assert fetched[LISTING] == 1 and not images & set(fetched)


def test_coco_brings_the_named_splits(bucket: Bucket, tmp_path: Path):
    for split, folder in (("one", "one"), ("two", "images/two"), ("other", "other")):
        document = {
            "images": [{"id": index, "file_name": f"{index}.jpg"} for index in range(4)],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"id": index, "image_id": index, "category_id": 1} for index in range(4)],
        }
        bucket.put(f"annotations/instances_{split}.json", json.dumps(document).encode())
        for index in range(4):
            bucket.put(f"{folder}/{index}.jpg", f"{split}{index}".encode())
    bucket.put("annotations/captions_one.json", b"{}")
    bucket.fetched()
    splits = ["data.train_split=one", "data.test_split=two"]
    dataset = load(configure("coco2014", bucket.url, overrides=parse_set(splits)).data, tmp_path)
    assert [path.read_text() for path in dataset.test.files()] == ["two0", "two1", "two2", "two3"]
    annotations = {"annotations/instances_one.json", "annotations/instances_two.json"}
    images = {f"{folder}/{index}.jpg" for folder in ("one", "images/two") for index in range(4)}
    assert set(bucket.fetched()) == {LISTING, *annotations, *images}
    with pytest.raises(BadInput, match=rf"{bucket.url}/annotations/.*'three'.*one of one, other, two"):
        load(configure("coco2014", bucket.url, overrides=parse_set([*splits, "data.test_split=three"])).data, tmp_path)


@pytest.mark.parametrize("top", ["", "VOC2007/", "VOCdevkit/VOC2007/"])
def test_voc_in_its_layouts(bucket: Bucket, top: str, tmp_path: Path):
    item = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    for name in ("01", "02", "03", "04"):
        bucket.put(f"{top}Annotations/{name}.xml", f"<annotation>{item}</annotation>".encode())
        bucket.put(f"{top}JPEGImages/{name}.jpg", name.encode())
    bucket.put(f"{top}ImageSets/Main/trainval.txt", b"01\n02\n")
    bucket.put(f"{top}ImageSets/Main/test.txt", b"03\n")
    bucket.fetched()
    dataset = load(configure("voc2007", bucket.url).data, tmp_path)
    assert [path.read_text() for path in dataset.test.files()] == ["03"]
    assert {name for name in bucket.fetched() if name.endswith(".jpg")} == {
        f"{top}JPEGImages/0{i}.jpg" for i in (1, 2, 3)
    }


def test_annotations_and_images_may_be_in_different_places(table: Bucket, pictures: Path, tmp_path: Path):
    expected = load(own(table).data, tmp_path / "a").fingerprint
    table.put("lists/labels.csv", pictures.read_bytes())
    table.fetched()
    settings = parse_set(["data.selection_split=selection"])
    choices = {
        "images": (str(pictures), f"{table.url}/set"),
        "annotations": (f"{table.url}/lists/labels.csv", str(pictures.parent)),
        "both": (f"{table.url}/lists/labels.csv", f"{table.url}/set"),
    }
    for what, (data, root) in choices.items():
        assert load(configure(data, root, overrides=settings).data, tmp_path / what).fingerprint == expected, what
    with pytest.raises(BadInput, match=rf"{table.url}/lists/none\.csv: found no such file"):
        load(configure(f"{table.url}/lists/none.csv", str(pictures.parent)).data, tmp_path)
    table.put("lists/bad.csv", b"path,labels,spilt\n")
    with pytest.raises(BadInput, match=rf"{table.url}/lists/bad\.csv:1: .*'spilt'"):
        load(configure(f"{table.url}/lists/bad.csv", str(pictures.parent)).data, tmp_path)


def test_another_list_of_the_same_name_is_another_choice(table: Bucket, pictures: Path, tmp_path: Path):
    list_ = tmp_path / "labels.csv"
    lines = pictures.read_text().splitlines()
    for count in (30, 36):
        list_.write_text("\n".join(lines[: count + 1]))
        dataset = load(configure(str(list_), f"{table.url}/set").data, tmp_path / "cache", kept=True)
        assert all(path.is_file() for images in dataset.roles.values() for path in images.files())


def test_a_shared_folder_can_be_copied_too(pictures: Path, tmp_path: Path):
    shared = tmp_path / "two words"
    shutil.copytree(pictures.parent, shared)
    (shared / "SHA256SUMS").write_bytes(sums(shared))
    dataset = load(configure(f"file://{shared}/labels.csv").data, tmp_path / "cache")
    assert dataset.fingerprint == load(configure(str(pictures)).data, tmp_path).fingerprint
    assert all(path.is_relative_to(tmp_path / "cache") for path in dataset.train.files())


def test_a_run_is_the_same_as_from_a_folder(table: Bucket, pictures: Path, tiny: list[str], tmp_path: Path):
    summaries = []
    for place in (f"{table.url}/set/labels.csv", str(pictures)):
        config = configure(place, overrides=parse_set([*tiny, "stage1.epochs=0"]))
        summaries.append(train_in_folder(config, tmp_path / str(len(summaries)), tmp_path / "cache"))
    for name in ("fingerprint", "dataset", "selection", "test"):
        assert name in summaries[0]
    assert summaries[0]["fingerprint"] == summaries[1]["fingerprint"]
    assert summaries[0]["test"] == summaries[1]["test"] and summaries[0]["selection"] == summaries[1]["selection"]
    assert f"root: {table.url}/set" in (tmp_path / "0" / "config.yaml").read_text()  # not this machine's copy


def test_the_check_fetches_and_looks(table: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["check", "--data", f"{table.url}/set/labels.csv", "--cache-dir", str(tmp_path)]
    assert check.main(arguments) == 0
    assert "all 28 files are there and decode" in capsys.readouterr().out
    table.remove("set/7.png")
    shutil.rmtree(tmp_path / "datasets")
    assert check.main(arguments) == 1
    assert "7.png: no such file" in capsys.readouterr().out


# ── Verified ──


def test_a_corrupted_file_is_fetched_once_more_and_refused(table: Bucket, pictures: Path, tmp_path: Path):
    right = (pictures.parent / "3.png").read_bytes()
    table.put("set/3.png", right[:-1] + b"?")  # of the right size
    table.fetched()
    with pytest.raises(
        BadInput, match=rf"{table.url}/set/3\.png: found SHA-256 \w{{64}}; expected \w{{64}}, as SHA256SUMS"
    ):
        load(own(table).data, tmp_path)
    assert table.fetched()["set/3.png"] == 2
    assert not list(tmp_path.rglob("3.png"))
    table.put("set/3.png", right)
    load(own(table).data, tmp_path)
    fetched = table.fetched()
    assert fetched["set/3.png"] == 1 and fetched["set/labels.csv"] == 0


def test_sums_that_come_later_hold_for_what_is_here(table: Bucket, pictures: Path, tmp_path: Path):
    whole = sums(pictures.parent)
    table.remove("set/SHA256SUMS")
    load(own(table).data, tmp_path)
    table.fetched()
    table.put("set/SHA256SUMS", whole)
    load(own(table).data, tmp_path)
    assert table.fetched() == {LISTING: 1, "set/SHA256SUMS": 1}  # compared where it is
    lines = whole.splitlines(keepends=True)
    wrong = [b"0" * 64 + line[64:] if b"./5.png" in line else line for line in lines]
    table.put("set/SHA256SUMS", b"".join(wrong) + b"\n")
    with pytest.raises(BadInput, match=r"set/5\.png: found SHA-256 .*expected 0000"):
        load(own(table).data, tmp_path)
    assert table.fetched() == {LISTING: 1, "set/SHA256SUMS": 1, "set/5.png": 2}
    table.remove("set/SHA256SUMS")
    load(own(table).data, tmp_path)
    assert table.fetched() == {LISTING: 1, "set/5.png": 1}


def test_what_changed_there_is_fetched_again(table: Bucket, pictures: Path, tmp_path: Path):
    table.remove("set/SHA256SUMS")
    before = load(own(table).data, tmp_path)
    fingerprint = before.fingerprint
    old = before.test.files()[0]
    name, content = old.name, old.read_bytes()
    while int(time.time()) <= old.stat().st_mtime:  # S3 tells seconds apart
        time.sleep(0.1)
    table.put(f"set/{name}", content[:-1] + b"?")  # of the same size
    table.fetched()
    after = load(own(table).data, tmp_path)
    assert table.fetched() == {LISTING: 1, f"set/{name}": 1}
    assert after.test.files()[0].read_bytes() == content[:-1] + b"?"
    table.put(f"set/{name}", content + b"longer")
    assert load(own(table).data, tmp_path).fingerprint != fingerprint


def test_another_listing_ends_what_is_kept(table: Bucket, tmp_path: Path):
    load(own(table).data, tmp_path)
    load(own(table, "data.limit=2").data, tmp_path)
    table.put("set/1.png", b"another")
    table.remove("set/SHA256SUMS")
    load(own(table, "data.limit=2").data, tmp_path)  # notices that there is something new
    table.fetched()
    load(own(table).data, tmp_path, kept=True)
    assert table.fetched() in ({LISTING: 1}, {LISTING: 1, "set/1.png": 1})  # where it was not among the six
    assert load(own(table).data, tmp_path, kept=True).fingerprint == load(own(table).data, tmp_path).fingerprint


def test_a_planned_run_reads_what_it_was_planned_on(table: Bucket, tiny: list[str], tmp_path: Path):
    table.remove("set/SHA256SUMS")
    config = own(table, *tiny, "stage1.epochs=0")
    head, worker = tmp_path / "head", tmp_path / "worker"
    first = identity(config, load(config.data, head))
    assert identity(config, load_planned(config, worker, first)) == first
    table.fetched()
    load_planned(config, worker, first)
    assert not table.fetched()  # as it has been read before
    table.put("set/0.png", b"longer" * 10000)
    second = identity(config, load(config.data, head))
    assert second != first and identity(config, load(config.data, worker, kept=True)) == first
    assert identity(config, load_planned(config, worker, second)) == second
    with pytest.raises(BadInput, match=rf"{table.url}/set: found other images or labels than when"):
        load_planned(config, worker, first)


@pytest.mark.parametrize("name", ["Annotations/../../../evil.xml", "Annotations/..\\..\\evil.xml"])
def test_names_that_lead_out_are_refused(bucket: Bucket, name: str, tmp_path: Path):
    bucket.put("set/ImageSets/Main/trainval.txt", b"01\n")
    bucket.put(f"set/{name}", b"<annotation/>")
    with pytest.raises(BadInput, match=r"evil\.xml.*inside the dataset|evil\.xml.*plain names"):
        load(configure("voc2007", f"{bucket.url}/set").data, tmp_path)
    assert not list(tmp_path.rglob("evil.xml"))


def test_scenes_are_not_fetched(tmp_path: Path):
    with pytest.raises(BadInput, match="--data-root: found s3://x/y; expected none for scenes"):
        load(configure("scenes", "s3://x/y").data, tmp_path)


# ── Interrupted, at the same time, without room ──


def test_killed_and_taken_up_again(bucket: Bucket, s3: Server, tmp_path: Path):
    files = {f"{index:03}.bin": os.urandom(2000) for index in range(120)}
    for name, content in files.items():
        bucket.put(f"many/{name}", content)
    bucket.fetched()
    with s3.stalling(lambda: s3.gets(KILLED) > 40) as stalled:
        process = fetching(f"{bucket.url}/many", tmp_path, KILLED)
        stalled()
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    (root,) = (tmp_path / "datasets").glob("*/files")
    there = contents(root)
    assert 0 < len(there) < len(files) and there.items() <= files.items()  # what bears its name is whole
    bucket.fetched()
    fetch(f"{bucket.url}/many", tmp_path)
    assert contents(root) == files
    assert bucket.fetched() == {LISTING: 1, **{f"many/{name}": 1 for name in files.keys() - there.keys()}}
    assert not list((root.parent / "partial").iterdir())


def test_a_large_file_goes_on_where_it_was_left(bucket: Bucket, s3: Server, tmp_path: Path):
    content = np.random.default_rng(0).bytes(3 * CHUNK + 5)
    bucket.put("large/a.bin", content)
    bucket.fetched()
    with s3.stalling(lambda: s3.gets(KILLED, "/large/a.bin") == 3) as stalled:
        process = fetching(f"{bucket.url}/large", tmp_path, KILLED)
        stalled()
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    (partial,) = (tmp_path / "datasets").glob("*/partial/*")
    assert CHUNK <= partial.stat().st_size <= 2 * CHUNK
    rest = -(-(len(content) - partial.stat().st_size) // CHUNK)
    bucket.fetched()
    copy = fetch(f"{bucket.url}/large", tmp_path)
    assert (copy.root / "a.bin").read_bytes() == content
    assert bucket.fetched() == {LISTING: 1, "large/a.bin": rest} and rest < 4


def test_what_is_left_of_a_file_that_changed_is_not_gone_on_with(bucket: Bucket, tmp_path: Path):
    bucket.put("large/a.bin", b"new content")
    copy = fetch(f"{bucket.url}/large", tmp_path, "none")
    (copy.partial / "0123456789abcdef").write_bytes(b"old")  # of a state that is no longer there
    fetch(f"{bucket.url}/large", tmp_path)
    assert contents(copy.root) == {"a.bin": b"new content"} and not list(copy.partial.iterdir())


def test_two_processes_fetch_once(bucket: Bucket, tmp_path: Path):
    names = [f"{index}.bin" for index in range(40)]
    for name in names:
        bucket.put(f"set/{name}", name.encode())
    bucket.fetched()
    both = [fetching(f"{bucket.url}/set", tmp_path) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert bucket.fetched() == {LISTING: 2, **{f"set/{name}": 1 for name in names}}


def test_who_waits_is_told_how_far_the_other_is(bucket: Bucket, s3: Server, tmp_path: Path):
    for index in range(30):
        bucket.put(f"set/{index}.bin", b"x")
    bucket.fetched()
    told: list[tuple[str, int, int]] = []
    copy = Copy(f"{bucket.url}/set", tmp_path)
    with s3.stalling(lambda: s3.gets(KILLED) > 20) as stalled:
        other = fetching(f"{bucket.url}/set", tmp_path, KILLED)
        stalled()

        def hear(*what) -> None:
            told.append(what)
            other.kill()

        with telling(hear), copy.held():  # the lock of a holder that died is free
            pass
    task, done, total = told[0]
    assert task == f"waiting for another process that fetches {bucket.url}/set" and 0 <= done < 30 and total == 30
    other.wait(30)


def test_who_asks_is_told(table: Bucket, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    told = []
    with telling(lambda *what: told.append(what)):
        load(own(table).data, tmp_path)
    assert [(done, total) for _, done, total in told] == [(1, 1), *((done, 36) for done in range(1, 37))]
    assert all(task.startswith(f"fetching {table.url}/set at ") and task.endswith(" MB/s") for task, _, _ in told)
    assert capfd.readouterr().err == ""


def test_a_full_disk(table: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
        with pytest.raises(BadInput, match=r"free.*GB for what is fetched of s3://.*--cache-dir"):
            load(own(table).data, tmp_path)

    def full(*_, **__) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(remote.os, "utime", full)
        with pytest.raises(BadInput, match=r"No space left.*--cache-dir.*what has come stays"):
            fetch(f"{table.url}/set", tmp_path, "1.png")
    assert Image.open(fetch(f"{table.url}/set", tmp_path, "1.png").root / "1.png").size == (64, 64)
