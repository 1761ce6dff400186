"""A large linear layer that is used in several steps of one forward pass, its weight's gradient computed once.

For [RMA]'s W_fx (25,088 → 4096) autograd would write a gradient of 200 MB in each step and add it to the others': more memory
traffic than all else behind the feature map. Here each step keeps what it was given, and one product of all steps together
makes the gradient, summed in single precision on the way.

Legend: S images of a step, D inputs, P outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F


class SharedLinear(nn.Linear):
    """`nn.Linear` (and just that, when it is called); `steps()` for its use in several steps."""

    def steps(self) -> Callable[[Tensor], Tensor]:
        """The layer for the steps of one forward pass: (…, D) → (…, P), under the caller's autocast."""
        device, weight, bias = self.weight.device.type, self.weight.detach(), self.bias.detach()
        if torch.is_autocast_enabled(device):  # once: where nothing is learned autocast would do it in each step
            weight = weight.to(torch.get_autocast_dtype(device))
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return lambda x: F.linear(x.to(weight.dtype), weight, bias.to(weight.dtype))
        kept: list[tuple[Tensor, Tensor]] = []
        token = _Gradient.apply(self.weight, self.bias, kept)
        return lambda x: _Step.apply(token, x, weight, bias, kept)  # type: ignore[return-value]


class _Gradient(Function):
    """Nothing forwards; backwards, once all steps have been there, the gradient of weight and bias."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, kept: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.kept, ctx.dtype = kept, weight.dtype
        return weight.new_zeros(())  # by which autograd knows who was there

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, Tensor, None]:
        given, inputs = (torch.cat(parts) for parts in zip(*ctx.kept, strict=True))
        ctx.kept.clear()
        return (given.T @ inputs).to(ctx.dtype), given.sum(0, dtype=ctx.dtype), None


class _Step(Function):
    @staticmethod
    def forward(
        ctx: Any, token: Tensor, x: Tensor, weight: Tensor, bias: Tensor, kept: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        ctx.kept, ctx.dtype = kept, x.dtype
        x = x.to(weight.dtype)
        ctx.save_for_backward(token, x, weight)
        return F.linear(x, weight, bias.to(weight.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor | None, None, None, None]:
        token, x, weight = ctx.saved_tensors
        (given,) = gradients
        ctx.kept.append((given.reshape(-1, given.shape[-1]), x.reshape(-1, x.shape[-1])))
        back = (given @ weight).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return torch.zeros_like(token), back, None, None, None
