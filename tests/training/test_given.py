"""Runs whose regions are given: nothing pulls at them, they are where they were put, and every path sees the same ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ram_tune.models.regions import to_pixels
from ram_tune.presets import configure, parse_set
from ram_tune.training.cost import cost
from ram_tune.training.judging import drawn, evaluate, finish, region_metrics
from ram_tune.training.loop import fit, optimise
from ram_tune.training.run import prepare

MAP = ["data.crop=map", "model.backbone.trainable=none"]


@pytest.fixture
def run(pictures, tiny, tmp_path):
    def work(name, *fields):
        quick = ["stage1.epochs=0", "training.epochs=1", "training.precision=fp32", f"model.name={name}"]
        config = configure(str(pictures), overrides=parse_set([*tiny, *quick, *fields]))
        return prepare(config, tmp_path)

    return work


PROPOSALS = ["model.proposals.min_area=60", "model.proposals.blur=1"]  # for pictures of 64 pixels


@pytest.mark.parametrize("name", ["anchors", "random", "proposals"])
@pytest.mark.parametrize("crop", [[], MAP])
def test_a_run_with_given_regions(run, name, crop):
    trained = run(name, *crop, *PROPOSALS, "evaluation.views=ten", "evaluation.classifier=svm", "evaluation.svm_c=[1]")
    assert trained.criterion.terms == ("classification",)
    assert {group["lr_scale"] for group in trained.optimizer.param_groups} == {1.0}
    (report,) = fit(trained)
    assert np.isfinite(report.metrics["selection/loss"])
    judged = finish([trained])
    assert judged.scores["test"].regions.shape == (8, 2, 4)
    assert ("filled_share" in judged.metrics["test"]) == (name == "proposals")
    assert len(drawn(trained)) == 8


def test_anchors_are_where_method_4_has_them(run):
    found = evaluate(run("anchors", "model.regions=3"), run("anchors").test)
    # Region 2 at 45°, region 3 at 225°, on the circle of radius √2/2.
    expected = [[0.5, 0, 0.5, 0], [0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]]
    np.testing.assert_allclose(found.regions, np.broadcast_to(expected, (8, 3, 4)), atol=1e-6)
    other = evaluate(run("anchors", "model.regions=3", "loss.anchor_radius=1"), run("anchors").test)
    np.testing.assert_allclose(other.regions[0, 1, [1, 3]], [np.sqrt(0.5)] * 2, atol=1e-6)


@pytest.mark.parametrize("name", ["random", "proposals"])
@pytest.mark.parametrize("crop", [[], MAP])
def test_regions_are_the_images_own_on_any_crop(run, name, crop):
    asked = run(name, *crop, *PROPOSALS)
    assert not np.isnan(asked.selection.boxes).any()
    found = evaluate(asked, asked.selection).regions
    corner = 0 if crop else 8  # whole cells
    crops = torch.tensor([[corner, corner, 48, 0]]).expand(8, 4)
    seen = to_pixels(torch.from_numpy(found), crops, 64, torch.ones(8, 2))
    np.testing.assert_allclose(seen, asked.selection.boxes, atol=1e-6)


def test_ten_views_have_the_centre_crops_regions(run):
    one, ten = run("random", "evaluation.classifier=svm"), run("random", "evaluation.views=ten", "data.crop_margin=32")
    ten.network.load_state_dict(one.network.state_dict())
    for asked in (one, ten):
        side = 64 - asked.config.data.crop_margin
        crops = torch.tensor([[(64 - side) // 2, (64 - side) // 2, side, 0]]).expand(8, 4)
        seen = to_pixels(torch.from_numpy(finish([asked]).scores["test"].regions), crops, 64, torch.ones(8, 2))
        np.testing.assert_allclose(seen, asked.test.boxes, atol=1e-6)


def test_what_was_seen_with_other_regions_is_not_taken_for_it(run):
    asked = run("random", "evaluation.views=ten", "data.crop_margin=32")
    first = finish([asked]).scores["test"]
    other = run("random", "evaluation.views=ten", "data.crop_margin=32", "training.seed=1")
    other.network.load_state_dict(asked.network.state_dict())
    assert not np.allclose(finish([other]).scores["test"].regions, first.regions)


def test_pieces_of_a_batch_have_their_own_regions(run):
    states = []
    for accumulate in (1, 3):
        asked = run("random", f"execution.accumulate={accumulate}")
        batch = asked.train.crop(np.arange(6), np.tile([4, 8, 48, 1], (6, 1)))
        states.append((optimise(asked, batch), asked.network.state_dict()))
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)  # a step of Adam is 1e-3


def test_where_too_few_proposals_are_found_the_whole_crop_is_seen_and_counted(run):
    asked = run("proposals", "model.regions=64", "model.proposals.nms=0.3", *PROPOSALS)
    found, missing = evaluate(asked, asked.test), np.isnan(asked.test.boxes).any(-1)
    assert 0 < missing.mean() < 1
    np.testing.assert_array_equal((found.regions == [1, 0, 1, 0]).all(-1), missing)
    assert region_metrics(asked, "test", found)["filled_share"] == pytest.approx(missing.mean())
    asked = run("proposals", "model.proposals.min_area=1e6")
    assert finish([asked]).metrics["test"]["filled_share"] == 1


@pytest.mark.parametrize("name", ["anchors", "random", "proposals"])
def test_given_regions_cost_what_found_ones_do_less_the_localization_layer(run, name):
    found, given = cost([run("rma")]), cost([run(name)])
    assert found["parameters"] - given["parameters"] == 16 * 4 + 4
    assert found["multiply_adds"] - given["multiply_adds"] == 2 * 16 * 4  # once for each of two regions
    assert given["ms_per_image"] > 0
