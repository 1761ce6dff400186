"""The COCO reader against pycocotools' own queries, and against files that are wrong."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ram_tune.data import coco
from ram_tune.errors import BadInput

DOCUMENT: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "b/7.jpg"}, {"id": 3, "file_name": "3.jpg"}, {"id": 5, "file_name": "5.jpg"}],
    "categories": [{"id": 9, "name": "zebra"}, {"id": 2, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 9, "bbox": [10, 20, 30, 40.5], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 5, 6], "iscrowd": 1},
        {"id": 3, "image_id": 3, "category_id": 2},
    ],
}


def write(folder: Path, document: object) -> Path:
    file = folder / "own.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def refusal(folder: Path, document: object) -> str:
    with pytest.raises(BadInput) as caught:
        coco.read_file(write(folder, document), folder)
    assert "own.json" in str(caught.value)
    return str(caught.value)


def test_labels_boxes_and_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images = coco.read_file(write(tmp_path, DOCUMENT), tmp_path)
    assert images.categories == ("person", "zebra")  # by ascending id
    assert images.ids == ("7", "3", "5") and images.paths == ("b/7.jpg", "3.jpg", "5.jpg")
    assert images.targets.tolist() == [[True, False], [True, True], [False, False]]  # a crowd is a label
    assert not images.difficult.any()
    assert images.boxes is not None
    assert images.boxes.corners.tolist() == [[10, 20, 40, 60.5], [0, 0, 5, 6]]
    assert images.boxes.image.tolist() == [1, 0] and images.boxes.label.tolist() == [1, 0]
    assert capsys.readouterr().out == ""


def test_without_any_box_there_are_none(tmp_path: Path):
    document = copy.deepcopy(DOCUMENT)
    for annotation in document["annotations"]:
        annotation.pop("bbox", None)
    images = coco.read_file(write(tmp_path, document), tmp_path)
    assert images.boxes is None and images.targets.sum() == 3


@pytest.mark.parametrize("place", ["train", "images/train"])
def test_the_official_layout(tmp_path: Path, place: str):
    (tmp_path / "annotations").mkdir()
    (tmp_path / place).mkdir(parents=True)
    write(tmp_path, DOCUMENT).rename(tmp_path / "annotations" / "instances_train.json")
    images = coco.read(tmp_path, "train")
    assert images.root == tmp_path and images.paths[0] == f"{place}/b/7.jpg"


def test_no_such_split_or_no_images(tmp_path: Path):
    (tmp_path / "annotations").mkdir()
    write(tmp_path, DOCUMENT).rename(tmp_path / "annotations" / "instances_train.json")
    with pytest.raises(
        BadInput, match=r"instances_trian.json: found no split 'trian'; expected one of train.*mean train"
    ):
        coco.read(tmp_path, "trian")
    with pytest.raises(BadInput, match=r"no images of train; expected the folder train or images/train"):
        coco.read(tmp_path, "train")
    with pytest.raises(BadInput, match="--data-root"):
        coco.read(tmp_path / "nowhere", "train")


@pytest.mark.real
@pytest.mark.parametrize(("split", "size", "present"), [("train2017", 240, 80), ("val2017", 360, 75)])
def test_labels_are_those_pycocotools_finds(real_data: Path, split: str, size: int, present: int):
    from pycocotools.coco import COCO

    root = real_data / "coco"
    images = coco.read(root, split)
    reference = COCO(str(root / "annotations" / f"instances_{split}.json"))
    assert images.targets.shape == (size, 80) and (images.targets.any(0)).sum() == present
    names = [category["name"] for category in reference.loadCats(sorted(reference.getCatIds()))]
    assert list(images.categories) == names
    for index, category in enumerate(sorted(reference.getCatIds())):
        there = {images.ids[i] for i in np.flatnonzero(images.targets[:, index])}
        assert there == {str(image) for image in reference.getImgIds(catIds=[category])}
    assert all(path.is_file() for path in images.files())
    assert images.boxes is not None and len(images.boxes.label) == len(reference.getAnnIds())


def changed(path: str, value: object) -> dict[str, Any]:
    """The document with one value replaced; `path` like images/0/id; DELETE removes it."""
    document = copy.deepcopy(DOCUMENT)
    *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    node: Any = document
    for part in way:
        node = node[part]
    if value is DELETE:
        del node[last]
    else:
        node[last] = value
    return document


DELETE = object()


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("images", DELETE, "images: found no such key"),
        ("annotations", DELETE, "annotations: found no such key"),
        ("categories", DELETE, "categories: found no such key"),
        ("images", [], "images: found an empty list"),
        ("categories", [], "categories: found an empty list"),
        ("annotations", {"a": 1}, "annotations: found {'a': 1}; expected a list"),
        ("images/1", 4, "images[1]: found 4"),
        ("images/1/id", DELETE, "images[1].id: found no such key"),
        ("images/1/id", 7, "images.id: found '7' 2 times"),
        ("images/1/id", "7", "images.id: found '7' 2 times"),
        ("images/1/id", None, "images[1].id: found None; expected int or str"),
        ("images/1/file_name", 3, "images[1].file_name: found 3; expected str"),
        ("images/1/file_name", "../3.jpg", "images[1].file_name: found the image path '../3.jpg'"),
        ("images/1/file_name", "/etc/3.jpg", "images[1].file_name: found the image path '/etc/3.jpg'"),
        ("images/1/file_name", "./5.jpg", "images.file_name: found '5.jpg' 2 times"),
        ("categories/1/id", 9, "categories.id: found '9' 2 times"),
        ("categories/1/name", "zebra", "categories.name: found 'zebra' 2 times"),
        ("categories/1/name", DELETE, "categories[1].name: found no such key"),
        ("annotations/2/image_id", 99, "annotations[2].image_id: found 99, which no entry of images"),
        ("annotations/2/category_id", 99, "annotations[2].category_id: found 99, which no entry of categories"),
        ("annotations/2/category_id", DELETE, "annotations[2].category_id: found no such key"),
        ("annotations/0/bbox", [1, 2, 3], "annotations[0].bbox: found [1, 2, 3]"),
        ("annotations/0/bbox", [1, 2, -3, 4], "annotations[0].bbox"),
        ("annotations/0/bbox", [1, 2, "wide", 4], "annotations[0].bbox"),
        ("annotations/0/bbox", [1, 2, float("nan"), 4], "annotations[0].bbox"),
        ("annotations/0/bbox", [1, 2, 10**400, 4], "annotations[0].bbox"),
        ("annotations/0/bbox", 5, "annotations[0].bbox: found 5"),
        ("annotations/0/bbox", "1234", "annotations[0].bbox: found '1234'"),
    ],
)
def test_a_document_that_cannot_be_used(tmp_path: Path, path: str, value: object, expected: str):
    assert expected in refusal(tmp_path, changed(path, value))


@pytest.mark.parametrize("text", ["", "{", "images", "[" * 100_000, '{"images": ' + "9" * 5000])
def test_what_is_not_json(tmp_path: Path, text: str):
    message = refusal(tmp_path, text)
    assert "not JSON, or not all of it" in message and "again" in message


def test_json_of_another_kind_or_no_file(tmp_path: Path):
    assert "found a JSON list" in refusal(tmp_path, "[1]")
    with pytest.raises(BadInput, match=r"nowhere.json: found No such file"):
        coco.read_file(tmp_path / "nowhere.json", tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(end=st.integers(0, len(json.dumps(DOCUMENT, indent=1)) + 3))
def test_a_truncated_file_is_refused_or_the_same(tmp_path: Path, end: int):
    text = json.dumps(DOCUMENT, indent=1)
    cut = (text + "\n\n\n")[:end]
    if end < len(text):
        assert "not JSON, or not all of it" in refusal(tmp_path, cut)
    else:
        read, whole = (coco.read_file(write(tmp_path, kind), tmp_path) for kind in (cut, DOCUMENT))
        assert read.ids == whole.ids and (read.targets == whole.targets).all()
