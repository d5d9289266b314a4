"""What lets a short run on a CPU learn sooner: the settings of the presets `small` and `demo`, one changed at a time.

    python benchmarks/short_runs.py --videos demo/videos

Every cell trains on equally many clips of the same videos and masks, and is judged on the same held-out clips at 90 %
hidden: PSNR of the hidden pixels, beside copying the nearest visible patch in time and predicting nothing. Cells whose
result is there already are left out, so an interrupted sweep goes on. Writes docs/results/short-runs.json and .md.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import stmae
from stmae.data.dataset import FixedClips, VideoClips
from stmae.data.sources import scan, split
from stmae.engine.optim import CosineSchedule, build_adamw, parameter_groups
from stmae.metrics import scores
from stmae.model.mae import MaskedAutoencoder
from stmae.model.paint import paint

SIZE = {"frames": 8, "image_size": (64, 64)}
BASE: dict[str, Any] = {
    "position_values": "learned_from_sincos", "class_token": False, "target": "pixels", "batch": 4, "lr": 1e-3,
}  # fmt: skip
CELLS: dict[str, dict[str, Any]] = {
    "base": {},
    "random positions": {"position_values": "learned"},
    "fixed sine-cosine positions": {"position_values": "sincos"},
    "class token": {"class_token": True},
    "16 clips a step": {"batch": 16},
    "lr 3e-3": {"lr": 3e-3},
    "normalised pixels": {"target": "normalized_pixels"},
}


def clips_of(videos: Path, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training clips with keys, and held-out clips with keys."""
    training, held_out = split(scan(videos), 0.1)
    stream = VideoClips(training, **SIZE, stride=4.0, repeats=4, seed=0)
    samples = [stream[slot] for slot in range(-(-count // 4))]
    judged = [sample for sample in FixedClips(held_out, **SIZE, stride=4.0) if len(sample.clips)]
    parts = [(torch.cat([s.clips for s in which]), torch.cat([s.keys for s in which])) for which in (samples, judged)]
    return *parts[0], *parts[1]


def judge(model: MaskedAutoencoder, clips: Tensor, keys: Tensor) -> dict[str, float]:
    with torch.no_grad():
        found = scores(paint(model, clips, model(clips, keys=keys)))
    return {name: round(float(kind.mean_psnr), 2) for name, kind in found.items()}


def train(
    settings: dict[str, Any], data: tuple[Tensor, Tensor, Tensor, Tensor], total: int, seed: int
) -> dict[str, Any]:
    """Trains one cell on `total` clips; its scores on the held-out clips at quarters of the way."""
    clips, _, held_out, held_out_keys = data
    torch.manual_seed(seed)
    model = stmae.create_model(
        "vit_tiny",
        frames=8,
        image_size=64,
        patch=(2, 8, 8),
        decoder_width=192,
        decoder_depth=3,
        decoder_heads=3,
        **{name: settings[name] for name in ("position_values", "class_token", "target")},
    )
    batch, steps = settings["batch"], total // settings["batch"]
    optimizer = build_adamw(parameter_groups(model, 0.05), settings["lr"])
    schedule = CosineSchedule(settings["lr"], round(0.05 * steps), steps)
    generator = torch.Generator().manual_seed(seed)
    curve, began = [], time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        chosen = torch.randint(len(clips), (batch,), generator=generator)
        model(clips[chosen], keys=torch.randint(2**62, (batch,), generator=generator)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % (steps // 4) == 0:
            curve.append(judge(model, held_out, held_out_keys))
    return {"settings": settings, "curve": curve, "cpu_seconds": round(time.process_time() - began)}


def table(results: dict[str, Any]) -> str:
    lines = [
        "# Short runs on a CPU",
        "",
        f"`{results['command']}`, {results['date']}, {results['machine']}, torch {results['torch']}: {results['clips']}"
        " clips per cell, vit_tiny with a decoder of 192 x 3, 8 frames of 64 x 64, patch 2 x 8 x 8, 90 % hidden. PSNR"
        " of the hidden pixels of held-out clips, in dB, at quarters of the run; one seed, so a few tenths mean"
        " little.",
        "",
        "| changed | 25 % | 50 % | 75 % | 100 % | copied | nothing | CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in results["cells"].items():
        painted = " | ".join(f"{point['painted']:.2f}" for point in cell["curve"])
        last = cell["curve"][-1]
        lines.append(f"| {name} | {painted} | {last['copied']:.2f} | {last['nothing']:.2f} | {cell['cpu_seconds']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos, such as the demo's")
    parser.add_argument("--clips", type=int, default=2400, help="clips each cell trains on")
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS), metavar="CELL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results/short-runs"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = options.out.with_suffix(".json")
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cells": {}}
    results |= {
        "command": f"python benchmarks/short_runs.py --videos {options.videos} --clips {options.clips}",
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {options.threads} thread(s)",
        "torch": torch.__version__,
        "clips": options.clips,
    }
    data = clips_of(options.videos, min(options.clips, 1200))
    for name in options.cells:
        if name not in results["cells"]:
            results["cells"][name] = train({**BASE, **CELLS[name]}, data, options.clips, options.seed)
            print(name, results["cells"][name]["curve"][-1], flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(table(results))


if __name__ == "__main__":
    main()
