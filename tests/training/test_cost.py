"""What a model costs, against counting by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ram_tune.presets import configure, parse_set
from ram_tune.training.cost import cost
from ram_tune.training.run import Run, prepare


def run(pictures, tiny, tmp_path, *more: str) -> Run:
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


CELLS, CHANNELS, LABELS = 9, 256, 3


def head_of(found: dict[str, float], whole: Run) -> tuple[float, float]:
    """Parameters and multiply–adds of the head alone: `whole` has the same backbone, and a head counted by hand above."""
    of_whole = cost([whole])
    weights = CHANNELS * 9 * 16 + 16 * 16 + 16 * 3
    names = ("parameters", weights + 16 + 16 + 3), ("multiply_adds", weights)
    return tuple(found[name] - of_whole[name] + known for name, known in names)


@pytest.mark.parametrize("heads", [1, 6])
def test_residual_attention_by_hand(pictures, tiny, tmp_path, heads):
    whole = run(pictures, tiny, tmp_path, "model.name=whole_image")
    found = cost([run(pictures, tiny, tmp_path, "model.name=csra", f"model.csra.heads={heads}")])
    # A score of every head, label and cell; then the mean map of one image's attention.
    assert head_of(found, whole) == (heads * LABELS * CHANNELS, CELLS * CHANNELS * (heads * LABELS + 1))


@pytest.mark.parametrize("among", [True, False])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_query_decoder_by_hand(pictures, tiny, tmp_path, among, precision):
    sizes = {"width": 32, "feed_forward": 48, "layers": 2, "heads": 4, "self_attention": among}
    fields = (f"model.query_decoder.{name}={str(value).lower()}" for name, value in sizes.items())
    whole = run(pictures, tiny, tmp_path, "model.name=whole_image", f"training.precision={precision}")
    asked = "model.name=query_decoder", f"training.precision={precision}", *fields
    weights, found = head_of(cost([run(pictures, tiny, tmp_path, *asked)]), whole)
    D, L, n, F = 32, LABELS, CELLS, 48
    feed = 2 * L * D * F
    across = 2 * L * D * D + 2 * n * D * D + 2 * L * n * D  # queries and mix, keys and values, attention twice
    self = among * (4 * L * D * D + 2 * L * L * D)
    assert found == n * CHANNELS * D + 2 * (self + across + feed) + L * D
    layer = (1 + among) * 4 * (D * D + D) + 2 * D * F + F + D + (2 + among) * 2 * D
    assert weights == CHANNELS * D + D + L * D + 2 * layer + L * D + L


def test_each_further_region_costs_the_same_again(pictures, tiny, tmp_path):
    costs = [cost([run(pictures, tiny, tmp_path, f"model.regions={k}")])["multiply_adds"] for k in (1, 2, 3)]
    assert costs[2] - costs[1] == costs[1] - costs[0] > 0


@pytest.mark.parametrize("model", ["rma", "rarl", "csra", "query_decoder"])
def test_operations_are_those_that_pytorchs_own_counter_finds(pictures, tiny, tmp_path, model):
    sizes = "model.query_decoder.width=32", "model.query_decoder.feed_forward=48"
    one = run(pictures, tiny, tmp_path, f"model.name={model}", *sizes)
    found = cost([one])["multiply_adds"]
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), one.autocast(), counter:
        one.network(torch.zeros(1, 48, 48, 3, dtype=torch.uint8))
    assert 2 * found == counter.get_total_flops() > 0


def test_several_scales_are_summed(pictures, tiny, tmp_path):
    one = run(pictures, tiny, tmp_path)
    single, double = cost([one]), cost([one, one])
    assert double["parameters"] == 2 * single["parameters"]
    assert double["multiply_adds"] == 2 * single["multiply_adds"]
