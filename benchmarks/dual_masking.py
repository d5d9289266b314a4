"""What decoding a share of the hidden tokens saves (VideoMAE v2's dual masking), and what it costs in what is learnt.

    python benchmarks/dual_masking.py                        # ViT-B
    python benchmarks/dual_masking.py --quick                # a tiny model, in seconds

Steps of ViT-B with all hidden tokens decoded and with half of them, at random or by running cells, by attention over
all tokens or from hidden ones to visible ones alone; they take turns. Measurements are kept (--state): repeated, the
command goes on where it stood. Beside it, how well two small models do that learned from equally many clips, all
decoded or half: the cells of benchmarks/ablations.py, where they are done.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import device_name, slug, synchronize, write_report
from sparse_vs_dense import State, forward_flops

from stmae.model.mae import MaskedAutoencoder
from stmae.model.sizes import SIZES, mae_config

SIDES: dict[str, dict[str, Any]] = {
    "all": {},
    "half, running cells": {"decode": "running_cell", "decode_share": 0.5},
    "half, random": {"decode": "random", "decode_share": 0.5},
    "cross-attention, all": {"decoder": "cross_attention"},
    "cross-attention, half": {"decoder": "cross_attention", "decode": "random", "decode_share": 0.5},
}


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    device = torch.device(args.device)
    args.state.mkdir(parents=True, exist_ok=True)
    state = State(args.state / f"dual-masking-{slug(device_name(device))}{'-quick' if args.quick else ''}.jsonl")
    measure(args, device, state)
    rows = [row(args, state, side) for side in SIDES]
    judged = scores(args.out / "ablations")
    for found in rows:
        found["scores"] = judged.get(found["side"], [])
    report = {
        "command": shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": rows,
    }
    write_report(args.out, f"dual-masking-{slug(report['device'])}", report, markdown(args, report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="vit_base")
    parser.add_argument("--batch", type=int, default=4, help="clips per step")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=7, help="how often each side is measured")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves torch's choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny model and small clips, to see that it works")
    parser.add_argument("--state", type=Path, default=Path("build/benchmarks"), help="where measurements are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "results")
    args = parser.parse_args()
    if args.quick:
        args.model, args.frames, args.image_size, args.repeats = "vit_tiny", 4, 64, 2
    return args


def cell(args: argparse.Namespace, side: str) -> str:
    return f"{args.model} {args.frames}x{args.image_size} batch {args.batch} {side}"


def measure(args: argparse.Namespace, device: torch.device, state: State) -> None:
    """Every side `repeats` times, in turns; one round to warm up."""
    left = args.repeats - min(len(state.of(cell(args, side))) for side in SIDES)
    if left <= 0:
        return
    steps = {side: Step(args, side, device) for side in SIDES}
    for repeat in range(left + 1):
        for side, step in steps.items():
            compute, optimizer = step()
            if repeat > 0:
                state.add(cell(args, side), compute=compute, optimizer=optimizer)


class Step:
    """A training step of one side, on clips in memory."""

    def __init__(self, args: argparse.Namespace, side: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = MaskedAutoencoder(
            mae_config(args.model, frames=args.frames, image_size=args.image_size, **SIDES[side])
        ).to(device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
        shape = (args.batch, 3, args.frames, args.image_size, args.image_size)
        self.clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        self.keys = torch.arange(args.batch, device=device)

    def __call__(self) -> tuple[float, float]:
        """Seconds of forward and backward, and of the optimiser."""
        synchronize(self.device)
        begun = time.perf_counter()
        self.model(self.clips, keys=self.keys).loss.backward()
        synchronize(self.device)
        computed = time.perf_counter()
        self.optimizer.step()
        synchronize(self.device)
        ended = time.perf_counter()
        self.optimizer.zero_grad()
        return computed - begun, ended - computed


def row(args: argparse.Namespace, state: State, side: str) -> dict[str, Any]:
    found, full = (state.of(cell(args, name))[: args.repeats] for name in (side, "all"))
    whole = [
        (slow["compute"] + slow["optimizer"]) / (fast["compute"] + fast["optimizer"])
        for slow, fast in zip(full, found, strict=True)
    ]
    return {
        "side": side,
        "gmacs": forward_flops(mae_config(args.model, frames=args.frames, image_size=args.image_size, **SIDES[side]))
        / 2e9,
        "compute_seconds": statistics.median(line["compute"] for line in found),
        "optimizer_seconds": statistics.median(line["optimizer"] for line in found),
        "gain": statistics.median(s["compute"] / f["compute"] for s, f in zip(full, found, strict=True)),
        "gain_of_the_step": statistics.median(whole),
        "gain_of_the_step_range": [min(whole), max(whole)],
    }


def scores(results: Path) -> dict[str, list[float]]:
    """How well an attentive probe tells motion, of each pre-training that benchmarks/ablations.py has judged."""
    found = {}
    for side, cell in (("all", "agnostic-90"), ("half, running cells", "half-decoded")):
        judged = sorted(results.glob(f"{cell}-s*--probe.json"))
        found[side] = [json.loads(path.read_text())["accuracy"] for path in judged]
    return found


def markdown(args: argparse.Namespace, report: dict[str, Any]) -> str:
    threads = f", {report['threads']} threads" if report["threads"] else ""
    named = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        f"# Decoding a share of the hidden tokens on {report['device']}",
        "",
        f"{args.model}, {args.frames}x{args.image_size}x{args.image_size} clips, {args.batch} a step, 90 % hidden,"
        f" float32; {report['date']}; {named}{threads}.",
        "",
        f"    {report['command']}",
        "",
        "| decoded | GMAC, forward | compute, s | gain | gain of the whole step | range | score |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in report["rows"]:
        judged = " ".join(f"{each:.3f}" for each in found["scores"]) or "-"
        low, high = found["gain_of_the_step_range"]
        lines.append(
            f"| {found['side']} | {found['gmacs']:.1f} | {found['compute_seconds']:.3g} | {found['gain']:.2f}x"
            f" | {found['gain_of_the_step']:.2f}x | {low:.2f} to {high:.2f} | {judged} |"
        )
    about = (
        'Gains are over "all", medians within rounds. Scores, one a pre-training: accuracy of an attentive probe on'
        " frozen features in telling 8 directions of motion (chance 0.125), of small models that learned from equally"
        " many clips: `python benchmarks/ablations.py`, whose page says more ([ablations](ablations.md))."
    )
    return "\n".join([*lines, "", about, ""])


if __name__ == "__main__":
    main()
