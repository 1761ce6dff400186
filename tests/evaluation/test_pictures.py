"""Regions on images: what is drawn where, that it never leaves the picture, and that nothing is too small or too odd."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageColor

from ram_tune.data.annotations import Annotations
from ram_tune.errors import BadInput
from ram_tune.evaluation.pictures import CAPTION_LINES, COLOURS, contact_sheet, draw, encode, pick, picture, tags

GREY = (120, 120, 120)
FIRST, SECOND = (ImageColor.getrgb(colour) for colour in COLOURS[:2])


def grey(width, height):
    return Image.new("RGB", (width, height), GREY)


def colours(image):
    return {tuple(colour) for colour in np.asarray(image).reshape(-1, 3).tolist()}


def annotated(root, targets):
    n, L = np.shape(targets)
    names = tuple(f"{i}.png" for i in range(n))
    none = np.zeros((n, L), bool)
    return Annotations(root, tuple(f"label{c}" for c in range(L)), names, names, np.array(targets, bool), none)


# --- one picture


def test_a_box_is_drawn_in_its_colour_and_nowhere_else():
    # 256×128 is doubled: the box is 200 to 400 by 40 to 200, a black line of one pixel and then its colour.
    pixels = np.asarray(draw(grey(256, 128), np.array([[100, 20, 200, 100]]), [""]))
    assert pixels.shape == (256, 512, 3)
    for y, x in ((41, 300), (198, 300), (120, 201), (120, 398)):
        assert tuple(pixels[y, x]) == FIRST
    for y, x in ((40, 300), (199, 300), (120, 200), (120, 399)):
        assert tuple(pixels[y, x]) == (0, 0, 0)
    assert (pixels[:40] == GREY).all() and (pixels[200:] == GREY).all()
    assert (pixels[:, :200] == GREY).all() and (pixels[:, 400:] == GREY).all()
    assert (pixels[50:190, 210:390] == GREY).all()


def test_the_label_stands_on_its_colour_at_the_boxes_corner():
    pixels = np.asarray(draw(grey(512, 512), np.array([[100, 200, 400, 400]]), ["1 cup 0.83"]))
    tag = pixels[200:215, 100:150]
    assert tuple(tag[0, 0]) == FIRST and (tag.sum(-1) < 100).any()  # black letters
    assert (pixels[:200] == GREY).all()


def test_labels_of_coinciding_boxes_all_show():
    boxes = np.tile([100, 100, 300, 300], (7, 1))
    several = draw(grey(512, 512), boxes, [f"{k} cup 0.83" for k in range(7)])
    shown = np.asarray(several).reshape(-1, 3)
    areas = [(shown == ImageColor.getrgb(colour)).all(1).sum() for colour in COLOURS]
    alone = np.asarray(draw(grey(512, 512), boxes[:1], ["0 cup 0.83"])).reshape(-1, 3)
    assert min(areas) > 0.4 * (alone == FIRST).all(1).sum()  # the lines lie under the last one's, the tags apart


def test_boxes_are_clipped_and_those_outside_are_only_named():
    pixels = np.asarray(draw(grey(512, 512), np.array([[-1e9, 100, 300, 1e9], [600, 600, 700, 700]]), ["", "2 cup"]))
    assert tuple(pixels[300, 1]) == FIRST and tuple(pixels[510, 150]) == FIRST  # closed along the image's edge
    rows, columns = np.nonzero((pixels == SECOND).all(-1))
    assert rows.min() > 480 and columns.max() == 511  # the tag alone, in the corner nearest to it
    assert (pixels[:400, 320:] == GREY).all()


def test_text_that_does_not_fit_is_cut_short_inside_the_picture():
    text = "a very long name of a label " * 20
    drawn = draw(grey(512, 300), np.array([[500.0, 290, 512, 300]]), [text], text)
    assert drawn.width == 512
    pixels = np.asarray(drawn)
    lines = (drawn.height - 300) / CAPTION_LINES
    assert lines == int(lines) and 15 < lines < 30
    assert (pixels[300:, 510:] == 255).all()  # the caption ends before the edge
    assert (pixels[280:300] == FIRST).all(-1).any(0).mean() > 0.9  # the tag takes the whole width


def test_a_short_caption_takes_one_line():
    assert draw(grey(512, 300), np.empty((0, 4)), [], "cup, key").height < 330
    assert draw(grey(512, 300), np.empty((0, 4)), []).size == (512, 300)


@pytest.mark.parametrize(("size", "drawn"), [((1, 1), (512, 512)), ((9000, 2), (512, 1)), ((2, 9000), (1, 512))])
def test_images_of_any_shape(size, drawn):
    boxes = np.array([[0, 0, 1, 1], [-5, -5, 9999, 9999], [0.5, 0.5, 0.5, 0.5]])
    found = draw(grey(*size), boxes, ["1 cup 0.83", "2 cup 0.5", "3"], "cup")
    assert found.width == drawn[0] and found.height >= drawn[1]
    assert draw(grey(*size), boxes, ["1 cup 0.83", "2 cup 0.5", "3"]).size == drawn
    assert encode(contact_sheet([found, grey(3, 3)]))


@pytest.mark.parametrize("name", ["naïve", "猫", "عربي", "🐱", "\ud800", "a\nb\tc", "\0", ""])
def test_labels_in_any_script(name):
    draw(grey(64, 64), np.array([[10, 10, 50, 50]]), [name], name)


def test_letters_with_accents_are_shown_without():
    boxes = np.array([[10, 10, 200, 200]])
    accented, plain = (draw(grey(256, 256), boxes, [text], text) for text in ("Käse, naïve", "Kase, naive"))
    assert accented.tobytes() == plain.tobytes()


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.lists(st.tuples(*[st.floats(-200, 200)] * 4), max_size=9),
    st.text(max_size=30),
    st.integers(1, 64),
)
def test_anything_can_be_drawn_and_the_image_stays_as_it_was(size, corners, text, side):
    image = grey(*size)
    boxes = np.array(corners).reshape(-1, 4)
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    found = draw(image, boxes, [text] * len(boxes), text, side)
    assert found.width <= side
    assert draw(image, boxes, [text] * len(boxes), text, side).tobytes() == found.tobytes()
    assert colours(image) == {GREY}


def test_tags_say_number_label_and_score():
    scores = np.array([[0.1, 0.9], [2.344, -1.0]], np.float32)
    assert tags(scores, ["cup", "key"]) == ["1 key 0.90", "2 cup 2.34"]


def test_a_picture_of_an_annotated_image(tmp_path):
    # The crop is 16 to 48 of 64; on the 128×64 original the region from its centre to its right bottom corner is
    # 64 to 96 by 32 to 48, four times that on the picture. Mirrored, it is on the left.
    annotations = annotated(tmp_path, [[True, False]])
    grey(128, 64).save(tmp_path / "0.png")
    regions, scores = np.array([[0.5, 0.5, 0.5, 0.5]], np.float32), np.array([[0.25, 0.75]])
    for mirrored, box in ((0, (256, 128, 384, 192)), (1, (128, 128, 256, 192))):
        found = picture(annotations, 0, regions, scores, np.array([16, 16, 32, mirrored]), 64, 10**6)
        assert found.width == 512 and found.height > 256  # a caption
        x1, y1, x2, y2 = ImageChops.difference(found.crop((0, 0, 512, 256)), grey(512, 256)).getbbox()
        assert (x1, y1, x2, y2) == box
        assert FIRST in colours(found)
    with pytest.raises(BadInput, match="at most 100"):
        picture(annotations, 0, regions, scores, np.array([16, 16, 32, 0]), 64, 100)


# --- several


def test_a_contact_sheet_has_equal_cells():
    sheet = contact_sheet([Image.new("RGB", size, "red") for size in ((64, 32), (32, 64), (64, 64))], columns=2)
    assert sheet.size == (2 * 64 + 3, 2 * 64 + 3)
    red = (np.asarray(sheet) == (255, 0, 0)).all(-1)
    assert red.sum() == 2 * 64 * 32 + 64 * 64
    assert red[1:33, 1:65].all() and red[1:65, 66 + 16 : 66 + 48].all() and red[66:130, 1:65].all()
    assert contact_sheet([grey(64, 64)], columns=4).size == (66, 66)


def test_encoded_pictures_are_jpegs_of_the_same_size_and_always_the_same():
    one = draw(grey(100, 50), np.array([[10, 10, 50, 40]]), ["1 cup 0.50"], "cup")
    again = Image.open(io.BytesIO(encode(one)))
    assert (again.format, again.size) == ("JPEG", one.size)
    assert encode(one) == encode(one)
    assert np.abs(np.asarray(again, int) - np.asarray(one, int)).mean() < 3


def test_images_with_several_labels_are_picked_first_and_always_the_same():
    targets = np.zeros((100, 3), bool)
    targets[:, 0] = True
    targets[10:60, 2] = True
    images = annotated(Path("nowhere"), targets)
    chosen = pick(images)
    assert len(set(chosen.tolist())) == 8 and (np.diff(chosen) > 0).all()
    assert ((chosen >= 10) & (chosen < 60)).all()
    assert chosen.tolist() == pick(images).tolist() != pick(images, seed=1).tolist()
    assert set(range(10, 60)) < set(pick(images, 55).tolist())  # then the others
    assert pick(images, 200).tolist() == list(range(100))


# --- places joined


def test_regions_round_one_place_share_a_colour_and_the_places_are_joined():
    # Two regions round (128, 256), two round (384, 256).
    boxes = np.array([[x - d, 256 - d, x + d, 256 + d] for x in (128, 384) for d in (40, 80)])
    pixels = np.asarray(draw(grey(512, 512), boxes, [""] * 4, steps=2))
    for x, colour in ((128, FIRST), (384, SECOND)):
        for d in (40, 80):
            assert tuple(pixels[256 - d + 1, x]) == tuple(pixels[256 + d - 2, x]) == colour
        assert tuple(pixels[256, x]) == colour  # the place itself
    assert tuple(pixels[256, 256]) == (255, 255, 255)  # the way from one to the other
    assert (0, 0, 0) in {tuple(pixel) for pixel in pixels[250:263, 256].tolist()}
    plain = np.asarray(draw(grey(512, 512), boxes, [""] * 4))
    assert tuple(plain[256, 256]) == GREY


def test_one_place_is_a_dot_and_one_beyond_the_image_is_marked_at_its_edge():
    pixels = np.asarray(draw(grey(512, 512), np.array([[246, 246, 266, 266]]), [""], steps=1))
    assert tuple(pixels[256, 256]) == FIRST and tuple(pixels[256, 300]) == GREY
    beyond = np.array([[-40.0, 246, -20, 266], [600, 246, 620, 266]])
    pixels = np.asarray(draw(grey(512, 512), beyond, ["", ""], steps=2))
    assert tuple(pixels[256, 1]) == FIRST and tuple(pixels[256, 510]) == SECOND


def test_of_each_place_only_the_highest_score_is_named(tmp_path, monkeypatch):
    from ram_tune.evaluation import pictures as module

    grey(64, 64).save(tmp_path / "0.png")
    said = []
    monkeypatch.setattr(module, "draw", lambda image, boxes, labels, *rest, **more: said.append(labels))
    regions, scores = np.tile([0.2, 0.0, 0.2, 0.0], (4, 1)), np.array([[1, 2], [0, 3], [9, 0], [5, 6]])
    crop = np.array([0, 0, 64, 0])
    picture(annotated(tmp_path, [[1, 0]]), 0, regions, scores, crop, 64, 10**6, 2)
    assert said == [["", "2 label1 3.00", "3 label0 9.00", ""]]
