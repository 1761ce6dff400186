"""What a worker uses, and where it runs."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import time
from pathlib import Path

import torch

GB = 1e9


class Usage:
    """CPU, memory and GPU of this process, between one reading and the next."""

    def __init__(self, device: torch.device):
        self.device = device
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """`system/cpu_cores` busy since the last reading, `system/memory_gb` resident now; on a GPU its memory (highest
        since the last reading) and, where NVIDIA's own package is there to ask, the share of time it is busy now."""
        wall, cpu = time.perf_counter(), time.process_time()
        found = {
            "system/cpu_cores": (cpu - self.cpu) / max(wall - self.wall, 1e-9),
            "system/memory_gb": _resident_bytes() / GB,
        }
        self.wall, self.cpu = wall, cpu
        if self.device.type == "cuda":
            found["system/gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / GB
            torch.cuda.reset_peak_memory_stats(self.device)
            with contextlib.suppress(ImportError, RuntimeError):  # it needs a package that not every machine has
                found["system/gpu_percent"] = float(torch.cuda.utilization(self.device))
        return found


def _resident_bytes() -> int:
    if (pages := Path("/proc/self/statm")).exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def whereabouts(device: torch.device) -> dict[str, str]:
    """Host, device, threads and versions of this worker, for the record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "host": platform.node(),
        "process": str(os.getpid()),
        "device": f"{device.type} ({name})",
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),  # else whoever is told of it would load PyTorch
        "python": platform.python_version(),
    }
