"""`python -m benchmarks.gpu`: what the paper's model costs on a GPU. Needs PyTorch, torchvision and this package's first floors:
neither Ray nor MLflow.

    python -m benchmarks.gpu                                    the paper's sizes, on the GPU
    python -m benchmarks.gpu --device cpu --sizes 128 --batches 2 --side 64 --images 1   that it runs

The paper's: ten views of an image in 150 ms at N = 512 and 200 ms at 640, on a TITAN X ([RMA] section 4).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import ratio, side_by_side
from benchmarks.steps import batch_of, convolutions, counted, made, passes, step, synchronised
from ram_tune.evaluation.views import Plan, represent

PUBLISHED = {512: 150, 640: 200}
MATRIX = 8192
Line = tuple[str, float, str]
"""What, value, unit."""


def rate(device: torch.device, side: int, rounds: int) -> float:
    """Floating-point operations per second of a product of bfloat16 matrices: what this device reaches at its best."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def work() -> None:
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return 2 * side**3 / min(side_by_side([work], rounds)[0])


@torch.inference_mode()
def views(device: str, size: int, images: int, rounds: int) -> Iterator[Line]:
    run = made(device, data__image_size=size)
    run.network.eval()
    batch = batch_of(run, images, size)

    def work(mirror: str) -> None:
        with run.autocast():
            represent(run.network, batch.inputs, Plan(size, 64, "ten", mirror))  # type: ignore[arg-type]

    for mirror in ("exact", "feature"):
        (taken,) = side_by_side([synchronised(run, partial(work, mirror))], rounds)
        paper = f", the paper's TITAN X {PUBLISHED[size]}" if size in PUBLISHED else ""
        yield f"ten views, N = {size}, mirror {mirror}", 1000 * median(taken) / images, f"ms an image{paper}"


def training(device: str, side: int, images: int, best: float, rounds: int) -> Iterator[Line]:
    run = made(device)
    run.network.train()
    batch = batch_of(run, images, side)
    whole = counted(run, batch)[1]
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(run.device)
    conv, both, stepped = map(
        median, side_by_side([convolutions(run, batch), passes(run, batch), step(run, batch)], rounds)
    )
    what = f"training, {side}², batch {images}"
    yield what, images / stepped, "images/s"
    # The backward pass computes two products for each of the forward pass's.
    yield f"{what}: of what the device reaches", 100 * 3 * whole / stepped / best, "%"
    yield f"{what}: forward + backward against the convolutions' alone", both / conv, "×"
    yield f"{what}: with the optimiser's step", stepped / conv, "×"
    if run.device.type == "cuda":
        yield f"{what}: peak memory", torch.cuda.max_memory_allocated(run.device) / 2**30, "GiB"
    compiled = made(device, execution__compile=True)
    compiled.network.train()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "execution.compile")  # it would go on uncompiled, which is no measurement
            against = ratio(*side_by_side([step(compiled, batch), step(run, batch)], rounds))
    except UserWarning as reason:
        print(reason, file=sys.stderr)
        return
    yield f"{what}: a step with execution.compile, against one without (below 1: faster)", against, "×"


def main(arguments: list[str] | None = None) -> list[Line]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="(default: a GPU where there is one)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 640], help="N of the ten views")
    parser.add_argument("--images", type=int, default=16, help="of a batch of views")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64], help="of training")
    parser.add_argument("--side", type=int, default=448, help="of training's crops, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)
    device = made(options.device, model__backbone__name="small", model__projection_size=8).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    best = rate(device, MATRIX if device.type == "cuda" else MATRIX // 16, options.rounds)
    lines: list[Line] = [("product of bfloat16 matrices", best / 1e12, "TFLOP/s")]
    for size in options.sizes:
        lines += views(options.device, size, options.images, options.rounds)
    for images in options.batches:
        lines += training(options.device, options.side, images, best, options.rounds)
    if options.json:
        print(json.dumps({"device": name, "torch": torch.__version__, "lines": lines}, indent=1))
        return lines
    table = Table(title=f"{name}, PyTorch {torch.__version__}")
    for column in ("what", "value", "unit"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for what, value, unit in lines:
        table.add_row(what, f"{value:.4g}", unit)
    Console(width=120).print(table)
    return lines


if __name__ == "__main__":
    main()
