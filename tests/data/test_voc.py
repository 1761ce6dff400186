"""The VOC reader against VOC's own lists, and against files that are wrong."""

from pathlib import Path

import numpy as np
import pytest

from ram_tune.data import voc
from ram_tune.errors import BadInput

XML = """<annotation><filename>a.jpg</filename>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>6.5</xmax><ymax>6</ymax></bndbox></object>
<object><name>sofa</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
<part><name>head</name><bndbox><xmin>0</xmin></bndbox></part></object></annotation>"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """VOCdevkit/VOC2007 with one image in its list."""
    home = tmp_path / "VOCdevkit" / "VOC2007"
    (home / "ImageSets" / "Main").mkdir(parents=True)
    (home / "Annotations").mkdir()
    for name in ("train", "trainval", "cat_train", "train_train"):
        (home / "ImageSets" / "Main" / f"{name}.txt").write_text("a\n\n")
    (home / "Annotations" / "a.xml").write_text(XML)
    return home


def refusal(home: Path, split: str = "train") -> str:
    with pytest.raises(BadInput) as caught:
        voc.read(home, split)
    return str(caught.value)


def test_labels_difficult_and_boxes(home: Path):
    images = voc.read(home, "train")
    cat, sofa = images.categories.index("cat"), images.categories.index("sofa")
    assert images.ids == ("a",) and images.paths == ("JPEGImages/a.jpg",)
    assert np.flatnonzero(images.targets[0]).tolist() == [cat]  # one clear object suffices
    assert np.flatnonzero(images.difficult[0]).tolist() == [sofa]  # all its objects are difficult
    assert images.boxes is not None
    assert images.boxes.corners.tolist() == [[0, 1, 30, 40], [4, 4, 6.5, 6], [0, 0, 9, 9]]  # counted from 0
    assert images.boxes.label.tolist() == [cat, cat, sofa]
    assert images.boxes.difficult.tolist() == [False, True, True]


def test_an_object_that_does_not_say_is_not_difficult(home: Path):
    (home / "Annotations" / "a.xml").write_text(XML.replace("<difficult>1</difficult>", ""))
    assert voc.read(home, "train").targets.sum() == 2


def test_any_of_the_three_folders_will_do(home: Path):
    for root in (home, home.parent, home.parent.parent):
        images = voc.read(root, "train")
        assert images.root.resolve() == home.resolve() and images.ids == ("a",)


@pytest.mark.real
@pytest.mark.parametrize(("split", "size", "difficult_only"), [("train", 2501, 329), ("val", 2510, 278)])
def test_every_label_of_every_image_is_as_in_the_lists_per_class(
    real_data: Path, split: str, size: int, difficult_only: int
):
    images = voc.read(real_data, split)
    lists = real_data / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    assert len(images) == size and len(images.categories) == 20
    for index, category in enumerate(images.categories):
        lines = [line.split() for line in (lists / f"{category}_{split}.txt").read_text().splitlines()]
        assert tuple(name for name, _ in lines) == images.ids
        signs = np.array([int(sign) for _, sign in lines])  # 1 there, 0 difficult, -1 absent
        np.testing.assert_array_equal(images.targets[:, index], signs == 1, err_msg=category)
        np.testing.assert_array_equal(images.difficult[:, index], signs == 0, err_msg=category)
    assert images.difficult.sum() == difficult_only


@pytest.mark.real
def test_real_boxes_lie_in_their_images(real_data: Path):
    from PIL import Image

    images = voc.read(real_data, "val").take(np.arange(20))
    assert images.boxes is not None and len(images.boxes.label) > 20
    for corners, image in zip(images.boxes.corners, images.boxes.image, strict=True):
        width, height = Image.open(images.files()[image]).size
        x1, y1, x2, y2 = corners
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


def test_no_such_split_names_those_there_are(home: Path):
    message = refusal(home, "trian")
    assert "trian.txt" in message and "expected one of train, trainval." in message
    assert "Did you mean train?" in message and "data.train_split" in message


def test_no_voc_there(tmp_path: Path):
    assert "--data-root: found no VOC2007/ImageSets/Main in" in refusal(tmp_path)
    assert "--data-root: found no folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "found an empty list"), ("a\na\n", "train.txt:2: found a again (line 1)"), ("../x", "train.txt:1"),
     ("../../../x", "train.txt:1: found the image path"), (b"\xff", "unreadable")],
)  # fmt: skip
def test_a_list_that_cannot_be_used(home: Path, text: str | bytes, expected: str):
    file = home / "ImageSets" / "Main" / "train.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert expected in refusal(home)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("<name>cat</name>", "<name>cta</name>", "object 1: name: found the unknown category 'cta'"),
        ("<name>cat</name>", "<name>cta</name>", "Did you mean cat?"),
        ("<name>cat</name>", "<name> </name>", "object 1: name: found nothing"),
        ("<name>sofa</name>", "", "object 3: name: found nothing"),
        ("<xmin>1</xmin>", "<xmin>left</xmin>", "object 1: bndbox/xmin: found 'left'; expected a number"),
        ("<ymax>40</ymax>", "<ymax>nan</ymax>", "object 1: bndbox/ymax: found 'nan'; expected a number"),
        ("<ymax>40</ymax>", "", "object 1: bndbox/ymax: found nothing"),
        ("<xmax>30</xmax>", "<xmax>0</xmax>", "object 1: bndbox: found (1, 2, 0, 40)"),
        ("<difficult>0</difficult>", "<difficult>no</difficult>", "object 1: difficult: found 'no'"),
        ("<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>6.5</xmax><ymax>6</ymax></bndbox>", "", "object 2: bndbox/xmin"),
        ("</annotation>", "", "unreadable XML"),
        ("<annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>", "DOCTYPE"),
    ],
)
def test_an_xml_that_cannot_be_used(home: Path, old: str, new: str, expected: str):
    assert old in XML
    (home / "Annotations" / "a.xml").write_text(XML.replace(old, new, 1))
    message = refusal(home)
    assert "a.xml" in message and expected in message


def test_a_missing_or_undecodable_xml(home: Path):
    file = home / "Annotations" / "a.xml"
    file.write_bytes(XML.encode("utf-16"))  # the guard against entities must not be bypassed by an encoding
    assert "a.xml: found unreadable XML" in refusal(home)
    file.unlink()
    assert "a.xml: found no such file" in refusal(home)
