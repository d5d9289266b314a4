"""What the benchmarks ask of a machine: its name, its matrix-multiply rate, its memory, and to be done."""

from __future__ import annotations

import platform
import re
import statistics
import time
from pathlib import Path

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
SLOWEST_BF16 = 0.1  # of the fp32 rate; below it a bf16 step takes minutes and tells nothing


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return f"{found[1].strip() if found else platform.processor() or platform.machine()} CPU"


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def peak_memory(device: torch.device) -> float:
    """Bytes this process has held at most: on the GPU, or of resident memory (0 where the system does not say)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    return 1024 * int(found[1]) if found else 0


def matmul_rates(device: torch.device, precisions: list[str]) -> tuple[dict[str, float], list[str]]:
    """FLOP/s of square matrix products, for the precisions worth measuring; and why others were left out."""
    rates, notes = {}, []
    for name in precisions:
        rates[name] = matmul_rate(device, PRECISIONS[name])
        print(f"matrix products in {name}: {rates[name] / 1e9:,.0f} GFLOP/s", flush=True)
    if "bf16" in rates:
        full = rates.get("fp32") or matmul_rate(device, torch.float32)
        if rates["bf16"] < SLOWEST_BF16 * full:
            notes.append(
                f"bf16 left out: this device multiplies bf16 matrices at {rates.pop('bf16') / 1e9:.1f} GFLOP/s, "
                f"fp32 ones at {full / 1e9:.1f}; it has no fast bf16."
            )
    return rates, notes


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The best FLOP/s over growing sizes, which stop growing once one product takes a tenth of a second."""
    best = 0.0
    for size in (256, 512, 1024, 2048, 4096, 8192, 16384):
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
        if min(seconds) > 0.1:
            break
    return best
