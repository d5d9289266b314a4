"""Training data from shards: the very batches that the files give, from this disk and over a bad network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from server import serving

from stmae.data import remote
from stmae.data.cache import Cache
from stmae.data.dataset import VideoClips
from stmae.data.loader import Batch, ClipLoader
from stmae.data.pack_plan import Job
from stmae.data.packing import pack
from stmae.data.remote import NetworkError
from stmae.data.shards import Shards
from stmae.data.sources import Source, scan


@pytest.fixture(scope="module")
def folder(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test videos, one that is no video, and one that is damaged."""
    folder = tmp_path_factory.mktemp("mixed")
    for path in videos.iterdir():
        shutil.copy(path, folder)
    first = sorted(videos.iterdir())[0]
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    data = bytearray(first.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    (folder / f"damaged{first.suffix}").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack(Job(scan(folder), "videos", None, 150_000, 0), out)
    return out


def batches(source: Source, count: int, *, workers: int = 0, cursor: int = 0) -> list[Batch]:
    clips = VideoClips(source, frames=4, stride=3, image_size=(32, 32), repeats=2, seed=3)
    with ClipLoader(clips, batch_size=4, workers=workers, cursor=cursor) as loader:
        return [next(loader) for _ in range(count)]


def same(some: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one.clips, other.clips)
        assert torch.equal(one.keys, other.keys)
        assert one.cursor == other.cursor
        assert one.bad == other.bad


def test_shards_give_the_files_batches(folder: Path, packed: Path) -> None:
    files = batches(scan(folder), 8)  # two passes
    assert {bad.path for batch in files for bad in batch.bad if not bad.used} == {"broken.mp4"}
    same(batches(Shards.open(packed), 8), files)
    same(batches(Shards.open(packed), 5, cursor=6), files[3:])


@pytest.mark.slow
def test_workers_read_shards(folder: Path, packed: Path) -> None:
    same(batches(Shards.open(packed), 8, workers=2), batches(scan(folder), 8))


@pytest.mark.slow
def test_a_bad_network_changes_nothing(
    folder: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.001,) * 6)
    files = batches(scan(folder), 8)
    with serving(packed) as server:
        server.trouble = ["", "cut", "503", "", "gone"]
        for size in (10**8, 1):  # with a cache that keeps all, and one that keeps next to nothing
            shards = Shards.open(server.url, cache=Cache(tmp_path / str(size), size))
            assert [shards.name(i) for i in range(8)] == [scan(folder).name(i) for i in range(8)]
            same(batches(shards, 8), files)
            shards.fetch_whole = True
            same(batches(shards, 8), files)


@pytest.mark.slow
def test_workers_read_over_a_bad_network(folder: Path, packed: Path, tmp_path: Path) -> None:
    files = batches(scan(folder), 6)
    with serving(packed) as server:
        server.trouble = ["", "cut", "", "503"]
        same(batches(Shards.open(server.url, cache=Cache(tmp_path / "cache", 10**8)), 6, workers=2), files)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_network_that_fails_stops_the_run(packed: Path, tmp_path: Path, workers: int) -> None:
    """And is no bad file: nothing stands in for what cannot be fetched."""
    with serving(packed) as server:
        shards = Shards.open(server.url, cache=Cache(tmp_path / "cache", 10**8))
        server.trouble = ["403"]
        with pytest.raises(NetworkError, match=r"shard-00000.*\.tar.*403"):
            batches(shards, 1, workers=workers)
