"""What the benchmarks ask of a machine, beside `stmae.tasks.machine`: its memory, and which arithmetic is worth it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stmae.tasks.machine import device_name, matmul_rate, synchronize

__all__ = ["device_name", "matmul_rate", "matmul_rates", "peak_memory", "slug", "synchronize", "write_report"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
SLOWEST_BF16 = 0.1  # of the fp32 rate; below it a bf16 step takes minutes and tells nothing


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


def write_report(out: Path, stem: str, report: Mapping[str, Any], page: str, *, say: bool = True) -> None:
    """Writes the page and the numbers to `out`/`stem`.md and .json, and prints the page where that is to be said."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / f"{stem}.md").write_text(page)
    if say:
        print(f"\n{page}\nwritten to {out / stem}.json and .md")
