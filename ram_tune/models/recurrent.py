"""RMA: the recurrent memorised-attention module ([RMA] section 3; METHOD 3).

Legend: B images, K regions, L labels, C H W feature map, P side of the sampled grid, D projection, H hidden, Z feature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ram_tune.config import Model
from ram_tune.models.regions import CENTRED_HALF, IDENTITY, sample
from ram_tune.models.shared_linear import SharedLinear
from ram_tune.models.whole_image import Prediction, exact, xavier


class Memory(nn.Module):
    """The paper's LSTM cell: h = o ⊙ c without the usual tanh (`cell: standard` puts it back)."""

    def __init__(self, inputs: int, hidden: int, cell: str):
        super().__init__()
        self.of_x = xavier(nn.Linear(inputs, 4 * hidden), blocks=4)
        self.of_h = xavier(nn.Linear(hidden, 4 * hidden, bias=False), blocks=4)
        self.squash = cell == "standard"

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """x (…, D), h (…, H), c (…, H) → next h, c; what is of size 1 is shared."""
        i, g, o, m = (self.of_x(x) + self.of_h(h)).float().chunk(4, dim=-1)
        c = g.sigmoid() * c + i.sigmoid() * m.tanh()
        return o.sigmoid() * (c.tanh() if self.squash else c), c


class Memoryless(nn.Module):
    """`cell: none`: h is a ReLU layer of this step's x alone; there is nothing to carry on."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.of_x = xavier(nn.Linear(inputs, hidden))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, D) → h (B, H); the h and c given are of no account."""
        return F.relu(self.of_x(x)), c


def localization(model: Model) -> nn.Linear:
    """The layer of M, z → the next region, as `localization_init` says."""
    layer = xavier(nn.Linear(model.feature_size, 4))
    start = {"xavier": None, "centred_half": CENTRED_HALF, "identity": IDENTITY}[model.localization_init]
    if start:
        nn.init.zeros_(layer.weight)
        layer.bias = nn.Parameter(torch.tensor(start))
    return layer


class RMA(nn.Module):
    """Feature map f (B, C, H, W) → scores of K regions, found one after another, or given ([RMA] Table 3)."""

    whole: Tensor

    def __init__(self, model: Model, channels: int, labels: int):
        super().__init__()
        self.regions, self.sample_size, self.hidden_size = model.regions, model.sample_size, model.hidden_size
        self.project = xavier(SharedLinear(channels * model.sample_size**2, model.projection_size))  # W_fx
        self.dropout = nn.Dropout(model.dropout)
        widths = model.projection_size, model.hidden_size
        self.memory = Memoryless(*widths) if model.cell == "none" else Memory(*widths, model.cell)
        self.feature = xavier(nn.Linear(model.hidden_size, model.feature_size))  # W_hz
        self.classifier = xavier(nn.Linear(model.feature_size, labels))  # W_zs
        self.localization = localization(model) if model.name == "rma" else None  # W_zm
        self.register_buffer("whole", torch.tensor(IDENTITY), persistent=False)

    def forward(self, f: Tensor, given: Tensor | None = None) -> Prediction:
        """f (B, C, H, W); `given` (B, K, 4), the regions of a model that does not find them."""
        h = c = f.new_zeros(len(f), self.hidden_size, dtype=torch.float32)
        M = self.whole.expand(len(f), 4)  # M_0: the whole image
        f = f.contiguous().float()
        project = self.project.steps()
        scores, regions, features = [], [], []
        for k in range(self.regions + 1):
            x = self.dropout(F.relu(project(sample(f, M, self.sample_size).flatten(1))))
            h, c = self.memory(x, h, c)
            z = F.relu(self.feature(h))
            if k > 0:  # step 0 predicts nothing, it only looks for the first region
                scores.append(exact(self.classifier, z))
                features.append(z)
            if k < self.regions:
                M = given[:, k] if self.localization is None else exact(self.localization, z)  # type: ignore[index]
                regions.append(M)
        region_scores = torch.stack(scores, dim=1)
        return Prediction(
            region_scores.amax(dim=1), region_scores, torch.stack(regions, dim=1), torch.stack(features, dim=1)
        )
