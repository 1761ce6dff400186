"""Views: where they lie, what cropping the map instead of the pixels changes, and that mirrors lead back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ram_tune.config import Config, Data
from ram_tune.data.batches import Source, evaluation_batches
from ram_tune.errors import BadInput
from ram_tune.evaluation import views
from ram_tune.evaluation.views import Plan, Views, offsets, represent
from ram_tune.models.backbone import Backbone
from ram_tune.models.network import Network, build
from ram_tune.models.regions import SX, SY, TX, TY, to_pixels
from ram_tune.models.whole_image import Prediction
from ram_tune.presets import from_fields

LABELS = 4


def plan(mirror="exact", views="ten") -> Plan:
    return Plan(image_size=128, crop_margin=32, views=views, mirror=mirror)


ONE, TEN = plan(views="one"), plan()


def network(name="rma", seed=0, **fields) -> Network:
    settings = {
        "model.name": name,
        "model.regions": 3,
        "model.projection_size": 16,
        "model.backbone.name": "small",
        "model.backbone.weights": "none",
        **fields,
    }
    torch.manual_seed(seed)
    return build(from_fields(settings), LABELS).eval()


def pictures(n=3, seed=0) -> Tensor:
    return torch.randint(0, 256, (n, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def reach(backbone: Backbone) -> tuple[int, int]:
    """Side in pixels of what one cell sees, and how many cells from a crop's edge a cell can still see beyond it."""
    field, jump = 1, 1
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride = (
                value if isinstance(value, int) else value[0] for value in (layer.kernel_size, layer.stride)
            )
            field, jump = field + (kernel - 1) * jump, jump * stride
    assert jump == backbone.stride
    return field, -(-(field - jump) // 2 // jump)


def map_and_pixel_crops(backbone: Backbone, images: Tensor, left: int, top: int, side: int) -> tuple[Tensor, Tensor]:
    """Maps (B, C, side, side) of the crop at these cells: cut out of the image's map, and convolved from its pixels."""
    x, y, s = (value * backbone.stride for value in (left, top, side))
    with torch.no_grad():
        whole = backbone(images)
        return whole[:, :, top : top + side, left : left + side], backbone(images[:, y : y + s, x : x + s])


# The paper's sizes, cells of 16 pixels; then an even and an odd number of cells.
@pytest.mark.parametrize(
    ("size", "margin", "far", "middle"), [(512, 64, 4, 2), (640, 64, 4, 2), (128, 32, 2, 1), (128, 48, 3, 1)]
)
def test_offsets_are_four_corners_and_the_centre(size, margin, far, middle):
    five = [(0, 0), (far, 0), (0, far), (far, far), (middle, middle)]
    assert offsets(size, margin, 16, "ten") == five + five
    assert offsets(size, margin, 16, "one") == [(middle, middle)]


@pytest.mark.parametrize(("size", "margin", "field"), [(512, 60, "crop_margin"), (500, 64, "image_size")])
def test_sizes_that_are_not_whole_cells_are_named(size, margin, field):
    with pytest.raises(BadInput, match=rf"data\.{field}.*multiple of 16"):
        offsets(size, margin, 16, "ten")


def test_a_plan_is_what_the_configuration_says():
    assert Plan.of(Config()) == Plan(512, 64, "one", "exact")
    fields = {"data.image_size": 640, "evaluation.views": "ten", "evaluation.mirror": "feature"}
    assert Plan.of(from_fields(fields)) == Plan(640, 64, "ten", "feature")


# What the image's own edge does to a cell it does to the crop's, too: zeros lie beyond both.
@pytest.mark.parametrize(
    ("left", "top", "inner"),
    [(0, 0, (0, 4, 0, 4)), (2, 2, (2, 6, 2, 6)), (1, 1, (2, 4, 2, 4)), (2, 0, (2, 6, 0, 4))],
)
def test_map_crops_are_pixel_crops_out_of_reach_of_the_edge(left, top, inner):
    backbone = network().backbone
    assert reach(backbone) == (78, 2)
    ours, theirs = map_and_pixel_crops(backbone, pictures(), left, top, side=6)
    x1, x2, y1, y2 = inner
    torch.testing.assert_close(ours[:, :, y1:y2, x1:x2], theirs[:, :, y1:y2, x1:x2], rtol=1e-5, atol=1e-5)
    differ = ((ours - theirs).abs() > 1e-3).any(dim=1).any(dim=0)
    same = torch.zeros(6, 6, dtype=torch.bool)
    same[y1:y2, x1:x2] = True
    assert torch.equal(differ, ~same)  # every other cell sees the crop's edge


@pytest.mark.real
def test_vgg_map_crops_are_pixel_crops_out_of_reach_of_the_edge(real_data):
    weights = str(real_data / "vgg16_features_in1k_v1_fp16.pth")
    backbone = network("whole_image", **{"model.backbone.name": "vgg16", "model.backbone.weights": weights}).backbone
    assert reach(backbone) == (196, 6)
    image = Image.open(real_data / "VOCdevkit/VOC2007/JPEGImages/000005.jpg").convert("RGB").resize((448, 448))
    ours, theirs = map_and_pixel_crops(backbone, torch.from_numpy(np.array(image))[None], 2, 2, side=24)
    torch.testing.assert_close(ours[:, :, 6:-6, 6:-6], theirs[:, :, 6:-6, 6:-6], rtol=1e-4, atol=1e-4)
    mean = ours.abs().mean()
    rings = []  # difference at 0 … 6 cells from the edge, relative to the map's mean
    for ring in range(7):
        outside = torch.ones(24, 24, dtype=torch.bool)
        outside[ring + 1 : 23 - ring, ring + 1 : 23 - ring] = False
        outside[:ring] = outside[24 - ring :] = False
        outside[:, :ring] = outside[:, 24 - ring :] = False
        rings.append(float((ours - theirs).abs()[:, :, outside].mean() / mean))
    assert rings == sorted(rings, reverse=True)
    assert rings[0] > 0.3 and rings[5] > 0 and rings[6] < 1e-5


@pytest.mark.parametrize("name", ["rma", "whole_image"])
def test_the_single_crop_is_the_one_of_evaluation(name):
    model, images = network(name), pictures()
    source = Source(images.numpy(), np.zeros((3, LABELS), bool), Data(image_size=128, crop_margin=32))
    (batch,) = evaluation_batches(source, 3)
    with torch.no_grad():
        expected = model(batch.inputs)
    found = represent(model, images, ONE)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.representations, expected.features.amax(1))
    assert torch.equal(found.crops, batch.crops[:1])
    if name == "rma":
        torch.testing.assert_close(found.regions, expected.regions[:, None])
    else:
        assert found.regions is None and found.representations.shape == (3, 16)


@pytest.mark.parametrize(("bound", "seen"), [(1, [3] * 10), (10, [9, 9, 9, 3]), (64, [30])])
def test_the_head_sees_a_bounded_number_of_crops_at_once(bound, seen, monkeypatch):
    model, crops = network(), []
    expected = represent(model, pictures(), TEN)
    model.head.register_forward_hook(lambda module, inputs, output: crops.append(len(inputs[0])))
    monkeypatch.setattr(views, "AT_ONCE", bound)
    torch.testing.assert_close(represent(model, pictures(), TEN), expected)
    assert crops == seen


@pytest.mark.parametrize("mirror", ["exact", "feature"])
@pytest.mark.parametrize("name", ["rma", "whole_image"])
def test_ten_views_are_the_mean_over_crops_of_the_map(name, mirror):
    model, images = network(name), pictures()
    with torch.no_grad():
        upright, mirrored = model.backbone(images), model.backbone(images.flip(2))
        if mirror == "feature":
            mirrored = upright.flip(3)
        crops = [
            f[:, :, y : y + 6, (x if f is upright else 2 - x) :][..., :6]
            for f in (upright, mirrored)
            for x, y in [(0, 0), (2, 0), (0, 2), (2, 2), (1, 1)]
        ]
        expected = [model.head(crop) for crop in crops]
    found = represent(model, images, plan(mirror))
    torch.testing.assert_close(found.scores, torch.stack([p.scores for p in expected]).mean(0))
    torch.testing.assert_close(found.representations, torch.stack([p.features.amax(1) for p in expected]).mean(0))
    assert found.crops[:, 3].tolist() == [0] * 5 + [1] * 5
    assert found.crops[:5, :3].tolist() == [[0, 0, 96], [32, 0, 96], [0, 32, 96], [32, 32, 96], [16, 16, 96]]
    if name == "rma":
        torch.testing.assert_close(found.regions, torch.stack([p.regions for p in expected], dim=1))


@pytest.mark.parametrize("taken", [ONE, TEN])
def test_every_view_sees_the_boxes_of_its_image(taken):
    """A given region covers the same pixels of the image, whichever crop it is seen on."""
    model = network("random")
    boxes = torch.tensor([[0.3, 0.4, 0.5, 0.7], [0.0, 0.0, 1.0, 1.0], [0.6, 0.3, 0.65, 0.9]]).expand(3, 3, 4)
    found = represent(model, pictures(), taken, boxes)
    for v, crop in enumerate(found.crops):
        seen = to_pixels(found.regions[:, v], crop.expand(3, 4), 128, torch.ones(3, 2))
        torch.testing.assert_close(seen, boxes)


def test_fixed_regions_are_the_same_on_every_view():
    found = represent(network("anchors"), pictures(), TEN)
    assert (found.regions == found.regions[:1, :1]).all() and found.regions.shape == (3, 10, 3, 4)


@pytest.mark.parametrize(("mirror", "passes"), [("exact", 2), ("feature", 1)])
def test_convolutions_run_once_an_image_and_once_its_mirror(mirror, passes):
    model, seen = network(), []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    represent(model, pictures(), plan(mirror))
    assert seen == [(3, 128, 128, 3)] * passes


@pytest.mark.parametrize("mirror", ["exact", "feature"])
@pytest.mark.parametrize("views", ["one", "ten"])
@pytest.mark.parametrize("name", ["rma", "whole_image"])
def test_cached_maps_are_seen_as_the_pixels_they_come_from(name, views, mirror):
    model, images = network(name), pictures()
    with torch.no_grad():
        maps = torch.stack([model.backbone(images), model.backbone(images.flip(2))], dim=1).bfloat16()
        model.backbone.forward = lambda x: maps[
            :, int(not torch.equal(x, images))
        ].float()  # what bfloat16 left of them
    cached = maps if mirror == "exact" else maps[:, :1]
    found = represent(model, cached, plan(mirror, views))
    if views == "ten":
        torch.testing.assert_close(found, represent(model, images, plan(mirror)))
    else:  # cropped from the map, unlike pixels
        with torch.no_grad():
            assert torch.equal(found.scores, model.head(maps[:, 0, :, 1:7, 1:7].float()).scores)
        assert found.crops.tolist() == [[16, 16, 96, 0]]


@pytest.mark.parametrize("plan", [ONE, TEN])
@pytest.mark.parametrize("name", ["rma", "whole_image"])
def test_batch_size_does_not_matter(name, plan):
    model, images = network(name), pictures(5)
    whole = represent(model, images, plan)
    parts = [represent(model, part, plan) for part in images.split(2)]
    for field in ("representations", "scores"):
        together = torch.cat([getattr(part, field) for part in parts])
        torch.testing.assert_close(together, getattr(whole, field), rtol=1e-5, atol=1e-5)


def test_ten_views_of_the_mirrored_image_are_the_same_ten():
    model, images = network(), pictures()
    one, other = represent(model, images, TEN), represent(model, images.flip(2), TEN)
    swapped = [6, 5, 8, 7, 9, 1, 0, 3, 2, 4]  # top left becomes top right mirrored, …
    torch.testing.assert_close(other.regions, one.regions[:, swapped])
    torch.testing.assert_close(other.representations, one.representations)
    torch.testing.assert_close(other.scores, one.scores)


def test_mirrors_add_nothing_to_a_symmetric_image():
    model, half = network(), pictures()[:, :, :64]
    found = represent(model, torch.cat([half, half.flip(2)], dim=2), TEN)
    torch.testing.assert_close(found.regions[:, 5:], found.regions[:, [1, 0, 3, 2, 4]])


class BrightestCell(nn.Module):
    """A head with one region: the brightest cell of the map."""

    def forward(self, f: Tensor) -> Prediction:
        side = f.shape[-1]
        y, x = np.divmod(f[:, 0].flatten(1).argmax(1).numpy(), side)
        region = np.zeros((len(f), 1, 4), np.float32)
        region[:, 0, [SX, SY]] = 1 / side
        region[:, 0, TX], region[:, 0, TY] = (2 * x + 1) / side - 1, (2 * y + 1) / side - 1
        return Prediction(f.amax((2, 3)), regions=torch.from_numpy(region), features=f.amax((2, 3))[:, None])


class CellMeans(nn.Module):
    """A backbone whose cells see their own 16×16 pixels only."""

    stride = 16

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.permute(0, 3, 1, 2).float(), 16)


def boxes(found: Views, size: int, original: tuple[int, int]) -> Tensor:
    assert found.regions is not None
    n = len(found.regions)
    sizes = torch.tensor([original]).expand(n, 2)
    every = [to_pixels(found.regions[:, v], found.crops[v].expand(n, 4), size, sizes) for v in range(len(found.crops))]
    return torch.stack(every, dim=1)


@pytest.mark.parametrize("mirror", ["exact", "feature"])
@pytest.mark.parametrize("margin", [32, 48])  # 48: three cells, so the centre crop is not in the centre
def test_every_view_points_at_the_same_pixels_of_the_original(mirror, margin):
    images = torch.zeros(1, 128, 128, 3, dtype=torch.uint8)
    images[:, 48:64, 64:80] = 200  # the cell in column 4, row 3; in all ten crops
    model = Network(CellMeans(), BrightestCell())  # type: ignore[arg-type]
    found = represent(model, images, Plan(128, margin, "ten", mirror))
    # The original is 256 wide and 64 high: twice the width, half the height of the 128×128 image.
    expected = torch.tensor([128.0, 24, 160, 32]).expand(1, 10, 1, 4)
    torch.testing.assert_close(boxes(found, 128, (256, 64)), expected, rtol=0, atol=1e-4)
