"""How fast packing is, and what writing videos anew costs and gains.

    python benchmarks/packing.py --videos DIR [--quick]

Packs the videos under DIR with their bytes as they are and written anew, with 1 worker and with as many as there are
cores, and reads random clips of 16 frames from either pack, in one process. Several recipes are measured beside the
default one. Processor seconds are counted besides the clock's, so that a busy machine shows. Writes
docs/results/packing.md and packing.json.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import resource
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np

from stmae.data import encode
from stmae.data.encode import Recipe
from stmae.data.media import read_clips
from stmae.data.pack_plan import Job
from stmae.data.packing import pack
from stmae.data.shards import Shards
from stmae.data.sources import Source, scan

ENCODERS: dict[str, dict[str, str]] = {  # what differs from the recipe's own way of writing
    "stmae's": {},
    "medium preset": {"preset": "medium"},
    "with CABAC and deblocking": {"tune": "film"},
    "without B-frames": {"bf": "0"},
    "B-frames and key frames as x264 likes": {"x264-params": "b-pyramid=none"},
    "five B-frames": {"bf": "5"},
}


def processor() -> float:
    """Processor seconds of this process and of the children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def packed(source: Source, recipe: Recipe | None, workers: int, out: Path) -> dict[str, Any]:
    """What a pack took."""
    began = processor()
    result = pack(Job(source, "benchmark", recipe, 256 * 10**6, workers), out)
    totals = result.totals
    return {
        "videos": "original bytes" if recipe is None else f"gop {recipe.gop}",
        "workers": workers,
        "seconds": result.seconds,
        "processor_seconds": processor() - began,
        "items_per_second": totals.items / result.seconds,
        "megabytes_in_per_second": totals.bytes_in / result.seconds / 1e6,
        "times_real_time": totals.seconds / result.seconds,
        "bytes_in": totals.bytes_in,
        "bytes_out": totals.bytes_out,
    }


def times_from(part: float, clip: int, duration: float) -> np.ndarray:
    """A clip's 16 times: `part` of the way through the video, closer together in a short one."""
    step = min(4 / 30, duration / 17)
    return part * (duration - 16 * step) + np.arange(16) * step


def reading(source: Source, clips: int) -> float:
    """Milliseconds of the processor for a clip of 16 frames, 4 at 30 fps apart, from a random time."""
    rng = np.random.default_rng(0)
    took = 0.0
    for number in range(clips):
        part, media = rng.uniform(), source.media(number % len(source))
        began = time.process_time()
        read_clips(media, 1, functools.partial(times_from, part), lambda *frame: None)
        took += time.process_time() - began
    return 1000 * took / clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a few videos, to see that it works")
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    source: Source = scan(options.videos)
    if options.quick:
        source = source.part(range(min(6, len(source))))
    clips = 30 if options.quick else 400
    cores = len(os.sched_getaffinity(0))
    rows, recipes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for workers in sorted({1, cores}):
            for recipe in (None, Recipe(short_side=options.short_side)):
                rows.append(packed(source, recipe, workers, Path(folder) / f"{len(rows)}"))
        recipes.append({"recipe": "files as they are", "milliseconds_per_clip": reading(source, clips)})
        own = dict(encode.X264)
        for name, change in ENCODERS.items():
            encode.X264.update(own | change)
            for gop in (17,) if change else (9, 17, 25, 250):
                out = Path(folder) / f"{name} {gop}"
                # In this process: another one would not know what was changed here.
                row = packed(source, Recipe(short_side=options.short_side, gop=gop), 0, out)
                recipes.append(
                    {
                        "recipe": f"{name}, gop {gop}",
                        "processor_seconds_to_write": row["processor_seconds"],
                        "bytes": row["bytes_out"],
                        "milliseconds_per_clip": reading(Shards.open(out), clips),
                    }
                )
    report = {
        "command": shlex.join(["python", "benchmarks/packing.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {cores} cores",
        "versions": {"python": platform.python_version(), "av": av.__version__, "numpy": np.__version__},
        "videos": len(source),
        "load": os.getloadavg()[0],
        "packing": rows,
        "recipes": recipes,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "packing.json").write_text(json.dumps(report, indent=1) + "\n")
    page = as_page(report)
    (options.out / "packing.md").write_text(page)
    print(page)


def as_page(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        "# Packing: speed, and what writing videos anew gains",
        "",
        f"`{report['command']}`, {report['date']}, {report['machine']} (load {report['load']:.1f} at the end), PyAV "
        f"{report['versions']['av']}, {report['videos']} videos of {report['packing'][0]['bytes_in'] / 1e6:.1f} MB.",
        "",
        "| videos | workers | seconds | processor seconds | items/s | MB/s read | times real time | MB out |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['videos']} | {row['workers']} | {row['seconds']:.1f} | {row['processor_seconds']:.1f} | "
        f"{row['items_per_second']:.1f} | {row['megabytes_in_per_second']:.1f} | {row['times_real_time']:.1f} | "
        f"{row['bytes_out'] / 1e6:.1f} |"
        for row in report["packing"]
    ]
    lines += [
        "",
        "With original bytes, each video is opened and its first frame decoded; that, not copying, is what takes time.",
        "",
        "A clip is 16 frames, 4 nominal frames apart, from a random time; decoded and turned into RGB, neither cropped "
        "nor resized. Times are the processor's.",
        "",
        "| written as | seconds to write | MB | ms per clip |",
        "|---|---|---|---|",
    ]
    for row in report["recipes"]:
        write = f"{row['processor_seconds_to_write']:.1f}" if "bytes" in row else ""
        size = f"{row['bytes'] / 1e6:.2f}" if "bytes" in row else ""
        lines.append(f"| {row['recipe']} | {write} | {size} | {row['milliseconds_per_clip']:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
