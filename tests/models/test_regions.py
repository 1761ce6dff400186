"""The sampler against scipy.ndimage, the anchors against the paper, the pixels of a region by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from ram_tune.models.regions import IDENTITY, anchored, anchors, of_crops, sample, to_pixels

HAND_PICKED = {
    "the whole map": (1.0, 0.0, 1.0, 0.0),
    "a quarter": (0.5, 0.5, 0.5, -0.5),
    "mirrored": (-0.7, 0.1, 0.6, 0.2),
    "upside down": (0.4, -0.3, -0.8, 0.1),
    "half outside": (0.5, 0.9, 0.5, -0.8),
    "wholly outside": (0.2, 3.0, 0.2, 0.0),
    "larger than the map": (2.5, 0.0, 1.5, 0.0),
    "a point": (0.0, 0.3, 0.0, -0.3),
}


@pytest.mark.parametrize("region", HAND_PICKED.values(), ids=HAND_PICKED.keys())
@pytest.mark.parametrize("size", [1, 7])
def test_sampling_is_bilinear_interpolation_at_the_centres_of_equal_bins(region, size):
    f = np.random.default_rng(0).normal(size=(1, 3, 12, 10))
    ours = sample(torch.tensor(f), torch.tensor([region], dtype=torch.float64), size)[0]

    sx, tx, sy, ty = region
    centres = (2 * np.arange(size) + 1) / size - 1  # bin centres in [−1, 1]
    columns = ((sx * centres + tx + 1) * 10 - 1) / 2  # ±1 are the outer edges: cell j has its centre at j
    rows = ((sy * centres + ty + 1) * 12 - 1) / 2
    grid = np.meshgrid(rows, columns, indexing="ij")
    # Zero padding outside the map: scipy's grid-constant interpolates towards the zeros, as the sampler does.
    expected = [ndimage.map_coordinates(plane, grid, order=1, mode="grid-constant", cval=0.0) for plane in f[0]]

    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)


def test_the_identity_on_a_28_map_averages_the_centres_of_4_by_4_blocks():
    f = torch.randn(2, 5, 28, 28, dtype=torch.float64)
    whole = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2, dtype=torch.float64)
    middle = f[:, :, 1::4, 1::4] + f[:, :, 2::4, 1::4] + f[:, :, 1::4, 2::4] + f[:, :, 2::4, 2::4]
    torch.testing.assert_close(sample(f, whole, 7), middle / 4)


def test_the_sampler_passes_gradcheck_for_map_and_region():
    torch.manual_seed(0)
    f = torch.randn(2, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    regions = torch.tensor(
        [[0.53, 0.11, 0.61, -0.17], [-0.4, 0.2, 0.33, 0.07]], dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda f, r: sample(f, r, 3), (f, regions))


def test_five_regions_have_the_papers_four_anchors_in_its_order():
    expected = torch.tensor([[0.5, 0.5], [0.5, -0.5], [-0.5, 0.5], [-0.5, -0.5]], dtype=torch.float64)
    torch.testing.assert_close(anchors(5, math.sqrt(2) / 2), expected)


@given(st.integers(2, 20).filter(lambda k: k != 5))
def test_anchors_lie_evenly_on_the_circle_from_45_degrees(k):
    points = torch.view_as_complex(anchors(k, 0.8))
    torch.testing.assert_close(points.abs(), torch.full((k - 1,), 0.8, dtype=torch.float64))
    turns = torch.angle(points * torch.exp(torch.tensor(-1j * math.pi / 4))) / (2 * math.pi) % 1
    expected = torch.arange(k - 1, dtype=torch.float64) / (k - 1)
    assert ((turns - expected + 0.5) % 1 - 0.5).abs().max() < 1e-6  # counter-clockwise, equal steps


def test_one_region_has_no_anchor():
    assert anchors(1, 0.7).shape == (0, 2)


def boxes(region, crop, size=(100, 100), n=100):
    return to_pixels(torch.tensor([[region]], dtype=torch.float64), torch.tensor([crop]), n, torch.tensor([size]))[
        0, 0
    ].tolist()


def test_a_region_of_a_crop_in_pixels_of_the_original():
    # Crop of side 60 at left 20, top 10 of a 100×100 image. The region's centre (0.5, 0) is 45 px into the crop, that is
    # at x 65, y 40; half-sizes 0.2 and 0.1 of 30 px each.
    assert boxes((0.2, 0.5, 0.1, 0.0), (20, 10, 60, 0)) == pytest.approx([59, 37, 71, 43])
    # Mirrored after cropping: the same region is now 15 px into the crop.
    assert boxes((0.2, 0.5, 0.1, 0.0), (20, 10, 60, 1)) == pytest.approx([29, 37, 41, 43])
    # The original is 200×50 pixels: x counts twice, y half.
    assert boxes((0.2, 0.5, 0.1, 0.0), (20, 10, 60, 0), (200, 50)) == pytest.approx([118, 18.5, 142, 21.5])
    # Mirrored regions cover the same pixels; a region outside stays outside.
    assert boxes((-0.2, 0.5, 0.1, 0.0), (20, 10, 60, 0)) == pytest.approx([59, 37, 71, 43])
    assert boxes((0.1, 4.0, 0.1, 0.0), (20, 10, 60, 0)) == pytest.approx([167, 37, 173, 43])


@given(st.tuples(*[st.floats(-1, 1)] * 4), st.integers(0, 8), st.integers(0, 8), st.booleans())
def test_what_is_sampled_is_what_lies_under_the_box(region, left, top, mirrored):
    """Sampling a linear ramp at a region's centre gives the ramp's value at the centre of the region's box."""
    side = 24
    y, x = torch.meshgrid(torch.arange(32.0) + 0.5, torch.arange(32.0) + 0.5, indexing="ij")
    crop = torch.stack([x, y])[None, :, top : top + side, left : left + side]
    crop = crop.flip(3) if mirrored else crop
    inner = torch.tensor(region) * 0.4  # away from the border, where zeros would enter
    seen = sample(crop, inner[None], 1)[0, :, 0, 0]
    box = to_pixels(inner[None, None], torch.tensor([[left, top, side, mirrored]]), 32, torch.tensor([[32, 32]]))[0, 0]
    torch.testing.assert_close(seen, torch.stack([box[0] + box[2], box[1] + box[3]]) / 2, atol=1e-4, rtol=0)


def test_given_anchors_are_half_the_crop_and_the_first_is_in_its_centre():
    expected = [[0.5, x, 0.5, y] for x, y in [(0, 0), (0.5, 0.5), (0.5, -0.5), (-0.5, 0.5), (-0.5, -0.5)]]
    assert anchored(5, math.sqrt(2) / 2).tolist() == [pytest.approx(region) for region in expected]
    assert anchored(1, 0.7).tolist() == [[0.5, 0, 0.5, 0]]


def test_a_box_on_the_image_as_a_region_of_its_crop():
    # A crop of side 60 at left 20, top 10 of 100×100. The box from (50, 10) to (80, 40) is the crop's upper right quarter.
    box = torch.tensor([[[0.5, 0.1, 0.8, 0.4]]])
    for mirrored, tx in ((0, 0.5), (1, -0.5)):
        found = of_crops(box, torch.tensor([[20, 10, 60, mirrored]]), 100)
        torch.testing.assert_close(found, torch.tensor([[[0.5, tx, 0.5, -0.5]]]))
    assert of_crops(None, torch.tensor([[20, 10, 60, 0]]), 100) is None


def test_a_box_that_is_not_there_is_the_whole_crop():
    boxes = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [math.nan] * 4]])
    assert of_crops(boxes, torch.tensor([[8, 8, 48, 1]]), 64)[0, 1].tolist() == list(IDENTITY)


edges = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@given(
    st.lists(st.tuples(edges, edges), min_size=1, max_size=3),
    st.integers(32, 640).flatmap(lambda side: st.tuples(st.just(side), st.integers(0, 64), st.integers(0, 64))),
    st.booleans(),
    st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
)
def test_boxes_come_back_from_the_regions_they_became(boxes, crop, mirrored, size):
    side, left, top = crop
    given = torch.tensor([[[x1, y1, x2, y2] for (x1, x2), (y1, y2) in boxes]], dtype=torch.float64)
    crops, N = torch.tensor([[left, top, side, mirrored]]), side + 64
    regions = of_crops(given, crops, N)
    back = to_pixels(regions, crops, N, torch.tensor([size])) / torch.tensor([*size, *size])
    torch.testing.assert_close(back, given, rtol=0, atol=1e-9)
    again = of_crops(back, crops, N)
    torch.testing.assert_close(again, regions, rtol=0, atol=1e-7)
    assert (regions[..., [0, 2]] >= 0).all()  # a given region is never mirrored
