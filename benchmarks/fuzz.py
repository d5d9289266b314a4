"""Damaged files: does each end as frames or as a DecodeError, in bounded time and memory?

    python benchmarks/fuzz.py --videos DIR --mutations 5000 --seed 0

Reads every file under DIR as it is, then mutations of them: bits flipped, ends cut off, a head on another file's body,
holes and repeats, and headers that claim 30000 x 30000 pixels. Each is read as a training worker reads it (two random
clips of eight frames), in a process of its own kind, which is replaced when it dies, hangs or grows too large. A
mutation is a function of (seed, its number): `--only 1234` makes and reads number 1234 again, and `--keep FILE` keeps
it. What has been read is noted in the folder of --state, where the same command goes on. Writes docs/results/fuzz.md
and fuzz.csv (a row per outcome).
"""

from __future__ import annotations

import argparse
import collections
import csv
import datetime
import json
import os
import platform
import resource
import select
import shlex
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from stmae.data.clips import clip_key, clip_times, splitmix64, uniform
from stmae.data.container import DecodeError
from stmae.data.media import kind_of, read_clips

CLAIMED = 30_000  # pixels, by headers
KINDS = ("bits", "cut", "splice", "holes", "claim")
LARGE = 2**20  # KiB a file may add to the process's memory before it counts as unbounded (1 GiB)
FILES_PER_PROCESS = 100


# Mutations ----------------------------------------------------------------------------------------------------------


def mutate(number: int, seed: int, files: list[Path], sizes: dict[str, tuple[int, int]]) -> tuple[Path, str, bytes]:
    """File, kind and bytes of a mutation.

    Args:
        number: of the mutation.
        seed: of the whole.
        files: to choose from.
        sizes: width and height by file name, for headers that lie.
    """
    draws = (uniform(splitmix64(seed) ^ number, stream) for stream in range(10**6))
    path = files[int(next(draws) * len(files))]
    kind = KINDS[number % len(KINDS)]
    data = bytearray(path.read_bytes())
    if kind == "bits":
        # Half of them in the head, where little means much.
        for _ in range(1 + int(next(draws) ** 3 * 200)):
            reach = len(data) if next(draws) < 0.5 else min(len(data), 4096)
            data[int(next(draws) * reach)] ^= 1 << int(next(draws) * 8)
    elif kind == "cut":
        data = data[: int(next(draws) * len(data))]
    elif kind == "splice":
        other = files[int(next(draws) * len(files))].read_bytes()
        head = int(next(draws) ** 3 * len(data))
        data = data[:head] + other[int(next(draws) * len(other)) :]
    elif kind == "holes":
        for _ in range(1 + int(next(draws) * 8)):
            begin, length = int(next(draws) * len(data)), int(next(draws) ** 4 * len(data))
            choice = next(draws)
            if choice < 0.33:
                data[begin : begin + length] = b""
            elif choice < 0.66:
                data[begin : begin + length] = bytes(min(length, len(data) - begin))
            else:
                data[begin:begin] = data[: min(length, 2**20)]
    else:
        data = _claimed(data, *sizes.get(path.name, (0, 0)), both=next(draws) < 0.7)
    return path, kind, bytes(data)


def _claimed(data: bytearray, width: int, height: int, both: bool) -> bytearray:
    """With the picture's size, wherever it stands as two neighbouring numbers, replaced by 30000 x 30000."""
    new = (CLAIMED, CLAIMED if both else height)
    for form in (">HH", "<HH", ">II", "<II"):
        if 0 < max(width, height) < 2**15:
            old = struct.pack(form, width, height)
            if old.count(b"\0") < len(old) - 1:
                data = data.replace(old, struct.pack(form, *new), 8)
    if width and height:
        data = data.replace(struct.pack(">II", width << 16, height << 16), struct.pack(">II", *(n << 16 for n in new)))
        for old, name in ((width, b"\xb0"), (height, b"\xba")):  # Matroska's PixelWidth and PixelHeight
            data = data.replace(name + b"\x82" + struct.pack(">H", old), name + b"\x82" + struct.pack(">H", CLAIMED), 1)
    return data


def picture_sizes(files: list[Path]) -> dict[str, tuple[int, int]]:
    """Width and height by file name, as the sound file states them."""
    sizes = {}
    for path in files:
        try:
            with av.open(str(path), metadata_errors="replace") as container:
                video = container.streams.video[0]
                sizes[path.name] = (video.codec_context.width, video.codec_context.height)
        except Exception:
            continue
    return sizes


# The process that reads ---------------------------------------------------------------------------------------------


def read_file(path: Path) -> tuple[str, str]:
    """What becomes of a file, read as in training: (outcome, detail)."""
    got = set()

    def choose(clip: int, duration: float) -> np.ndarray:
        return clip_times(duration, 8, 4, clip_key(0, 0, 0, clip)).times

    try:
        reading = read_clips(path, 2, choose, lambda clip, position, _: got.add((clip, position)))
    except DecodeError as error:
        return "DecodeError", error.reason
    except Exception:
        return "other error", traceback.format_exc(limit=-3)
    if len(got) != 16:
        return "frames missing", f"{len(got)} of 16"
    return ("frames up to damage", reading.damage) if reading.damage else ("frames", "")


def serve(memory: int) -> None:
    """Reads files named on standard input; answers in lines of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        began = time.perf_counter()
        outcome, detail = read_file(Path(line.strip()))
        seconds = time.perf_counter() - began
        answer = {
            "outcome": outcome, "detail": detail, "seconds": seconds, "kib": max(0, _memory("VmHWM") - before),
            "resident": _memory("VmRSS"), "open": len(os.listdir("/proc/self/fd")),
        }  # fmt: skip
        print(json.dumps(answer), file=answers, flush=True)


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


class Reader:
    """A process that reads one file after another until one of them ends it."""

    def __init__(self, timeout: float, memory: int) -> None:
        self.timeout, self.memory = timeout, memory
        self._process: subprocess.Popen[str] | None = None
        self._files = 0

    def read(self, path: Path) -> dict[str, Any]:
        if self._process is None or self._files >= FILES_PER_PROCESS:
            self.close()
            command = [sys.executable, __file__, "--serve", str(self.memory)]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
            self._files = 0
            assert self._process.stdout is not None
            if self._process.stdout.readline() != "ready\n":
                sys.exit("a reading process cannot start: run the file with --serve 8 to see why")
        self._files += 1
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        began = time.perf_counter()
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], self.timeout)[0]:
            self.close()
            return {"outcome": "hang", "detail": f"more than {self.timeout:g} s", "seconds": self.timeout, "kib": 0}
        line = process.stdout.readline()
        if line:
            return json.loads(line)
        status = process.wait()
        self.close()
        detail = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return {"outcome": "crash", "detail": detail, "seconds": time.perf_counter() - began, "kib": 0}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


# The whole ----------------------------------------------------------------------------------------------------------


def run(files: list[Path], options: argparse.Namespace, state: Path) -> list[dict[str, Any]]:
    """A row per file and mutation; those in `state` are not read again."""
    known: dict[str, dict[str, Any]] = {}
    if state.exists():
        for line in state.read_text().splitlines():
            row = json.loads(line)
            known[row["case"]] = row
    sizes = picture_sizes(files)
    reader = Reader(options.timeout, options.memory << 30)
    rows = []
    with open(state, "a") as notes, tempfile.TemporaryDirectory() as folder:
        for case, make in cases(files, options, sizes):
            if case not in known:
                path, kind, data = make()
                place = Path(folder) / f"mutation{path.suffix}"
                place.write_bytes(data)
                row = {"case": case, "file": path.name, "kind": kind, **reader.read(place)}
                notes.write(json.dumps(row) + "\n")
                notes.flush()
                known[case] = row
                if len(known) % 100 == 0:
                    print(f"{len(known)} read", file=sys.stderr, flush=True)
            rows.append(known[case])
        reader.close()
    return rows


def cases(files: list[Path], options: argparse.Namespace, sizes: dict[str, tuple[int, int]]) -> Iterator[Any]:
    """Name of a case, and a function that makes it."""
    for path in files:
        yield f"as it is: {path.name}", lambda path=path: (path, "none", path.read_bytes())
    # What is hardly a video, or takes long, is read once, but not mutated.
    small = [path for path in files if 0 < path.stat().st_size <= options.largest << 20]
    for number in range(options.mutations):
        yield str(number), lambda number=number: mutate(number, options.seed, small, sizes)


def summary(rows: list[dict[str, Any]], files: list[Path], options: argparse.Namespace, command: str) -> str:
    """The page."""
    kinds = ("none", *KINDS)
    counts = collections.Counter((row["outcome"], row["kind"]) for row in rows)
    outcomes = sorted({row["outcome"] for row in rows}, key=lambda name: -sum(counts[name, kind] for kind in kinds))
    table = ["| outcome | as they are | " + " | ".join(KINDS) + " | all |", "|---" * (len(kinds) + 2) + "|"]
    for outcome in outcomes:
        numbers = [counts[outcome, kind] for kind in kinds]
        table.append(f"| {outcome} | " + " | ".join(map(str, [*numbers, sum(numbers)])) + " |")
    bad = [row for row in rows if row["outcome"] not in ("frames", "frames up to damage", "DecodeError")]
    large = [row for row in rows if row["kib"] > LARGE]
    slowest = sorted(rows, key=lambda row: -row["seconds"])[:5]
    largest = sorted(rows, key=lambda row: -row["kib"])[:5]
    most_open = max(row.get("open", 0) for row in rows)
    named = lambda row: f"{row['kind']} {row['case']}, {row['file']}"  # noqa: E731
    lines = [
        "# Damaged files", "",
        f"{len(files)} files as they are and {options.mutations} mutations of them, seed {options.seed}; "
        f"{datetime.date.today()}; Python {platform.python_version()}, PyAV {av.__version__}.", "",
        f"    {command}", "", *table, "",
        f"**{len(bad)}** ended otherwise than as frames or as a DecodeError; **{len(large)}** needed more than "
        f"{LARGE >> 10} MiB. Files open in the reading process at the end of any file: at most {most_open}.", "",
        "Slowest: " + "; ".join(f"{row['seconds']:.1f} s ({named(row)})" for row in slowest),
        "",
        "Most memory: " + "; ".join(f"{row['kib'] >> 10} MiB ({named(row)})" for row in largest),
        "",
    ]  # fmt: skip
    if bad or large:
        lines += ["To see one again: the same command with `--only NUMBER`.", ""]
        lines += [f"- {named(row)}: {row['outcome']}: {row['detail']}" for row in bad]
        lines += [f"- {named(row)}: {row['kib'] >> 10} MiB" for row in large]
        lines += [""]
    reasons = collections.Counter(row["detail"].split(":")[0] for row in rows if row["outcome"] == "DecodeError")
    lines += [
        "Reasons of DecodeErrors, up to the colon: " + "; ".join(f"{n} {text}" for text, n in reasons.most_common(12))
    ]
    return "\n".join(lines).rstrip() + "\n"


def write_counts(path: Path, rows: list[dict[str, Any]]) -> None:
    """A row per outcome, kind and reason."""
    counts = collections.Counter((row["kind"], row["outcome"], " ".join(row["detail"].split())[:120]) for row in rows)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kind", "outcome", "detail", "count"))
        writer.writerows((*what, count) for what, count in sorted(counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="+", help="folders of sound and broken videos")
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one file")
    parser.add_argument("--memory", type=int, default=8, help="GiB of address space of the reading process")
    parser.add_argument("--largest", type=int, default=2, help="MiB: larger files are read, but not mutated")
    parser.add_argument("--state", type=Path, default=Path("build/fuzz"), help="folder for what has been read")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--only", type=int, help="number of one mutation to read")
    parser.add_argument("--keep", type=Path, help="with --only: where to write it")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    files = sorted(
        (path for folder in options.videos for path in folder.rglob("*") if kind_of(path.name) == "video"),
        key=lambda path: path.name,
    )
    if options.only is not None:
        small = [path for path in files if 0 < path.stat().st_size <= options.largest << 20]
        path, kind, data = mutate(options.only, options.seed, small, picture_sizes(files))
        with tempfile.TemporaryDirectory() as folder:
            place = options.keep or Path(folder) / f"mutation{path.suffix}"
            place.write_bytes(data)
            reader = Reader(options.timeout, options.memory << 30)
            print(path.name, kind, json.dumps(reader.read(place), indent=1))
            reader.close()
        return
    options.state.mkdir(parents=True, exist_ok=True)
    rows = run(files, options, options.state / f"seed-{options.seed}.jsonl")
    shown = " ".join(["python", "benchmarks/fuzz.py", "--videos DIR", *map(shlex.quote, _flags(options))])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "fuzz.md").write_text(summary(rows, files, options, shown))
    write_counts(options.out / "fuzz.csv", rows)
    print((options.out / "fuzz.md").read_text())


def _flags(options: argparse.Namespace) -> list[str]:
    return ["--mutations", str(options.mutations), "--seed", str(options.seed)]


if __name__ == "__main__":
    main()
