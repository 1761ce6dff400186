"""The processes that train one run together, and what they tell one another. Alone, all of it is nothing.

Legend: R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

PATIENCE = timedelta(hours=12)
"""How long ranks wait for one that resizes images or evaluates, which the others leave to it."""


@dataclass(frozen=True)
class Ranks:
    """This process among its likes. With more than one, torch's process group must be there; all must call in step."""

    rank: int = 0
    world: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """Σ over ranks of a tensor of the same shape on each."""
        if self.world == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, part: np.ndarray) -> np.ndarray:
        """Rows that are dealt out like cards (`evaluation_batches`) → all of them, in order, on every rank."""
        if self.world == 1:
            return part
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, part)
        whole = np.empty((sum(map(len, parts)), *part.shape[1:]), part.dtype)
        for rank, rows in enumerate(parts):
            whole[rank :: self.world] = rows
        return whole

    def from_first(self, value: Any) -> Any:
        """What rank 0 has."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def same(self, module: nn.Module) -> None:
        """Give every rank rank 0's weights."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)


ALONE = Ranks()


def join(rank: int, world: int, address: str, device: torch.device) -> Ranks:
    """Meet the others at `address` (`tcp://host:port`, rank 0's): over NCCL on GPUs, gloo on CPUs."""
    if world > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=world, timeout=PATIENCE)
    return Ranks(rank, world)


def leave() -> None:
    """Before the process is used for another run."""
    if dist.is_initialized():
        dist.destroy_process_group()
