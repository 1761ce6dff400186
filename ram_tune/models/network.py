"""The complete model: a backbone and a head, and how stage 2 starts from stage 1 (METHOD 4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ram_tune.config import Config
from ram_tune.config import Model as ModelConfig
from ram_tune.errors import BadInput
from ram_tune.models.backbone import Backbone, load_weights
from ram_tune.models.query_decoder import QueryDecoder
from ram_tune.models.recurrent import RMA
from ram_tune.models.regions import anchored
from ram_tune.models.reinforced import RARL
from ram_tune.models.residual_attention import ResidualAttention
from ram_tune.models.whole_image import Prediction, WholeImage

HEADS: dict[str, type[nn.Module]] = {
    "rma": RMA,
    "rarl": RARL,
    "anchors": RMA,
    "random": RMA,
    "proposals": RMA,
    "whole_image": WholeImage,
    "csra": ResidualAttention,
    "query_decoder": QueryDecoder,
}


class Network(nn.Module):
    """uint8 images (B, S, S, 3), or feature maps (B, C, H, W) of any floating type → Prediction.

    `regions` (B, K, 4) are those of a model that is given them; `fixed` (K, 4), where they are the same on every crop.
    """

    fixed: Tensor | None

    def __init__(self, backbone: Backbone, head: nn.Module, fixed: Tensor | None = None):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_buffer("fixed", fixed)

    def forward(self, inputs: Tensor, regions: Tensor | None = None) -> Prediction:
        f = self.backbone(inputs) if inputs.dtype == torch.uint8 else inputs
        if self.fixed is not None:
            regions = self.fixed.expand(len(f), -1, -1)
        return self.head(f) if regions is None else self.head(f, regions)


def build(
    config: Config, labels: int, stage1: Mapping[str, Tensor] | None = None, *, pretrained: bool = True
) -> Network:
    """The model of `config` for `labels` labels, its new layers drawn from torch's current random state.

    `stage1` is the state of the whole-image network it starts from: conv layers and W_fx are taken over. Without it the
    backbone's own weights are loaded, and for a whole-image model fc6 and fc7 too, where the weights file has them and
    the widths agree; not where trained ones will replace them all (`pretrained` off). Raises BadInput for a backbone or
    weights that cannot be used, and sizes that do not go with it.
    """
    weights = load_weights(config.model.backbone) if pretrained and not stage1 else None
    backbone = _backbone(config, weights)
    model = config.model
    fixed = anchored(model.regions, config.loss.anchor_radius) if model.name == "anchors" else None
    network = Network(backbone, _head(config, backbone.channels, labels), fixed)
    if stage1:
        _take(network.backbone, stage1, "backbone.")
        if isinstance(network.head, (RMA, RARL)):
            _take(network.head.project, stage1, "head.fc6.")
    elif isinstance(network.head, WholeImage) and weights:
        _imagenet_fc(network.head, weights, model)
    return network


def check(config: Config) -> None:
    """Raise the BadInput that `build` would raise for the backbone, its weights and the sizes, but before all work."""
    _backbone(config, load_weights(config.model.backbone))


def _backbone(config: Config, weights: Mapping[str, Tensor] | None) -> Backbone:
    backbone = Backbone(config.model.backbone, weights)
    _check_sizes(config, backbone.stride)
    return backbone


def _head(config: Config, channels: int, labels: int) -> nn.Module:
    kind = HEADS[config.model.name]
    if issubclass(kind, RARL):
        return kind(config.model, channels, labels, config.data.image_size / config.data.crop_side)
    return kind(config.model, channels, labels)


def _imagenet_fc(head: WholeImage, weights: Mapping[str, Tensor], model: ModelConfig) -> None:
    """VGG's own fc6 and fc7, where the file has them and `projection_size` is theirs."""
    for layer, name in ((head.fc6, "classifier.0"), (head.fc7, "classifier.3")):
        weight = weights.get(f"{name}.weight")
        if model.backbone.name.startswith("vgg") and weight is not None and weight.shape == layer.weight.shape:
            layer.load_state_dict({"weight": weight.float(), "bias": weights[f"{name}.bias"].float()})


def _take(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise BadInput(
            "stage 1",
            found=str(error).splitlines()[-1].strip(),
            expected=f"the tensors of this model's {prefix.rstrip('.')}",
            remedy="Train stage 1 with the same backbone, sample_size and projection_size.",
        ) from error


def _check_sizes(config: Config, stride: int) -> None:
    N, margin = config.data.image_size, config.data.crop_margin
    for name, value in (("image_size", N), ("crop_margin", margin)):
        needed = name == "image_size" or config.data.crop == "map" or config.evaluation.views == "ten"
        if needed and value % stride:
            raise BadInput(
                f"data.{name}",
                found=value,
                expected=f"a multiple of {stride} pixels, the stride of {config.model.backbone.name}",
                remedy=f"Try {value - value % stride or stride} or {value - value % stride + stride}.",
            )
    if N - margin < stride:
        raise BadInput("data.crop_margin", found=margin, expected=f"a crop of at least one cell ({stride} pixels)")
