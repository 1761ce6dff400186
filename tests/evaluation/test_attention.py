"""What regions cover: by hand, against torchvision's IoU, and that only regions that follow the objects attend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from ram_tune.data.annotations import Boxes
from ram_tune.evaluation.attention import attention, bootstrap, derangements, pairwise_iou, region_statistics
from ram_tune.models.regions import anchors, to_pixels

quick = settings(max_examples=40, deadline=None)
CONTROLS = ("", "_anchors", "_centre", "_random", "_shuffled")
CROP = (10, 10, 80, 0)  # of a 100×100 image: 10 to 90
FOUR = anchors(5, np.sqrt(0.5)).numpy()


def scattered(seed, n=12, m=40, K=5):
    """(regions, boxes, sizes, crops) at random: objects in and out of the crop, small and large, some difficult."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(100, 700, (n, 2))
    image = rng.integers(n, size=m)
    centre, size = rng.random((m, 2)) * sizes[image], rng.uniform(1, 100, (m, 2))
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1).astype(np.float32)
    boxes = Boxes(corners, image, rng.integers(3, size=m), rng.random(m) < 0.2)
    crops = np.column_stack([rng.integers(0, 20, (n, 2)), np.full(n, 80), rng.integers(0, 2, n)])
    return rng.normal(0, 0.5, (n, K, 4)), boxes, sizes, crops


def on_each_object(n=40, noise=0.0):
    """One object per image at a random place of the crop, and one region of a tenth of the crop's side upon it."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(-0.9, 0.9, (n, 2))
    pixels = 10 + 80 * (centres + 1) / 2
    boxes = Boxes.of([((x - 5, y - 5, x + 5, y + 5), i, 0, False) for i, (x, y) in enumerate(pixels)])
    x, y = (centres + rng.normal(0, 1, (n, 2)) * noise).T
    regions = np.stack([np.full(n, 0.1), x, np.full(n, 0.1), y], axis=1)[:, None]
    return regions, boxes, np.full((n, 2), 100), np.tile(CROP, (n, 1))


def measured(case, points=FOUR, **options):
    regions, boxes, sizes, crops = case
    return attention(regions, points[: regions.shape[1] - 1], boxes, sizes, crops, 100, **options)


# --- coverage


def test_coverage_by_hand():
    # Two images of 200×100 pixels: the crop is 20 to 180 by 10 to 90, its centre (100, 50); sx 0.25 is 20 pixels each way.
    # Image 0: region 1 is 120 to 160 by 40 to 60, region 2 is 80 to 120 by 10 to 30.
    # Image 1: both regions are 40 to 80 by 60 to 80.
    regions = np.array(
        [[[0.25, 0.5, 0.25, 0.0], [0.25, 0.0, 0.25, -0.75]], [[0.25, -0.5, 0.25, 0.5], [0.25, -0.5, 0.25, 0.5]]]
    )
    rows = [
        ((100, 0, 180, 100), 0, 0, False),  # centre (140, 50): region 1 of image 0
        ((105, 15, 125, 35), 0, 0, False),  # centre (115, 25), 400 px²: region 2 of image 0
        ((95, 45, 105, 55), 0, 0, False),  # centre (100, 50), 100 px²: no region, but the centre box
        ((0, 40, 20, 60), 0, 0, False),  # centre (10, 50): not in the crop
        ((130, 45, 150, 55), 0, 0, True),  # difficult
        ((40, 50, 80, 90), 1, 0, False),  # centre (60, 70): image 1's regions
        ((120, 0, 160, 100), 1, 0, False),  # centre (140, 50): image 0's region 1
    ]
    sizes, crops = np.full((3, 2), (200, 100)), np.tile(CROP, (3, 1))
    regions = np.concatenate([regions, regions[:1]])  # a third image, without objects, lends no region
    found = attention(regions, np.array([[0.5, 0.0]]), Boxes.of(rows), sizes, crops, 100)

    expected = {"objects": 5, "objects_small": 2, "images_with_objects": 2}
    expected |= {"coverage": 3 / 5, "coverage_small": 1 / 2}
    expected |= {"coverage_centre": 1 / 5, "coverage_small_centre": 1 / 2}  # (100, 50)
    expected |= {"coverage_anchors": 3 / 5, "coverage_small_anchors": 1 / 2}  # that, and the two at (140, 50)
    expected |= {"coverage_shuffled": 1 / 5, "coverage_small_shuffled": 0}  # the last
    # Own 2/3 and 1/2, shuffled 0/3 and 1/2 of an image's objects: 2/3 and 0 more, 1/3 on average.
    expected |= {"coverage_own_minus_shuffled": 1 / 3, "coverage_own_minus_shuffled_high": 2 / 3, "attends": 0}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["coverage_own_minus_shuffled_low"] == 0


@quick
@given(st.integers(0, 2**32 - 1))
def test_coverage_is_what_the_pixels_say(seed):
    regions, boxes, sizes, crops = case = scattered(seed)
    whole = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]], dtype=torch.float64).expand(len(regions), 1, 4)
    where = [torch.from_numpy(part) for part in (crops, sizes)]
    crop = to_pixels(whole, where[0], 100, where[1]).numpy()
    pixels = to_pixels(torch.from_numpy(regions), where[0], 100, where[1]).numpy()

    def inside(x, y, rectangles):
        return any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in rectangles)

    hits, small = [], []
    for (x1, y1, x2, y2), i, difficult in zip(boxes.corners.tolist(), boxes.image, boxes.difficult, strict=True):
        centre = (x1 + x2) / 2, (y1 + y2) / 2
        if inside(*centre, crop[i]) and not difficult:
            hits.append(inside(*centre, pixels[i]))
            small.append((x2 - x1) * (y2 - y1) < 1024)
    found = measured(case)
    assert (found["objects"], found["objects_small"]) == (len(hits), sum(small))
    assert found["coverage"] == pytest.approx(np.mean(hits))
    if any(small):
        assert found["coverage_small"] == pytest.approx(np.mean(np.array(hits)[small]))


@quick
@given(st.integers(0, 2**32 - 1))
def test_mirrored_regions_cover_the_same(seed):
    regions, *rest = scattered(seed)
    turned = regions.copy()
    turned[..., [0, 2]] *= -1
    assert measured((turned, *rest)) == measured((regions, *rest))


@quick
@given(st.integers(0, 2**32 - 1))
def test_a_mirrored_crop_with_mirrored_regions_covers_the_same(seed):
    regions, boxes, sizes, crops = scattered(seed)
    turned = regions * [1, -1, 1, 1]
    other = crops.copy()
    other[:, 3] = 1 - crops[:, 3]
    assert measured((turned, boxes, sizes, other))["coverage"] == measured((regions, boxes, sizes, crops))["coverage"]


@quick
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_images_changes_nothing(seed):
    regions, boxes, sizes, crops = case = scattered(seed)
    order = np.random.default_rng(seed).permutation(len(regions))
    moved = Boxes(boxes.corners, np.argsort(order)[boxes.image], boxes.label, boxes.difficult)
    before, after = measured(case, draws=99), measured((regions[order], moved, sizes[order], crops[order]), draws=99)
    # With every other image as a donor the shuffled control has no luck in it either.
    same = [f"coverage{control}" for control in CONTROLS if control != "_random"] + ["coverage_own_minus_shuffled"]
    assert {name: after[name] for name in same} == pytest.approx({name: before[name] for name in same})


@quick
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.25, 2, 8]))
def test_the_scale_of_the_originals_changes_nothing_but_what_is_small(seed, scale):
    regions, boxes, sizes, crops = case = scattered(seed)
    scaled = Boxes(boxes.corners * np.float32(scale), boxes.image, boxes.label, boxes.difficult)
    before, after = measured(case), measured((regions, scaled, sizes * scale, crops))
    same = [name for name in before if "small" not in name]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_controls_in_the_crop_with_the_regions_own_sizes():
    # The crop itself covers every object that counts, and at random there is one place only where it fits.
    regions, boxes, sizes, crops = scattered(0)
    found = measured((np.tile([1.0, 0.0, 1.0, 0.0], (len(regions), 5, 1)), boxes, sizes, crops))
    assert [found[f"coverage{control}"] for control in CONTROLS if control != "_anchors"] == [1, 1, 1, 1]
    # A point covers none.
    found = measured((np.tile([0.0, 0.3, 0.0, 0.3], (len(regions), 5, 1)), boxes, sizes, crops))
    assert [found[f"coverage{control}"] for control in CONTROLS] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(("x", "share"), [(50, 1.0), (80, 0.25)])
def test_random_boxes_are_uniform_inside_the_crop(x, share):
    # Of half the crop's side: always over the crop's centre, and over a point 3/4 out where their own centre is beyond 1/4.
    n = 2000
    boxes = Boxes.of([((x - 5, 45, x + 5, 55), i, 0, False) for i in range(n)])
    regions = np.tile([0.5, 9.0, 0.5, 9.0], (n, 1, 1))
    found = measured((regions, boxes, np.full((n, 2), 100), np.tile(CROP, (n, 1))), resamples=10)
    assert found["coverage_random"] == pytest.approx(share, abs=0.015)  # five standard errors of 20,000 draws


# --- own against another's


@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 99))
def test_no_image_keeps_its_own_regions(n, count, seed):
    found = derangements(n, count, np.random.default_rng(seed))
    assert found.shape == (min(count, n - 1), n)
    assert (np.sort(found, axis=1) == np.arange(n)).all()
    assert (found != np.arange(n)).all()
    assert all(len(set(column)) == len(column) for column in found.T.tolist())


def test_two_images_lend_each_other_theirs_and_one_has_none():
    regions, boxes, sizes, crops = on_each_object(2)
    found = measured((regions, boxes, sizes, crops))
    assert (found["coverage"], found["coverage_shuffled"], found["coverage_own_minus_shuffled"]) == (1, 0, 1)

    one = Boxes(boxes.corners[:1], boxes.image[:1], boxes.label[:1], boxes.difficult[:1])
    alone = measured((regions[:1], one, sizes[:1], crops[:1]))
    assert alone["coverage"] == 1 and alone["attends"] == 0
    assert not [name for name in alone if "shuffled" in name]


@quick
@given(st.integers(0, 2**32 - 1))
def test_regions_that_do_not_look_at_the_image_do_not_attend(seed):
    regions, *rest = scattered(seed, n=30, m=90)
    found = measured((np.tile(regions[:1], (len(regions), 1, 1)), *rest))
    assert found["coverage"] == found["coverage_shuffled"]  # to the last bit
    margin = [found[f"coverage_own_minus_shuffled{end}"] for end in ("", "_low", "_high")]
    assert margin == [0, 0, 0] and found["attends"] == 0


def test_regions_of_other_images_do_not_attend():
    # Chance alone claims attention in 2.5 % of cases at most; more than 5 of 60 would be a rare accident (p < 0.01).
    cases = [measured(scattered(seed, n=100, m=300), resamples=500) for seed in range(60)]
    assert sum(found["attends"] for found in cases) <= 5
    assert all(found["coverage_own_minus_shuffled_low"] < found["coverage_own_minus_shuffled_high"] for found in cases)


def test_regions_that_sit_on_each_images_object_attend():
    found = measured(on_each_object(noise=0.05))
    assert found["coverage"] > 0.8 > 0.1 > found["coverage_shuffled"]
    low, high = found["coverage_own_minus_shuffled_low"], found["coverage_own_minus_shuffled_high"]
    assert 0 < low < found["coverage_own_minus_shuffled"] < high <= 1
    assert found["attends"] == 1
    assert found["coverage_small"] == found["coverage"]  # they are all of 10×10 pixels


def test_the_same_seed_gives_the_same_figures():
    case = scattered(1)
    assert measured(case) == measured(case) == measured(case, seed=0)
    assert measured(case) != measured(case, seed=1)


def test_the_interval_is_the_bootstraps():
    values = np.random.default_rng(0).exponential(size=300)
    low, high = bootstrap(values, 20_000, np.random.default_rng(1))  # several chunks
    error = values.std() / np.sqrt(300)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error)


def test_nothing_where_there_are_no_boxes():
    regions, boxes, sizes, crops = scattered(0)
    hard = Boxes(boxes.corners, boxes.image, boxes.label, np.ones_like(boxes.difficult))
    for none in (None, Boxes.of([]), hard):
        assert measured((regions, none, sizes, crops)) == {}


def test_without_small_objects_there_is_no_share_of_them():
    regions, boxes, sizes, crops = on_each_object()
    boxes = Boxes(boxes.corners + np.float32([-15, -15, 15, 15]), boxes.image, boxes.label, boxes.difficult)
    found = measured((regions, boxes, sizes, crops))
    assert found["objects_small"] == 0 and not [name for name in found if name.startswith("coverage_small")]


# --- redundancy


@quick
@given(st.integers(0, 2**32 - 1), st.integers(2, 7))
def test_redundancy_is_torchvisions_iou(seed, K):
    regions = np.random.default_rng(seed).normal(0, 0.7, (6, K, 4))
    sx, tx, sy, ty = np.moveaxis(regions, -1, 0)
    corners = torch.from_numpy(np.stack([tx - abs(sx), ty - abs(sy), tx + abs(sx), ty + abs(sy)], axis=-1))
    first, second = np.triu_indices(K, 1)
    expected = [box_iou(own, own).numpy()[first, second].mean() for own in corners]
    np.testing.assert_allclose(pairwise_iou(regions), expected, atol=1e-12)
    assert region_statistics(regions, np.zeros((K - 1, 2)))["redundancy"] == pytest.approx(np.mean(expected))


def test_redundancy_by_hand():
    # 2×2 and 2×2, one to the right by 1: 2 of 6 shared. The third, mirrored and beyond the crop, is the first. A point: 0.
    regions = np.float32([[[1, 1, 1, 0], [1, 2, 1, 0], [-1, 1, 1, 0], [0, 1, 0, 0]]])
    assert pairwise_iou(regions) == pytest.approx([(1 / 3 + 1 + 0 + 1 / 3 + 0 + 0) / 6])
    assert pairwise_iou(np.zeros((3, 2, 4))).tolist() == [0, 0, 0]


def test_one_region_has_no_pairs():
    assert "redundancy" not in region_statistics(np.zeros((3, 1, 4)), np.zeros((0, 2)))


# --- outside


def test_a_region_is_outside_where_it_has_no_part_of_the_crop():
    inside = [[0.5, 0, 0.5, 0], [0.2, 1.1, 0.2, 0], [-0.2, -1.1, 0.2, 0], [3, 2, 3, -2]]  # the last holds all of it
    outside = [
        [0.2, 1.2, 0.2, 0],
        [0.2, 0, -0.2, 1.3],
        [1, -2, 1, 0],
        [0, 4, 0, 4],
    ]  # the first and third touch an edge
    found = region_statistics(np.array([inside, outside], np.float64), np.zeros((3, 2)))
    assert found["outside_share"] == 0.5


# --- centres on objects


def test_centres_on_objects_by_hand():
    # Two images of 200×100 pixels, the crop is 20 to 180 by 10 to 90, its centre (100, 50). The second was mirrored.
    centres = [[(0.0, 0.0), (0.5, 0.5), (-0.95, 0.0)], [(0.5, 0.0), (-0.5, 0.0), (3.0, 0.0)]]
    regions = np.array([[(0.1, x, 0.1, y) for x, y in image] for image in centres])
    rows = [
        ((90, 40, 110, 60), 0, 0, False),  # holds the first image's first centre, (100, 50)
        ((95, 45, 105, 55), 0, 1, False),  # so does this: it counts once
        (
            (0, 30, 25, 60),
            0,
            0,
            True,
        ),  # difficult and centred beyond the crop, but an object: holds the third, (24, 50)
        ((50, 40, 70, 60), 1, 0, False),  # the second's first centre, mirrored (60, 50)
    ]
    case = regions, Boxes.of(rows), np.full((2, 2), (200, 100)), np.array([[10, 10, 80, 0], [10, 10, 80, 1]])
    found = measured(case)
    assert found["centres_on_objects"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    # The second's places hit nothing of the first's; the first's (0, 0), (0.5, 0.5), (−0.95, 0) nothing of the second's.
    assert found["centres_on_objects_shuffled"] == 0
    assert found["centres_on_objects_own_minus_shuffled"] == pytest.approx(0.5)


def test_centres_on_each_images_object_are_on_objects_more_than_anothers():
    found = measured(on_each_object(noise=0.02))
    own, other = found["centres_on_objects"], found["centres_on_objects_shuffled"]
    low, high = (found[f"centres_on_objects_own_minus_shuffled_{end}"] for end in ("low", "high"))
    assert own > 0.9 > 0.1 > other
    assert 0 < low < own - other < high


@quick
@given(st.integers(0, 2**32 - 1))
def test_centres_that_do_not_look_at_the_image_are_as_anothers(seed):
    regions, *rest = scattered(seed, n=30, m=90)
    found = measured((np.tile(regions[:1], (len(regions), 1, 1)), *rest))
    margin = [found[f"centres_on_objects_own_minus_shuffled{end}"] for end in ("", "_low", "_high")]
    assert margin == pytest.approx([0, 0, 0], abs=1e-12)


def test_several_regions_round_one_place_count_as_that_place():
    regions, *rest = scattered(3, n=30, m=90, K=4)
    sizes = np.array([0.2, 1, 3])
    around = regions[:, :, None] * np.stack([sizes, [1] * 3, sizes, [1] * 3], axis=-1)
    one, several = measured((regions, *rest)), measured((around.reshape(30, 12, 4), *rest), np.zeros((11, 2)))
    for name in ("", "_shuffled", "_own_minus_shuffled"):
        assert several[f"centres_on_objects{name}"] == pytest.approx(one[f"centres_on_objects{name}"])


def test_regions_that_nothing_pulls_have_no_distance_to_anchors():
    found = region_statistics(scattered(0)[0], None)
    assert "anchor_distance" not in found and "redundancy" in found
