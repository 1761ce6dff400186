"""Class-specific residual attention: Zhu and Wu, "Residual Attention: A Simple but Effective Method for Multi-Label
Recognition", ICCV 2021, section 3.

Legend: B images, L labels, C H W feature map, n = H·W its cells, Q heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ram_tune.config import Model
from ram_tune.models.whole_image import Prediction, exact, xavier

TEMPERATURES = {
    1: (1.0,),
    2: (1.0, math.inf),
    4: (1.0, 2.0, 4.0, math.inf),
    6: (1.0, 2.0, 3.0, 4.0, 5.0, math.inf),
    8: (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, math.inf),
}
"""T of each head, as the authors have them; ∞ is max-pooling."""


class ResidualAttention(nn.Module):
    """Feature map f (B, C, H, W) → scores ŷ^i = Σ_heads m_iᵀ(g + λ a^i): g the map's mean, a^i what label i attends to."""

    def __init__(self, model: Model, channels: int, labels: int):
        super().__init__()
        self.temperatures = TEMPERATURES[model.csra.heads]
        self.residual_weight = model.csra.residual_weight
        # m_i of every label, head after head
        self.classifier = xavier(nn.Linear(channels, model.csra.heads * labels, bias=False), blocks=model.csra.heads)

    def forward(self, f: Tensor) -> Prediction:
        x = f.flatten(2).transpose(1, 2).float()  # (B, n, C): x_j
        y = exact(self.classifier, x)  # x_jᵀ m_i
        heads = zip(y.chunk(len(self.temperatures), dim=2), self.temperatures, strict=True)
        s = torch.cat([attention(one, temperature) for one, temperature in heads], dim=2)
        pooled = y.mean(dim=1) + self.residual_weight * (s * y).sum(dim=1)  # (B, Q·L)
        scores = pooled.unflatten(1, (len(self.temperatures), -1)).sum(dim=1)
        # For what else wants one vector for an image: g + λ a^i, its mean over labels and heads.
        weights = 1 / x.shape[1] + self.residual_weight * s.mean(dim=2)  # (B, n)
        return Prediction(scores, features=(weights[:, None] @ x))


def attention(y: Tensor, temperature: float) -> Tensor:
    """s_j^i, where label i looks: scores x_jᵀ m_i (B, n, L) → (B, n, L), 1 in sum over the n cells."""
    if math.isinf(temperature):
        return F.one_hot(y.argmax(dim=1), y.shape[1]).transpose(1, 2).to(y.dtype)
    return (temperature * y).softmax(dim=1)
