"""The fields of a model. Sources: see the package."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ram_tune.config.section import Section

Side = Annotated[float, Field(gt=0, le=1)]


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


class Model(Section):
    """Feature map to label scores."""

    name: Literal["rma", "whole_image", "anchors", "random", "proposals"] = "rma"
    """`rma`: recurrent memorised-attention; `whole_image`: stage 1, the baseline without regions. RMA over regions that are
    given instead of found: `anchors`, on every crop the same, the first in its centre, the others on the anchors of
    `loss.anchor_radius`, all half its size; `random`, drawn once for each image from the run's seed; `proposals`, the
    first that EdgeBoxes finds, [RMA] Table 3. [RMA] rma."""
    regions: int = Field(default=5, ge=1, le=64)
    """Attended (or given) regions per image. K. [RMA] 5."""
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
    """Start of the layer that says the next region: random, or zero weights with a fixed bias. [RMA] xavier."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on x_k (on fc6 and fc7 of a whole-image model). Probability. *Decided*: 0."""
    random_sides: tuple[Side, Side] = (0.25, 0.75)
    """Shortest and longest side of a region of `random`; 1 is the image's. *Decided*: as a mean half, an anchor's."""
    proposals: Proposals = Proposals()
    """Boxes that EdgeBoxes finds."""
    backbone: Backbone = Backbone()
    """Image to feature map."""

    @property
    def edges(self) -> str:
        """Where the edges come from that proposals are found by; "" for a model that is given none."""
        if self.name != "proposals":
            return ""
        return "structured forest" if self.proposals.edge_model else "gradient"
