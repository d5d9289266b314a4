"""What loading costs: clips per second and core, from a folder and from shards, beside other ways to the same frames.

    python benchmarks/loading.py --videos footage/

All sides take the same frames of the same videos (10 s, short side 256, H.264), cut out the same boxes and give the
same 16 x 224 x 224 clips. They take turns within one run, so that whatever else the machine does hits all of them. One
process and one thread each: "clips/s per core" counts the CPU time of the whole process, with whatever threads a
library starts.
"""

from __future__ import annotations

import argparse
import cProfile
import datetime
import json
import os
import platform
import pstats
import random
import re
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import torch
from loading_clips import make_clips
from loading_sides import FRAMES, SIZE, STRIDE, Job, bare, jobs_of, ours, peers, whole
from torch import Tensor

from stmae.data.dataset import VideoClips
from stmae.data.loader import ClipLoader
from stmae.data.shards import Shards
from stmae.data.sources import scan

KINDS = {"plain": "As x264 makes them", "packed": "As `stmae pack` writes them"}
REPEATS = (1, 4)  # clips from one opening of a video
NEEDED = 800  # clips/s of one large GPU, in the null consumer's plan
LIMIT = "PyAV, same frames: decode, RGB, crop, resize"
BEFORE = "PyAV, whole video, the file before packing"
Side = Callable[[Job], Tensor | None]


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        began = time.perf_counter()
        root = Path(folder)
        make_clips(root, count=args.count, frames=args.frames, footage=args.videos)
        print(f"{args.count} videos, made and packed in {time.perf_counter() - began:.0f} s", flush=True)
        others, notes = peers()
        tables = {
            f"{kind}, {repeats}": compare(root, kind, args, repeats, others) for kind in KINDS for repeats in REPEATS
        }
        shares = {str(repeats): where_time_goes(clip_stream(root / "shards", repeats)) for repeats in REPEATS}
        fed = {str(repeats): feed(root / "shards", args, repeats) for repeats in REPEATS}
        sizes = {kind: statistics.mean(path.stat().st_size for path in (root / kind).iterdir()) for kind in KINDS}
    report = {
        "command": shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "device": device_name(),
        "versions": {"python": platform.python_version()} | versions(),
        "videos": "real footage" if args.videos else "moving textures",
        "count": args.count,
        "seconds": args.frames / 30,
        "bits_per_frame": {kind: round(8 * size / args.frames) for kind, size in sizes.items()},
        "rounds": args.rounds,
        "notes": notes,
        "tables": tables,
        "shares": shares,
        "fed": fed,
        "needed": NEEDED,
    }
    text = markdown(report)
    print("\n" + text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "loading-cpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "loading-cpu.md").write_text(text)
    print(f"written to {args.out}/loading-cpu.json and .md")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, help="folder of real footage; without it moving textures are drawn")
    parser.add_argument("--count", type=int, default=8, help="videos")
    parser.add_argument("--frames", type=int, default=300, help="of a video, at 30 fps")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1], help="of the loader")
    parser.add_argument("--batches", type=int, default=24, help="pulled by the null consumer")
    parser.add_argument("--scratch", type=Path, help="where the videos are made; by default the system's place")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it works; the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "results")
    args = parser.parse_args()
    if args.quick:
        args.count, args.frames, args.rounds, args.batches, args.workers = 2, 90, 2, 2, [1]
    return args


def clip_stream(folder: Path, repeats: int) -> VideoClips:
    source = Shards.open(folder) if folder.name == "shards" else scan(folder)
    return VideoClips(source, frames=FRAMES, stride=STRIDE, image_size=(SIZE, SIZE), repeats=repeats, seed=0, flip=True)


def compare(
    root: Path, kind: str, args: argparse.Namespace, repeats: int, others: dict[str, Side]
) -> list[dict[str, Any]]:
    """One row a side; sides take turns over the rounds. The first row is what the gains refer to."""
    dataset = clip_stream(root / kind, repeats)
    jobs = jobs_of(dataset, args.count)
    sides: dict[str, Side] = {"stmae, shards": ours(clip_stream(root / "shards", repeats))} if kind == "packed" else {}
    sides |= {
        "stmae, folder": ours(dataset),
        "PyAV, same frames: decode only": bare(pixels=False, skipping=False),
        "PyAV, same frames: decode only, skipping": bare(pixels=False, skipping=True),
        LIMIT: bare(pixels=True, skipping=False),
        f"{LIMIT}, skipping": bare(pixels=True, skipping=True),
        **others,
        "PyAV, whole video": whole,
    }
    if kind == "packed":
        before = dict(zip(sorted((root / kind).iterdir()), sorted((root / "plain").iterdir()), strict=True))
        sides[BEFORE] = lambda job: whole(job, before[job.path])
    check_equal(sides, jobs)
    first = next(iter(sides))
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    wall: dict[str, list[float]] = {side: [] for side in sides}
    for round_ in range(args.rounds):
        # A new order in each round: a side leaves its successor warm or cold caches.
        for name in random.Random(round_).sample(list(sides), len(sides)):
            begun, started = cpu_seconds(), time.perf_counter()
            for job in jobs:
                sides[name](job)
            cpu[name].append((cpu_seconds() - begun) / len(jobs) / repeats)
            wall[name].append((time.perf_counter() - started) / len(jobs) / repeats)
        print(f"{kind}, repeats {repeats}: round {round_ + 1} of {args.rounds}", flush=True)
    return [
        {
            "side": name,
            "clips_per_second": 1 / statistics.median(cpu[name]),
            "slowest": 1 / max(cpu[name]),
            "fastest": 1 / min(cpu[name]),
            "wall_clips_per_second": 1 / statistics.median(wall[name]),
            # How many times as fast ours is, round by round.
            "gain": statistics.median(t / own for t, own in zip(cpu[name], cpu[first], strict=True)),
            "cpu_seconds": cpu[name],
        }
        for name in sides
    ]


def check_equal(sides: dict[str, Side], jobs: list[Job]) -> None:
    """All sides show the same; other libraries convert and resize a little differently, and packing loses a little."""
    for name, side in sides.items():
        for job in jobs[:2]:
            given, expected = side(job), sides["stmae, folder"](job)
            if given is not None:
                assert expected is not None
                difference = (given.float() - expected.float()).abs().mean().item()
                exact = name.startswith(("stmae", "PyAV")) and name != BEFORE
                assert difference < (1e-3 if exact else 5), f"{name} gives other pictures: {difference}"


def where_time_goes(dataset: VideoClips) -> dict[str, float]:
    """Milliseconds of CPU time per clip and part of the work, by a profile.

    The parts are calls into libraries; a profiler slows Python code down, so Python's own share is what is left of an
    unprofiled run.
    """
    parts = {
        "open and read the header": r"container\.core\.open",
        "seek": r"'seek' of",
        "read packets": r"builtins\.next|'demux'|__next__",
        "decode": r"'decode' of",
        "convert to RGB": r"to_ndarray|'reformat'",
        "resize": r"upsample",
        "copy pixels": r"'(clone|copy_|contiguous|flip)' of|copyto|'permute'|from_numpy",
    }
    slots = range(3 * len(dataset))
    count = len(slots) * dataset.repeats
    begun = cpu_seconds()
    for slot in slots:
        dataset[slot]
    total = (cpu_seconds() - begun) / count * 1e3
    profile = cProfile.Profile(time.process_time)
    profile.enable()
    for slot in slots:
        dataset[slot]
    profile.disable()
    found = dict.fromkeys(parts, 0.0)
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if file != "~" and not file.endswith(".pyx"):
            continue
        for part, pattern in parts.items():
            if re.search(pattern, name):
                found[part] += own / count * 1e3
                break
    return {**found, "Python and the rest": total - sum(found.values()), "total": total}


def feed(folder: Path, args: argparse.Namespace, repeats: int) -> list[dict[str, float]]:
    """Batches pulled through the loader by a consumer that does nothing with them."""
    rows = []
    for workers in args.workers:
        with ClipLoader(clip_stream(folder, repeats), batch_size=8 * repeats, workers=workers) as loader:
            next(loader)  # the workers have started
            next(loader)
            begun, started = cpu_seconds(), time.perf_counter()
            for _ in range(args.batches):
                next(loader)
            wall, own = time.perf_counter() - started, cpu_seconds() - begun
        clips = args.batches * 8 * repeats
        rate = clips / wall
        cores = min(workers, os.cpu_count() or workers)
        rows.append(
            {
                "workers": workers,
                "clips_per_second": rate,
                "per_core": rate / cores,
                "main_process_ms": own / clips * 1e3,
                "cores_needed": NEEDED * cores / rate,
            }
        )
        print(f"loader, repeats {repeats}, {workers} workers: {rate:.1f} clips/s", flush=True)
    return rows


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "av": av.__version__}
    libraries = ".".join(map(str, av.library_versions["libavcodec"]))
    found["libavcodec"] = libraries
    for name in ("decord", "opencv-python-headless", "opencv-python"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return f"{found[1].strip() if found else platform.processor() or platform.machine()} CPU, {os.cpu_count()} cores"


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    named = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    bits = ", ".join(f"{kind} {bits:,}" for kind, bits in report["bits_per_frame"].items())
    lines = [
        "# What loading costs",
        "",
        f"{report['device']}; {report['date']}; {named}.",
        "",
        f"    {report['command']}",
        "",
        f"{report['count']} videos ({report['videos']}) of {report['seconds']:.0f} s, short side 256, 30 fps, "
        f"H.264; bits per frame: {bits}. Clips of {FRAMES} x {SIZE} x {SIZE}, stride {STRIDE}. "
        f"Medians of {report['rounds']} rounds.",
        "",
    ]
    for title, rows in report["tables"].items():
        kind, repeats = title.split(", ")
        lines += [
            f"## {KINDS[kind]}, {repeats} clip{'s' * (repeats != '1')} per video",
            "",
            f"| side | clips/s per core (slowest to fastest) | wall clock | its time / {rows[0]['side']}'s |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {row['side']} | {row['clips_per_second']:.1f} ({row['slowest']:.1f} to {row['fastest']:.1f}) "
            f"| {row['wall_clips_per_second']:.1f} | {row['gain']:.2f} |"
            for row in rows
        ]
        lines.append("")
    lines += ["## Where a core's time goes", "", "From shards, ms of CPU time per clip.", ""]
    lines += [f"| part | {' | '.join(f'repeats {repeats}' for repeats in report['shares'])} |", "| --- | --- | --- |"]
    for part in next(iter(report["shares"].values())):
        cells = [f"{shares[part]:.2f} ({shares[part] / shares['total']:.0%})" for shares in report["shares"].values()]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    lines += [
        "",
        f"## Feeding {report['needed']} clips/s",
        "",
        "A consumer pulls batches of 8 videos from the loader and does nothing with them. Cores needed: of workers, if "
        "more cores bring as much each as these did. The main process gathers the batches, by one thread in ordinary "
        "memory: what that lets through bounds what one process can be fed with.",
        "",
        f"| repeats | workers | clips/s | per core | main process, ms a clip | lets through, clips/s "
        f"| cores for {report['needed']} clips/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for repeats, rows in report["fed"].items():
        lines += [
            f"| {repeats} | {row['workers']} | {row['clips_per_second']:.1f} | {row['per_core']:.1f} "
            f"| {row['main_process_ms']:.2f} | {1000 / row['main_process_ms']:,.0f} | {row['cores_needed']:.0f} |"
            for row in rows
        ]
    lines += ["", *report["notes"], *([""] if report["notes"] else []), ABOUT]
    return "\n".join(lines) + "\n"


ABOUT = """\
"clips/s per core" is clips by CPU time, of all threads of the process. "Same frames" loops are told beforehand where
the key frames are and which frames are wanted; "skipping" ones also which frames no other refers to, and leave these
out where they are not wanted, as stmae does. decord: `get_batch` of the wanted frames; OpenCV: a seek to the key frame
before, `grab` up to a wanted frame, `retrieve` only there, `cv2.resize`. "Whole video": every frame decoded and
converted, as mae_st does in pre-training. Videos "as x264 makes them": preset medium, crf 23."""


if __name__ == "__main__":
    main()
