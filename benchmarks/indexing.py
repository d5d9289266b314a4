"""How long it takes to know what there is: folders of many files, long lists, packs, and what they cost in memory.

    python benchmarks/indexing.py

Makes a folder of 100,000 empty files named like videos (an index asks for names alone), a list of 1,000,000 lines about
them, and the table of a pack of as many; opens each as `stmae pretrain` does and works out the order of a pass. Seconds
are the processor's and the clock's; memory is what the process takes more with the index in it. Writes indexing.md and
indexing.json to docs/results.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stmae.data.entries import Entries, EntriesBuilder, join
from stmae.data.frozen import load_index, save_index
from stmae.data.opening import open_source
from stmae.data.order import Order
from stmae.data.shards import Shards
from stmae.data.sources import Source, split

FOLDERS = 100  # class folders


def resident() -> float:
    """MiB of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def timed(what: str, count: int, work: Callable[[], Any], rows: list[dict[str, Any]]) -> Any:
    """What `work` returns; a row about what it took."""
    memory, clock, processor = resident(), time.perf_counter(), time.process_time()
    found = work()
    row = {
        "what": what,
        "entries": count,
        "seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - processor,
        "mib": resident() - memory,
    }
    rows.append(row)
    print(f"{what}: {row['seconds']:.2f} s", flush=True)
    return found


def make_files(folder: Path, count: int) -> list[str]:
    """Empty files in class folders; their names relative to the folder."""
    names = [f"class {i % FOLDERS:02d}/a video of some length {i:07d}.mp4" for i in range(count)]
    for name in names[:FOLDERS]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return names


def make_pack(folder: Path, names: list[str], count: int) -> Path:
    """The table of a pack of `count` videos."""
    rows = EntriesBuilder()
    for i, name in enumerate(names):
        rows.add(name=name, shard=f"shard-{i % 64:06d}.tar", offset=i, size=9, ending=".mp4", label=name[:8], crc=i)
    (folder / "index.safetensors").write_bytes(join([rows.build()] * -(-count // len(names))).to_bytes())
    return folder / "index.safetensors"


def measure(folder: Path, files: int, lines: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    names = make_files(folder / "videos", files)
    many = [names[i % files] for i in range(lines)]
    (folder / "list.txt").write_text("".join(f"{name} {i % FOLDERS}\n" for i, name in enumerate(many)))
    with open(folder / "list.jsonl", "w") as out:
        out.writelines(json.dumps({"video": name, "label": i % FOLDERS}) + "\n" for i, name in enumerate(many))
    pack = make_pack(folder, names, lines)
    del many

    def opened(place: Path) -> Source:
        return open_source(place, root=folder / "videos" if place.is_file() else None)

    index = timed("a folder is looked through", files, lambda: opened(folder / "videos"), rows)
    train, held = timed("its held-out files are chosen", files, lambda: split(index, 0.05), rows)
    timed("its index is frozen with the run", files, lambda: save_index(folder / "index.csv", train, held), rows)
    timed("and read again", files, lambda: load_index(folder / "index.csv"), rows)
    for name in ("list.txt", "list.jsonl"):
        listed = timed(
            f"a list ({name[4:]}) is read and its files looked for", lines, lambda n=name: opened(folder / n), rows
        )
        assert len(listed) == lines
    order = timed("the order of its first pass", lines, lambda: Order(listed, 0), rows)
    timed("and the first slot of it", lines, lambda: order.at(0), rows)
    packed = timed("the table of a pack is opened", lines, lambda: Shards(folder, Entries.open(pack)), rows)
    timed(
        "1,000 of its names, spread over it",
        1000,
        lambda: [packed.name(i) for i in range(0, lines, lines // 1000)],
        rows,
    )
    return rows


def page(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        "# Knowing what there is", "",
        f"`{report['command']}`, {report['date']}, {report['machine']}, Python {report['python']}, NumPy "
        f"{report['numpy']}; load {report['load']:.1f} at the end. Files are in the system's cache.", "",
        "| what | entries | seconds | processor seconds | MiB more |", "|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {row['what']} | {row['entries']:,} | {row['seconds']:.2f} | {row['processor_seconds']:.2f} | "
        f"{max(0.0, row['mib']):.0f} |"
        for row in report["rows"]
    ]
    lines += ["", "No file is opened. What of an index a worker process takes: tests/test_many_entries.py."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.files, options.lines)
    report = {
        "command": f"python benchmarks/indexing.py --files {options.files} --lines {options.lines}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load": os.getloadavg()[0],
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "indexing.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "indexing.md").write_text(page(report))
    print(page(report))


if __name__ == "__main__":
    main()
