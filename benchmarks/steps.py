"""What a training step and an evaluation cost, against the convolutions alone.

Legend: B images, N image side in pixels, K regions, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, ratio, side_by_side
from ram_tune.data.batches import Batch
from ram_tune.evaluation.views import Plan, represent
from ram_tune.presets import configure
from ram_tune.training.device import device_of, set_arithmetic
from ram_tune.training.loop import optimise
from ram_tune.training.run import Run, assemble

LABELS = 20
VGG = {"model.backbone.weights": "none", "data.image_size": 512, "data.crop_margin": 64}
"""Untrained weights cost what trained ones do."""


def made(device: str = "auto", **fields: Any) -> Run:
    """A run of the paper's model without a dataset; `fields` with __ for the dots."""
    config = configure("voc2007", "", {**VGG, **{name.replace("__", "."): value for name, value in fields.items()}})
    set_arithmetic(config)
    dataset: Any = SimpleNamespace(categories=tuple(map(str, range(LABELS))))
    return assemble(config, dataset, Path(), device_of(device), "benchmark")


def batch_of(run: Run, images: int, side: int) -> Batch:
    """Random pixels."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8, generator=draw)
    targets = (torch.rand(images, LABELS, generator=draw) < 0.1).float()
    targets[:, 0] = 1
    whole = torch.tensor([0, 0, side, 0]).expand(images, 4)
    return Batch(pixels, targets, torch.arange(images), whole).to(run.device)


def synchronised(run: Run, work: Callable[[], object]) -> Callable[[], None]:
    """`work`, waited for."""

    def whole() -> None:
        work()
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)

    return whole


def convolutions(run: Run, batch: Batch) -> Callable[[], None]:
    """Forward and backward of the backbone, with a gradient of all its map."""
    with torch.no_grad(), run.autocast():
        given = torch.randn_like(run.network.backbone(batch.inputs))

    def work() -> None:
        run.optimizer.zero_grad(set_to_none=True)
        with run.autocast():
            f = run.network.backbone(batch.inputs)
        f.backward(given)

    return synchronised(run, work)


def passes(run: Run, batch: Batch) -> Callable[[], None]:
    """Forward and backward of the whole model, with its loss."""

    def work() -> None:
        run.optimizer.zero_grad(set_to_none=True)
        with run.autocast():
            prediction = run.network(batch.inputs)
        run.criterion(prediction, batch.targets)[0].backward()

    return synchronised(run, work)


def step(run: Run, batch: Batch) -> Callable[[], None]:
    """What the training loop does with a batch."""
    return synchronised(run, lambda: optimise(run, batch))


def counted(run: Run, batch: Batch) -> tuple[float, float]:
    """Floating-point operations of the backbone's and of the whole forward pass for a batch."""
    found = []
    for part in (run.network.backbone, run.network):
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), run.autocast(), counter:
            part(batch.inputs)
        found.append(float(counter.get_total_flops()))
    return found[0], found[1]


def training(images: int, side: int, rounds: int, device: str = "auto") -> Iterator[Row]:
    run = made(device)
    run.network.train()
    batch = batch_of(run, images, side)
    alone, whole = counted(run, batch)
    times = side_by_side([convolutions(run, batch), passes(run, batch), step(run, batch)], rounds)
    conv, both, stepped = map(median, times)
    parameters = sum(p.numel() for p in run.network.parameters())
    what = f"RMA on VGG-16, {side}², batch {images}, projection {run.config.model.projection_size}"
    yield Row(
        f"forward + backward of {what}",
        "the convolutions alone",
        ratio(times[1], times[0]),
        1.06,
        False,
        f"operations: {whole / alone:.3f} ×",
        f"{both:.2f} s, {conv:.2f} s",
    )
    moved = parameters * 4 * 7 / 2**30  # Adam reads weight, gradient and two moments, and writes three of them
    yield Row(
        "the same with the optimiser's step",
        "the convolutions' forward + backward",
        ratio(times[2], times[0]),
        1.20,
        False,
        f"{whole / alone:.3f} × and the {moved:.1f} GiB that Adam reads and writes",
        f"{stepped:.2f} s, {conv:.2f} s",
    )


@torch.inference_mode()
def views(images: int, size: int, rounds: int, device: str = "auto") -> Iterator[Row]:
    """Ten views out of two convolution passes, or one, against a pass for each."""
    side = size - 64
    run = made(device, data__image_size=size)
    run.network.eval()
    batch = batch_of(run, images, size)

    def ten(mirror: Any) -> Callable[[], None]:
        plan = Plan(size, 64, "ten", mirror)

        def work() -> None:
            with run.autocast():
                represent(run.network, batch.inputs, plan)

        return synchronised(run, work)

    def one_by_one() -> None:
        for left, top, mirrored in [(x, y, m) for m in (0, 1) for x, y in CORNERS]:
            crop = batch.inputs[:, top : top + side, left : left + side]
            with run.autocast():
                run.network(crop.flip(2) if mirrored else crop)

    times = side_by_side([ten("exact"), ten("feature"), synchronised(run, one_by_one)], rounds)
    for name, own, maps in (("exact", times[0], 2), ("feature", times[1], 1)):
        allowed = 10 * side**2 / (maps * size**2)
        yield Row(
            f"ten views, N = {size}, `mirror` {name}: times faster",
            "ten forward passes",
            ratio(times[2], own),
            round(0.9 * allowed, 2),
            True,
            f"convolutions: {allowed:.2f} ×",
            f"{1000 * median(own) / images:.0f} ms, {1000 * median(times[2]) / images:.0f} ms an image",
        )


CORNERS = (0, 0), (64, 0), (0, 64), (64, 64), (32, 32)
