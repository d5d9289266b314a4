"""How fast stmae is: pre-training, fine-tuning and inference, beside its peers on the same work in the same run.

    python benchmarks/speed.py                          all cells this device can do
    python benchmarks/speed.py --cells base-fp32        some; the others of an earlier run stay in the report
    python benchmarks/speed.py --profile base-fp32      where the time of our step goes, into the report too

All sides of a cell have the same sizes, patches and clips, 90 % hidden when pre-training, the same optimiser (fused
AdamW), and take turns in processes of their own, so that whatever else the machine does hits all of them. What differs
is what the projects do:

* VideoMAE (transformers) hides tubes: 20 of 196 patches of every time step are visible (160 of 1568 tokens), ours are
  156; it predicts both frames of a patch, ours one; it has no class token; it is given floats that are normalised
  already, ours uint8, normalised within the step. With fused attention (SDPA) and with attention written out (eager).
* The reference style (benchmarks/reference_style.py) is the method as public repositories write it.

FLOPs are the model's: the forward pass's, three times that when training, a multiply-add counted as two.
Writes docs/results/speed-<device>.json and .md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from machine import device_name, matmul_rates, slug, synchronize, write_report
from speed_sides import Side, Work, flops, our_model, step_of
from torch.utils.flop_counter import FlopCounterMode

PEERS = ("VideoMAE, SDPA", "VideoMAE, eager")


@dataclass(frozen=True)
class Cell:
    """One comparison; the first side is the one that ratios are of."""

    work: Work
    sides: tuple[str, ...]


def cells(cuda: bool, model: str | None = None) -> dict[str, Cell]:
    """The headline cells; batches that fill the device without being the largest that fit."""

    def cell(kind: str, size: str, precision: str, batch: int, *sides: str) -> Cell:
        return Cell(Work(kind, model or size, precision, batch if cuda else 2), sides)

    return {
        "small": cell("pretrain", "vit_small", "bf16", 128, "stmae", PEERS[0]),
        "base": cell("pretrain", "vit_base", "bf16", 64, "stmae", *PEERS, "reference style"),
        "large": cell("pretrain", "vit_large", "bf16", 64, "stmae", PEERS[0]),
        "base-fp32": cell("pretrain", "vit_base", "fp32", 32, "stmae", *PEERS, "reference style"),
        "base-half": cell("pretrain", "vit_base", "bf16", 64, "stmae, half decoded", "stmae", PEERS[0]),
        "base-compiled": cell("pretrain", "vit_base", "bf16", 64, "stmae compiled", "stmae"),
        "finetune": cell("finetune", "vit_base", "bf16", 16, "stmae", *PEERS),
        "inference": cell("inference", "vit_base", "bf16", 64, "stmae", *PEERS),
    }


def main() -> None:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    chosen = cells(device.type == "cuda", args.model)
    if unknown := [name for name in (*args.cells, *filter(None, [args.profile])) if name not in chosen]:
        sys.exit(f"No cell is called {', '.join(unknown)}. There are: {', '.join(chosen)}.")
    rates, notes = matmul_rates(device, ["fp32", "bf16"])
    for name, cell in chosen.items():
        work = replace(cell.work, batch=args.batch or cell.work.batch, frames=args.frames, size=args.image_size)
        if work.precision not in rates:
            work = replace(work, precision="fp32")
        chosen[name] = replace(cell, work=work)
    stem = args.out / f"speed-{slug(device_name(device))}"
    report = json.loads(stem.with_suffix(".json").read_text()) if stem.with_suffix(".json").exists() else {"cells": {}}
    report |= {
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "notes": notes,
    }
    if args.profile:
        work = chosen[args.profile].work
        report.setdefault("profiles", {})[args.profile] = profile(work, device, rates[work.precision])
        write_report(args.out, stem.name, report, markdown(report))
        return
    done: dict[tuple[Work, tuple[str, ...]], str] = {}
    for name in args.cells or chosen:
        cell = chosen[name]
        if same := done.get((cell.work, cell.sides)):
            print(f"{name} is {same} on this device")
            report["cells"].pop(name, None)
            continue
        done[cell.work, cell.sides] = name
        report["cells"][name] = measure(name, cell, args, rates)
        write_report(args.out, stem.name, report, markdown(report), say=False)
    write_report(args.out, stem.name, report, markdown(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--cells", nargs="+", default=[], help="which; all by default")
    parser.add_argument("--profile", metavar="CELL", help="measure where the time of our step goes instead")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
    parser.add_argument("--steps", type=int, default=10 if cuda else 1, help="steps in a turn")
    parser.add_argument("--batch", type=int, default=0, help="clips a step, in place of each cell's own")
    parser.add_argument("--model", help="a size in place of each cell's own")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves torch's choice")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "results")
    return parser.parse_args()


def measure(name: str, cell: Cell, args: argparse.Namespace, rates: dict[str, float]) -> dict[str, Any]:
    """Every side's seconds by turn, and what follows."""
    sides = [Side(side, cell.work, args.device, args.threads) for side in cell.sides]
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    memory: dict[str, float] = {}
    try:
        for turn in range(-1, args.repeats):  # one to warm up
            for side in sides if turn % 2 else sides[::-1]:
                taken, memory[side.name] = side.turn(1 if turn < 0 else args.steps)
                if turn >= 0:
                    seconds[side.name].append(taken)
                    print(
                        f"{name} {turn + 1}/{args.repeats} {side.name}: {cell.work.batch / taken:.3g} clips/s",
                        flush=True,
                    )
    finally:
        for side in sides:
            side.close()
    first = statistics.median(seconds[cell.sides[0]])
    rows = {}
    for side, taken in seconds.items():
        middle, counted = statistics.median(taken), flops(cell.work, side)
        rows[side] = {
            "seconds": taken,
            "clips_per_second": cell.work.batch / middle,
            "slowest": cell.work.batch / max(taken),
            "fastest": cell.work.batch / min(taken),
            "flops_per_clip": counted,
            "flops_per_second": counted * cell.work.batch / middle,
            "share_of_matmul": counted * cell.work.batch / middle / rates[cell.work.precision],
            "peak_memory": memory[side],
            "ratio": middle / first,  # how many times faster the first side is
        }
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "transformers")}},
        "matmul_flops_per_second": rates[cell.work.precision],
        "work": asdict(cell.work),
        "steps": args.steps,
        "load": os.getloadavg()[0],
        "sides": rows,
    }


def profile(work: Work, device: torch.device, rate: float) -> dict[str, Any]:
    """Seconds and arithmetic of a step of ours by what is done, after a step to warm up.

    Args:
        rate: FLOP/s of matrix products.
    """
    step = step_of(work, *our_model(work, device), device)
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    arithmetic = dict.fromkeys([*KINDS, OTHER], 0)
    for operation, counted in counter.get_flop_counts()["Global"].items():
        arithmetic[kind_of(str(operation))] += counted
    if not arithmetic["attention"]:  # PyTorch does not count that of its kernel for CPUs: what is left of the whole
        arithmetic["attention"] = work.batch * flops(work, "stmae") - sum(arithmetic.values())
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        step()
        synchronize(device)
    spent = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in recorded.key_averages():
        if event.device_type.name.lower() == device.type:  # on a GPU kernels alone, not what started them
            spent[kind_of(event.key)] += getattr(event, f"self_{device.type}_time_total") / 1e6
    return {
        "work": asdict(work),
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        "matmul_flops_per_second": rate,
        "kinds": {kind: {"seconds": spent[kind], "flops": arithmetic[kind]} for kind in spent},
    }


# What an operation or a kernel is for, by its name; the first that fits.
KINDS = {
    "attention": r"attention|flash|fmha",
    "matrix products": r"mm|gemm|nvjet|cutlass|linear",
    "AdamW": r"adam",
    "layer norm": r"layer_?norm",
    "GELU": r"gelu",
}
OTHER = "all the rest"


def kind_of(operation: str) -> str:
    return next((kind for kind, names in KINDS.items() if re.search(names, operation, re.IGNORECASE)), OTHER)


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    threads = f", {report['threads']} threads" if report["threads"] else ""
    lines = [f"# Speed on {report['device']}{threads}", "", INTRODUCTION, *report["notes"], ""]
    for name, cell in report["cells"].items():
        work, versions = cell["work"], ", ".join(f"{part} {number}" for part, number in cell["versions"].items())
        first = next(iter(cell["sides"]))
        lines += [
            f"## {name}: {work['kind']}, {work['model']}, {work['precision']}",
            "",
            f"{work['batch']} clips of {work['frames']}x{work['size']}x{work['size']} a step; {cell['date']};"
            f" {versions}. Matrix products in {work['precision']}:"
            f" {cell['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s.",
            "",
            f"    {cell['command']}",
            "",
            f"| side | clips/s (slowest to fastest) | {first} is faster by | GFLOP/clip | of products | memory |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for side, row in cell["sides"].items():
            lines.append(
                f"| {side} | {row['clips_per_second']:.3g} ({row['slowest']:.3g} to {row['fastest']:.3g})"
                f" | {'' if side == first else format(row['ratio'], '.2f')} | {row['flops_per_clip'] / 1e9:.1f}"
                f" | {row['share_of_matmul']:.0%} | {row['peak_memory'] / 2**30:.2f} GiB |"
            )
        lines.append("")
    for name, found in report.get("profiles", {}).items():
        rate, whole = found["matmul_flops_per_second"], sum(kind["seconds"] for kind in found["kinds"].values())
        lines += [
            f"## Where a step of {name} goes",
            "",
            f"{found['work']['batch']} clips; {found['date']}. Under the profiler, which takes its own time.",
            "",
            f"    {found['command']}",
            "",
            "| | seconds | share | GFLOP | GFLOP/s | of products |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for kind, spent in found["kinds"].items():
            own = spent["flops"] / spent["seconds"] if spent["flops"] else 0
            speed = f"{spent['flops'] / 1e9:.0f} | {own / 1e9:.0f} | {own / rate:.0%}" if own else " | | "
            lines.append(f"| {kind} | {spent['seconds']:.3g} | {spent['seconds'] / whole:.0%} | {speed} |")
        lines.append("")
    return "\n".join(lines)


INTRODUCTION = """\
A training step is forward, backward and AdamW (fused); clips lie in memory. The sides of a table did the same work in
turns, each in a process of its own; clips/s are medians. FLOPs are the model's: the forward pass's, three times that
when training, a multiply-add counted as two; the share is of large square matrix products measured in the same run.
What the sides do differently: the first lines of benchmarks/speed.py.
"""


if __name__ == "__main__":
    main()
