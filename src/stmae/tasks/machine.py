"""What a machine is and can do at most: its name, and the rate of its matrix products."""

from __future__ import annotations

import platform
import re
import statistics
import time
from pathlib import Path

import torch

SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)
ENOUGH = 0.1  # seconds of one product, after which larger ones are not tried


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """What the maker calls it: "NVIDIA H200", "AMD EPYC CPU"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return f"{found[1].strip() if found else platform.processor() or platform.machine()} CPU"


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The best FLOP/s of square matrix products over growing sizes: what no model on this device can exceed."""
    best = 0.0
    for size in SIZES:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        count = max(3, min(50, 2**33 // size**3))
        seconds = []
        for _ in range(count):
            synchronize(device)
            start = time.perf_counter()
            a @ b
            synchronize(device)
            seconds.append(time.perf_counter() - start)
        best = max(best, 2 * size**3 / statistics.median(seconds))
        if min(seconds) > ENOUGH:
            break
    return best
