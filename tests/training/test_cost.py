"""What a model costs, against counting by hand."""

from __future__ import annotations

import pytest

from ram_tune.presets import configure, parse_set
from ram_tune.training.cost import cost
from ram_tune.training.run import prepare


def run(pictures, tiny, tmp_path, *more: str):
    config = configure(str(pictures), overrides=parse_set([*tiny, "stage1.epochs=0", *more]))
    return prepare(config, tmp_path)


def test_parameters_and_multiply_adds_by_hand(pictures, tiny, tmp_path):
    whole = run(pictures, tiny, tmp_path, "model.name=whole_image", "data.image_size=80")
    found = cost([whole])
    # fc6: 256·9 → 16, fc7: 16 → 16, 16 → 3 labels; biases multiply nothing.
    head = 256 * 9 * 16 + 16 * 16 + 16 * 3
    widths, side, convolutions, weights = (3, 16, 32, 64, 128, 256), 64, 0, 0
    layers = [
        layer
        for layer in whole.network.backbone.modules()
        if hasattr(layer, "kernel_size") and hasattr(layer, "weight")
    ]
    sides = dict(zip(widths[1:], (side, side // 2, side // 4, side // 8, side // 16), strict=True))
    for layer in layers:
        cells = sides[layer.out_channels] ** 2
        convolutions += cells * layer.out_channels * layer.in_channels * 9
    assert found["multiply_adds"] == pytest.approx(convolutions + head)
    weights = sum(parameter.numel() for parameter in whole.network.backbone.parameters())
    assert found["parameters"] == weights + head + 16 + 16 + 3
    assert found["ms_per_image"] > 0


def test_each_further_region_costs_the_same_again(pictures, tiny, tmp_path):
    costs = [cost([run(pictures, tiny, tmp_path, f"model.regions={k}")])["multiply_adds"] for k in (1, 2, 3)]
    assert costs[2] - costs[1] == costs[1] - costs[0] > 0


def test_several_scales_are_summed(pictures, tiny, tmp_path):
    one = run(pictures, tiny, tmp_path)
    single, double = cost([one]), cost([one, one])
    assert double["parameters"] == 2 * single["parameters"]
    assert double["multiply_adds"] == 2 * single["multiply_adds"]
