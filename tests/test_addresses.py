"""Sources at addresses: folders, lists, single files, packs; and runs that train on them."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from server import FlakyServer, serving

import stmae
from stmae.data import remote
from stmae.data.cache import Cache
from stmae.data.dataset import VideoClips
from stmae.data.frozen import load_index, save_index
from stmae.data.index import Index
from stmae.data.opening import open_source
from stmae.data.remote import NetworkError
from stmae.data.shards import Shards
from stmae.data.sources import names_of, scan, split
from stmae.errors import UserError

SMALL: dict[str, Any] = {
    "preset": "paper", "model": "vit_tiny", "frames": 4, "image_size": 32, "patch": (2, 16, 16), "decoder_width": 32,
    "decoder_depth": 1, "decoder_heads": 2, "epochs": 4, "batch_size": 4, "repeats": 2, "lr": 1e-3, "workers": 0,
    "precision": "fp32", "device": "cpu", "holdout": 0.3, "loggers": (), "log_every": 1, "evaluate_every": 5,
}  # fmt: skip


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyServer]:
    monkeypatch.setattr(remote, "WAITS", (0.001,) * 6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    shutil.copytree(videos, tmp_path / "served" / "a b")
    with serving(tmp_path / "served") as server:
        yield server


def contents(source: Any) -> list[bytes]:
    return [source.media(item).open().read() for item in range(len(source))]


def test_lists_at_addresses_and_of_addresses(server: FlakyServer, videos: Path, tmp_path: Path) -> None:
    names = [path.name for path in sorted(videos.iterdir())]
    whole = [path.read_bytes() for path in sorted(videos.iterdir())]
    (server.folder / "list.csv").write_text(
        "path,label\n" + "".join(f"a b/{name},{i}\n" for i, name in enumerate(names))
    )
    cache = Cache(tmp_path / "cache", 10**8)
    server.trouble = ["", "", "503", "cut"]
    found = open_source(f"{server.url}/list.csv", cache=cache)
    assert [*names_of(found)] == [f"a b/{name}" for name in names]
    assert [found.label(i) for i in range(6)] == list("012345")
    assert contents(found) == whole
    (tmp_path / "list.txt").write_text("".join(f"{server.url}/a b/{name}\n" for name in names))
    found = open_source(tmp_path / "list.txt", cache=cache)
    assert [*names_of(found)] == [f"{server.url}/a b/{name}" for name in names]
    assert found.label(0) is None
    assert contents(found.part([1, 0])) == [whole[1], whole[0]]
    single = open_source(f"{server.url}/a b/{names[0]}", cache=cache)
    assert (single.name(0), contents(single)) == (names[0], whole[:1])
    (tmp_path / "list.txt").write_text(f"{server.url}/{names[0]}\n{names[1]}\n")
    with pytest.raises(UserError, match="1 files on other machines and 1 on this"):
        open_source(tmp_path / "list.txt")
    with pytest.raises(NetworkError, match="cannot be listed"):
        open_source(f"{server.url}/a b")


def test_folders_at_addresses(videos: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    local = scan(videos)
    try:
        for path in videos.iterdir():
            memory.pipe(f"/stmae-folder/walk/{path.name}", path.read_bytes())
        memory.pipe("/stmae-folder/x.png", b"1")
        memory.pipe("/stmae-folder/.hidden/x.mp4", b"1")
        said = list[str]()
        cache = Cache(tmp_path / "cache", 10**8)
        found = open_source("memory://stmae-folder", cache=cache, say=said.append)
        assert [*names_of(found)] == [f"walk/{name}" for name in names_of(local)]
        assert "1 files of other kinds" in said[0]
        assert found.label(0) == "walk"
        assert contents(found) == [path.read_bytes() for path in sorted(videos.iterdir())]
        train, held = split(found, 0.3)
        save_index(tmp_path / "index.csv", train, held)
        again, _ = load_index(tmp_path / "index.csv", found)
        assert isinstance(again, Index)
        assert again.cache == cache
        assert contents(again) == contents(train)
        memory.pipe("/stmae-empty/x.txt", b"1")
        with pytest.raises(UserError, match="holds no videos, only 1 other files"):
            open_source("memory://stmae-empty", cache=cache)
        stmae.pack("memory://stmae-folder", out=tmp_path / "out", workers=0, cache=tmp_path / "other")
        assert contents(Shards.open(tmp_path / "out")) == contents(found)
        assert any((tmp_path / "other").iterdir())
    finally:
        for folder in ("/stmae-folder", "/stmae-empty"):
            memory.rm(folder, recursive=True)


def test_folders_that_a_web_server_lists(videos: Path, tmp_path: Path) -> None:
    """As Python's own server, Apache and nginx do, with folders, blanks and odd letters."""
    served = tmp_path / "served" / "my videos"
    shutil.copytree(videos, served / "a b" / "ü")
    (served / "notes.txt").write_text("no video")
    first = min((served / "a b" / "ü").iterdir())
    for odd in ("#437 ride.mp4", "what?.mp4", "a%20b.mp4"):
        (served / "odd").mkdir(exist_ok=True)
        (served / "odd" / odd).write_bytes(first.read_bytes() + odd.encode())
    (served / "empty").mkdir()
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/my videos"
            found = open_source(url, cache=Cache(tmp_path / "cache", 10**8))
            count = len(scan(videos))
            assert [*names_of(found)][:count] == [f"a b/ü/{name}" for name in names_of(scan(videos))]
            assert found.label(0) == "a b"
            whole = contents(found)
            assert whole[:count] == [path.read_bytes() for path in sorted(videos.iterdir())]
            (served / "odd").rename(served / "a#b %")
            odd = open_source(url, cache=Cache(tmp_path / "other", 10**8))
            assert {odd.label(i) for i in range(len(odd))} == {"a b", "a#b %"}
            (served / "a#b %").rename(served / "odd")
            assert sorted(whole[count:]) == sorted(path.read_bytes() for path in (served / "odd").iterdir())
            with pytest.raises(UserError, match="holds no videos"):
                open_source(f"{url}/empty", cache=Cache(tmp_path / "cache", 10**8))
        finally:
            server.shutdown()


def test_missing_files_are_skipped_by_pack(server: FlakyServer, videos: Path, tmp_path: Path) -> None:
    names = [path.name for path in sorted(videos.iterdir())]
    listed = [f"{server.url}/a b/{name}\n" for name in [*names[:2], "none.mp4", *names[2:]]]
    (tmp_path / "list.txt").write_text("".join(listed))
    stmae.pack(tmp_path / "list.txt", out=tmp_path / "out", workers=0, short_side=32)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["packed"], [each["reason"] for each in report["failures"]]) == (6, ["does not exist"])
    server.trouble = ["503"]
    with pytest.raises(NetworkError, match="503"):
        stmae.pack(tmp_path / "list.txt", out=tmp_path / "other", workers=0, cache=tmp_path / "empty")
    server.trouble = []
    stmae.pack(tmp_path / "list.txt", out=tmp_path / "other", workers=0, cache=tmp_path / "empty")
    assert len(Shards.open(tmp_path / "other")) == 7


def test_a_missing_file_is_a_bad_file_of_training(server: FlakyServer, videos: Path, tmp_path: Path) -> None:
    names = [path.name for path in sorted(videos.iterdir())]
    (tmp_path / "list.txt").write_text("".join(f"{server.url}/a b/{name}\n" for name in ["none.mp4", *names]))
    source = open_source(tmp_path / "list.txt", cache=Cache(tmp_path / "cache", 10**8))
    clips = VideoClips(source, frames=4, stride=1.0, image_size=(32, 32), repeats=1, seed=0)
    bad = [each for slot in range(len(source)) for each in clips.sample(clips.place(slot), {}).bad]
    assert {(source.name(each.item).rpartition("/")[2], each.reason) for each in bad} == {
        ("none.mp4", "does not exist")
    }


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if "loss" in key or key in ("step", "grad_norm")} for line in lines]


@pytest.mark.slow
def test_runs_on_files_packs_and_addresses_are_one(server: FlakyServer, videos: Path, tmp_path: Path) -> None:
    """Identical losses, whether the clips come from files, from their pack or from a pack behind a bad network."""
    stmae.pack(videos, out=server.folder / "pack", shard_size="150kB", workers=0)
    stmae.pretrain(videos, out=tmp_path / "files", **SMALL)
    stmae.pretrain(server.folder / "pack", out=tmp_path / "pack", **SMALL)
    server.trouble = ["", "cut", "", "503"]
    stmae.pretrain(f"{server.url}/pack", out=tmp_path / "far", cache=tmp_path / "cache", cache_size="1MB", **SMALL)
    files = metrics(tmp_path / "files")
    assert len(files) >= 4
    assert any("loss" in key for key in files[0])
    assert metrics(tmp_path / "pack") == files
    assert metrics(tmp_path / "far") == files
    assert not (tmp_path / "far" / "bad_files.csv").exists()
    assert any((tmp_path / "cache").iterdir())
    assert not (tmp_path / "home").exists(), "with a cache given, the usual one is not touched"


@pytest.mark.slow
def test_a_run_stops_with_the_networks_reason_and_goes_on(server: FlakyServer, videos: Path, tmp_path: Path) -> None:
    stmae.pack(videos, out=server.folder / "pack", shard_size="150kB", workers=0)
    stmae.pretrain(server.folder / "pack", out=tmp_path / "near", **SMALL)
    asked = {"cache": tmp_path / "cache", "cache_size": "1B", **SMALL, "workers": 1}
    real = FlakyServer.note

    def note(self: FlakyServer, path: str, part: str) -> str:
        return real(self, path, part) or ("403" if len(self.requests) > 5 else "")

    server.note = note.__get__(server)  # type: ignore[method-assign]
    with pytest.raises(NetworkError, match="may not be read"):
        stmae.pretrain(f"{server.url}/pack", out=tmp_path / "far", **asked)
    del server.note
    stmae.pretrain(f"{server.url}/pack", out=tmp_path / "far", **asked)
    last = metrics(tmp_path / "near")[-1]
    assert metrics(tmp_path / "far")[-1] == last
    assert not (tmp_path / "far" / "bad_files.csv").exists()
