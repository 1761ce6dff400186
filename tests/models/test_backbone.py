"""Backbones: VGG's conv5_3 is torchvision's, parts freeze, and what does not fit is named."""

from __future__ import annotations

import pytest
import torch
import torchvision

from ram_tune.config import Backbone as BackboneConfig
from ram_tune.errors import BadInput
from ram_tune.models.backbone import Backbone, load_weights, state_fingerprint
from ram_tune.models.network import build
from ram_tune.presets import from_fields, weights_fingerprint


def learning(backbone: Backbone) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_conv5_3_is_the_map_before_pool5_of_imagenet_normalised_pixels(real_data):
    config = BackboneConfig(weights=str(real_data / "vgg16_features_in1k_v1_fp16.pth"))
    weights = load_weights(config)
    ours = Backbone(config, weights).eval()
    theirs = torchvision.models.vgg16().features.eval()
    theirs.load_state_dict({name.removeprefix("features."): value.float() for name, value in weights.items()})
    images = torch.randint(0, 256, (2, 96, 64, 3), dtype=torch.uint8)
    pixels = torchvision.transforms.functional.normalize(
        images.permute(0, 3, 1, 2) / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs[:30](pixels), rtol=1e-4, atol=1e-4)
    assert (ours.channels, ours.stride) == (512, 16)
    assert ours(images).shape == (2, 512, 6, 4)


@pytest.mark.parametrize("name", ["small", "vgg16"])
def test_parts_that_learn(name):
    config = {"name": name, "weights": "none"}
    everything = learning(Backbone(BackboneConfig(**config)))
    last = learning(Backbone(BackboneConfig(trainable="last_block", **config)))
    assert learning(Backbone(BackboneConfig(trainable="none", **config))) == set()
    blocks = {"small": ("12.",), "vgg16": ("features.24.", "features.26.", "features.28.")}[name]  # conv5_1 … conv5_3
    assert last == {parameter for parameter in everything if any(f".{block}" in parameter for block in blocks)}


def test_any_torchvision_backbone_by_name_and_layer():
    backbone = Backbone(BackboneConfig(name="resnet18", layer="layer3", weights="none"))
    assert (backbone.channels, backbone.stride) == (256, 16)
    assert backbone(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape == (1, 256, 4, 4)


@pytest.mark.parametrize("name", ["vgg16", "efficientnet_v2_l"])
def test_pixels_are_normalised_as_the_named_weights_had_them(name):
    backbone = Backbone(BackboneConfig(name=name, layer="features.4", weights="IMAGENET1K_V1"))
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    how = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].transforms(crop_size=32, resize_size=32)
    with torch.no_grad():
        wanted = backbone.eval().layers(how(pixels.permute(0, 3, 1, 2)))
        torch.testing.assert_close(backbone(pixels), wanted, rtol=1e-4, atol=1e-4)


def test_a_trained_network_keeps_the_normalisation_of_the_weights_it_started_from():
    fields = {"model.backbone.name": "efficientnet_v2_l", "model.backbone.layer": "features.1", "stage1.epochs": 0}
    network = build(from_fields({**fields, "model.projection_size": 8}), 3, pretrained=False)
    assert network.backbone.mean.flatten().tolist() == [127.5] * 3


def test_googlenet_has_its_own_normalisation_where_it_has_weights(tmp_path):
    theirs = torchvision.models.googlenet(weights=None, init_weights=False, transform_input=True).eval()
    path = tmp_path / "googlenet.pth"
    torch.save(theirs.state_dict(), path)
    config = BackboneConfig(name="googlenet", layer="inception3b", weights=str(path))
    ours, found = Backbone(config, load_weights(config)).eval(), []
    theirs.inception3b.register_forward_hook(lambda *call: found.append(call[2]))
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        theirs(
            ((pixels / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])).permute(
                0, 3, 1, 2
            )
        )
        torch.testing.assert_close(ours(pixels), found[0], rtol=1e-4, atol=1e-4)


def test_a_map_that_does_not_grow_with_the_image_is_refused():
    with pytest.raises(BadInput, match="a feature map, one that grows"):
        Backbone(BackboneConfig(name="resnet18", layer="avgpool", weights="none"))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_keeps_its_statistics(frozen):
    backbone = Backbone(
        BackboneConfig(name="resnet18", layer="layer1", weights="none", freeze_batch_norm=frozen)
    ).train()
    before = state_fingerprint(backbone)
    backbone(torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8))
    assert (state_fingerprint(backbone) == before) == frozen
    assert any("bn1" in name for name in learning(backbone)) != frozen


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "vgg17"}, "Did you mean vgg1"),
        ({"name": "resnet18", "weights": "none"}, "model.backbone.layer"),
        ({"name": "resnet18", "weights": "none", "layer": "layer9"}, "Did you mean layer"),
        ({"weights": "IMAGENET1K_V7"}, "IMAGENET1K_V1 or DEFAULT"),
        ({"weights": "/nowhere/vgg.pth"}, "no file"),
        ({"name": "small", "weights": "DEFAULT"}, "model.backbone.weights=none"),
    ],
)
def test_what_cannot_be_built_is_named(fields, words):
    def build_it(config: BackboneConfig) -> Backbone:
        return Backbone(config, load_weights(config))

    with pytest.raises(BadInput, match=words):
        build_it(BackboneConfig(**fields))


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    with pytest.raises(BadInput, match=r"no features\.0\.weight.*state dict of vgg16"):
        build(from_fields({"model.backbone.weights": str(path), "model.projection_size": 8}), 3)
    assert weights_fingerprint(str(path))["weights"]
    assert weights_fingerprint("DEFAULT") == {}


@pytest.mark.parametrize("content", [b"", b"weights", b"PK\x05\x06" + bytes(18)])
def test_a_file_without_tensors_is_named(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"weights\.pth.*expected a state dict"):
        load_weights(BackboneConfig(weights=str(path)))


def test_imagenets_fc6_and_fc7_start_stage_1_where_the_file_has_them(tmp_path):
    vgg = torchvision.models.vgg11()
    path = tmp_path / "vgg11.pth"
    torch.save(vgg.state_dict(), path)
    fields = {"model.name": "whole_image", "model.backbone.name": "vgg11", "model.backbone.weights": str(path)}
    torch.testing.assert_close(build(from_fields(fields), 3).head.fc6.weight, vgg.classifier[0].weight)
    narrow = build(from_fields({**fields, "model.projection_size": 8}), 3)
    assert narrow.head.fc6.weight.shape == (8, 25088)
