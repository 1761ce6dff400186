"""RARL against METHOD 5 written out in float64, what its policy draws, and whom its losses teach."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_tune.config import Loss, Model, Reinforced
from ram_tune.models.regions import SX, SY, TX, TY, sample, sample_each
from ram_tune.models.reinforced import RARL, windows
from ram_tune.models.whole_image import Policy
from ram_tune.training.losses import Criterion

SIZES = {"sample_size": 3, "projection_size": 11, "hidden_size": 7, "feature_size": 6}


def rarl(steps=3, sides=(0.2, 0.4), ratios=(2.0, 1.0, 0.5), labels=4, cell="paper", **others):
    """A small one, all its parameters random: zero biases would hide an error."""
    reinforced = Reinforced(steps=steps, sides=sides, aspect_ratios=ratios, **others)
    model = RARL(Model(name="rarl", reinforced=reinforced, cell=cell, **SIZES), 5, labels, enlarged=1.25)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def by_hand(model: RARL, f: torch.Tensor, sizes, steps: int, cell: str, whole: bool):
    """METHOD 5 for one image, a region and a gate at a time, in NumPy float64, each place the policy's mean."""
    weight = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    W_x, W_h, bias = (
        np.split(weight[name], 4) for name in ("memory.of_x.weight", "memory.of_h.weight", "memory.of_x.bias")
    )

    def layer(name, value):
        return weight[f"{name}.weight"] @ value + weight[f"{name}.bias"]

    def remember(M, h, c):
        x = np.maximum(layer("project", sample(f[None], torch.tensor([M]).double(), 3).numpy().ravel()), 0)
        gates = [W_x[j] @ x + W_h[j] @ h + bias[j] for j in range(4)]
        i, g, o = (1 / (1 + np.exp(-gate)) for gate in gates[:3])
        c = g * c + i * np.tanh(gates[3])
        return o * (np.tanh(c) if cell == "standard" else c), c

    h, c = remember([1.0, 0.0, 1.0, 0.0], np.zeros(7), np.zeros(7))
    scores, places, expected = [], [], []
    for step in range(steps):
        z = np.maximum(layer("feature", h), 0)
        x, y = np.tanh(layer("localization", z))
        expected.append(layer("baseline", z)[0])
        if step == 0 and not whole:
            h, c = np.zeros(7), np.zeros(7)
        seen = [remember([sx, x, sy, y], h, c) for sx, sy in sizes]
        scores += [layer("classifier", np.maximum(layer("feature", one), 0)) for one, _ in seen]
        h, c = (np.mean(each, axis=0) for each in zip(*seen, strict=True))
        places.append([x, y])
    return np.array(scores), np.array(places), np.array(expected)


@pytest.mark.parametrize(("cell", "whole"), [("paper", True), ("standard", True), ("paper", False)])
@given(steps=st.integers(1, 4), k=st.integers(1, 3), seed=st.integers(0, 10))
@settings(max_examples=15, deadline=None)
def test_evaluation_is_method_5_written_out(cell, whole, steps, k, seed):
    torch.manual_seed(seed)
    model = rarl(steps, (0.3,), (2.0, 1.0, 0.5)[:k], cell=cell, remember_whole=whole).eval()
    f = torch.randn(2, 5, 8, 6)
    ours = model(f)
    for image in range(2):
        sizes = [(1.25 * 0.3 * math.sqrt(ratio), 1.25 * 0.3 / math.sqrt(ratio)) for ratio in (2.0, 1.0, 0.5)[:k]]
        scores, places, expected = by_hand(model, f[image].double(), sizes, steps, cell, whole)
        np.testing.assert_allclose(ours.region_scores[image].detach(), scores, atol=2e-4)
        np.testing.assert_allclose(ours.regions[image, ::k][:, [TX, TY]].detach(), places, atol=2e-4)
        np.testing.assert_allclose(ours.policy.baseline[image].detach(), expected, atol=2e-4)
        np.testing.assert_allclose(ours.scores[image].detach(), scores.max(0), atol=2e-4)
    assert ours.features.shape == (2, steps * k, 6)


def test_regions_have_the_papers_areas_and_ratios():
    # N = 512 with a crop of 448: 80, 160 and 320 pixels squared, at 640 (576) 100, 200 and 400, wide ones first.
    for size, sides in ((512, (80, 160, 320)), (640, (100, 200, 400))):
        crop = size - 64
        pixels = crop * np.array(windows(Reinforced(), size / crop))
        assert (pixels[:, 0] * pixels[:, 1]).tolist() == pytest.approx([side**2 for side in sides for _ in range(3)])
        assert (pixels[:, 0] / pixels[:, 1]).tolist() == pytest.approx([2, 1, 0.5] * 3)


def test_a_step_looks_round_one_place_with_all_sizes():
    found = rarl(steps=3)(torch.randn(4, 5, 8, 6)).regions.unflatten(1, (3, 6))
    assert (found[..., [TX, TY]] == found[:, :, :1, [TX, TY]]).all()
    wanted = torch.tensor(windows(Reinforced(sides=(0.2, 0.4)), 1.25))
    torch.testing.assert_close(found[..., [SX, SY]], wanted.expand(4, 3, 6, 2))


def test_several_regions_are_sampled_as_one_by_one():
    f, regions = torch.randn(3, 5, 8, 6), torch.randn(3, 4, 4)
    one_by_one = torch.stack([sample(f, regions[:, k], 3) for k in range(4)], dim=1)
    torch.testing.assert_close(sample_each(f, regions, 3), one_by_one)


# --- the policy


def test_log_probability_and_entropy_are_those_of_torch_distributions():
    model, mean = rarl(sigma=0.3).train(), torch.rand(500, 2) * 1.6 - 0.8
    torch.manual_seed(5)
    place, log_probability, entropy = model.choose(mean)
    torch.manual_seed(5)
    drawn = mean + 0.3 * torch.randn_like(mean)
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, 0.3), 1)
    torch.testing.assert_close(log_probability, normal.log_prob(drawn))
    torch.testing.assert_close(entropy, normal.entropy())
    beyond = drawn.abs() > 1
    assert beyond.any()
    assert (place[beyond].abs() == 1).all() and (place[~beyond] == drawn[~beyond]).all()


def test_evaluation_looks_at_the_mean_and_is_certain_of_it():
    mean = torch.rand(3, 2)
    place, log_probability, entropy = rarl().eval().choose(mean)
    assert place is mean
    assert not log_probability.any() and not entropy.any()


def test_evaluation_is_deterministic_and_training_draws_from_torch():
    model, f = rarl(), torch.randn(4, 5, 8, 6)
    model.eval()
    assert torch.equal(model(f).regions, model(f).regions)
    model.train()
    assert not torch.equal(model(f).regions, model(f).regions)
    torch.manual_seed(1)
    first = model(f)
    torch.manual_seed(1)
    assert torch.equal(first.regions, model(f).regions)


def test_an_image_is_seen_alike_in_any_batch():
    model, f = rarl().eval(), torch.randn(6, 5, 8, 6)
    together, alone = model(f), [model(image[None]) for image in f]
    torch.testing.assert_close(together.regions, torch.cat([one.regions for one in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(together.scores, torch.cat([one.scores for one in alone]), atol=1e-5, rtol=0)


def test_other_starts_look_at_the_centre():
    model = RARL(Model(name="rarl", localization_init="centred_half", **SIZES), 5, 4, enlarged=1.0).eval()
    assert not model(torch.randn(3, 5, 8, 6)).regions[..., [TX, TY]].any()


def test_regions_wholly_outside_are_zeros_and_no_nan():
    model = rarl(sides=(1e-3,), ratios=(1.0,), sigma=1e6)  # drawn far beyond, clipped to the very edge
    f = torch.randn(4, 5, 8, 6, requires_grad=True)
    model.train()
    prediction = model(f)
    assert (prediction.regions[..., [TX, TY]].abs() == 1).all()
    criterion = Criterion(Loss(), 0, reinforced=True)
    loss, terms = criterion(prediction, torch.ones(4, 4))
    loss.backward()
    assert torch.isfinite(terms).all() and torch.isfinite(f.grad).all()
    outside = torch.tensor([[[0.1, 1.5, 0.1, 0.0], [0.1, 0.0, 0.1, -1.5]]]).expand(4, 2, 4)
    assert not sample_each(f, outside, 3).any()


def test_places_and_scores_stay_in_single_precision_under_autocast():
    model = rarl(labels=9)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(torch.randn(3, 5, 8, 6, dtype=torch.bfloat16))
    assert {each.dtype for each in (*prediction[:3], *prediction.policy)} == {torch.float32}
    places = prediction.regions[:, ::6, [TX, TY]]
    assert (places != places.bfloat16()).any() and (prediction.scores != prediction.scores.bfloat16()).any()


# --- what is learned from what


def gradients(model: RARL, loss: torch.Tensor) -> set[str]:
    """The parameters that `loss` reaches."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    names = [name for name, _ in model.named_parameters()]
    return {name for name, grad in zip(names, found, strict=True) if grad is not None and grad.abs().sum() > 0}


def parts(name: str, *layers: str) -> set[str]:
    return {f"{layer}.{kind}" for layer in layers for kind in name.split()}


SHARED = parts("weight bias", "project", "memory.of_x", "feature") | {"memory.of_h.weight"}


@pytest.mark.parametrize("steps", [1, 3])
def test_each_loss_teaches_what_it_should(steps):
    torch.manual_seed(0)
    model, f, targets = rarl(steps), torch.randn(8, 5, 8, 6), torch.eye(4).repeat(2, 1)
    prediction = model.train()(f)
    classes, policy = parts("weight bias", "classifier"), parts("weight bias", "localization")
    assert gradients(model, prediction.scores.square().sum()) == SHARED | classes
    # With one step h is still 0 when the policy speaks: nothing has come through W_h.
    before = SHARED if steps > 1 else SHARED - {"memory.of_h.weight"}
    assert gradients(model, model.train()(f).policy.log_probability.sum()) == before | policy
    assert gradients(model, model(f).policy.baseline.sum()) == parts("weight bias", "baseline")
    loss, _ = Criterion(Loss(), 0, reinforced=True)(model(f), targets)
    assert gradients(model, loss) == {name for name, _ in model.named_parameters()}


def test_reinforce_learns_where_to_look():
    # The map is bright in one half of each image: places there are rewarded. Nothing but the policy's loss is used.
    torch.manual_seed(0)
    model = rarl(steps=1, sides=(0.3,), ratios=(1.0,), sigma=0.3).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    side = torch.randint(0, 2, (64,)) * 2 - 1
    f = torch.zeros(64, 5, 8, 8)
    f[side > 0, :, :, 4:] = 1
    f[side < 0, :, :, :4] = 1
    shares = []
    for _ in range(150):
        prediction = model(f)
        rewards = (prediction.regions[:, 0, TX] * side > 0).float()
        policy = prediction.policy
        loss = -((rewards[:, None] - policy.baseline.detach()) * policy.log_probability).mean()
        loss = loss + (rewards[:, None] - policy.baseline).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append(rewards.mean().item())
    assert shares[0] < 0.65 and np.mean(shares[-10:]) > 0.9


def test_the_policy_is_part_of_the_prediction():
    policy = rarl(steps=3)(torch.randn(2, 5, 8, 6)).policy
    assert isinstance(policy, Policy)
    assert all(each.shape == (2, 3) for each in policy)


# --- several rollouts


def test_rollouts_are_as_if_the_image_came_several_times():
    model, f = rarl(rollouts=3, labels=6).train(), torch.randn(2, 5, 8, 6)
    torch.manual_seed(2)
    together = model(f)
    alone = rarl(labels=6).train()
    alone.load_state_dict(model.state_dict())
    torch.manual_seed(2)
    apart = alone(f.repeat_interleave(3, dim=0))
    for ours, theirs in zip((*together[:4], *together.policy), (*apart[:4], *apart.policy), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert len({tuple(place) for place in together.regions[:, 0].tolist()}) == 6  # each is drawn by itself


def test_an_image_is_evaluated_once_whatever_the_rollouts():
    assert len(rarl(rollouts=3).eval()(torch.randn(2, 5, 8, 6)).scores) == 2
