"""Class-specific residual attention against the paper's equations, one label, head and cell at a time in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ram_tune.config import CSRA, Model
from ram_tune.models.residual_attention import TEMPERATURES, ResidualAttention

LABELS, CHANNELS = 4, 5


def model(heads: int = 1, residual_weight: float = 0.4) -> ResidualAttention:
    torch.manual_seed(heads)
    return ResidualAttention(Model(csra=CSRA(heads=heads, residual_weight=residual_weight)), CHANNELS, LABELS)


def by_hand(model: ResidualAttention, f: torch.Tensor, temperatures, residual_weight: float):
    """Scores, and the class-specific features f^i of every head and label."""
    m = model.classifier.weight.detach().double().numpy().reshape(len(temperatures), LABELS, CHANNELS)
    scores, features = np.zeros((len(f), LABELS)), []
    for b, image in enumerate(f.double().numpy()):
        x = [image[:, row, column] for row in range(image.shape[1]) for column in range(image.shape[2])]
        found = []
        for head, T in enumerate(temperatures):
            for i in range(LABELS):
                raw = [x_j @ m[head, i] for x_j in x]
                if math.isinf(T):
                    a = x[int(np.argmax(raw))]
                else:
                    total = sum(math.exp(T * one) for one in raw)
                    a = sum(math.exp(T * one) / total * x_j for one, x_j in zip(raw, x, strict=True))
                found.append(sum(x) / len(x) + residual_weight * a)
                scores[b, i] += m[head, i] @ found[-1]
        features.append(np.mean(found, axis=0))
    return scores, np.array(features)


@pytest.mark.parametrize(
    ("heads", "temperatures"),
    [(1, [1]), (2, [1, math.inf]), (4, [1, 2, 4, math.inf]), (6, [1, 2, 3, 4, 5, math.inf])],
)
def test_scores_and_features_are_the_equations_written_out(heads, temperatures):
    head, f = model(heads), torch.randn(3, CHANNELS, 4, 3)
    ours = head(f)
    scores, features = by_hand(head, f, temperatures, 0.4)
    np.testing.assert_allclose(ours.scores.detach().numpy(), scores, atol=1e-5)
    np.testing.assert_allclose(ours.features.detach().numpy(), features[:, None], atol=1e-5)


def test_without_the_residual_it_is_average_pooling():
    head, f = model(2, residual_weight=0.0), torch.randn(3, CHANNELS, 4, 3)
    first, second = head.classifier(f.mean(dim=(2, 3))).chunk(2, dim=1)
    torch.testing.assert_close(head(f).scores, first + second)
    torch.testing.assert_close(head(f).features[:, 0], f.mean(dim=(2, 3)))


def test_an_infinite_temperature_is_max_pooling_and_a_high_one_comes_near(monkeypatch):
    head, f = model(1, residual_weight=1.0), torch.randn(3, CHANNELS, 4, 3)
    y = head.classifier(f.flatten(2).mT)
    wanted = y.mean(dim=1) + y.amax(dim=1)
    for temperature, near in ((math.inf, 1e-6), (99.0, 0.05)):
        monkeypatch.setattr(head, "temperatures", (temperature,))
        torch.testing.assert_close(head(f).scores, wanted, atol=near, rtol=0)


def test_several_heads_are_the_sum_of_single_ones():
    several, f = model(4), torch.randn(3, CHANNELS, 4, 3)
    total = torch.zeros(3, LABELS)
    for weight, temperature in zip(several.classifier.weight.chunk(4), TEMPERATURES[4], strict=True):
        one = model(1)
        one.temperatures = (temperature,)
        one.classifier.weight.data = weight
        total += one(f).scores
    torch.testing.assert_close(several(f).scores, total)


@pytest.mark.parametrize("heads", [1, 6])
def test_gradients_reach_every_parameter_and_the_map(heads):
    head, f = model(heads), torch.randn(3, CHANNELS, 4, 3, requires_grad=True)
    head(f).scores.square().sum().backward()
    assert (head.classifier.weight.grad.abs().sum(dim=1) > 0).all()
    assert (f.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_scores_stay_in_single_precision_under_autocast():
    head, f = model(6), torch.randn(30, CHANNELS, 4, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        scores = head(f).scores
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, head(f.float()).scores)
