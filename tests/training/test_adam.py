"""Our Adam is PyTorch's."""

from __future__ import annotations

import subprocess
import sys

import torch

from ram_tune.training.adam import Adam

STEP = """
import sys
import torch
from ram_tune.training.adam import Adam

layer = torch.nn.Linear(3, 2)
adam = Adam(layer.parameters(), fused=True)
layer(torch.ones(1, 3)).sum().backward()
adam.step()
adam.zero_grad()
adam.load_state_dict(adam.state_dict())
print("torch._dynamo" in sys.modules)
"""


def trained(kind: type[torch.optim.Adam]) -> tuple[dict, dict]:
    torch.manual_seed(0)
    layer, calls = torch.nn.Linear(5, 3), []
    adam = kind([{"params": [layer.weight], "lr": 0.1}], lr=0.01, weight_decay=0.1, fused=True)
    adam.add_param_group({"params": [layer.bias]})
    adam.register_step_post_hook(lambda *_: calls.append(1))
    for step in range(6):
        if step == 3:
            adam.load_state_dict(adam.state_dict())
        adam.zero_grad(set_to_none=step % 2 == 0)
        layer(torch.randn(4, 5)).square().sum().backward()
        adam.step()
    assert len(calls) == 6
    return layer.state_dict(), adam.state_dict()


def test_it_computes_the_same_to_the_bit():
    (own, state), (other, expected) = trained(Adam), trained(torch.optim.Adam)
    torch.testing.assert_close(own, other, rtol=0, atol=0)
    torch.testing.assert_close(state["state"], expected["state"], rtol=0, atol=0)
    assert state["param_groups"] == expected["param_groups"]


def test_its_step_is_outside_the_graph():
    weight = torch.nn.Parameter(torch.ones(2))
    adam = Adam([weight])
    weight.sum().backward()
    adam.step()
    assert weight.grad_fn is None and torch.is_grad_enabled()


def test_the_compiler_is_not_loaded():
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
