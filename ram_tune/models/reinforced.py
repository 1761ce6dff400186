"""RARL: recurrent attentional reinforcement learning (METHOD 5).

A step looks at k regions of fixed sizes round one place; a policy learned by REINFORCE says the next place.

Legend: B images (where places are drawn, a row for each rollout of each, those of an image one after another), T steps,
k regions of a step, L labels, C H W feature map, P side of the sampled grid, D projection, H hidden, Z feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ram_tune.config import Model, Reinforced
from ram_tune.models.recurrent import Memory
from ram_tune.models.regions import IDENTITY, sample_each
from ram_tune.models.shared_linear import SharedLinear
from ram_tune.models.whole_image import Policy, Prediction, exact, xavier


class RARL(nn.Module):
    """Feature map f (B, C, H, W) → scores of T·k regions, those of step t at t·k … t·k + k − 1.

    While training, places are drawn from torch's random state, `rollouts` times for each image: all that is predicted has
    as many rows for each. In evaluation mode there is one, and places are the policy's means.
    """

    whole: Tensor
    windows: Tensor

    def __init__(self, model: Model, channels: int, labels: int, enlarged: float):
        """`enlarged`: N over the crop's side, since regions are as large as a share of N and lie on the crop."""
        super().__init__()
        own = model.reinforced
        self.steps, self.sigma, self.rollouts = own.steps, own.sigma, own.rollouts
        self.remember_whole = own.remember_whole
        self.regions, self.sample_size = model.region_count, model.sample_size
        self.project = xavier(SharedLinear(channels * model.sample_size**2, model.projection_size))  # W_fx
        self.dropout = nn.Dropout(model.dropout)
        self.memory = Memory(model.projection_size, model.hidden_size, model.cell)
        self.feature = xavier(nn.Linear(model.hidden_size, model.feature_size))  # W_hz
        self.classifier = xavier(nn.Linear(model.feature_size, labels))  # W_zs
        self.localization = xavier(nn.Linear(model.feature_size, 2))  # W_l
        if model.localization_init != "xavier":
            nn.init.zeros_(self.localization.weight)
        self.baseline = xavier(nn.Linear(model.feature_size, 1))
        self.register_buffer("whole", torch.tensor([IDENTITY]), persistent=False)
        self.register_buffer("windows", torch.tensor(windows(own, enlarged)), persistent=False)

    def forward(self, f: Tensor) -> Prediction:
        f = f.contiguous().float()
        h = c = f.new_zeros(len(f), 1, self.memory.of_h.in_features)
        project = self.project.steps()
        h, c = self._look(f, project, self.whole.expand(len(f), 1, 4), h, c)  # step 0 only sets the first place
        if self.training:
            h, c = (each.repeat_interleave(self.rollouts, dim=0) for each in (h, c))
        scores, regions, features, chosen = [], [], [], []
        for step in range(self.steps):
            h, c = h.mean(1, keepdim=True), c.mean(1, keepdim=True)
            z = F.relu(self.feature(h[:, 0]))
            place, log_probability, entropy = self.choose(exact(self.localization, z).tanh())
            # The baseline is to foretell the reward from what is there, not to shape it.
            chosen.append((log_probability, entropy, exact(self.baseline, z.detach())[:, 0]))
            if step == 0 and not self.remember_whole:
                h, c = torch.zeros_like(h), torch.zeros_like(c)
            M = self._round(place)
            h, c = self._look(f, project, M, h, c)
            z = F.relu(self.feature(h))  # (B, k, Z)
            scores.append(exact(self.classifier, z))
            regions.append(M)
            features.append(z)
        region_scores = torch.cat(scores, dim=1)
        return Prediction(
            region_scores.amax(dim=1),
            region_scores,
            torch.cat(regions, dim=1),
            torch.cat(features, dim=1),
            Policy(*(torch.stack(each, dim=1) for each in zip(*chosen, strict=True))),
        )

    def choose(self, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mean (B, 2) → place (B, 2) in [−1, 1], its log-probability before it was clipped and the entropy (B,), nats.

        The gradient reaches the mean by the log-probability alone. What is not drawn is certain: both are then 0.
        """
        if not self.training:
            nothing = mean.new_zeros(len(mean))
            return mean, nothing, nothing
        drawn = (mean + self.sigma * torch.randn_like(mean)).detach()
        spread = math.log(2 * math.pi * self.sigma**2)  # of both axes
        log_probability = -(drawn - mean).square().sum(1) / (2 * self.sigma**2) - spread
        return drawn.clamp(-1, 1), log_probability, torch.full_like(log_probability, 1 + spread)

    def _look(
        self, f: Tensor, project: Callable[[Tensor], Tensor], M: Tensor, h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Regions M (B, k, 4), each remembered with the same h and c (B, 1, H) → h and c of each (B, k, H)."""
        x = sample_each(f, M.reshape(len(f), -1, 4), self.sample_size).flatten(2)  # rollouts side by side
        x = self.dropout(F.relu(project(x)))
        return self.memory(x.view(len(h), -1, x.shape[-1]), h, c)

    def _round(self, place: Tensor) -> Tensor:
        """place (B, 2) → the regions there (B, k, 4)."""
        half = self.windows.expand(len(place), -1, 2)
        centre = place[:, None].expand_as(half)
        return torch.stack([half, centre], dim=3).flatten(2)  # sx, tx, sy, ty


def windows(config: Reinforced, enlarged: float) -> list[tuple[float, float]]:
    """Half-sizes sx, sy of a step's k regions on a crop that is `enlarged` times smaller than the image, sizes first.

    Of one size all have the same area; the aspect ratio is width over height.
    """
    return [
        (enlarged * side * math.sqrt(ratio), enlarged * side / math.sqrt(ratio))
        for side in config.sides
        for ratio in config.aspect_ratios
    ]
