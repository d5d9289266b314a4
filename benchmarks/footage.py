"""Real footage for experiments: decoded once to a memory map, clustered by common sources, split by cluster.

Footage is any folder of videos, or "synthetic" (made on the spot). Videos that show the same footage or stem from one
source form a cluster, and clusters are split into train, val and test (47/10/43) before anything else.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmae.data.container import DecodeError
from stmae.data.copies import find_copies
from stmae.data.sources import scan
from stmae.data.synthetic import write_videos
from stmae.data.tracks import SIDE, Track, make_track
from stmae.data.video import Reading, every_frame

FRAME = 128  # pixels: height and width
SHORTEST, LONGEST = 16, 128  # frames of a video: fewer are too few, more are not used
SHARES = {"train": 0.47, "val": 0.1, "test": 0.43}
SAME_PLACE = 0.85  # correlation of two videos' median pictures from which on they are taken for one camera's
SCHEMA = 2
KNOWN_SOURCES = Path(__file__).with_name("footage_sources.csv")  # of public videos, by hand


@dataclass(frozen=True)
class Footage:
    """Decoded videos.

    Attributes:
        frames: uint8 (F, FRAME, FRAME, 3), a memory map; each video's frames lie together.
        names: of the videos.
        firsts, counts: of each video's frames in `frames`.
        clusters: the number of each video's cluster.
        parts: "train", "val" or "test" for each cluster.
        identity: a hash of all of that.
    """

    frames: np.ndarray
    names: list[str]
    firsts: np.ndarray
    counts: np.ndarray
    clusters: np.ndarray
    parts: list[str]
    identity: str

    def videos(self, part: str) -> np.ndarray:
        """The numbers of a part's videos; "all" for all."""
        return np.array([v for v, c in enumerate(self.clusters) if part in ("all", self.parts[c])], np.int64)

    def summary(self) -> dict[str, Any]:
        """What there is, in numbers, and the hash."""
        parts = {p: {"clusters": self.parts.count(p), "videos": len(self.videos(p))} for p in SHARES}
        return {"identity": self.identity, "videos": len(self.names), "frames": int(self.counts.sum()), **parts}


def prepare(footage: Sequence[str], work: Path, *, synthetic: int = 120, say: Callable[[str], None] = print) -> Footage:
    """Decodes footage, once: what is in `work` already is taken from there.

    Args:
        footage: folders of videos (a CSV in one may tell sources: see `_stated_sources`), or "synthetic".
        work: folder for what is decoded, about 50 kB a frame.
        synthetic: number of generated videos.
    """
    key = hashlib.sha256(json.dumps([SCHEMA, synthetic, *map(str, footage)]).encode()).hexdigest()[:12]
    folder = work / f"footage-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes, one decodes
        if not (folder / "index.json").exists():
            _decode(_folders(footage, folder, synthetic, say), folder, say)
    index = json.loads((folder / "index.json").read_text())
    count = sum(index["counts"])
    frames = np.memmap(folder / "frames.bin", np.uint8, "r", shape=(count, FRAME, FRAME, 3))
    counts = np.array(index["counts"])
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    clusters = np.array(index["clusters"])
    identity = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()[:16]
    return Footage(frames, index["names"], firsts, counts, clusters, split_clusters(clusters), identity)


def _folders(footage: Sequence[str], folder: Path, synthetic: int, say: Callable[[str], None]) -> list[Path]:
    folders = []
    for place in footage:
        if place == "synthetic":
            say(f"making {synthetic} videos ...")
            write_videos(folder / "videos", count=synthetic, seed=20, seconds=(2.0, 4.0))
            place = str(folder / "videos")
        folders.append(Path(place))
    return folders


def _decode(folders: Sequence[Path], out: Path, say: Callable[[str], None]) -> None:
    names: list[str] = []
    times: list[list[float]] = []
    sources: list[str | None] = []
    with open(out / "frames.part", "wb") as file:
        for folder in folders:
            index, stated = scan(folder, ["videos"]), _stated_sources(folder)
            for item in range(len(index)):
                found = _read(index.path(item))
                if found is None:
                    say(f"left out, unreadable or shorter than {SHORTEST} frames: {index.name(item)}")
                    continue
                file.write(found[0].tobytes())
                names.append(f"{folder.name}/{index.name(item)}")
                times.append(found[1].round(4).tolist())
                sources.append(stated.get(index.name(item)))
                if len(names) % 50 == 0:
                    say(f"{len(names)} videos decoded")
    (out / "frames.part").rename(out / "frames.bin")
    counts = list(map(len, times))
    frames = np.memmap(out / "frames.bin", np.uint8, "r", shape=(sum(counts), FRAME, FRAME, 3))
    clusters = cluster(*_looks(frames, times), sources)
    digest = hashlib.sha256(frames).hexdigest()
    (out / "index.part").write_text(
        json.dumps({"names": names, "counts": counts, "clusters": clusters, "sha256": digest})
    )
    (out / "index.part").rename(out / "index.json")


def _looks(frames: np.ndarray, times: Sequence[Sequence[float]]) -> tuple[list[Track], list[np.ndarray]]:
    """What each video shows over time, and its median picture (SIDE, SIDE, 3)."""
    tracks, medians, first = [], [], 0
    for own in times:
        part = frames[first : first + len(own)].reshape(len(own), SIDE, FRAME // SIDE, SIDE, FRAME // SIDE, 3)
        small = part.mean(axis=(2, 4), dtype=np.float32)
        tracks.append(make_track(np.append(own, 2 * own[-1] - own[-2]), small.mean(axis=3).astype(np.uint8)))
        medians.append(np.median(small, axis=0))
        first += len(own)
    return tracks, medians


def _read(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The first frames of a video, the middle square at FRAME pixels, and their times."""
    frames, times = [], []
    try:
        for time, frame in every_frame(path, Reading(0.0)):
            scale = FRAME / min(frame.width, frame.height)
            size = max(FRAME, round(frame.width * scale)), max(FRAME, round(frame.height * scale))
            picture = frame.to_ndarray(format="rgb24", width=size[0], height=size[1], interpolation="AREA")
            y, x = (picture.shape[0] - FRAME) // 2, (picture.shape[1] - FRAME) // 2
            frames.append(picture[y : y + FRAME, x : x + FRAME])
            times.append(time)
            if len(frames) == LONGEST:
                break
    except DecodeError:
        return None
    return (np.stack(frames), np.array(times)) if len(frames) >= SHORTEST else None


def _stated_sources(folder: Path) -> dict[str, str]:
    """Sources by file, from tables in the folder, and `KNOWN_SOURCES`: a column path or file, and a column group, or
    overlaps_<set> with a group of another set."""
    found: dict[str, str] = {}
    for table in (*sorted(folder.glob("*.csv")), KNOWN_SOURCES):
        with open(table, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                name = row.get("path") or row.get("file")
                if name and (source := row.get("group")) and source != "unknown":
                    found[name] = f"{folder.name}:{source}"
                for key in (key for key in row if str(key).startswith("overlaps_") and row[key]):
                    if name and name not in found:  # a source of the set that is named there: "PA/train" is its PA
                        found[name] = f"{str(key).removeprefix('overlaps_')}:{row[key].partition('/')[0]}"
    return found


def cluster(tracks: Sequence[Track], medians: Sequence[np.ndarray], sources: Sequence[str | None]) -> list[int]:
    """Numbers of clusters: videos that show the same footage, the same still background, or have one stated source."""
    parent = list(range(len(tracks)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str, int] = {}
    for i, source in enumerate(sources):
        if source is not None:
            parent[root(i)] = root(first.setdefault(source, i))
    for pair in find_copies(tracks):
        parent[root(pair.first)] = root(pair.second)
    rows = np.stack([m.ravel() - m.mean() for m in medians])
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    for i, j in np.argwhere(np.triu(rows @ rows.T, 1) > SAME_PLACE):
        parent[root(int(i))] = root(int(j))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in range(len(tracks))]


def split_clusters(clusters: np.ndarray, seed: int = 8) -> list[str]:
    """The part of each cluster: a share of the clusters, whatever their sizes, in an order drawn once."""
    count = int(clusters.max()) + 1
    order = np.random.default_rng(seed).permutation(count)
    bounds = np.round(np.cumsum([SHARES["train"], SHARES["val"]]) * count).astype(int)
    parts = [""] * count
    for rank, number in enumerate(order):
        parts[number] = "train" if rank < bounds[0] else "val" if rank < bounds[1] else "test"
    return parts
