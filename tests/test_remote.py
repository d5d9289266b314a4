"""Files from elsewhere: fetched whole or in part, again when the network fails, into a cache that stays small."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from server import serving

from stmae.data import cache as cache_module
from stmae.data import remote
from stmae.data.cache import Cache
from stmae.data.remote import MissingError, NetworkError, RemoteRange, is_url, join_url, list_files
from stmae.errors import UserError

CONTENT = bytes(range(256)) * 700


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.bin").write_bytes(CONTENT)
    return folder


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.001, 0.001, 0.001, 0.001))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10**7)


def test_addresses_are_told_from_paths() -> None:
    assert all(map(is_url, ("s3://bucket/videos", "https://host/x.tar", "memory://a", "file:///a")))
    assert not any(map(is_url, ("videos/", "/a/b", "C:\\videos", "a:b", Path("s3://x"))))
    assert join_url("s3://b/x/", "y.tar") == "s3://b/x/y.tar"
    assert join_url("s3://b/x", "gs://c/y.tar") == "gs://c/y.tar"


def test_whole_files_and_ranges(folder: Path, cache: Cache) -> None:
    with serving(folder) as server:
        whole = cache.fetch(f"{server.url}/a.bin")
        assert whole.read_bytes() == CONTENT
        assert whole.suffix == ".bin"
        part = cache.fetch_range(f"{server.url}/a.bin", 1000, 555, ending=".mp4")
        assert part.read_bytes() == CONTENT[1000:1555]
        assert part.suffix == ".mp4"
        assert server.requests == [("/a.bin", ""), ("/a.bin", "bytes=1000-1554")]
        assert cache.fetch(f"{server.url}/a.bin") == whole
        assert len(server.requests) == 2, "a second time it comes from the cache"
        cache.fetch(f"{server.url}/a.bin", version="2")
        assert len(server.requests) == 3, "another version is another file"
        server.ranges = False
        assert cache.fetch_range(f"{server.url}/a.bin", 300, 200).read_bytes() == CONTENT[300:500]


@pytest.mark.parametrize("trouble", ["503", "cut", "gone", "429"])
def test_what_fails_is_tried_again(folder: Path, cache: Cache, trouble: str) -> None:
    with serving(folder) as server:
        server.trouble = [trouble, trouble, ""]
        assert cache.fetch(f"{server.url}/a.bin").read_bytes() == CONTENT
        assert cache.fetch_range(f"{server.url}/a.bin", 7, 9999).read_bytes() == CONTENT[7:10006]
        assert len(server.requests) == 6
    assert not list(cache.folder.rglob(".*")), "no half files are left"


def test_what_keeps_failing_says_why(folder: Path, cache: Cache) -> None:
    with serving(folder) as server:
        server.trouble = ["503"]
        with pytest.raises(NetworkError, match=r"a\.bin.*503.*5 tries.*goes on where it stood"):
            cache.fetch(f"{server.url}/a.bin")
        server.trouble = ["cut"]
        with pytest.raises(NetworkError, match=r"broke after 89600 of 179200 bytes"):
            cache.fetch(f"{server.url}/a.bin")
        server.trouble, server.requests = [], []
        with pytest.raises(MissingError, match="404"):
            cache.fetch(f"{server.url}/b.bin")
        server.trouble = ["403"]
        with pytest.raises(NetworkError, match="403"):
            cache.fetch(f"{server.url}/a.bin")
        assert len(server.requests) == 2, "what will not change is not tried again"
        url = server.url
    with pytest.raises(NetworkError, match=r"refused"):
        cache.fetch(f"{url}/a.bin")
    with pytest.raises(NetworkError, match="sfdp"):
        cache.fetch("sfdp://host/a.bin")


def test_what_is_not_installed_is_named(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(NetworkError, match="pip install s3fs"):
        cache.fetch("s3://bucket/a.bin")


def test_other_file_systems(cache: Cache, folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/stmae-test/x/one.mp4", b"one")
    memory.pipe("/stmae-test/two.mp4", b"second")
    try:
        found = list_files("memory://stmae-test")
        assert [(file.name, file.size) for file in found] == [("two.mp4", 6), ("x/one.mp4", 3)]
        before = found[0].version
        assert cache.fetch("memory://stmae-test/two.mp4", version=before).read_bytes() == b"second"
        assert cache.fetch_range("memory://stmae-test/two.mp4", 1, 3).read_bytes() == b"eco"
        memory.pipe("/stmae-test/two.mp4", b"changed")
        after = list_files("memory://stmae-test")[0].version
        assert cache.fetch("memory://stmae-test/two.mp4", version=after).read_bytes() == b"changed"
        with pytest.raises(MissingError, match="does not exist"):
            cache.fetch("memory://stmae-test/none.mp4")
    finally:
        memory.rm("/stmae-test", recursive=True)
    assert cache.fetch(f"file://{folder}/a.bin").read_bytes() == CONTENT
    with serving(folder) as server, pytest.raises(NetworkError, match="cannot be listed"):
        list_files(f"{server.url}/videos")


def test_a_file_is_read_piece_by_piece(folder: Path) -> None:
    with serving(folder) as server:
        file = RemoteRange(f"{server.url}/a.bin")
        assert file.seek(0, io.SEEK_END) == len(CONTENT)
        file.seek(512)
        assert file.read(100) == CONTENT[512:612]
        assert file.read(100) == CONTENT[612:712]
        assert len(server.requests) == 2, "the size, and one piece"
        file.seek(-10, io.SEEK_END)
        assert file.read() == CONTENT[-10:]
        assert file.read(5) == b""


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("??/*") if path.name != "lock"}


def test_the_cache_stays_small(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "HELD", 2)
    cache = Cache(tmp_path / "small", 60_000)
    with serving(folder) as server:
        paths = []
        for i in range(20):
            paths.append(cache.fetch_range(f"{server.url}/a.bin", i, 10_000))
            os.utime(paths[-1], (i, i))  # in the order of fetching, however coarse the clock
            assert sum(sizes(cache.folder).values()) <= 60_000
        assert paths[-1].exists()
        assert paths[-2].exists()
        assert not paths[0].exists()
        before = len(server.requests)
        assert cache.fetch_range(f"{server.url}/a.bin", 0, 10_000).read_bytes() == CONTENT[:10_000]
        assert len(server.requests) == before + 1, "what was removed is fetched again"


def test_without_file_locks_the_cache_stays_small_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: int, what: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(cache_module.fcntl, "flock", no_locks)
    monkeypatch.setattr(cache_module, "HELD", 2)
    monkeypatch.setattr(cache_module, "HELD_SURELY", 2)
    cache = Cache(tmp_path / "tiny", 25_000)
    with serving(folder) as server:
        for i in range(8):
            cache.fetch_range(f"{server.url}/a.bin", i, 10_000)
        small = [path for path in (tmp_path / "tiny").rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in small) < 50_000
        assert cache.fetch(f"{server.url}/a.bin").read_bytes() == CONTENT, "larger than the cache"


def test_what_is_in_use_is_not_removed(folder: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "tiny", 1)
    with serving(folder) as server:
        paths = [cache.fetch_range(f"{server.url}/a.bin", i, 10_000) for i in range(10)]
        assert all(path.exists() for path in paths)


def test_of_large_files_few_are_kept_in_use(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "HELD_BYTES", 25_000)
    cache = Cache(tmp_path / "tiny", 1)
    with serving(folder) as server:
        paths = [cache.fetch_range(f"{server.url}/a.bin", i, 10_000) for i in range(10)]
        assert sum(path.exists() for path in paths) <= cache_module.HELD_SURELY + 1
        assert paths[-1].exists()


def test_half_files_of_killed_processes_are_removed(folder: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 100_000)
    with serving(folder) as server:
        first = cache.fetch_range(f"{server.url}/a.bin", 0, 10_000)
        half = first.parent / ".abc.mp4.1.1"
        half.write_bytes(bytes(50_000))
        os.utime(half, (time.time() - 10_000, time.time() - 10_000))
        for i in range(10):
            cache.fetch_range(f"{server.url}/a.bin", i, 15_000)
        assert not half.exists()


def test_a_cache_that_cannot_be_written_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with serving(folder) as server, pytest.raises(UserError, match="--cache"):
        Cache(tmp_path / "file", 1000).fetch(f"{server.url}/a.bin")


_READER = """
import hashlib, random, sys
from pathlib import Path
from stmae.data.cache import Cache
url, folder, seed = sys.argv[1:]
cache, rng = Cache(Path(folder), 150_000), random.Random(int(seed))
for _ in range(60):
    begin = rng.randrange(40) * 4000
    part = cache.fetch_range(url, begin, 12_000).read_bytes()
    assert part == (bytes(range(256)) * 700)[begin : begin + 12_000]
"""


@pytest.mark.slow
def test_many_processes_share_a_small_cache(folder: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    with serving(folder) as server:
        server.trouble = ["", "", "", "cut", "503"]
        command = [sys.executable, "-c", _READER, f"{server.url}/a.bin", str(shared)]
        processes = [subprocess.Popen([*command, str(seed)]) for seed in range(4)]
        assert [process.wait(120) for process in processes] == [0] * 4
        assert len(server.requests) < 4 * 60 * 2
