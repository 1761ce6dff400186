"""Image → feature map: VGG-16's conv5_3, any torchvision backbone, and a small VGG-shaped one for a CPU.

torchvision is imported where it is used: it takes longer to load than PyTorch itself, and the small backbone does without.

Legend: B images, S image side in pixels, C H W feature map.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ram_tune.config import Backbone as BackboneConfig
from ram_tune.errors import BadInput, nearest
from ram_tune.presets import is_path

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL_CHANNELS = (16, 32, 64, 128, 256)  # what a CPU core trains at some hundred images/s
VGG_LAST_RELU = {"vgg11": 19, "vgg13": 23, "vgg16": 29, "vgg19": 35}
VGG_LAST_RELU |= {"vgg11_bn": 27, "vgg13_bn": 33, "vgg16_bn": 42, "vgg19_bn": 51}
PROBE = 128  # side of the image by which channels and stride are found
KNOWN_LAYERS = {name: f"features.{node}" for name, node in VGG_LAST_RELU.items()}
"""Stride-16 map of each: after the last convolution's ReLU, before the last pooling."""


class Backbone(nn.Module):
    """uint8 images (B, S, S, 3) → feature map f (B, C, H, W) (METHOD 1).

    Attributes: `channels` C; `stride`, the pixels of one cell.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, weights: Mapping[str, Tensor] | None = None):
        """Build `config.name`, cut off after its layer; load `weights` (from `load_weights`) if given.

        Raises BadInput for an unknown name or layer, and for weights that do not fit.
        """
        super().__init__()
        _require_known(config.name)
        self.layers = _small() if config.name == "small" else _torchvision(config, weights)
        mean, std = _normalisation(config)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.frozen_norms = [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not config.freeze_batch_norm:
            self.frozen_norms = []
        for norm in self.frozen_norms:
            norm.requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.channels, self.stride = self._probe(config.name, config.trainable)

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).float()  # NHWC bytes seen as NCHW are channels-last already
        return self.layers((x - self.mean) / self.std)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for norm in self.frozen_norms:
            norm.eval()
        return self

    @torch.no_grad()
    def _probe(self, name: str, trainable: str) -> tuple[int, int]:
        """Channels and stride, by one small image; on the way, switch off learning in all layers but `trainable` ones."""
        sizes: dict[nn.Module, int] = {}
        layers = [m for m in self.layers.modules() if any(True for _ in m.parameters(recurse=False))]
        hooks = [m.register_forward_hook(lambda m, _, out: sizes.update({m: out.shape[-1]})) for m in layers]
        was_training = self.training
        self.eval()
        shape = self._shape(name, PROBE)
        for hook in hooks:
            hook.remove()
        _, channels, _, width = shape
        stride = PROBE // width
        if PROBE % width or self._shape(name, PROBE + stride) != (1, channels, width + 1, width + 1):
            raise _no_map(name, PROBE, shape, "one that grows by a cell with every so many pixels")
        self.train(was_training)
        for layer in layers:  # a block is the layers that work at one resolution
            if trainable == "none" or (trainable == "last_block" and sizes.get(layer) != width):
                layer.requires_grad_(False)
        return channels, stride

    def _shape(self, name: str, side: int) -> tuple[int, ...]:
        """(1, C, H, H) of the map of an image of that side. Raises BadInput where the output is no map."""
        try:
            shape = tuple(self(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape)
        except (AssertionError, AttributeError, RuntimeError) as error:  # for instance, one image size only
            raise _no_map(name, side, (str(error),), "(1, channels, height, width)") from error
        if len(shape) != 4 or shape[2] != shape[3]:
            raise _no_map(name, side, shape, "(1, channels, height, width)")
        return shape


def _no_map(name: str, side: int, shape: tuple, expected: str) -> BadInput:
    return BadInput(
        f"model.backbone {name}",
        found=f"an output of shape {shape} for an image of {side}×{side}",
        expected=f"a feature map, {expected}",
        remedy="Set model.backbone.layer to a convolutional layer, or choose another backbone.",
    )


def _small() -> nn.Sequential:
    """Five VGG-shaped blocks of one 3×3 convolution each, stride 16, started as He et al. 2015 do for ReLUs."""
    layers: list[nn.Module] = []
    before = 3
    for channels in SMALL_CHANNELS:
        convolution = nn.Conv2d(before, channels, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        layers += [nn.MaxPool2d(2)] if layers else []
        layers += [convolution, nn.ReLU(inplace=True)]
        before = channels
    return nn.Sequential(*layers)


def _torchvision(config: BackboneConfig, weights: Mapping[str, Tensor] | None) -> nn.Module:
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    layer = config.layer or KNOWN_LAYERS.get(config.name, "")
    network = get_model(config.name, weights=None, **_options(config, weights))
    nodes = get_graph_node_names(network)[1]
    if layer not in nodes and not any(node.startswith(f"{layer}.") for node in nodes if layer):
        raise BadInput(
            "model.backbone.layer",
            found=repr(layer),
            expected=f"a layer of {config.name} that gives a feature map",
            remedy=f"{nearest(layer, nodes)} The last ones are {', '.join(nodes[-8:])}.".strip(),
        )
    extractor = create_feature_extractor(network, {layer: "map"})
    kept = {id(parameter) for parameter in extractor.parameters()}
    # Cycles keep the network alive for a while: VGG's fc6 and fc7 are half a gigabyte.
    for parameter in network.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.new_empty(0)
    if weights is not None:
        _load(extractor, weights, config)
    return _Map(extractor)


class _Map(nn.Module):
    """A feature extractor's only output, without its dictionary."""

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor = extractor

    def forward(self, x: Tensor) -> Tensor:
        return self.extractor(x)["map"]


def _options(config: BackboneConfig, weights: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """What torchvision's constructor is to be told, since it is not given the weights."""
    # GoogLeNet's weights are those of pixels normalised in another way, to which it then turns ImageNet's itself.
    if config.name == "googlenet":
        return {"transform_input": config.weights != "none", "init_weights": weights is None, "aux_logits": False}
    # Where weights follow, VGG's own initialisation would be work for nothing: a second for fc6 and fc7 alone.
    return {"init_weights": False} if weights is not None and config.name.startswith("vgg") else {}


def _normalisation(config: BackboneConfig) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of a channel, pixels from 0 to 1: what the named weights were trained with."""
    if config.name == "small":
        return (0.5,) * 3, (0.25,) * 3
    if config.weights == "none" or is_path(config.weights):
        return IMAGENET_MEAN, IMAGENET_STD
    how = _entry(config).transforms()
    return how.mean, how.std


def _load(extractor: nn.Module, weights: Mapping[str, Tensor], config: BackboneConfig) -> None:
    own = extractor.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    wrong = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    if missing or wrong:
        problem = f"no {missing[0]}" if missing else f"{wrong[0]} of shape {tuple(weights[wrong[0]].shape)}"
        raise BadInput(
            f"model.backbone.weights {config.weights}",
            found=f"{problem} ({len(missing) + len(wrong)} of {len(own)} tensors do not fit)",
            expected=f"the state dict of {config.name}",
            remedy="Name the backbone these weights belong to.",
        )
    extractor.load_state_dict({name: weights[name].float() for name in own if name in weights}, strict=False)


def _require_known(name: str) -> None:
    if name == "small":
        return
    from torchvision import models

    known = ["small", *models.list_models(module=models)]
    if name not in known:
        raise BadInput(
            "model.backbone.name",
            found=repr(name),
            expected="small, or a torchvision classification model such as vgg16 or resnet50",
            remedy=nearest(name, known),
        )


def load_weights(config: BackboneConfig) -> dict[str, Tensor] | None:
    """The state dict that `config.weights` names: a torchvision weights name, a file, or `none` (gives None).

    Files are read with `weights_only=True`: nothing in them is executed. Raises BadInput for a file that is not there or
    is no state dict, for an unknown backbone, and for a name of weights that is unknown or cannot be downloaded.
    """
    _require_known(config.name)
    if config.weights == "none" or config.name == "small":
        if config.weights != "none":
            raise BadInput(
                "model.backbone.weights",
                found=repr(config.weights),
                expected="none: the small backbone is trained from nothing",
                remedy="Set model.backbone.weights=none.",
            )
        return None
    if is_path(config.weights):
        return read_state_dict(Path(config.weights))
    try:
        return _entry(config).get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise BadInput(
            "model.backbone.weights",
            found=f"{config.weights}, which could not be downloaded ({error})",
            expected="weights within reach",
            remedy="Fetch the file elsewhere and set model.backbone.weights to its path.",
        ) from error


def _entry(config: BackboneConfig) -> Any:
    """What torchvision knows of the weights of that name. Raises BadInput."""
    from torchvision.models import get_model_weights

    try:
        return get_model_weights(config.name)[config.weights]
    except (KeyError, ValueError) as error:
        raise BadInput(
            "model.backbone.weights",
            found=repr(config.weights),
            expected=f"a file, none, or weights that torchvision has for {config.name}",
            remedy="Such as IMAGENET1K_V1 or DEFAULT.",
        ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """A file of named tensors. Raises BadInput."""
    if not path.is_file():
        raise BadInput("model.backbone.weights", found=f"no file {path}", expected="a file with a state dict")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch.load raises a dozen kinds for files that are none of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(path, found=f"no tensors ({reason})", expected="a state dict saved by torch.save") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInput(path, found=type(state).__name__, expected="a state dict: tensors by name")
    return state


def state_fingerprint(module: nn.Module) -> str:
    """Hash of a module's tensors, names and values, constants included: what cached maps depend on."""
    total = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes() if tensor.ndim else b"")
    return total.hexdigest()[:16]
