"""One query for every label, decoded from the feature map: Query2Label (Liu et al., 2021), whose queries also attend to one
another, and ML-Decoder (Ridnik et al., 2021), whose do not.

Only the decoder: Query2Label's encoder layer before it is left out. Layers are Vaswani et al.'s (2017), normalised after
each addition. From Query2Label's code it differs in that a label's embedding is its query's first state (there that is 0, and
the embedding is added in every layer to the queries and keys of self-attention and to the queries of cross-attention), and in
that no LayerNorm follows the last layer; from ML-Decoder's in that keys say where they are even without self-attention (there
they never do), that queries are learned and not normalised first, and that the map's projection has no ReLU.

Legend: B images, L labels, C H W feature map, n = H·W its cells, D width, Q heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ram_tune.config import Model
from ram_tune.config import QueryDecoder as Fields
from ram_tune.models.whole_image import Prediction, xavier

LONGEST = 10_000.0  # Vaswani et al., 2017, section 3.5


class Attention(nn.Module):
    """Multi-head attention: softmax(q kᵀ / √(D/Q)) v for each head, put side by side and mixed."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mix = (xavier(nn.Linear(width, width)) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries (B, L, D), keys and values (B, n, D) → (B, L, D)."""
        q, k, v = self._split(self.query(queries)), self._split(self.key(keys)), self._split(self.value(values))
        # Written out: on a CPU PyTorch counts no operations of scaled_dot_product_attention, and cost.py would be wrong.
        weights = self.dropout((q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1))
        return self.mix((weights @ v).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """(B, n, D) → (B, Q, n, D/Q)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Self-attention (where there is any), cross-attention and feed-forward, each added and normalised."""

    def __init__(self, fields: Fields):
        super().__init__()
        width = fields.width
        self.among = Attention(width, fields.heads, fields.dropout) if fields.self_attention else None
        self.across = Attention(width, fields.heads, fields.dropout)
        self.up = xavier(nn.Linear(width, fields.feed_forward))
        self.down = xavier(nn.Linear(fields.feed_forward, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 + fields.self_attention))
        self.dropout = nn.Dropout(fields.dropout)

    def forward(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries q (B, L, D) and cells (B, n, D) → q."""
        norms = iter(self.norms)
        if self.among is not None:
            q = next(norms)(q + self.dropout(self.among(q, q, q)))
        q = next(norms)(q + self.dropout(self.across(q, keys, values)))
        return next(norms)(q + self.dropout(self.down(self.dropout(F.relu(self.up(q))))))


class QueryDecoder(nn.Module):
    """Feature map f (B, C, H, W) → scores (B, L), each by a linear classifier of its label's own query."""

    def __init__(self, model: Model, channels: int, labels: int):
        super().__init__()
        fields = model.query_decoder
        self.project = xavier(nn.Linear(channels, fields.width))  # a 1×1 convolution
        self.queries = nn.Parameter(torch.randn(labels, fields.width))
        self.layers = nn.ModuleList(Layer(fields) for _ in range(fields.layers))
        self.classifier = xavier(nn.Linear(fields.width, labels), blocks=labels)  # row i sees query i alone

    def forward(self, f: Tensor) -> Prediction:
        cells = self.project(f.flatten(2).transpose(1, 2).float())
        keys = cells + positions(f.shape[2], f.shape[3], cells.shape[2], f.device)  # where it is, a value need not say
        q = self.queries.repeat(len(f), 1, 1)  # an expanded view of a parameter would stop PyTorch's FlopCounterMode
        for layer in self.layers:
            q = layer(q, keys, cells)
        with torch.autocast(f.device.type, enabled=False):  # as `exact`
            scores = torch.einsum("bld,ld->bl", q.float(), self.classifier.weight) + self.classifier.bias
        return Prediction(scores, features=q.amax(dim=1, keepdim=True))


def positions(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """(n, D) sine encoding of each cell's place, row by row: D/2 numbers of y, then D/2 of x, `size` D.

    Carion et al., "End-to-End Object Detection with Transformers", 2020, as Query2Label has it: a cell's number (from 1)
    is a share of 2π of the map's side, so that maps of several sizes agree; of each, sines and cosines take turns at
    D/4 wavelengths, geometrically up to 10,000 times the shortest.
    """
    pairs = torch.arange(size // 4, device=device)
    frequency = LONGEST ** (-pairs / len(pairs))

    def along(cells: int) -> Tensor:
        angles = 2 * math.pi * torch.arange(1, cells + 1, device=device)[:, None] / cells * frequency
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)

    y, x = along(height), along(width)
    return torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], dim=2).flatten(0, 1)
