"""Weighted metrics of resamples against the metrics themselves, on images that are really repeated and left out."""

from __future__ import annotations

import numpy as np
import pytest

from ram_tune.evaluation import metrics
from ram_tune.evaluation.resampling import (
    average_precisions,
    f1_scores,
    mean_average_precisions,
    multiplicities,
)

IMAGES, LABELS, RESAMPLES = 60, 4, 40


@pytest.fixture(params=["distinct", "tied", "ignored", "rare"])
def found(request):
    """Scores, targets and ignored cells: of distinct scores; of many ties; with cells that do not count; a rare label."""
    random = np.random.default_rng(0)
    targets = random.random((IMAGES, LABELS)) < 0.3
    scores = (random.normal(size=targets.shape) + targets).astype(np.float32)
    ignore = None
    if request.param == "tied":
        scores = np.round(scores)
    if request.param == "ignored":
        ignore = random.random(targets.shape) < 0.2
    if request.param == "rare":  # many a resample has no image of it
        targets[:, 0] = np.arange(IMAGES) == 7
    return scores, targets, ignore


def repeated(found, counts, resample):
    """The arrays as the resample has them, every image as often as it was drawn."""
    images = np.repeat(np.arange(len(counts)), counts[:, resample])
    return tuple(None if one is None else one[images] for one in found)


def test_average_precision_is_that_of_the_repeated_images(found):
    counts = multiplicities(IMAGES, RESAMPLES)
    values, means = average_precisions(*found, counts), mean_average_precisions(*found, counts)
    for resample in range(RESAMPLES):
        expected = metrics.average_precision(*repeated(found, counts, resample))
        assert values[:, resample] == pytest.approx(expected, abs=1e-6, nan_ok=True)
        assert means[resample] == pytest.approx(metrics.mean_average_precision(expected), abs=1e-6)


def test_a_label_may_be_missing_from_a_resample(found):
    scores, targets, _ = found
    targets[:, 0] = np.arange(IMAGES) == 7
    counts = multiplicities(IMAGES, RESAMPLES)
    absent = counts[7] == 0
    assert absent.any() and not absent.all()
    assert (np.isnan(average_precisions(scores, targets, None, counts)[0]) == absent).all()


def test_f1_scores_are_those_of_the_repeated_images(found):
    scores, targets, ignore = found
    counts = multiplicities(IMAGES, RESAMPLES)
    values = f1_scores(scores > 0.8, targets, ignore, counts)
    for resample in range(RESAMPLES):
        expected = metrics.f1_scores(*repeated((scores > 0.8, targets, ignore), counts, resample))
        assert {name: value[resample] for name, value in values.items()} == pytest.approx(expected, abs=1e-9)


def test_every_image_once_is_the_metric_itself(found):
    once = np.ones((IMAGES, 1), np.int16)
    expected = metrics.mean_average_precision(metrics.average_precision(*found))
    assert mean_average_precisions(*found, once)[0] == pytest.approx(expected, abs=1e-6)


def test_more_images_than_small_integers_hold():
    random = np.random.default_rng(3)
    targets = random.random((33_000, 1)) < 0.99  # nearly all positive: their sums pass 2^15
    scores = (random.normal(size=targets.shape) + targets).astype(np.float32)
    counts = multiplicities(33_000, 2)
    assert counts.dtype == np.int32
    for resample in range(2):
        expected = metrics.average_precision(*repeated((scores, targets, None), counts, resample))
        assert average_precisions(scores, targets, None, counts)[:, resample] == pytest.approx(expected, abs=1e-6)


def test_a_resample_draws_as_many_images_as_there_are_and_always_the_same():
    counts = multiplicities(50, 30, seed=4)
    assert (counts.sum(0) == 50).all()
    assert (multiplicities(50, 30, seed=4) == counts).all()
    assert (multiplicities(50, 30, seed=5) != counts).any()
    # Binomial(50, 1/50): variance 0.98
    assert counts.var() == pytest.approx(0.98, abs=0.1)


def test_the_spread_over_resamples_is_that_of_another_test_set():
    # AP of fresh images varies as the resamples of one set of them say it does.
    random = np.random.default_rng(1)

    def images():
        targets = random.random((400, 1)) < 0.3
        return (random.normal(size=targets.shape) + targets).astype(np.float32), targets

    fresh = [metrics.average_precision(*images())[0] for _ in range(300)]
    spread = [average_precisions(*images(), None, multiplicities(400, 200)).std() for _ in range(10)]
    assert np.mean(spread) == pytest.approx(np.std(fresh), rel=0.15)


def test_no_label_at_all_has_no_map():
    scores, targets = np.zeros((3, 2), np.float32), np.zeros((3, 2), bool)
    assert np.isnan(mean_average_precisions(scores, targets, None, multiplicities(3, 4))).all()


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        average_precisions(np.array([[np.nan]]), np.array([[True]]), None, multiplicities(1, 1))
