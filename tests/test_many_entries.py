"""What a large index costs: the workers hold no object per entry, and their memory does not grow with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stmae.data.dataset import VideoClips
from stmae.data.index import Index
from stmae.data.loader import ClipLoader
from stmae.data.names import Names

ENTRIES = 200_000


def memory_of(pids: list[int]) -> tuple[float, float]:
    """MiB that are the processes' own, and MiB of shared memory, each page counted once."""
    totals = {"Pss_Anon:": 0, "Pss_Shmem:": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.split()[0] in totals:
                totals[line.split()[0]] += int(line.split()[1])
    return totals["Pss_Anon:"] / 1024, totals["Pss_Shmem:"] / 1024


def memory_of_workers(videos: Path, entries: int) -> tuple[float, float]:
    """Own and shared, after some batches of a list that names the same few videos again and again, by long paths."""
    names = [path.name for path in sorted(videos.iterdir())]
    index = Index(videos, Names.of("./" * 30 + names[i % len(names)] for i in range(entries)))
    clips = VideoClips(index, frames=2, stride=2, image_size=(16, 16), repeats=1, seed=0)
    with ClipLoader(clips, batch_size=8, workers=2) as loader:
        for _ in range(12):
            next(loader)
        return memory_of(loader.pids)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_do_not_grow_with_the_index(videos: Path) -> None:
    (few, _), (many, shared) = memory_of_workers(videos, 100), memory_of_workers(videos, ENTRIES)
    # As Python strings the names would take 25 MiB in each worker; packed they are 16 MiB for all.
    assert many - few < 3, (few, many)
    assert shared < 20


@pytest.mark.slow
def test_the_benchmark_of_large_indexes_runs(tmp_path: Path) -> None:
    command = ["benchmarks/indexing.py", "--files", "300", "--lines", "2000", "--out", str(tmp_path)]
    subprocess.run([sys.executable, *command], cwd=Path(__file__).parents[1], check=True, capture_output=True)
    report = json.loads((tmp_path / "indexing.json").read_text())
    assert [row["entries"] for row in report["rows"]] == [300] * 4 + [2000] * 5 + [1000]
    assert report["command"] in (tmp_path / "indexing.md").read_text()
