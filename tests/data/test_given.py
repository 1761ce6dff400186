"""Random regions: inside the image, of the sizes asked for, and each image's own whoever asks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ram_tune.data.cache import resized_images
from ram_tune.data.given import boxes_of, boxes_of_new, random_boxes
from ram_tune.data.roles import load
from ram_tune.presets import configure, parse_set


@given(st.integers(0, 2**32), st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted), st.integers(1, 64))
def test_boxes_lie_inside_and_have_the_sides_asked_for(seed, sides, count):
    boxes = random_boxes(np.zeros((4, 4, 3), np.uint8), count, tuple(sides), seed).astype(float)
    assert boxes.shape == (count, 4)
    assert (boxes >= 0).all() and (boxes <= 1 + 1e-6).all()
    drawn = boxes[:, 2:] - boxes[:, :2]
    assert (drawn >= sides[0] - 1e-6).all() and (drawn <= sides[1] + 1e-6).all()


def test_boxes_are_uniform():
    boxes = random_boxes(np.zeros((4, 4, 3), np.uint8), 20_000, (0.2, 0.6), 0).astype(float)
    drawn = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(drawn.mean(0), 0.4, atol=0.005)
    np.testing.assert_allclose(np.quantile(drawn, [0.25, 0.75]), [0.3, 0.5], atol=0.005)
    place = boxes[:, :2] / (1 - drawn)
    np.testing.assert_allclose(
        np.quantile(place, [0.1, 0.5, 0.9], axis=0), [[0.1] * 2, [0.5] * 2, [0.9] * 2], atol=0.02
    )


@pytest.fixture
def ask(pictures, tiny, tmp_path):
    """Configuration, images of test and their boxes for a seed."""

    def work(*fields):
        config = configure(str(pictures), overrides=parse_set([*tiny, "model.name=random", *fields]))
        images = load(config.data, tmp_path).test
        resized = resized_images(images, config.data, tmp_path)
        return config, images, resized, boxes_of(config, images, resized, tmp_path)

    return work


def test_an_image_has_its_own_boxes_alone_or_among_others_for_a_seed(ask, tmp_path):
    config, images, resized, boxes = ask()
    assert boxes.shape == (8, 2, 4) and len(np.unique(boxes)) == boxes.size
    np.testing.assert_array_equal(ask()[3], boxes)
    assert not np.isin(ask("training.seed=1")[3], boxes).any()
    some = images.take(np.array([5, 2]))
    again = boxes_of(config, some, resized_images(some, config.data, tmp_path), tmp_path)
    np.testing.assert_array_equal(again, boxes[[5, 2]])
    pictures = [Image.open(file) for file in some.files()]
    np.testing.assert_array_equal(boxes_of_new(config, pictures, np.asarray(resized[[5, 2]])), again)


def test_a_model_that_finds_its_regions_is_given_none(ask):
    assert ask("model.name=rma")[3] is None
