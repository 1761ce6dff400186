"""What a run computes on, and how."""

from __future__ import annotations

import contextlib
import os

import torch

from ram_tune.config import Config
from ram_tune.errors import BadInput


def device_of(name: str) -> torch.device:
    """`auto`, or a torch device by name. Raises BadInput for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            "execution.device",
            found=f"{name!r} ({reason})",
            expected="a device of this machine",
            remedy="Such as auto, cpu, cuda or cuda:1.",
        ) from error


def autocast(config: Config, device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 where the configuration asks for it and the device has it."""
    able = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.autocast(device.type, torch.bfloat16, enabled=able and config.training.precision == "bf16")


def set_tf32(config: Config) -> None:
    """Convolutions of single precision may have TF32's 10 bits of mantissa, as is cuDNN's default; not where precision is
    fp32."""
    torch.backends.cudnn.allow_tf32 = config.training.precision != "fp32"


def set_arithmetic(config: Config) -> None:
    """How this process computes: `execution.threads`, `execution.deterministic`, and TF32. The last two are set whatever
    they are: the process may have had another run before.
    """
    execution = config.execution
    if execution.threads:
        torch.set_num_threads(execution.threads)
    # cuBLAS reads it once, when it is first used; the run that is to be deterministic may be a later one of this process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != execution.deterministic:  # it loads the compiler, for seconds
        torch.use_deterministic_algorithms(execution.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = False  # it chooses algorithms by the clock
    set_tf32(config)
