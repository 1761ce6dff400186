"""A layer shared by steps against the same layer used step by step by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ram_tune.models.shared_linear import SharedLinear


def layers(dtype=torch.float64):
    torch.manual_seed(0)
    own = SharedLinear(6, 6).to(dtype)
    plain = nn.Linear(6, 6).to(dtype)
    plain.load_state_dict(own.state_dict())
    return own, plain


def chain(use, x, steps=4, lost=()):
    """Each step sees what the one before made of it → a loss that knows nothing of the steps in `lost`."""
    total = x.new_zeros(())
    for step in range(steps):
        y = use(x).tanh()
        x = x.detach() if step in lost else y
        total = total + (0 if step in lost else (step + 1) * y.square().sum())
    return total


def gradients(loss, layer, x):
    return torch.autograd.grad(loss, [layer.weight, layer.bias, *([x] if x.requires_grad else [])])


@pytest.mark.parametrize("lost", [(), (0,), (1, 2)])
@pytest.mark.parametrize("shape", [(5, 6), (5, 3, 6)])
@pytest.mark.parametrize("asked", [True, False])
def test_gradients_are_those_of_using_it_step_by_step(lost, shape, asked):
    own, plain = layers()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=asked)
    one, other = chain(own.steps(), x, lost=lost), chain(plain, x, lost=lost)
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    if asked and lost == (0,):
        one, other = one + x.sum(), other + x.sum()  # else nothing asks for it
    torch.testing.assert_close(gradients(one, own, x), gradients(other, plain, x))


def test_under_autocast_they_are_as_near_to_the_exact_ones():
    own, plain = layers(torch.float32)
    exact_layer, _ = layers(torch.float64)
    x = torch.randn(64, 6)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = chain(own.steps(), x, 16), chain(plain, x, 16)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    exact = gradients(chain(exact_layer, x.double(), 16), exact_layer, x)[0]
    errors = [
        (gradients(loss, layer, x)[0].double() - exact).norm() / exact.norm()
        for loss, layer in ((ours, own), (theirs, plain))
    ]
    assert max(errors) < 0.03  # bfloat16 has eight bits


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_where_nothing_is_learned_it_is_the_layer(dtype):
    own, plain = layers(torch.float32)
    x = torch.randn(5, 6)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        torch.testing.assert_close(own.steps()(x), plain(x), rtol=0, atol=0)
    own.requires_grad_(False)
    x.requires_grad_()
    torch.testing.assert_close(*(torch.autograd.grad(layer(x).sum(), x) for layer in (own.steps(), plain)))


def test_two_passes_at_once_do_not_mix():
    own, plain = layers()
    x, y = torch.randn(2, 5, 6, dtype=torch.float64)
    first, second = own.steps(), own.steps()
    both = chain(first, x) + 2 * chain(second, y)
    expected = chain(plain, x) + 2 * chain(plain, y)
    torch.testing.assert_close(gradients(both, own, x), gradients(expected, plain, x))
