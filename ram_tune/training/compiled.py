"""The backbone, compiled where it learns (`execution.compile`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ram_tune.models.backbone import Backbone


def compile_backbone(backbone: Backbone) -> None:
    """Have the training step's convolutions compiled at its first batch, and for a last one of another size once more. Names
    of weights stay; evaluation, whose sizes differ, goes on uncompiled. Where the compiler fails, one line says so, and all
    goes on without it.
    """
    backbone.forward = _Compiled(backbone.forward)


class _Compiled:
    def __init__(self, plain: Callable[[Tensor], Tensor]):
        self.plain, self.works = plain, True

    @cached_property
    def fast(self) -> Callable[[Tensor], Tensor]:
        return torch.compile(self.plain, dynamic=False)

    def __call__(self, images: Tensor) -> Tensor:
        if not self.works or not torch.is_grad_enabled():
            return self.plain(images)
        try:
            return self.fast(images)
        except Exception as error:
            from torch._dynamo.exc import TorchDynamoException  # loads the compiler, which by now is there

            if not isinstance(error, TorchDynamoException):
                raise
            inner = getattr(error, "inner_exception", error)
            reason = next((line for line in str(inner).splitlines() if line.strip()), type(inner).__name__)
            warnings.warn(f"execution.compile: the backbone is not compiled ({reason})", stacklevel=2)
            self.works = False
            return self.plain(images)
