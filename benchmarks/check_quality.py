"""How well `stmae check` finds copies, still videos and hard cuts, and how often it is wrong, on videos of yours.

    python benchmarks/check_quality.py --videos DIR

Copies are made of a sample of the videos in six ways, stills of their first frames, and cuts by joining two of them.
What is reported among the videos themselves is counted by folder; some of it may be true. With --truth, a CSV of pairs
(columns first, second: paths in DIR) that share footage, the share of these that is found is told too; with --scenes, a
CSV that says which camera's view a video shows (columns path, scene), what else is reported.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import json
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from stmae.data.copies import SAME_MOTION, Pair, find_copies
from stmae.data.encode import X264, Recipe
from stmae.data.media import Media
from stmae.data.processes import Lost, each
from stmae.data.sources import Index, scan
from stmae.data.survey import STATIC, Facts, survey
from stmae.data.synthetic import write_video

Frames = list[np.ndarray]
SECONDS = 10  # of a video that is copied, at most
FLAGS = ("duplicate", "alike")


def x264(crf: int, gop: int = 250) -> dict[str, str]:
    return {"preset": "veryfast", "crf": str(crf), "g": str(gop), "threads": "1"}


def shrunk(frames: Frames, height: int, width: int) -> Frames:
    made = (av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames)
    return [frame.to_ndarray(width=max(16, width), height=max(16, height), format="rgb24") for frame in made]


def cropped(frames: Frames, share: float) -> Frames:
    height, width = frames[0].shape[:2]
    top, left = int(height * share), int(width * share)
    return [even(frame[top : height - top, left : width - left]) for frame in frames]


def even(frame: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])


# name -> (frames, rate) -> (frames, rate, ending, codec, options)
COPIES: dict[str, Callable[[Frames, Fraction], tuple[Frames, Fraction, str, str, dict[str, str]]]] = {
    "half the size, low quality, MKV": lambda f, r: (
        shrunk(f, f[0].shape[0] // 4 * 2, f[0].shape[1] // 4 * 2), r, ".mkv", "libx264", x264(34)),
    "MPEG-4 in AVI": lambda f, r: (f, r, ".avi", "mpeg4", {"qscale": "8", "flags": "+qscale", "threads": "1"}),
    "cropped by 5 % on each side": lambda f, r: (cropped(f, 0.05), r, ".mp4", "libx264", x264(26)),
    "stretched to 160 x 160": lambda f, r: (shrunk(f, 160, 160), r, ".mp4", "libx264", x264(26)),
    "half the frame rate": lambda f, r: (f[::2], r / 2, ".mp4", "libx264", x264(26)),
    "the part from 30 % to 80 %": lambda f, r: (
        f[len(f) * 3 // 10 : len(f) * 8 // 10], r, ".mp4", "libx264", x264(26)),
}  # fmt: skip


def read(path: Path) -> tuple[Frames, Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or 25).limit_denominator(1001)
        frames = itertools.islice(container.decode(stream), int(rate * SECONDS))
        return [even(frame.to_ndarray(format="rgb24")) for frame in frames], rate


def look_at(paths: Sequence[Path], workers: int) -> list[Facts]:
    found: list[Any] = [None] * len(paths)
    for number, facts in each(survey, [Media.of(path) for path in paths], workers, 120.0):
        found[number] = Facts(reason=facts.reason) if isinstance(facts, Lost) else facts
    return found


def main() -> None:
    options = arguments()
    index = scan(options.videos)
    names = list(index.paths)
    rng = random.Random(0)
    began = time.perf_counter()
    facts = look_at([index.root / name for name in names], options.workers)
    seconds = time.perf_counter() - began
    readable = [i for i, found in enumerate(facts) if not found.reason]
    sample = rng.sample([i for i in readable if facts[i].frames >= 4], min(options.sample, len(readable)))
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "command": f"python benchmarks/check_quality.py --videos DIR --sample {options.sample}",
            "date": datetime.date.today().isoformat(),
            "videos": len(names),
            "readable": len(readable),
            "hours": sum(facts[i].duration for i in readable) / 3600,
            "look": {"seconds": seconds, "workers": options.workers},
            "sample": len(sample),
            **measure_copies(index, facts, sample, Path(folder), options),
            "stills": measure_stills(index, facts, sample, Path(folder), options.workers),
            "cuts": measure_cuts(index, facts, sample, Path(folder), options.workers),
            "packed": measure_packed(index, sample, Path(folder)),
        }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "check.md").write_text(page(report), encoding="utf-8")
    print(page(report))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--truth", type=Path, help="CSV of pairs that share footage: first, second")
    parser.add_argument("--scenes", type=Path, help="CSV of the scene that each video shows: path, scene")
    parser.add_argument("--sample", type=int, default=80, help="videos that are copied")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    return parser.parse_args()


def measure_copies(
    index: Index, facts: list[Facts], sample: list[int], folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Shares of the copies found, by kind, and all that is reported among the videos themselves."""
    made: list[tuple[Path, int, str]] = []
    for number in sample:
        frames, rate = read(index.path(number))
        for kind, change in COPIES.items():
            copy, new_rate, ending, codec, coding = change(frames, rate)
            path = folder / f"{len(made)}{ending}"
            write_video(path, iter(copy), new_rate, codec=codec, options=coding)
            made.append((path, number, kind))
    theirs = look_at([path for path, _, _ in made], options.workers)
    tracks = [found.track for found in facts]
    began = time.perf_counter()
    among = find_copies(tracks)
    seconds = time.perf_counter() - began
    pairs = {(pair.first, pair.second): pair for pair in find_copies(tracks, [found.track for found in theirs])}
    rows: dict[str, dict[str, list[bool]]] = defaultdict(lambda: {"all": [], "sure": [], "long": []})
    for place, (_, number, kind) in enumerate(made):
        hit = (number, place) in pairs
        rows[kind]["all"].append(hit)
        rows[kind]["sure"].append(hit and pairs[number, place].sure)
        # Half of it must still be a second for the copy that is a part.
        if facts[number].duration >= 2:
            rows[kind]["long"].append(hit)
    groups: dict[str, int] = defaultdict(int)
    for pair in among:
        groups[" and ".join(sorted({index.paths[n].split("/")[0] for n in (pair.first, pair.second)}))] += 1
    count = sum(found.track is not None for found in facts)
    truth: dict[str, Any] | None = None
    known = known_pairs(index, options.truth) if options.truth else set()
    if options.truth:
        truth = {"pairs": len(known), "found": len(known & {(pair.first, pair.second) for pair in among})}
    return {
        "copies": {kind: {name: [sum(hits), len(hits)] for name, hits in row.items()} for kind, row in rows.items()},
        "among": {
            "pairs_possible": count * (count - 1) // 2,
            "reported": len(among),
            "by_folder": dict(groups),
            "by_truth": judged(index, among, known, options.scenes) if options.scenes else None,
            "search_seconds": seconds,
        },
        "truth": truth,
    }


def known_pairs(index: Index, path: Path) -> set[tuple[int, int]]:
    """The numbers of the videos that share footage, the smaller one first."""
    number_of = {name: i for i, name in enumerate(index.paths)}
    with open(path, encoding="utf-8") as file:
        pairs = [sorted((number_of[row["first"]], number_of[row["second"]])) for row in csv.DictReader(file)]
    return {(first, second) for first, second in pairs}


def judged(index: Index, among: Sequence[Pair], known: set[tuple[int, int]], scenes: Path) -> dict[str, dict[str, int]]:
    """How many of the pairs reported are what, by what `stmae check` calls them."""
    with open(scenes, encoding="utf-8") as file:
        scene_of = {row["path"]: row["scene"] for row in csv.DictReader(file)}
    counts = {flag: dict.fromkeys(("the same footage", "one scene", "two scenes", "unknown"), 0) for flag in FLAGS}
    for pair in among:
        first, second = (scene_of.get(index.paths[n]) for n in (pair.first, pair.second))
        if (pair.first, pair.second) in known:
            what = "the same footage"
        elif first is None or second is None:
            what = "unknown"
        else:
            what = "one scene" if first == second else "two scenes"
        counts[FLAGS[0] if pair.sure else FLAGS[1]][what] += 1
    return counts


def measure_stills(index: Index, facts: list[Facts], sample: list[int], folder: Path, workers: int) -> dict[str, Any]:
    """Shares of stills, encoded in several ways, that are called static, and of the videos themselves."""
    codings: dict[str, tuple[str, str, dict[str, str]]] = {
        "H.264, crf 18": (".mp4", "libx264", x264(18)),
        "H.264, crf 28, a key frame each half second": (".mp4", "libx264", x264(28, 12)),
        "H.264, crf 36": (".mp4", "libx264", x264(36)),
        "MPEG-4": (".avi", "mpeg4", {"qscale": "6", "flags": "+qscale", "threads": "1"}),
        "VP8, 200 kbit/s": (".webm", "libvpx", {"b": "200k", "deadline": "realtime", "cpu-used": "8", "threads": "1"}),
    }
    found: dict[str, list[int]] = {}
    for kind, (ending, codec, coding) in codings.items():
        paths = []
        for number in sample[:40]:
            frames, _ = read(index.path(number))
            paths.append(folder / f"still-{number}{ending}")
            write_video(paths[-1], iter(frames[:1] * 48), 24, codec=codec, options=coding)
        called = [facts.motion <= STATIC for facts in look_at(paths, workers)]
        found[kind] = [sum(called), len(called)]
    real = [index.paths[i] for i, each in enumerate(facts) if each.track is not None and each.motion <= STATIC]
    return {"stills": found, "videos": [len(real), sum(f.track is not None for f in facts)], "called": real[:20]}


def measure_cuts(index: Index, facts: list[Facts], sample: list[int], folder: Path, workers: int) -> dict[str, Any]:
    """Joins pairs of videos that have no cut of their own; counts the joints found, and other cuts found in them."""
    uncut = [number for number in sample if not facts[number].cuts]
    paths, joints = [], []
    for place, (first, second) in enumerate(zip(uncut[::2], uncut[1::2], strict=False)):
        ours, rate = read(index.path(first))
        theirs, _ = read(index.path(second))
        height, width = ours[0].shape[:2]
        theirs = shrunk(theirs, height, width)
        paths.append(folder / f"joined-{place}.mp4")
        write_video(paths[-1], iter([even(frame) for frame in ours + theirs]), rate, options=x264(26))
        joints.append(len(ours) / float(rate))
    right = wrong = 0
    for joint, found in zip(joints, look_at(paths, workers), strict=True):
        near = [abs(cut - joint) < 0.1 for cut in found.cuts]
        right += any(near)
        wrong += near.count(False)
    called = {index.paths[i]: each.cuts for i, each in enumerate(facts) if each.cuts}
    return {
        "joints": [right, len(joints)],
        "elsewhere": wrong,
        "videos": [len(called), sum(each.track is not None for each in facts)],
        "called": {name: [round(cut, 2) for cut in cuts[:5]] for name, cuts in list(called.items())[:40]},
    }


def measure_packed(index: Index, sample: list[int], folder: Path) -> dict[str, float]:
    """Bytes that a second of video takes as `stmae pack` writes it, at a short side of 256 pixels."""
    size = seconds = 0.0
    for number in sample:
        frames, rate = read(index.path(number))
        scale = 256 / min(frames[0].shape[:2])
        height, width = (2 * round(scale * side / 2) for side in frames[0].shape[:2])
        path = folder / "packed.mp4"
        coding = X264 | {"g": str(Recipe.gop), "crf": str(Recipe.quality)}
        write_video(path, iter(shrunk(frames, height, width)), rate, options=coding)
        size += path.stat().st_size
        seconds += len(frames) / float(rate)
    return {"bytes_per_second": size / seconds, "seconds": seconds}


def by_truth(counts: dict[str, dict[str, int]] | None) -> list[str]:
    """A table of what the pairs reported are."""
    if counts is None:
        return []
    kinds = list(next(iter(counts.values())))
    lines = [f"| called | {' | '.join(kinds)} |", "| --- " * (len(kinds) + 1) + "|"]
    return [
        *lines,
        *(f"| {flag} | {' | '.join(str(row[kind]) for kind in kinds)} |" for flag, row in counts.items()),
        "",
    ]


def page(report: dict[str, Any]) -> str:
    """The report as a page."""

    def share(pair: list[int]) -> str:
        return f"{pair[0]} of {pair[1]}" + (f" ({pair[0] / pair[1]:.0%})" if pair[1] else "")

    look, among, stills, cuts = report["look"], report["among"], report["stills"], report["cuts"]
    lines = [
        "# What `stmae check` finds",
        "",
        f"{report['videos']} videos, {report['readable']} readable, {report['hours']:.2f} hours; {report['date']}.",
        f"Looking at them took {look['seconds']:.0f} s in {look['workers']} processes, the search for copies"
        f" {among['search_seconds']:.0f} s.",
        "",
        f"    {report['command']}",
        "",
        f"Copies of {report['sample']} of the videos (scores above {SAME_MOTION}):",
        "",
        "| copy | found | called duplicate, not alike | found of videos of 2 s or more |",
        "| --- | --- | --- | --- |",
        *(
            f"| {kind} | {share(row['all'])} | {share(row['sure'])} | {share(row['long'])} |"
            for kind, row in report["copies"].items()
        ),
        "",
        f"Among the videos themselves {among['reported']} of {among['pairs_possible']:,} pairs are reported:",
        "",
        "| folders | pairs |",
        "| --- | --- |",
        *(f"| {names} | {count} |" for names, count in sorted(among["by_folder"].items())),
        "",
        *by_truth(among["by_truth"]),
        *([f"Of the pairs known to share footage {share([report['truth']['found'], report['truth']['pairs']])} are"
           " found.", ""] if report["truth"] else []),
        f"Stills (the first frame for 2 s) that are called static (a change of at most {STATIC:g} grey levels):",
        "",
        "| coding | called static |",
        "| --- | --- |",
        *(f"| {kind} | {share(pair)} |" for kind, pair in stills["stills"].items()),
        "",
        f"Of the videos themselves: {share(stills['videos'])}.",
        "",
        f"Hard cuts: {share(cuts['joints'])} joints of two videos are found, with {cuts['elsewhere']} reported"
        f" elsewhere in them; of the videos themselves {share(cuts['videos'])} have some.",
        "",
        f"A second of packed video (short side 256, the rest as `stmae pack` does by itself) takes"
        f" {report['packed']['bytes_per_second'] / 1000:.1f} kB ({report['packed']['seconds']:.0f} s of the sample).",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
