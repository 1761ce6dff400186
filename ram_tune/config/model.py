"""The fields of a model. Sources: see the package."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ram_tune.config.section import Section

Side = Annotated[float, Field(gt=0, le=1)]


class Backbone(Section):
    """Image to feature map."""

    name: str = "vgg16"
    """`small` (five VGG-shaped blocks for a CPU), or any torchvision classification model. [RMA] vgg16."""
    layer: str = ""
    """Graph node whose output is the feature map. Empty: the known one (VGG: ReLU of the last convolution, conv5_3). [RMA]."""
    weights: str = "IMAGENET1K_V1"
    """A torchvision weights name, a file with a state dict, or `none`. A file counts by its content. Pixels are normalised as
    a name's training had them, else by ImageNet's mean and deviation. [RMA] ImageNet."""
    trainable: Literal["all", "last_block", "none"] = "all"
    """Which of its layers learn. [RMA] all."""
    freeze_batch_norm: bool = True
    """Keep BatchNorm's statistics and affine parameters as loaded, where there are any. *Decided*: on."""


class CSRA(Section):
    """Class-specific residual attention, `model.name` csra."""

    heads: Literal[1, 2, 4, 6, 8] = 1
    """Classifiers per label, each with the paper's own temperature, their scores added up. H. [CSRA] 1 on VOC 2007."""
    residual_weight: float = Field(default=0.1, ge=0)
    """Weight of what the label attends to, beside the average of the map; 0: average pooling alone. lambda. [CSRA] 0.1 on
    VOC 2007."""


class QueryDecoder(Section):
    """Label queries over the feature map, `model.name` query_decoder."""

    layers: int = Field(default=2, ge=1, le=64)
    """Decoder layers. [Q2L] 2; [MLD] 1."""
    heads: int = Field(default=4, ge=1)
    """Attention heads. [Q2L] 4; [MLD] 8."""
    width: int = Field(default=512, ge=4)
    """Width of queries, keys and values. *Decided*: 512, VGG-16's channels, as [Q2L]'s 2048 are its backbone's; [MLD] 768."""
    feed_forward: int = Field(default=2048, ge=1)
    """Hidden width of a layer's feed-forward part. *Decided*: 2048, four times `width` as in [Q2L]; [MLD] 2048."""
    self_attention: bool = True
    """Let the queries attend to one another before they attend to the map. [Q2L] on; [MLD] off."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on attention weights, on the feed-forward part's hidden units and before each addition. Probability. [Q2L],
    [MLD] 0.1."""

    @model_validator(mode="after")
    def _width_divides(self) -> QueryDecoder:
        parts = math.lcm(self.heads, 4)
        if self.width % parts:
            below = self.width - self.width % parts
            raise ValueError(
                f"model.query_decoder.width: found {self.width}; expected a multiple of {parts}, so that each of "
                f"model.query_decoder.heads={self.heads} has its share, and the sines and cosines of x and y theirs. "
                f"Try {f'{below} or ' if below else ''}{below + parts}."
            )
        return self


class Proposals(Section):
    """Boxes that EdgeBoxes [EB] finds, for a model that is given them (`name: proposals`)."""

    nms: float = Field(default=0.7, gt=0, le=1)
    """Of two boxes with a larger IoU only the likelier object is kept. [RMA] 0.7."""
    max_boxes: int = Field(default=200, ge=1, le=10_000)
    """Boxes asked for of an image, before `nms`; the K first of what is left are seen. *Decided*: 200."""
    min_area: float = Field(default=1000.0, ge=0)
    """Smallest box. Square pixels at `side`. [EB] 1000."""
    alpha: float = Field(default=0.65, gt=0, lt=1)
    """IoU of neighbouring boxes of the search: how finely it looks. alpha. [EB] 0.65."""
    beta: float = Field(default=0.75, gt=0, le=1)
    """IoU above which the search itself drops the less likely of two boxes. beta. [EB] 0.75."""
    side: int = Field(default=320, ge=32, le=4096)
    """Longest side at which an image is searched; larger ones are made smaller. Pixels. *Decided*: 320, see `blur`."""
    edge_model: str = ""
    """File of a structured forest as OpenCV reads it (model.yml.gz); counts by its content. [EB] such a forest.
    Default: none, edges are the image's gradient."""
    blur: float = Field(default=4.0, gt=0)
    """Standard deviation of the Gaussian before the gradient. Pixels at `side`. *Decided*: 4, by recall on VOC 2007 val."""


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

    name: Literal["rma", "rarl", "anchors", "random", "proposals", "whole_image", "csra", "query_decoder"] = "rma"
    """`rma`: recurrent memorised-attention; `rarl`: recurrent attentional reinforcement learning. RMA over regions that are
    given instead of found: `anchors`, on every crop the same, the first in its centre, the others on the anchors of
    `loss.anchor_radius`, all half its size; `random`, drawn once for each image from the run's seed; `proposals`, the first
    that EdgeBoxes finds, [RMA] Table 3. Without regions: `whole_image`, stage 1 and the baseline; `csra`, class-specific
    residual attention; `query_decoder`, label queries. [RMA] rma."""
    regions: int = Field(default=5, ge=1, le=64)
    """Attended (or given) regions per image (those of `rarl`: see `reinforced`). K. [RMA] 5."""
    sample_size: int = Field(default=7, ge=1, le=64)
    """Side of the grid a region is sampled to. Cells. *Decided*: 7, VGG's own fc6 input."""
    projection_size: int = Field(default=4096, ge=1)
    """Width of W_fx, and of fc6 and fc7 in stage 1. *Decided*: 4096, fc6's width; 512 is the CPU choice."""
    hidden_size: int = Field(default=512, ge=1)
    """Width of the LSTM's h and c. *Decided*: 512."""
    feature_size: int = Field(default=512, ge=1)
    """Width of z, the region feature that is scored and from which the next region is found. *Decided*: 512."""
    cell: Literal["paper", "standard", "none"] = "paper"
    """`paper`: h = o*c; `standard`: h = o*tanh(c); `none`: no memory, h_k is a ReLU layer of x_k alone. [RMA] paper."""
    localization_init: Literal["xavier", "centred_half", "identity"] = "xavier"
    """Start of the layer that says the next region: random, or zero weights with a fixed bias (of `rarl`, whose regions
    have no size to learn: all in the centre). [RMA] xavier."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on x_k (on fc6 and fc7 of a whole-image model; `csra` and `query_decoder` have none or their own).
    Probability. *Decided*: 0."""
    reinforced: Reinforced = Reinforced()
    """Of `rarl` alone."""
    random_sides: tuple[Side, Side] = (0.25, 0.75)
    """Shortest and longest side of a region of `random`; 1 is the image's. *Decided*: as a mean half, an anchor's."""
    proposals: Proposals = Proposals()
    """Boxes that EdgeBoxes finds."""
    csra: CSRA = CSRA()
    """Class-specific residual attention."""
    query_decoder: QueryDecoder = QueryDecoder()
    """Label queries."""
    backbone: Backbone = Backbone()
    """Image to feature map."""

    @model_validator(mode="after")
    def _rarl_remembers(self) -> Model:
        if self.name == "rarl" and self.cell == "none":
            raise ValueError(
                "model.cell: found none with model.name=rarl; expected paper or standard: only RMA can do without a memory. "
                "Set model.cell or model.name."
            )
        return self

    @property
    def edges(self) -> str:
        """Where the edges come from that proposals are found by; "" for a model that is given none."""
        if self.name != "proposals":
            return ""
        return "structured forest" if self.proposals.edge_model else "gradient"

    @property
    def region_count(self) -> int:
        """Regions in which an image is seen: K, or T·k; 0 for a model without any."""
        if self.name in ("whole_image", "csra", "query_decoder"):
            return 0
        own = self.reinforced
        return own.steps * len(own.sides) * len(own.aspect_ratios) if self.name == "rarl" else self.regions
