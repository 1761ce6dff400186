"""RMA against METHOD 3 written out in float64, and its starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_tune.config import Model
from ram_tune.models.recurrent import RMA
from ram_tune.models.regions import sample

SIZES = {"sample_size": 3, "projection_size": 11, "hidden_size": 7, "feature_size": 6}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(model: RMA, f: torch.Tensor, regions: int, cell: str):
    """METHOD 3's equations, one image and one gate at a time, in NumPy float64."""
    weight = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    W_x, W_h, bias = (
        np.split(weight[name], 4) for name in ("memory.of_x.weight", "memory.of_h.weight", "memory.of_x.bias")
    )
    all_scores, all_regions = [], []
    for image in f.double():
        h, c = np.zeros(7), np.zeros(7)
        M = np.array([1.0, 0.0, 1.0, 0.0])
        scores, found = [], []
        for k in range(regions + 1):
            f_k = sample(image[None], torch.from_numpy(M)[None], 3).numpy().ravel()
            x = np.maximum(weight["project.weight"] @ f_k + weight["project.bias"], 0)
            gates = [W_x[j] @ x + W_h[j] @ h + bias[j] for j in range(4)]
            i, g, o = (sigmoid(gate) for gate in gates[:3])
            m = np.tanh(gates[3])
            c = g * c + i * m
            h = o * (np.tanh(c) if cell == "standard" else c)
            z = np.maximum(weight["feature.weight"] @ h + weight["feature.bias"], 0)
            if k >= 1:
                scores.append(weight["classifier.weight"] @ z + weight["classifier.bias"])
            M = weight["localization.weight"] @ z + weight["localization.bias"]
            found.append(M)
        all_scores.append(scores)
        all_regions.append(found[:regions])
    return np.array(all_scores), np.array(all_regions)


@pytest.mark.parametrize("cell", ["paper", "standard"])
@given(regions=st.integers(1, 4), seed=st.integers(0, 10))
@settings(max_examples=15, deadline=None)
def test_scores_and_regions_are_method_3_written_out(cell, regions, seed):
    torch.manual_seed(seed)
    model = RMA(Model(regions=regions, cell=cell, **SIZES), channels=5, labels=4)
    for parameter in model.parameters():  # biases too: zero ones would hide an error
        torch.nn.init.normal_(parameter, std=0.3)
    f = torch.randn(3, 5, 8, 6)

    ours = model(f)
    scores, boxes = by_hand(model, f, regions, cell)

    np.testing.assert_allclose(ours.region_scores.detach().numpy(), scores, atol=2e-4)
    np.testing.assert_allclose(ours.regions.detach().numpy(), boxes, atol=2e-4)
    np.testing.assert_allclose(ours.scores.detach().numpy(), scores.max(axis=1), atol=2e-4)
    assert ours.features.shape == (3, regions, 6)


def test_regions_that_are_given_are_seen_in_place_of_those_it_would_find():
    torch.manual_seed(0)
    finds = RMA(Model(regions=3, **SIZES), channels=5, labels=4)
    torch.nn.init.normal_(finds.localization.weight, std=0.3)
    is_given = RMA(Model(name="random", regions=3, **SIZES), channels=5, labels=4)
    shared = {name: value for name, value in finds.state_dict().items() if not name.startswith("localization")}
    assert is_given.localization is None and set(shared) == set(is_given.state_dict())
    is_given.load_state_dict(shared)
    f = torch.randn(2, 5, 8, 6)
    found = finds(f)
    torch.testing.assert_close(is_given(f, found.regions.detach()), found)
    outside = torch.tensor([0.1, 3.0, 0.1, 0.0]).expand(2, 3, 4)  # nothing but zeros lies there
    assert torch.isfinite(is_given(f, outside).scores).all()


@pytest.mark.parametrize("regions", [1, 3])
def test_every_parameter_learns_where_regions_are_given(regions):
    model = RMA(Model(name="random", regions=regions, **SIZES), channels=5, labels=4)
    model(torch.randn(3, 5, 8, 6), torch.rand(3, regions, 4)).scores.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("cell", ["paper", "none"])
def test_every_parameter_learns(cell):
    model = RMA(Model(regions=2, cell=cell, **SIZES), channels=5, labels=4)
    prediction = model(torch.randn(3, 5, 8, 6))
    (prediction.scores.sum() + prediction.regions.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_without_memory_every_step_is_a_plain_network_on_its_own_region():
    torch.manual_seed(0)
    model = RMA(Model(regions=3, cell="none", **SIZES), channels=5, labels=4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    f = torch.randn(3, 5, 8, 6)
    ours = model(f)
    (weight, bias), names = model.memory.parameters(), [name for name, _ in model.memory.named_parameters()]
    assert names == ["of_x.weight", "of_x.bias"]
    assert weight.shape == (7, 11)
    for k in range(3):
        x = model.project(sample(f, ours.regions[:, k], 3).flatten(1)).relu()
        z = model.feature((x @ weight.T + bias).relu()).relu()
        torch.testing.assert_close(ours.region_scores[:, k], model.classifier(z))


@pytest.mark.parametrize(("cell", "remembers"), [("none", False), ("paper", True), ("standard", True)])
def test_where_regions_are_fixed_only_a_memory_makes_steps_differ(cell, remembers):
    """Every region is the centred half: what differs between steps is what they remember."""
    model = RMA(Model(regions=3, cell=cell, localization_init="centred_half", **SIZES), channels=5, labels=4)
    first, second, third = model(torch.randn(3, 5, 8, 6)).region_scores.unbind(1)
    assert torch.equal(first, second) != remembers
    assert torch.equal(second, third) != remembers


def test_the_paper_starts_xavier_with_zero_bias_the_localization_layer_included():
    model = RMA(Model(), channels=4, labels=20)
    for layer in (model.feature, model.classifier, model.localization, model.project):
        bound = np.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    gate = model.memory.of_x.weight.chunk(4)[0]  # each gate by itself, not the four stacked
    bound = np.sqrt(6 / sum(gate.shape))
    assert 0.99 * bound < gate.abs().max() <= bound


@pytest.mark.parametrize(("start", "region"), [("centred_half", (0.5, 0, 0.5, 0)), ("identity", (1, 0, 1, 0))])
def test_other_starts_give_every_image_one_region(start, region):
    model = RMA(Model(localization_init=start, **SIZES), channels=5, labels=4)
    found = model(torch.randn(3, 5, 8, 6)).regions
    torch.testing.assert_close(found, torch.tensor(region).float().expand(3, 5, 4))


def test_regions_and_scores_stay_in_single_precision_under_autocast():
    model = RMA(Model(**SIZES), channels=5, labels=4)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(torch.randn(3, 5, 8, 6, dtype=torch.bfloat16))
    assert prediction.regions.dtype == torch.float32
    assert prediction.scores.dtype == torch.float32
    assert len(prediction.region_scores.unique()) == prediction.region_scores.numel()


def test_autocast_does_not_move_what_is_sampled():
    f, regions = torch.randn(2, 5, 28, 28), torch.rand(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        under = sample(f, regions, 7)
    torch.testing.assert_close(under, sample(f, regions, 7), rtol=0, atol=0)
