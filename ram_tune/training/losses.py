"""Classification losses, RMA's three constraints on regions and RARL's REINFORCE ([RMA] section 3.3; METHOD 4, 5).

Legend: B images, K regions, L labels, T steps. Every function is pure and returns one value per image (B,) unless it says else.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ram_tune.config import Loss
from ram_tune.models.regions import SX, TX, anchors
from ram_tune.models.whole_image import Policy, Prediction

LEAST = 1e-8
"""Of what is raised to a power or its logarithm taken: at 0, powers below 1 and the logarithm have no finite gradient."""


def euclidean(scores: Tensor, targets: Tensor) -> Tensor:
    """Σ_c (softmax(s)_c − y_c/‖y‖₁)²: scores, targets (B, L) → (B,). An image without labels has no target: 0."""
    count = targets.sum(1, keepdim=True)
    distance = (scores.softmax(1) - targets / count.clamp(min=1)).square().sum(1)
    return distance * (count[:, 0] > 0)


def binary_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Σ_c of the binary cross-entropy of sigmoid(s_c): (B, L) → (B,)."""
    return F.binary_cross_entropy_with_logits(scores, targets, reduction="none").sum(1)


def asymmetric(scores: Tensor, targets: Tensor, positive: float, negative: float, margin: float) -> Tensor:
    """Σ_c of the asymmetric loss: (B, L) → (B,).

    Ridnik et al., ICCV 2021, equations 4 to 7: −(1−p)^γ+ log p for present labels, −p_m^γ− log(1−p_m) for absent ones,
    p_m = max(p − margin, 0).
    """
    p = scores.sigmoid()
    shifted = (p - margin).clamp(min=LEAST)
    present = (1 - p).clamp(min=LEAST) ** positive * F.logsigmoid(scores)
    absent = shifted**negative * (1 - shifted).clamp(min=LEAST).log()  # finite with margin 0, too
    return -(targets * present + (1 - targets) * absent).sum(1)


def anchor(regions: Tensor, points: Tensor) -> Tensor:
    """ℓ_A = Σ_{k≥2} ½[(tx − cx)² + (ty − cy)²]: regions (B, K, 4), points (K−1, 2) → (B,)."""
    centres = regions[:, 1:, TX::2]  # a list of indices would make the host wait for a GPU in every step
    return (centres - points).square().sum((1, 2)) / 2


def scale(regions: Tensor, threshold: float) -> Tensor:
    """ℓ_S = Σ_k max(|sx| − α, 0)² + max(|sy| − α, 0)²: regions (B, K, 4) → (B,)."""
    return (regions[..., SX::2].abs() - threshold).clamp(min=0).square().sum((1, 2))


def positive(regions: Tensor, threshold: float) -> Tensor:
    """ℓ_P = Σ_k max(0, β − sx) + max(0, β − sy): regions (B, K, 4) → (B,)."""
    return (threshold - regions[..., SX::2]).clamp(min=0).sum((1, 2))


def reward(scores: Tensor, targets: Tensor) -> Tensor:
    """R = |g ∩ p| / n: scores, targets (B, L) → (B,), of p the n top-scored labels and g the n true ones.

    Equal scores rank by label index. An image without labels has no reward: 0.
    """
    ranked = targets.gather(1, scores.argsort(dim=1, descending=True, stable=True))
    n = targets.sum(1, keepdim=True)
    top = torch.arange(targets.shape[1], device=targets.device) < n
    return (ranked * top).sum(1) / n[:, 0].clamp(min=1)


def policy_gradient(policy: Policy, rewards: Tensor, rollouts: int = 1) -> Tensor:
    """−Σ_t (R − b_t) log π(l_t), whose gradient REINFORCE descends; R (B,) → (B,). None of it reaches the baseline.

    Of several `rollouts` (successive rows are of one image), R − b_t is less its mean over the image's other ones: they
    were drawn without regard to this one, so that the gradient expected is the same.
    """
    advantage = rewards[:, None] - policy.baseline.detach()
    if rollouts > 1:
        several = advantage.unflatten(0, (-1, rollouts))
        advantage = ((several - several.mean(1, keepdim=True)) * rollouts / (rollouts - 1)).flatten(0, 1)
    return -(advantage * policy.log_probability).sum(1)


def baseline_error(policy: Policy, rewards: Tensor) -> Tensor:
    """Σ_t (R − b_t)²: R (B,) → (B,)."""
    return (rewards[:, None] - policy.baseline).square().sum(1)


class Criterion(nn.Module):
    """L = L_cls + γ (ℓ_S + λ1 ℓ_A + λ2 ℓ_P), each a mean over images; a part that is switched off is not built. Of a
    model with a policy L = L_cls + ρ (policy + baseline), of images with a label.

    Calling it gives the loss and its unweighted terms in the order of `terms`, with a policy then what is only watched:
    the reward, and of one step, on average, log-probability and entropy.
    """

    def __init__(self, config: Loss, regions: int, reinforced: bool = False):
        """`regions`: K on which there are constraints, or 0; with K = 1 there is no anchor. `reinforced`: with a policy."""
        super().__init__()
        self.classify: Callable[[Tensor, Tensor], Tensor] = {
            "euclidean": euclidean,
            "bce": binary_cross_entropy,
            "asymmetric": lambda s, y: asymmetric(
                s, y, config.asymmetric_positive_focus, config.asymmetric_negative_focus, config.asymmetric_margin
            ),
        }[config.classification]
        self.constraints: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {}
        weight = config.localization_weight
        if regions and config.scale:
            self.constraints["scale"] = weight, lambda r: scale(r, config.scale_threshold)
        if regions > 1 and config.anchor:
            self.register_buffer("points", anchors(regions, config.anchor_radius).float(), persistent=False)
            self.constraints["anchor"] = weight * config.anchor_weight, lambda r: anchor(r, self.points)  # type: ignore[arg-type]
        if regions and config.positive:
            limit = config.positive_threshold
            self.constraints["positive"] = weight * config.positive_weight, lambda r: positive(r, limit)
        self.reinforcement_weight = config.reinforcement_weight
        self.reinforced = ("policy", "baseline", "reward", "log_probability", "entropy") if reinforced else ()
        self.terms = ("classification", *self.constraints, *self.reinforced)

    def forward(self, prediction: Prediction, targets: Tensor) -> tuple[Tensor, Tensor]:
        """→ the loss (scalar, summed over images and not yet divided by their number) and its terms (T,), likewise."""
        rollouts = len(prediction.scores) // len(targets)  # each counts as much as the others of its image
        targets = targets.repeat_interleave(rollouts, dim=0)
        terms = [self.classify(prediction.scores.float(), targets).sum() / rollouts]
        total = terms[0]
        for weight, constraint in self.constraints.values():
            assert prediction.regions is not None
            terms.append(constraint(prediction.regions).sum())
            total = total + weight * terms[-1]
        if self.reinforced:
            policy, baseline, *watched = _reinforcement(prediction, targets, rollouts)
            total = total + self.reinforcement_weight * (policy + baseline)
            terms += [policy, baseline, *watched]
        return total, torch.stack([term.detach() for term in terms])


def _reinforcement(prediction: Prediction, targets: Tensor, rollouts: int) -> list[Tensor]:
    """Policy and baseline, reward, log-probability and entropy, each a mean over rollouts summed over images."""
    policy = prediction.policy
    assert policy is not None
    rewards, known = reward(prediction.scores.detach(), targets), targets.any(1)
    learned = [policy_gradient(policy, rewards, rollouts), baseline_error(policy, rewards)]
    watched = [rewards, policy.log_probability.mean(1), policy.entropy.mean(1)]
    return [(term * known).sum() / rollouts for term in learned] + [term.sum() / rollouts for term in watched]
