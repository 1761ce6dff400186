"""Each loss against a case worked by hand, and gradcheck; REINFORCE against the gradient of what it estimates."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ram_tune.config import Loss
from ram_tune.models.regions import anchors, of_crops
from ram_tune.models.whole_image import Policy, Prediction
from ram_tune.training import losses
from ram_tune.training.losses import Criterion

# Two images, two regions each: sx, tx, sy, ty.
REGIONS = torch.tensor(
    [[[0.7, 0.0, 0.5, 0.0], [-0.1, 0.3, 0.05, -0.5]], [[0.4, 0.9, -0.9, 0.9], [0.2, 0.5, 0.2, 0.5]]],
    dtype=torch.float64,
)


def test_euclidean():
    # softmax of (log 1, log 2, log 5) is (1/8, 2/8, 5/8); two labels of three: target (1/2, 0, 1/2).
    scores = torch.tensor([[0.0, math.log(2), math.log(5)]], dtype=torch.float64)
    expected = (1 / 8 - 1 / 2) ** 2 + (2 / 8) ** 2 + (5 / 8 - 1 / 2) ** 2
    assert losses.euclidean(scores, torch.tensor([[1.0, 0.0, 1.0]])).item() == pytest.approx(expected)


def test_euclidean_of_an_image_without_labels_is_nothing_rather_than_nan():
    assert losses.euclidean(torch.randn(1, 3), torch.zeros(1, 3)).item() == 0


def test_binary_cross_entropy():
    scores = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)  # probabilities 1/2 and 3/4
    expected = -math.log(1 / 2) - math.log(1 / 4)
    assert losses.binary_cross_entropy(scores, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(expected)


def test_asymmetric():
    scores = torch.tensor([[0.0, math.log(3), -5.0]], dtype=torch.float64)  # p = 1/2, 3/4, 0.0067 (below the margin)
    targets = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    expected = -((1 - 1 / 2) ** 1 * math.log(1 / 2)) - (0.7**4) * math.log(1 - 0.7)
    assert losses.asymmetric(scores, targets, 1.0, 4.0, 0.05).item() == pytest.approx(expected)


def test_asymmetric_without_focus_or_margin_is_binary_cross_entropy():
    scores, targets = torch.randn(4, 5, dtype=torch.float64), torch.randint(0, 2, (4, 5)).double()
    torch.testing.assert_close(
        losses.asymmetric(scores, targets, 0, 0, 0), losses.binary_cross_entropy(scores, targets)
    )


def test_anchor_spares_the_first_region():
    point = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    # Second regions: (0.3, −0.5) is (−0.2, −1) from the anchor; (0.5, 0.5) is on it.
    assert losses.anchor(REGIONS, point).tolist() == pytest.approx([(0.04 + 1) / 2, 0])


def test_scale_counts_mirrored_sizes_by_their_absolute_value():
    # Above 0.5: 0.7 by 0.2; in the second image |−0.9| by 0.4.
    assert losses.scale(REGIONS, 0.5).tolist() == pytest.approx([0.04, 0.16])


def test_positive():
    # Below 0.1: −0.1 by 0.2 and 0.05 by 0.05; in the second image −0.9 by 1.0.
    assert losses.positive(REGIONS, 0.1).tolist() == pytest.approx([0.25, 1.0])


class Operations(TorchDispatchMode):
    """Names of the operations within."""

    def __enter__(self):
        self.names: set[str] = set()
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_nothing_is_brought_from_the_host_in_a_step():
    regions, boxes = torch.rand(2, 5, 4, requires_grad=True), torch.rand(2, 5, 4)
    points, crops = anchors(5, 0.7).float(), torch.tensor([[0, 0, 64, 0], [8, 8, 64, 1]])
    with Operations() as operations:
        losses.anchor(regions, points).sum().backward()
        (losses.scale(regions, 0.5) + losses.positive(regions, 0.1)).sum().backward()
        of_crops(boxes, crops, 80)
    assert not operations.names & {"index", "index_put", "_index_put_impl_", "lift_fresh"}  # on a GPU they would wait


@pytest.mark.parametrize("focus", [0.0, 0.5, 1.0, 4.0])
def test_asymmetric_has_a_gradient_where_probabilities_are_0_or_1(focus):
    scores = torch.tensor([[200.0, -200.0, 200.0, -200.0, -3.5]], requires_grad=True)
    losses.asymmetric(scores, torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]), focus, focus, 0.05).sum().backward()
    assert scores.grad.isfinite().all()


def test_gradcheck():
    torch.manual_seed(1)
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: losses.euclidean(s, targets), scores)
    assert torch.autograd.gradcheck(lambda s: losses.binary_cross_entropy(s, targets), scores)
    assert torch.autograd.gradcheck(lambda s: losses.asymmetric(s, targets, 1, 4, 0.05), scores)
    regions = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: losses.anchor(r, anchors(5, 0.7)), regions)
    assert torch.autograd.gradcheck(lambda r: losses.scale(r, 0.5), regions)
    assert torch.autograd.gradcheck(lambda r: losses.positive(r, 0.1), regions)


def prediction() -> Prediction:
    return Prediction(torch.tensor([[0.0, 1.0], [2.0, -1.0]]), regions=REGIONS.float())


TARGETS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def test_the_whole_loss_weighs_its_terms_as_the_paper():
    criterion = Criterion(Loss(anchor_radius=1.0), regions=2)  # the only anchor, at 45°
    total, terms = criterion(prediction(), TARGETS)
    by_name = dict(zip(criterion.terms, terms.tolist(), strict=True))
    assert by_name["scale"] == pytest.approx(0.04 + 0.16)
    assert by_name["positive"] == pytest.approx(0.25 + 1.0)
    a = math.sqrt(0.5)
    first, second = (0.3 - a) ** 2 + (-0.5 - a) ** 2, 2 * (0.5 - a) ** 2
    assert by_name["anchor"] == pytest.approx((first + second) / 2)
    expected = by_name["classification"] + 0.1 * (
        by_name["scale"] + 0.01 * by_name["anchor"] + 0.1 * by_name["positive"]
    )
    assert total.item() == pytest.approx(expected)


@pytest.mark.parametrize("off", ["anchor", "scale", "positive"])
def test_a_part_that_is_switched_off_is_not_built(off):
    assert off not in Criterion(Loss(**{off: False}), regions=5).terms
    assert off in Criterion(Loss(), regions=5).terms


def test_one_region_has_no_anchor_term_and_none_has_only_classification():
    assert Criterion(Loss(), regions=1).terms == ("classification", "scale", "positive")
    assert Criterion(Loss(), regions=0).terms == ("classification",)


# --- RARL


@pytest.mark.parametrize(
    ("scores", "targets", "wanted"),
    [
        ([5, 4, 3, 2], [1, 1, 0, 0], 1),
        ([5, 4, 3, 2], [1, 0, 1, 0], 1 / 2),
        ([5, 4, 3, 2], [0, 0, 1, 1], 0),
        ([5, 4, 3, 2], [1, 0, 1, 1], 2 / 3),  # of 5, 4, 3 the first and the third
        ([5, 4, 3, 2], [0, 0, 0, 1], 0),  # n = 1: the best is wrong
        ([2, 4, 3, 5], [0, 0, 0, 1], 1),
        ([5, 4, 3, 2], [1, 1, 1, 1], 1),  # n = L
        ([5, 4, 3, 2], [0, 0, 0, 0], 0),  # no label
        ([1, 1, 1, 1], [1, 0, 0, 0], 1),  # ties rank by label index
        ([1, 1, 1, 1], [0, 1, 0, 0], 0),
        ([1, 2, 1, 1], [0, 0, 1, 1], 0),  # second, first, | third, fourth
        ([1, 2, 1, 1], [1, 0, 1, 0], 1 / 2),
    ],
)
def test_reward(scores, targets, wanted):
    found = losses.reward(torch.tensor([scores]).float(), torch.tensor([targets]).float())
    assert found.tolist() == pytest.approx([wanted])


def test_reward_is_that_of_every_image_by_itself():
    torch.manual_seed(0)
    scores, targets = torch.randint(0, 4, (60, 7)).float(), torch.randint(0, 2, (60, 7))
    for row, y, found in zip(scores.tolist(), targets.tolist(), losses.reward(scores, targets.float()), strict=True):
        top = sorted(range(7), key=lambda label: (-row[label], label))[: sum(y)]
        assert found.item() == pytest.approx(sum(y[label] for label in top) / max(sum(y), 1))


def test_policy_gradient_by_hand():
    # One image, two places drawn from means 0.1 and −0.2 (one axis matters) with sigma 0.5: 0.3 and −0.5; R = 1, b = 0.25, 0.5.
    # d log π / d mean = (drawn − mean) / sigma² = 0.8 and −1.2; the gradient of the loss is −(R − b) times that.
    mean = torch.tensor([[0.1, -0.2]], dtype=torch.float64, requires_grad=True)
    drawn = torch.tensor([[0.3, -0.5]], dtype=torch.float64)
    expected = torch.tensor([[0.25, 0.5]], dtype=torch.float64, requires_grad=True)
    policy = Policy(torch.distributions.Normal(mean, 0.5).log_prob(drawn), torch.zeros(1, 2), expected)
    losses.policy_gradient(policy, torch.tensor([1.0], dtype=torch.float64)).sum().backward()
    assert mean.grad.tolist() == [pytest.approx([-0.75 * 0.8, -0.5 * -1.2])]
    assert expected.grad is None
    error = losses.baseline_error(policy, torch.tensor([1.0], dtype=torch.float64))
    assert error.tolist() == pytest.approx([0.75**2 + 0.5**2])
    error.sum().backward()
    assert expected.grad.tolist() == [pytest.approx([-1.5, -1.0])]


def test_the_policys_gradient_is_that_of_the_expected_reward():
    # Two places are drawn in turn, the second's mean depending on the first; the reward is smooth in both. Over many draws
    # REINFORCE's gradient is that of the mean reward, which the draws' own derivative gives exactly (the same noise).
    torch.manual_seed(0)
    weight = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    noise = torch.randn(400_000, 2, dtype=torch.float64)
    sigma = 0.5

    def rewarded(first, second):
        return (-((first - 0.5) ** 2) - (second - 0.2) ** 2).exp()

    first = weight[0] + sigma * noise[:, 0]
    second = weight[1] * first + sigma * noise[:, 1]
    (wanted,) = torch.autograd.grad(rewarded(first, second).mean(), weight)

    first, second = first.detach(), second.detach()
    log_probability = torch.stack(
        [
            torch.distributions.Normal(weight[0], sigma).log_prob(first),
            torch.distributions.Normal(weight[1] * first, sigma).log_prob(second),
        ],
        dim=1,
    )
    policy = Policy(log_probability, torch.zeros(()), torch.full_like(log_probability, 0.6))
    (found,) = torch.autograd.grad(-losses.policy_gradient(policy, rewarded(first, second)).mean(), weight)
    torch.testing.assert_close(found, wanted, atol=0.01, rtol=0)


def looked() -> Prediction:
    """Two images, two labels, two places each; the first image is right, the second has no label."""
    policy = Policy(
        torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True),
        torch.full((2, 2), 0.5),
        torch.tensor([[0.5, 0.25], [0.0, 0.0]], requires_grad=True),
    )
    return Prediction(torch.tensor([[0.0, 1.0], [2.0, -1.0]]), policy=policy)


def test_a_policys_terms_and_their_weight():
    criterion = Criterion(Loss(reinforcement_weight=0.3), 0, reinforced=True)
    prediction = looked()
    total, terms = criterion(prediction, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    by_name = dict(zip(criterion.terms, terms.tolist(), strict=True))
    policy, baseline = -(0.5 * 1 + 0.75 * 2), 0.5**2 + 0.75**2  # the image without a label teaches nothing
    watched = {"reward": 1, "log_probability": 1.5 + 3.5, "entropy": 1}
    assert by_name == pytest.approx(
        {"classification": by_name["classification"], "policy": policy, "baseline": baseline} | watched
    )
    assert total.item() == pytest.approx(by_name["classification"] + 0.3 * (policy + baseline))
    total.backward()
    assert prediction.policy.log_probability.grad.tolist() == [pytest.approx([-0.15, -0.225]), [0, 0]]


def test_a_model_with_a_policy_has_no_constraints_on_its_regions():
    assert Criterion(Loss(), 0, reinforced=True).terms == (
        *("classification", "policy", "baseline"),
        *("reward", "log_probability", "entropy"),
    )


def test_several_rollouts_are_judged_against_one_another():
    # Two images of three rollouts, one place each; b = 0.5 throughout. Advantages of the first: 0.5, −0.5, 0 less the mean of
    # the other two (−0.25, 0.25, 0); all of the second's are alike: nothing to learn.
    log_probability = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    policy = Policy(log_probability, torch.zeros(6, 1), torch.full((6, 1), 0.5))
    found = losses.policy_gradient(policy, torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 1.0]), rollouts=3)
    assert found.tolist() == pytest.approx([-0.75 * 1, 0.75 * 2, 0, 0, 0, 0])


def test_rollouts_weigh_an_image_no_more():
    criterion = Criterion(Loss(classification="bce"), 0, reinforced=True)
    once, targets = looked(), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    twice = Prediction(
        once.scores.repeat_interleave(2, dim=0), policy=Policy(*(x.repeat_interleave(2, dim=0) for x in once.policy))
    )
    by_once, by_twice = (
        dict(zip(criterion.terms, criterion(p, targets)[1].tolist(), strict=True)) for p in (once, twice)
    )
    assert by_twice.pop("policy") == 0 != by_once.pop("policy")  # equal ones have no advantage over one another
    assert by_twice == pytest.approx(by_once)
