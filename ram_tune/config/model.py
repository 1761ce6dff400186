"""The fields of a model. Sources: see the package."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ram_tune.config.section import Section


class Backbone(Section):
    """Image to feature map."""

    name: str = "vgg16"
    """`small` (five VGG-shaped blocks for a CPU), or any torchvision classification model. [RMA] vgg16."""
    layer: str = ""
    """Graph node whose output is the feature map. Empty: the known one (VGG: ReLU of the last convolution, conv5_3). [RMA]."""
    weights: str = "IMAGENET1K_V1"
    """A torchvision weights name, a file with a state dict, or `none`. A file counts by its content. [RMA] ImageNet."""
    trainable: Literal["all", "last_block", "none"] = "all"
    """Which of its layers learn. [RMA] all."""
    freeze_batch_norm: bool = True
    """Keep BatchNorm's statistics and affine parameters as loaded, where there are any. *Decided*: on."""


Positive = Annotated[float, Field(gt=0)]


class Reinforced(Section):
    """How RARL looks: at each step at regions of fixed sizes round one place, the next of which a policy draws.

    *Unverified*: recollection and reading notes of the paper, not its text.
    """

    steps: int = Field(default=5, ge=1, le=64)
    """Places looked at, one after another. T. *Decided*: 5."""
    sides: tuple[Positive, ...] = Field(default=(0.15625, 0.3125, 0.625), min_length=1)
    """Sides of a step's square regions; others have the same areas. Shares of N. *Unverified* default: 80, 160 and 320
    pixels at N = 512, 100, 200 and 400 at 640."""
    aspect_ratios: tuple[Positive, ...] = Field(default=(2.0, 1.0, 0.5), min_length=1)
    """Widths over heights; each size in each of them: k regions a step. *Unverified* default: 2:1, 1:1, 1:2."""
    sigma: float = Field(default=0.11, gt=0)
    """Standard deviation of a drawn place, on each axis; 1 is half the crop. *Unverified* default: 0.11."""
    remember_whole: bool = True
    """Regions are scored with the memory of the whole image that step 0 saw; off: it sets the first place and is forgotten,
    so that what is recognised hangs on where it is looked for. *Decided*: on, as RMA."""
    rollouts: int = Field(default=1, ge=1, le=64)
    """Times that an image's places are drawn at each look while training. Of several, each is also compared with the others
    (Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!", 2019). *Decided*: 1, the learned baseline alone."""


class Model(Section):
    """Feature map to label scores."""

    name: Literal["rma", "rarl", "whole_image"] = "rma"
    """`rma`: recurrent memorised-attention; `rarl`: recurrent attentional reinforcement learning; `whole_image`: stage 1,
    the baseline without regions. [RMA] rma."""
    regions: int = Field(default=5, ge=1, le=64)
    """Attended regions per image (those of `rarl`: see `reinforced`). K. [RMA] 5."""
    sample_size: int = Field(default=7, ge=1, le=64)
    """Side of the grid a region is sampled to. Cells. *Decided*: 7, VGG's own fc6 input."""
    projection_size: int = Field(default=4096, ge=1)
    """Width of W_fx, and of fc6 and fc7 in stage 1. *Decided*: 4096, fc6's width; 512 is the CPU choice."""
    hidden_size: int = Field(default=512, ge=1)
    """Width of the LSTM's h and c. *Decided*: 512."""
    feature_size: int = Field(default=512, ge=1)
    """Width of z, the region feature that is scored and from which the next region is found. *Decided*: 512."""
    cell: Literal["paper", "standard"] = "paper"
    """`paper`: h = o*c; `standard`: h = o*tanh(c). [RMA] paper."""
    localization_init: Literal["xavier", "centred_half", "identity"] = "xavier"
    """Start of the layer that says the next region: random, or zero weights with a fixed bias (of `rarl`, whose regions
    have no size to learn: all in the centre). [RMA] xavier."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on x_k (on fc6 and fc7 of a whole-image model). Probability. *Decided*: 0."""
    reinforced: Reinforced = Reinforced()
    """Of `rarl` alone."""
    backbone: Backbone = Backbone()
    """Image to feature map."""

    @property
    def region_count(self) -> int:
        """Regions in which an image is seen: K, or T·k; 0 for a model without any."""
        own = self.reinforced
        counts = {"rma": self.regions, "rarl": own.steps * len(own.sides) * len(own.aspect_ratios), "whole_image": 0}
        return counts[self.name]
