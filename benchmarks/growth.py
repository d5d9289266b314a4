"""What a training step costs as the work grows: hidden share, frames, resolution, batch and processes; and starting up.

    python benchmarks/growth.py                 # ViT-S
    python benchmarks/growth.py --quick         # a tiny model, to see that it works

Every point is a process of its own: one step to warm up, then a few that are timed; seconds are medians. The page says
how far a fixed time a step and one rate of arithmetic explain all points: where a point takes longer than that as an
axis grows, something grows faster than the arithmetic. Processes have one thread each, on one machine, and the same
clips each: the work grows with them. Start-up is what a person waits for: the whole time of a command, five times.
Writes docs/results/growth-<device>.json, .md and .png.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import device_name, slug, write_report
from speed_sides import Side, Work, flops, our_model, step_of

from stmae.data.synthetic import write_videos
from stmae.engine.distributed import together
from stmae.engine.parallel import wrap

AXES = {"mask_ratio": "hidden share", "frames": "frames", "size": "pixels a side", "batch": "clips a step"}


def main() -> None:
    args = parse()
    if args.rank:
        print(json.dumps(timed_together(args)))
        return
    torch.set_num_threads(args.threads or torch.get_num_threads())
    device = torch.device(args.device)
    report: dict[str, Any] = {
        "command": shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "base": asdict(base(args)),
        "axes": {axis: [point(args, axis, value) for value in values] for axis, values in axes(args).items()},
        "processes": [processes(args, count) for count in args.processes],
        "start": start_up(args),
    }
    stem = f"growth-{slug(report['device'])}"
    write_report(args.out, stem, report, markdown(report, stem))
    plot(report, args.out / f"{stem}.png")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--model", default="vit_small")
    parser.add_argument("--batch", type=int, default=32 if cuda else 2, help="clips a step where it does not grow")
    parser.add_argument("--steps", type=int, default=5, help="that are timed at each point")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="started by torchrun")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves torch's choice")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it works; the numbers mean nothing")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)  # one of several processes
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "results")
    args = parser.parse_args()
    if args.quick:
        args.model, args.steps = "vit_tiny", 1
    return args


def base(args: argparse.Namespace) -> Work:
    """The point that all axes go through."""
    frames, size = (4, 32) if args.quick else (16, 112)
    return Work("pretrain", args.model, "fp32", args.batch, frames, size)


def axes(args: argparse.Namespace) -> dict[str, list[Any]]:
    at = base(args)
    several = (1, 2) if args.quick else (0.5, 1, 2, 4)
    return {
        "mask_ratio": [0.9, 0.5] if args.quick else [0.95, 0.9, 0.75, 0.5, 0.0625],
        "frames": [int(at.frames * times) for times in several],
        "size": [32, 64] if args.quick else [64, 112, 160, 224, 336],
        "batch": [int(at.batch * times) for times in several],
    }


# Points ---------------------------------------------------------------------------------------------------------------


def point(args: argparse.Namespace, axis: str, value: Any) -> dict[str, Any]:
    """Seconds, memory and arithmetic of a step where one thing has another value than at the base."""
    work = replace(base(args), **{axis: value})
    side = Side("stmae", work, args.device, args.threads)
    try:
        side.turn(1)
        turns = [side.turn(1) for _ in range(args.steps)]
    finally:
        side.close()
    seconds = statistics.median(taken for taken, _ in turns)
    counted = flops(work, "stmae") * work.batch
    grid = work.config().encoder.clip.grid
    found = {
        "value": value,
        "tokens": grid[0] * grid[1] * grid[2] * work.batch,
        "seconds": seconds,
        "range": [min(taken for taken, _ in turns), max(taken for taken, _ in turns)],
        "flops": counted,
        "flops_per_second": counted / seconds,
        "peak_memory": turns[-1][1],
    }
    print(f"{axis} {value}: {seconds:.3g} s, {counted / seconds / 1e9:.0f} GFLOP/s", flush=True)
    return found


def processes(args: argparse.Namespace, count: int) -> dict[str, Any]:
    """Seconds of a step of several processes, gradients summed over them."""
    own = ["--rank", "--model", args.model, "--batch", str(args.batch), "--steps", str(args.steps)]
    own += ["--device", args.device, *(["--quick"] if args.quick else [])]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *own], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{count} processes: {done.stderr[-2000:]}")
    seconds = max(json.loads(line)["seconds"] for line in done.stdout.splitlines() if line.startswith("{"))
    print(f"{count} processes: {seconds:.3g} s", flush=True)
    return {"processes": count, "seconds": seconds, "clips_per_second": count * args.batch / seconds}


def timed_together(args: argparse.Namespace) -> dict[str, float]:
    """In one of the processes."""
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    with together(device, lambda: None) as (world, _):
        torch.manual_seed(0)
        work = base(args)
        model, _ = our_model(work, device)
        clip = work.config().encoder.clip
        clips = torch.randint(0, 256, (work.batch, clip.channels, *clip.shape), dtype=torch.uint8, device=device)
        keys = torch.arange(work.batch, device=device) + work.batch * world.rank
        trained = wrap(model, world, "ddp")
        step = step_of(work, model, lambda: trained(clips, keys=keys).loss, device)
        taken = []
        for _ in range(args.steps + 1):
            world.barrier()
            began = time.perf_counter()
            step()
            world.barrier()
            taken.append(time.perf_counter() - began)
    return {"seconds": statistics.median(taken[1:])}


def start_up(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of commands from beginning to end."""
    stmae = [sys.executable, "-m", "stmae"]
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(folder) / "videos"
        write_videos(videos, count=8)
        tiny = "--model vit_tiny --image-size 64 --batch-size 2 --workers 1 --precision fp32"
        train = [*stmae, "pretrain", str(videos), *tiny.split(), "--epochs", "1 step"]
        build = "import stmae; stmae.create_model('vit_tiny')"
        asked: dict[str, Callable[[int], list[str]]] = {
            "`import stmae`": lambda _: [sys.executable, "-c", "import stmae"],
            "the same, and a first model (which takes torch)": lambda _: [sys.executable, "-c", build],
            "`stmae --help`": lambda _: [*stmae, "--help"],
            "`stmae pretrain --help`": lambda _: [*stmae, "pretrain", "--help"],
            "`stmae pretrain` of a folder that is not there": lambda _: [*stmae, "pretrain", f"{folder}/no"],
            "`stmae pretrain` of 8 videos for one step": lambda n: [*train, "--out", f"{folder}/run-{n}"],
        }
        found = []
        for name, command in asked.items():
            taken = []
            for turn in range(1 if args.quick else 5):
                began = time.perf_counter()
                done = subprocess.run(command(turn), capture_output=True, text=True)
                taken.append(time.perf_counter() - began)
                if done.returncode not in (0, 2):
                    sys.exit(f"{name}: {done.stderr[-2000:]}")
            found.append({"what": name, "seconds": statistics.median(taken), "range": [min(taken), max(taken)]})
            print(f"{name}: {found[-1]['seconds']:.2f} s", flush=True)
    return found


# The page -------------------------------------------------------------------------------------------------------------


def markdown(report: dict[str, Any], stem: str) -> str:
    work, threads = report["base"], f", {report['threads']} threads" if report["threads"] else ""
    named = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        f"# How a step grows on {report['device']}",
        "",
        f"{work['model']}, float32, forward, backward and AdamW; where it is not the axis: {work['batch']} clips of"
        f" {work['frames']}x{work['size']}x{work['size']} a step, {work['mask_ratio']:.0%} hidden. {report['date']};"
        f" {named}{threads}.",
        "",
        f"    {report['command']}",
        "",
        f"![Seconds, FLOP/s and memory along each axis]({stem}.png)",
    ]
    for axis, points in report["axes"].items():
        lines += [
            "",
            f"## {AXES[axis]}",
            "",
            f"| {AXES[axis]} | patches a step | GFLOP | seconds (fastest to slowest) | GFLOP/s | peak memory |",
            "| --- | --- | --- | --- | --- | --- |",
            *(
                f"| {found['value']} | {found['tokens']:,} | {found['flops'] / 1e9:,.1f} | {found['seconds']:.3g}"
                f" ({found['range'][0]:.3g} to {found['range'][1]:.3g}) | {found['flops_per_second'] / 1e9:,.0f}"
                f" | {found['peak_memory'] / 2**30:.2f} GiB |"
                for found in points
            ),
        ]
    fixed, rate = explained(report)
    off = {
        (axis, found["value"]): found["seconds"] / (fixed + found["flops"] / rate)
        for axis, points in report["axes"].items()
        for found in points
    }
    worst, best = max(off, key=lambda at: off[at]), min(off, key=lambda at: off[at])
    lines += [
        "",
        "## Time against arithmetic",
        "",
        f"{fixed:.2g} s a step and {rate / 1e9:,.0f} GFLOP/s beyond explain every point within {off[best]:.2f} to"
        f" {off[worst]:.2f} of its time ({AXES[best[0]]} {best[1]}, {AXES[worst[0]]} {worst[1]}). The base, which every"
        " axis goes through, was measured at "
        + ", ".join(f"{found['seconds']:.3g}" for found in same_point(report))
        + " s: so far apart are measurements of one thing.",
    ]
    if report["processes"]:
        first = report["processes"][0]["clips_per_second"]
        lines += [
            "",
            "## processes",
            "",
            f"One thread and {work['batch']} clips each, gradients summed over them by DDP.",
            "",
            "| processes | seconds a step | clips/s | times the first |",
            "| --- | --- | --- | --- |",
            *(
                f"| {found['processes']} | {found['seconds']:.3g} | {found['clips_per_second']:.3g}"
                f" | {found['clips_per_second'] / first:.2f} |"
                for found in report["processes"]
            ),
        ]
    lines += [
        "",
        "## Starting up",
        "",
        "| what | seconds (fastest to slowest) |",
        "| --- | --- |",
        *(
            f"| {found['what']} | {found['seconds']:.2f} ({found['range'][0]:.2f} to {found['range'][1]:.2f}) |"
            for found in report["start"]
        ),
        "",
    ]
    return "\n".join(lines)


def same_point(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The base, as each axis has measured it."""
    return [f for axis, points in report["axes"].items() for f in points if f["value"] == report["base"][axis]]


def explained(report: dict[str, Any]) -> tuple[float, float]:
    """Seconds a step whatever the work, and FLOP/s beyond, that come nearest to all points by their ratios."""
    points = [found for each in report["axes"].values() for found in each]
    seconds = np.array([found["seconds"] for found in points])
    terms = np.array([[1.0, found["flops"]] for found in points]) / seconds[:, None]
    (fixed, each), *_ = np.linalg.lstsq(terms, np.ones(len(points)), rcond=None)
    return float(fixed), float(1 / each)


def plot(report: dict[str, Any], path: Path) -> None:
    """Seconds beside what a fixed time and the arithmetic say, and memory, along each axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    fixed, rate = explained(report)
    fitted = f"{fixed:.2g} s + {rate / 1e9:,.0f} GFLOP/s"
    figure, rows = pyplot.subplots(2, len(AXES), figsize=(13, 5.4), dpi=110, layout="constrained", sharey="row")
    for (axis, name), above, below in zip(AXES.items(), *rows, strict=True):
        points = sorted(report["axes"][axis], key=lambda found: found["value"])
        values = [found["value"] for found in points]
        above.plot(values, [found["seconds"] for found in points], "o-", label="measured")
        above.plot(values, [fixed + found["flops"] / rate for found in points], "--", label=fitted)
        below.plot(values, [found["peak_memory"] / 2**30 for found in points], "o-", color="tab:green")
        below.set_xlabel(name)
        above.set_yscale("log")
        if axis != "mask_ratio":
            for each in (above, below):
                each.set_xscale("log", base=2)
                each.set_xticks(values, [str(value) for value in values])
    rows[0, 0].set_ylabel("seconds a step")
    rows[1, 0].set_ylabel("peak memory, GiB")
    rows[0, 0].legend()
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
