"""Stage 1, and the baseline without regions: conv5_3 → 7×7 max-pool → fc6 → fc7 → label scores (METHOD 4).

Legend: B images, K regions, L labels, C H W feature map, P side of the pooled grid, D projection, T steps.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ram_tune.config import Model

Linear = TypeVar("Linear", bound=nn.Linear)


class Policy(NamedTuple):
    """What a model that draws where to look (`reinforced.py`) says of it: places l_1 … l_T."""

    log_probability: Tensor  # (B, T) of each place given those before it; 0 where nothing was drawn
    entropy: Tensor  # (B, T) nats, of what it was drawn from; 0 likewise
    baseline: Tensor  # (B, T) b_t, the reward that was expected


class Prediction(NamedTuple):
    """What any model says of a batch. K is 0 for a model without regions."""

    scores: Tensor  # (B, L) fused
    region_scores: Tensor | None = None  # (B, K, L)
    regions: Tensor | None = None  # (B, K, 4) sx, tx, sy, ty
    features: Tensor | None = None  # (B, K, Z) z_k; (B, 1, D) fc7 for the whole image
    policy: Policy | None = None


def xavier(layer: Linear, blocks: int = 1) -> Linear:
    """Xavier-uniform weights (each of `blocks` matrices stacked in one layer by itself) and zero bias, as [RMA] says."""
    for matrix in layer.weight.chunk(blocks):
        nn.init.xavier_uniform_(matrix)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def exact(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)` in single precision even under autocast.

    With bfloat16's 8 bits many images would share one score, and a region's centre would be off by a tenth of a cell.
    """
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


class WholeImage(nn.Module):
    """Feature map (B, C, H, W) → scores (B, L)."""

    def __init__(self, model: Model, channels: int, labels: int):
        super().__init__()
        self.sample_size = model.sample_size
        width = model.projection_size
        self.fc6 = xavier(nn.Linear(channels * model.sample_size**2, width))
        self.fc7 = xavier(nn.Linear(width, width))
        self.classifier = xavier(nn.Linear(width, labels))
        self.dropout = nn.Dropout(model.dropout)

    def forward(self, f: Tensor) -> Prediction:
        x = F.adaptive_max_pool2d(f.float(), self.sample_size).flatten(1)
        x = self.dropout(F.relu(self.fc6(x)))
        x = self.dropout(F.relu(self.fc7(x)))
        return Prediction(exact(self.classifier, x), features=x[:, None])
