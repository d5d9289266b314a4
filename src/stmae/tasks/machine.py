"""What a machine is and can do: its name, the rate of its matrix products, how long a piece of work takes."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def seconds_of(step: Callable[[], None], device: torch.device, budget: float) -> float:
    """Seconds a call, the first of which does not count unless it takes the budget alone."""
    with _clock(device) as first:
        step()
    if first() > budget:
        return first()
    count = 0
    with _clock(device) as passed:
        while not count or passed() < budget:
            step()
            count += 1
            if device.type == "cuda":
                synchronize(device)
    return passed() / count


@contextmanager
def _clock(device: torch.device) -> Iterator[Callable[[], float]]:
    """A clock that stands still when the block has ended, and the device with it."""
    synchronize(device)
    began = time.perf_counter()
    ended: list[float] = []
    yield lambda: (ended[0] if ended else time.perf_counter()) - began
    synchronize(device)
    ended.append(time.perf_counter())
