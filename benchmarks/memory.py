"""Does the loader's memory stay flat? Proportional set size over all its processes while many clips go by.

    python benchmarks/memory.py --clips 20000 --workers 2

Makes a folder of small videos, some of them damaged (or takes --videos), loads batches of clips from it, and notes the
memory every few hundred clips: `Pss_Anon` + `Pss_Shmem` of smaps_rollup, summed over the worker processes, and this
process's. After a warm-up of a fifth, a line is fitted; its slope is given with a 95 % confidence interval (of block
means, since neighbouring readings are alike). Writes memory.md, memory.png and memory.json to docs/results.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from matplotlib.figure import Figure

from stmae.data.dataset import VideoClips
from stmae.data.loader import ClipLoader
from stmae.data.sources import scan
from stmae.data.synthetic import write_videos

BLOCKS = 10
T_95 = 2.306  # Student's t for BLOCKS - 2 degrees of freedom, two-sided


def pss(pids: list[int]) -> float:
    """MiB of several processes, memory that they share counted once; without the pages of program files, whose share
    changes with whatever else runs on the machine and maps the same libraries.
    """
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1])
    return total / 1024


def slope(clips: np.ndarray, memory: np.ndarray) -> tuple[float, float]:
    """MiB per 1,000 clips and half the width of its 95 % confidence interval, from the means of ten blocks."""
    at = np.array([part.mean() for part in np.array_split(clips, BLOCKS)]) / 1000
    mean = np.array([part.mean() for part in np.array_split(memory, BLOCKS)])
    fit, residuals, *_ = np.polyfit(at, mean, 1, full=True)
    left = float(residuals[0]) if len(residuals) else 0.0
    error = math.sqrt(left / (BLOCKS - 2) / float(((at - at.mean()) ** 2).sum()))
    return float(fit[0]), T_95 * error


def sample_videos(folder: Path) -> None:
    """Sound ones and damaged ones: what goes wrong must leak nothing either."""
    write_videos(folder, count=10, seconds=(1.5, 2.5))
    paths = sorted(folder.iterdir())
    for number, path in enumerate(paths[:4]):
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
        (folder / f"damaged-{number}{path.suffix}").write_bytes(data if number % 2 else data[: len(data) // 3])


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    dataset = VideoClips(
        scan(folder), frames=options.frames, stride=4, image_size=(options.image_size,) * 2, repeats=2, seed=0
    )
    every = max(1, options.clips // 200 // options.batch)
    rows = []
    began = time.perf_counter()
    with ClipLoader(dataset, batch_size=options.batch, workers=options.workers) as loader:
        for number in range(math.ceil(options.clips / options.batch)):
            batch = next(loader)
            if number % every == 0:
                rows.append(((number + 1) * options.batch, pss(loader.pids), pss([os.getpid()])))
            del batch
    clips, workers, main = (np.array(column) for column in zip(*rows, strict=True))
    warm = len(clips) // 5
    result: dict[str, Any] = {"seconds": time.perf_counter() - began, "videos": len(dataset)}
    for name, values in (("workers", workers), ("main", main)):
        rise, half = slope(clips[warm:], values[warm:])
        result[name] = {"slope": rise, "half": half, "mean": float(values[warm:].mean()), "values": values.tolist()}
    return result | {"clips": clips.tolist(), "warm_up": int(clips[warm])}


def write(result: dict[str, Any], options: argparse.Namespace) -> str:
    figure = Figure(figsize=(7, 3.2))
    axes = figure.add_subplot()
    for name, shown in (("workers", f"{options.workers} workers together"), ("main", "main process")):
        axes.plot(result["clips"], result[name]["values"], label=shown, linewidth=1)
    axes.axvline(result["warm_up"], color="0.7", linestyle=":", linewidth=1)
    axes.set_xlabel("clips loaded")
    axes.set_ylabel("MiB, without program files")
    axes.set_ylim(bottom=0)
    axes.legend()
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "memory.png", dpi=110, bbox_inches="tight")
    (options.out / "memory.json").write_text(json.dumps(result) + "\n")
    source = "the videos of --videos" if options.videos else "small videos, 4 of 14 damaged"
    command = f"python benchmarks/memory.py --clips {options.clips} --workers {options.workers}"
    lines = [
        "# Memory of the loader", "",
        f"{options.clips} clips of {options.frames}x{options.image_size}x{options.image_size} from {source}, "
        f"{options.workers} workers; {datetime.date.today()}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, PyAV {av.__version__}.", "", f"    {command}", "",
        "| | mean, MiB | slope, MiB per 1,000 clips | 95 % interval |", "|---|---|---|---|",
    ]  # fmt: skip
    for name in ("workers", "main"):
        row = result[name]
        low, high = row["slope"] - row["half"], row["slope"] + row["half"]
        lines.append(f"| {name} | {row['mean']:.1f} | {row['slope']:+.4f} | {low:+.4f} to {high:+.4f} |")
    lines += ["", f"After a warm-up of {result['warm_up']} clips. ![memory over clips](memory.png)"]
    (options.out / "memory.md").write_text("\n".join(lines) + "\n")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of videos in place of the sample videos")
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.videos or Path(made)
        if options.videos is None:
            sample_videos(folder)
        result = measure(folder, options)
    print(write(result, options))


if __name__ == "__main__":
    main()
