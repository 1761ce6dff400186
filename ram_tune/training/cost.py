"""What a trained model costs to use: parameters, multiply–adds and milliseconds per image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ram_tune.data.given import GIVEN
from ram_tune.data.images import load_image
from ram_tune.data.proposals import EdgeBoxes
from ram_tune.models.regions import IDENTITY
from ram_tune.training.run import Run

IMAGES, PASSES = 8, 3


@torch.inference_mode()
def cost(runs: Sequence[Run]) -> dict[str, float]:
    """Of one view at each scale, summed over `runs`: one model for each scale.

    `parameters`; `multiply_adds` per image, half of what PyTorch counts as floating-point operations (of matrix products and
    convolutions; what samples regions is not among them); `ms_per_image`, the median of three passes over a batch of eight
    crops from image to scores, on the device and with as many threads as the run had, and of looking for proposals in
    three images, on the CPU, where there are any. Other work beside it slows it down.
    """
    found = {"parameters": 0.0, "multiply_adds": 0.0, "ms_per_image": 0.0}
    for run in runs:
        side = run.config.data.image_size - run.config.data.crop_margin
        images = torch.zeros((IMAGES, side, side, 3), dtype=torch.uint8, device=run.device)
        whole = torch.tensor(IDENTITY, device=run.device).expand(IMAGES, run.config.model.regions, 4)
        given = whole if run.config.model.name in GIVEN else None
        run.network.eval()
        with run.autocast():
            counter = _Counter()
            with counter:
                run.network(images[:1], given[:1] if given is not None else None)
            seconds = sorted(_pass(run, images, given) for _ in range(PASSES))
        found["parameters"] += sum(parameter.numel() for parameter in run.network.parameters())
        found["multiply_adds"] += counter.operations / 2
        found["ms_per_image"] += 1000 * (seconds[PASSES // 2] / IMAGES + _looking(run))
    return found


class _Counter(TorchDispatchMode):
    """What `FlopCounterMode` counts of a plain forward pass, by PyTorch's own formulas. That one loads the compiler, which takes
    each process longer than PyTorch itself, only to keep it off.
    """

    operations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, formula = kwargs or {}, flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:  # what is made of others is counted by these
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        out = func(*args, **kwargs)
        self.operations += formula(*args, **kwargs, out_val=out)
        return out


def _looking(run: Run) -> float:
    """Seconds in which an image's proposals are found."""
    if not run.config.model.edges:
        return 0.0
    find, limit, seconds = EdgeBoxes(run.config.model.proposals), run.config.data.max_image_pixels, []
    for file in run.annotations("selection").files()[:PASSES]:
        image = load_image(file, limit)
        started = time.perf_counter()
        find(image)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def _pass(run: Run, images: torch.Tensor, given: torch.Tensor | None) -> float:
    """Seconds."""
    started = time.perf_counter()
    run.network(images, given)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    return time.perf_counter() - started
