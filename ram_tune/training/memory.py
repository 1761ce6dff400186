"""A run that is too large for the memory it has, said in terms of its settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ram_tune.config import Config
from ram_tune.errors import NotEnoughMemoryError

WORDS = "can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED"
"""PyTorch's, on a CPU and on a GPU, in errors that have no class of their own; the last is that of cuBLAS and cuDNN."""


@contextmanager
def telling_what_does_not_fit(config: Config, world: int = 1) -> Iterator[None]:
    """Raise NotEnoughMemoryError where the device, or the machine, has no memory left for a run of `config` on `world`
    processes. A process that the system kills for want of memory is past telling: see distribution.failures."""
    import torch  # only here: who drives a run does without it

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        of_its_own = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not of_its_own and not any(words in str(error) for words in WORDS):
            raise
        reason = (str(error).splitlines() or ["no more to be had"])[0]
        raise NotEnoughMemoryError(too_large(config, reason, world)) from error


def too_large(config: Config, reason: str, world: int = 1) -> str:
    """What did not fit, and what would."""
    batch, pieces = config.training.batch_size, config.execution.accumulate
    at_once = -(-batch // (world * pieces))
    shares = "" if at_once == batch else f", {at_once} images at once"
    return (
        f"out of memory with training.batch_size={batch}{shares}, "
        f"execution.evaluation_batch_size={config.execution.evaluation_batch_size}, "
        f"data.image_size={config.data.image_size} ({reason}). "
        f"Set execution.accumulate={2 * pieces}, which computes the same in smaller pieces, or lower training.batch_size; "
        "where it was not training, lower execution.evaluation_batch_size."
    )
