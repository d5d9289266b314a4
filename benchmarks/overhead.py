"""What the engine adds to a training step: everything but forward, backward and the optimiser's step.

    python benchmarks/overhead.py                      the ViT-B of the paper's recipe, and a tiny model
    python benchmarks/overhead.py --quick              the tiny model alone, in seconds

Both sides train the same model from the same weights on the same clips, which lie in memory, and take turns, so that
whatever else the machine does hits both:

* bare: forward, backward, fused AdamW, `zero_grad`, in a loop of five lines;
* engine: `engine.loop.train` with the task of `stmae pretrain` (gradient norm and clipping, skipping on the device,
  sums, schedule, seeds, signals) and a log into a folder (log.txt, metrics.jsonl, TensorBoard) every few steps.

The overhead is the median of the ratios of neighbouring turns, less 1; the spread is their middle half.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from machine import device_name, synchronize, write_report

from stmae.data.loader import Batch
from stmae.engine.log import Log, MetricsFile, TensorBoard, TextFile
from stmae.engine.loop import Position, train
from stmae.engine.optim import CosineSchedule, build_adamw, parameter_groups
from stmae.engine.precision import AUTOCAST
from stmae.model.config import MaeConfig
from stmae.model.mae import MaskedAutoencoder
from stmae.model.sizes import mae_config
from stmae.tasks.pretrain import Pretraining

TARGETS = {"cpu": 0.02, "cuda": 0.03}
FOREVER = 10**6  # steps of the schedule


def main() -> None:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    settings = [] if args.quick else [("vit_base", 16, 224, (2, 16, 16), args.batch, args.steps, args.repeats)]
    settings.append(("vit_tiny", 8, 32, (2, 8, 8), 4, 20 if args.quick else 50, args.repeats))
    rows = []
    for model, frames, size, patch, batch, steps, repeats in settings:
        decoder = {} if model == "vit_base" else {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2}
        config = mae_config(model, frames=frames, image_size=size, patch=patch, mask_ratio=0.9, **decoder)
        row = measure(config, batch, steps, repeats, device, args.precision, args.log_every)
        rows.append({"model": model, "clip": f"{frames}x{size}x{size}", "batch": batch, "steps": steps, **row})
    report = {
        "command": shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": args.precision,
        "log_every": args.log_every,
        "target": TARGETS.get(device.type),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": rows,
    }
    write_report(args.out, f"overhead-{device.type}", report, markdown(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--precision", choices=AUTOCAST, default="bf16" if cuda else "fp32")
    parser.add_argument("--batch", type=int, default=64 if cuda else 4, help="clips per step of ViT-B")
    parser.add_argument("--steps", type=int, default=50 if cuda else 3, help="steps of ViT-B in a turn")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves torch's choice")
    parser.add_argument("--quick", action="store_true", help="the tiny model alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "results")
    return parser.parse_args()


def measure(
    config: MaeConfig, batch: int, steps: int, repeats: int, device: torch.device, precision: str, log_every: int
) -> dict[str, Any]:
    """Seconds per step of both sides, turn by turn, and what follows."""
    clip = config.encoder.clip
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, clip.channels, *clip.shape), dtype=torch.uint8, generator=generator)
    pixels = pixels.pin_memory() if device.type == "cuda" else pixels
    keys = torch.arange(batch)
    seconds: dict[str, list[float]] = {"bare": [], "engine": []}
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "bare": bare(fresh(config, device), pixels, keys, device, precision),
            "engine": engine(fresh(config, device), pixels, keys, device, precision, log_every, Path(folder)),
        }
        for turn in range(-1, repeats):  # one to warm up
            for side in sorted(sides, reverse=turn % 2 == 0):
                synchronize(device)
                began = time.perf_counter()
                sides[side](steps)
                synchronize(device)
                taken = (time.perf_counter() - began) / steps
                if turn >= 0:
                    seconds[side].append(taken)
                    print(f"{turn + 1}/{repeats} {side}: {1000 * taken:.2f} ms a step", flush=True)
    ratios = [e / b - 1 for e, b in zip(seconds["engine"], seconds["bare"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "parameters": sum(parameter.numel() for parameter in fresh(config, torch.device("meta")).parameters()),
        "seconds": seconds,
        "bare_ms": 1000 * statistics.median(seconds["bare"]),
        "overhead": statistics.median(ratios),
        "overhead_middle_half": [low, high],
        "overhead_ms": 1000 * statistics.median(
            e - b for e, b in zip(seconds["engine"], seconds["bare"], strict=True)
        ),
    }  # fmt: skip


def fresh(config: MaeConfig, device: torch.device) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(config).to(device)


def bare(
    model: MaskedAutoencoder, pixels: torch.Tensor, keys: torch.Tensor, device: torch.device, precision: str
) -> Callable[[int], None]:
    optimizer = build_adamw(parameter_groups(model, 0.05), 1e-4)
    dtype = AUTOCAST[precision]

    def run(steps: int) -> None:
        for _ in range(steps):
            clips, own = pixels.to(device, non_blocking=True), keys.to(device, non_blocking=True)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                loss = model(clips, keys=own).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def engine(
    model: MaskedAutoencoder,
    pixels: torch.Tensor,
    keys: torch.Tensor,
    device: torch.device,
    precision: str,
    log_every: int,
    folder: Path,
) -> Callable[[int], None]:
    job = Pretraining.__new__(Pretraining)  # its step alone is wanted: no folder of videos, no run
    job.setup, job.device, job.model, job.wrapped = SimpleNamespace(device=device), device, model, model
    job.options, job.given = SimpleNamespace(color_jitter=0.0), None  # type: ignore[assignment]
    job.on_log = lambda step: {}  # type: ignore[method-assign]
    job.on_save = lambda step: None  # type: ignore[method-assign]
    optimizer = build_adamw(parameter_groups(model, 0.05), 1e-4)
    log = Log([TextFile(folder / "log.txt"), MetricsFile(folder / "metrics.jsonl", 0), TensorBoard(folder, 0)])
    done = 0

    def batches() -> Iterator[Batch]:
        cursor = 0
        while True:
            cursor += len(keys)
            yield Batch(pixels, keys, cursor)

    def run(steps: int) -> None:
        nonlocal done
        train(
            job,
            batches(),
            optimizer,
            CosineSchedule(1e-4, 100, FOREVER),
            steps=done + steps,
            start=Position(done),
            log=log,
            device=device,
            clip_grad=0.02,
            autocast=AUTOCAST[precision],
            log_every=log_every,
            clips_per_epoch=1000,
        )
        done += steps

    return run


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    target = (
        "" if report["target"] is None else f" The aim for ViT-B on this kind of device: under {report['target']:.0%}."
    )
    lines = [
        f"# What the engine adds to a step, on {report['device']}",
        "",
        f"{report['precision']}, {report['threads']} threads, a log line every {report['log_every']} steps and at the",
        f"end of each turn; {report['date']}; {versions}.{target}",
        "",
        f"    {report['command']}",
        "",
        "| model | clips | turns x steps | bare step | engine adds | share (middle half) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        low, high = row["overhead_middle_half"]
        lines.append(
            f"| {row['model']} ({row['parameters'] / 1e6:.0f} M) | {row['batch']} of {row['clip']} "
            f"| {len(row['seconds']['bare'])} x {row['steps']} | {row['bare_ms']:.1f} ms | {row['overhead_ms']:.2f} ms "
            f"| {row['overhead']:.2%} ({low:.2%} to {high:.2%}) |"
        )
    return "\n".join([*lines, "", ABOUT]) + "\n"


ABOUT = """\
Bare is forward, backward, fused AdamW and `zero_grad`. The engine does the same through `stmae.engine.loop.train` with
the task of `stmae pretrain`: gradient norm and clipping, skipping on the device, sums, schedule, seeds, signals,
log.txt, metrics.jsonl and TensorBoard. Clips lie in memory, so loading is on neither side. The sides take turns; the
share is the median of the ratios of neighbouring turns."""


if __name__ == "__main__":
    main()
