"""How fast a pre-training step is: forward, backward, AdamW, next to transformers' VideoMAE in the same run.

    python benchmarks/step.py --model vit_base --batch 4

Both sides have the same encoder, decoder, patch and clip, 90 % hidden, fused attention and fused AdamW, and take turns,
so that whatever else the machine does hits both. What differs is what the two projects do:

* VideoMAE hides tubes: 20 of 196 patches of every time step are visible (160 of 1568 tokens), ours are 156;
* VideoMAE predicts both frames of a patch, ours one; and it has no class token;
* VideoMAE is given floats that are normalised already, ours uint8, normalised within the step.

FLOPs are those of the model, the usual convention for utilisation: three times the forward pass's, a multiply-add
counted as two. They are counted by torch: ours on the meta device, theirs in one pass with eager attention on the CPU,
because the shape of what a boolean mask picks is unknown on the meta device.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stmae.model.config import MaeConfig
from stmae.model.mae import MaskedAutoencoder
from stmae.model.sizes import SIZES, mae_config

try:
    import transformers
    from transformers import VideoMAEConfig, VideoMAEForPreTraining
except ImportError:
    sys.exit("The peer is missing: pip install transformers")

MASK_RATIO = 0.9
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
SLOWEST_BF16 = 0.1  # of the fp32 rate; below it a bf16 step takes minutes and tells nothing


@dataclass
class Row:
    """One side's measurements."""

    model: str
    side: str
    precision: str
    seconds: list[float]  # per step, one entry a repeat
    clips_per_second: float  # at the median
    slowest: float  # clips per second of the slowest repeat, and of the fastest
    fastest: float
    flops_per_clip: float  # forward and backward
    flops_per_second: float
    share_of_matmul: float
    peak_memory: float | None  # bytes, on CUDA


def main() -> None:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    rates, notes = matmul_rates(device, args.precision)
    rows = [
        row for model in args.model for precision in rates for row in measure(args, device, model, precision, rates)
    ]
    report = {
        "command": shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "clip": f"{args.frames}x{args.image_size}x{args.image_size}",
        "batch": args.batch,
        "matmul_flops_per_second": rates,
        "notes": notes,
        "rows": [asdict(row) for row in rows],
    }
    text = markdown(report, rows)
    print("\n" + text)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"step-{slug(report['device'])}"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(f"written to {stem}.json and .md")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--model", nargs="+", choices=SIZES, default=["vit_base"])
    parser.add_argument("--batch", type=int, default=4, help="clips per step")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=7, help="how often each side is measured")
    parser.add_argument("--steps", type=int, default=10 if cuda else 1, help="steps per repeat")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves torch's choice")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "results")
    return parser.parse_args()


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
    for size in (256, 512, 1024, 2048, 4096, 8192):
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


def measure(
    args: argparse.Namespace, device: torch.device, model: str, precision: str, rates: dict[str, float]
) -> Iterator[Row]:
    """Our row and theirs: both sides live at once and take turns."""
    config = mae_config(model, frames=args.frames, image_size=args.image_size, mask_ratio=MASK_RATIO)
    sides = {
        "stmae": ours(config, args.batch, device, precision),
        "VideoMAE": theirs(config, args.batch, device, precision),
    }
    flops = {"stmae": our_flops(config), "VideoMAE": their_flops(config)}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    memory: dict[str, float | None] = dict.fromkeys(sides)
    for repeat in range(-2, args.repeats):  # two to warm up
        for side, step in sides.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            synchronize(device)
            start = time.perf_counter()
            for _ in range(args.steps):
                step()
            synchronize(device)
            taken = (time.perf_counter() - start) / args.steps
            if device.type == "cuda":
                memory[side] = torch.cuda.max_memory_allocated(device)
            if repeat >= 0:
                seconds[side].append(taken)
                print(
                    f"{model} {precision} {repeat + 1}/{args.repeats} {side}: {args.batch / taken:.3g} clips/s",
                    flush=True,
                )
    for side, taken in seconds.items():
        rate = args.batch / statistics.median(taken)
        achieved = rate * flops[side]
        yield Row(
            model,
            side,
            precision,
            taken,
            rate,
            args.batch / max(taken),
            args.batch / min(taken),
            flops[side],
            achieved,
            achieved / rates[precision],
            memory[side],
        )


def ours(config: MaeConfig, batch: int, device: torch.device, precision: str) -> Callable[[], None]:
    torch.manual_seed(0)
    model = MaskedAutoencoder(config).to(device)
    clip = config.encoder.clip
    clips = torch.randint(0, 256, (batch, clip.channels, *clip.shape), dtype=torch.uint8, device=device)
    keys = torch.arange(batch, device=device)
    return training_step(model, lambda: model(clips, keys=keys).loss, device, precision)


def theirs(config: MaeConfig, batch: int, device: torch.device, precision: str) -> Callable[[], None]:
    torch.manual_seed(0)
    model = VideoMAEForPreTraining(peer_config(config, "sdpa")).to(device).train()
    clips, hidden = peer_inputs(config, batch)
    clips, hidden = clips.to(device), hidden.to(device)
    return training_step(model, lambda: model(clips, bool_masked_pos=hidden).loss, device, precision)


def training_step(
    model: torch.nn.Module, loss: Callable[[], Tensor], device: torch.device, precision: str
) -> Callable[[], None]:
    """Forward, backward and AdamW's step, in the paper's settings."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def step() -> None:
        autocast = torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
        with autocast:
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def peer_config(config: MaeConfig, attention: str) -> VideoMAEConfig:
    """VideoMAE of the same sizes."""
    clip, encoder, decoder = config.encoder.clip, config.encoder.blocks, config.decoder.blocks
    return VideoMAEConfig(
        image_size=clip.height,
        patch_size=clip.patch[1],
        num_channels=clip.channels,
        num_frames=clip.frames,
        tubelet_size=clip.patch[0],
        hidden_size=encoder.width,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.mlp_width,
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=decoder.mlp_width,
        norm_pix_loss=True,
        attn_implementation=attention,
    )


def peer_inputs(config: MaeConfig, batch: int) -> tuple[Tensor, Tensor]:
    """Normalised clips (B, T, C, H, W) and tube masks (B, N), True = hidden: the same patches at every time step."""
    clip = config.encoder.clip
    t, h, w = clip.grid
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(batch, clip.frames, clip.channels, clip.height, clip.width, generator=generator)
    order = torch.rand(batch, h * w, generator=generator).argsort(dim=1)
    hidden = (order < int(MASK_RATIO * h * w)).repeat(1, t)
    return clips, hidden


def our_flops(config: MaeConfig) -> int:
    """Of a clip's forward and backward pass."""
    clip = config.encoder.clip
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    video = torch.empty(1, clip.channels, *clip.shape, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(video)
    return 3 * counter.get_total_flops()


def their_flops(config: MaeConfig) -> int:
    """Of a clip's forward and backward pass."""
    model = VideoMAEForPreTraining(peer_config(config, "eager"))
    clips, hidden = peer_inputs(config, 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(clips, bool_masked_pos=hidden)
    return 3 * counter.get_total_flops()


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


def markdown(report: dict[str, Any], rows: list[Row]) -> str:
    """The report as a page."""
    threads = f", {report['threads']} threads" if report["threads"] else ""
    named = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in report["matmul_flops_per_second"].items())
    lines = [
        f"# Pre-training step on {report['device']}",
        "",
        f"{report['clip']} clips, {report['batch']} a step, 90 % hidden; {report['date']}; {named}{threads}.",
        f"Matrix products measured in the same run: {rates}.",
        "",
        f"    {report['command']}",
        "",
        "| model | side | precision | clips/s (slowest to fastest) | GFLOP/clip | GFLOP/s | of matmul | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    peers = {(row.model, row.precision): row.clips_per_second for row in rows if row.side == "VideoMAE"}
    for row in rows:
        gain = row.clips_per_second / peers[row.model, row.precision]
        lines.append(
            f"| {row.model} | {row.side} | {row.precision} "
            f"| {row.clips_per_second:.3g} ({row.slowest:.3g} to {row.fastest:.3g}) "
            f"| {row.flops_per_clip / 1e9:.1f} | {row.flops_per_second / 1e9:,.0f} | {row.share_of_matmul:.0%} "
            f"| {gain:.2f} |"
        )
    lines += ["", *report["notes"], *([""] if report["notes"] else []), ABOUT]
    memory = [
        f"{row.side} {row.model} {row.precision} {row.peak_memory / 2**30:.1f} GiB" for row in rows if row.peak_memory
    ]
    lines += ["", f"Peak memory while both sides are on the device: {', '.join(memory)}."] if memory else []
    return "\n".join(lines) + "\n"


ABOUT = """\
A step is forward, backward and AdamW (fused). VideoMAE is transformers' `VideoMAEForPreTraining` of the same sizes with
fused attention; the two take turns. FLOPs are three times the forward pass's, a multiply-add counted as two. VideoMAE
hides tubes, predicts both frames of a patch, has no class token and is given normalised floats; ours hides any patches,
predicts one frame and normalises uint8 within the step. clips/s are medians; `ratio` compares them with VideoMAE's."""


if __name__ == "__main__":
    main()
