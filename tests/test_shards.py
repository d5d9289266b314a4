"""Shards: tar files of ours and of others, read at random like the files that were packed."""

from __future__ import annotations

import io
import pickle
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server import serving

from stmae.data import remote
from stmae.data.cache import Cache
from stmae.data.container import DecodeError, FileRange
from stmae.data.entries import Entries, EntriesBuilder, join
from stmae.data.media import Media, read_clips
from stmae.data.opening import is_packed
from stmae.data.shards import Shards
from stmae.data.tars import header, members, padding, small, split_key
from stmae.errors import UserError


def write_tar(path: Path, content: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def entries(names: list[str], shard: str = "a.tar", **more: Any) -> Entries:
    rows = EntriesBuilder()
    for i, name in enumerate(names):
        rows.add(name=name, shard=shard, offset=i * 10, size=7, ending=".mp4", **more)
    return rows.build()


def test_the_table_comes_back_from_its_file(tmp_path: Path) -> None:
    first = entries(["b/ä x.mp4", "\udce9.mp4"], label="b", start=1.5, end=2.0)
    second = entries(["c.mp4"], shard="b.tar", reason="the file is empty")
    table = join([first, join([]), second])
    path = tmp_path / "index.safetensors"
    path.write_bytes(table.to_bytes())
    back = Entries.open(path)
    assert list(back.name) == ["b/ä x.mp4", "\udce9.mp4", "c.mp4"]
    assert [back.text("shard", i) for i in range(3)] == ["a.tar", "a.tar", "b.tar"]
    assert [back.text("label", i) for i in range(3)] == ["b", "b", None]
    assert [back.text("reason", i) for i in range(3)] == [None, None, "the file is empty"]
    assert back.offset.tolist() == [0, 10, 0]
    assert back.start[:2].tolist() == [1.5, 1.5]
    assert np.isnan(back.start[2])
    assert back.to_bytes() == path.read_bytes()
    assert list(pickle.loads(pickle.dumps(back)).name) == list(back.name)
    assert len(pickle.dumps(back)) < 500, "other processes map the file"
    import safetensors.numpy

    assert safetensors.numpy.load(path.read_bytes())["offset"].tolist() == [0, 10, 0]
    for cut in (0, 5, 100, len(path.read_bytes()) - 1):
        path.write_bytes(table.to_bytes()[:cut])
        with pytest.raises(ValueError):
            Entries.open(path)


@pytest.mark.slow
def test_a_million_entries_open_at_once(tmp_path: Path) -> None:
    part = entries([f"class-{i % 100}/video-{i:06d}.mp4" for i in range(10_000)], label="x")
    path = tmp_path / "index.safetensors"
    path.write_bytes(join([part] * 100).to_bytes())
    begin = time.process_time()
    shards = Shards(tmp_path, Entries.open(path))
    names = [shards.name(item) for item in range(0, 10**6, 1000)]
    assert time.process_time() - begin < 0.5
    assert len(shards) == 10**6
    assert names[7] == "class-0/video-007000.mp4"
    assert shards.part([999_999]).name(0) == "class-99/video-009999.mp4"


def test_members_are_what_tar_programs_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(small("x.mp4", b"video") + small("x.cls", b"3") + small("y.json", b"") + bytes(1024))
    listed = subprocess.run(["tar", "tf", path], capture_output=True, check=True, text=True).stdout
    assert listed.split() == ["x.mp4", "x.cls", "y.json"]
    assert subprocess.run(["tar", "xOf", path, "x.mp4"], capture_output=True, check=True).stdout == b"video"
    assert len(header("x", 1)) == 512
    assert len(header("x", 9 * 2**30)) % 512 == 0, "beyond 8 GiB the size stands in a header of its own"
    assert (len(padding(1)), len(padding(512)), len(padding(0))) == (511, 0, 0)


def test_samples_are_understood_as_webdataset_understands_them() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in {
            "a/1.left.mp4": b"12345", "a/1.right.mp4": b"6", "a/1.json": b'{"label": "walk"}',
            "2.avi": b"7", "2.cls": b"4\n", "2.txt": b"a dog", "3.jpg": b"8", "._3.jpg": b"9",
            "4.mp4": b"0", "4.json": b'{"path": "b/own.mp4", "start": 2, "end": 4.5}', "5.mp4": b"", "5.json": b"[",
        }.items():  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = list(members(file))
    assert [(m.name, m.size, m.label, m.ending) for m in found] == [
        ("a/1.left.mp4", 5, "walk", ".mp4"), ("a/1.right.mp4", 1, "walk", ".mp4"), ("2.avi", 1, "4", ".avi"),
        ("3.jpg", 1, None, ".jpg"), ("b/own.mp4", 1, None, ".mp4"), ("5.mp4", 0, None, ".mp4"),
    ]  # fmt: skip
    assert file.getvalue()[found[0].offset :][:5] == b"12345"
    assert (found[4].start, found[4].end) == (2.0, 4.5)
    assert split_key("a.b/c.d.e") == ("a.b/c", ".d.e")


def frames_of(media: Media | Path) -> Any:
    """What there is to see of a file at a few times, or why there is nothing."""
    frames: list[np.ndarray] = []
    try:
        reading = read_clips(
            media, 1, lambda clip, duration: np.array([0.0, 0.6]) * min(duration, 5.0),
            lambda clip, i, pixels: frames.append(pixels.copy()),
        )  # fmt: skip
    except DecodeError as error:
        return error.reason
    return reading, [(frame.shape, hash(frame.tobytes())) for frame in frames]


def test_a_folder_of_tar_files(videos: Path, tmp_path: Path) -> None:
    paths = sorted(videos.iterdir())
    folder = tmp_path / "shards"
    (folder / "deep").mkdir(parents=True)
    first = {path.name: path.read_bytes() for path in paths[:4]} | {"scene-003.cls": b"7"}
    write_tar(folder / "b.tar", first)
    write_tar(folder / "deep" / "a.tar", {path.name: path.read_bytes() for path in paths[4:]})
    assert is_packed(folder)
    assert is_packed(folder / "b.tar")
    assert not is_packed(videos)
    shards = Shards.open(folder)
    assert len(shards) == 6
    assert shards.name(0) == f"b.tar/{paths[0].name}"
    assert shards.name(5) == f"deep/a.tar/{paths[5].name}"
    assert shards.blocks.tolist() == [0, 0, 0, 0, 1, 1]
    assert [shards.label(i) for i in range(6)] == [None, None, None, "7", None, None]
    for source, items in ((shards, range(6)), (pickle.loads(pickle.dumps(shards.part([5, 0]))), (5, 0))):
        for place, item in enumerate(items):
            assert frames_of(source.media(place)) == frames_of(paths[item])
    assert [path.suffix for path in folder.glob(".*")] == [".safetensors"], "the index is kept beside"
    write_tar(folder / "c.tar", {"x.mp4": b"1"})
    assert len(Shards.open(folder)) == 7, "a changed folder is listed again"


def test_shards_that_cannot_be_read_are_told(tmp_path: Path, videos: Path) -> None:
    with pytest.raises(UserError, match="holds no tar files"):
        Shards.open(videos)
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UserError, match=r"a\.tar.*no whole tar file"):
        Shards.open(tmp_path)
    write_tar(tmp_path / "a.tar", {"x.mp4": bytes(5000)})
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"ends within x\.mp4"):
        Shards.open(tmp_path / "a.tar")
    write_tar(tmp_path / "a.tar", {"x.txt": b"1"})
    with pytest.raises(UserError, match="no videos"):
        Shards.open(tmp_path / "a.tar")
    (tmp_path / "stmae-pack.json").write_text("{}")
    with pytest.raises(UserError, match="not the description of a pack"):
        Shards.open(tmp_path)
    (tmp_path / "stmae-pack.json").write_text('{"version": 99, "shards": []}')
    with pytest.raises(UserError, match="Upgrade"):
        Shards.open(tmp_path)
    (tmp_path / "stmae-pack.json").write_text('{"version": 1, "shards": [{"name": "b.tar", "bytes": 3}]}')
    with pytest.raises(UserError, match=r"b\.tar.*cannot be read"):
        Shards.open(tmp_path)
    (tmp_path / "b.tar").write_bytes(b"12")
    with pytest.raises(UserError, match="2 bytes instead of 3"):
        Shards.open(tmp_path)


def test_tar_files_elsewhere(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.001,) * 20)
    paths = sorted(videos.iterdir())
    (tmp_path / "served").mkdir()
    for number in range(3):
        content = {path.name: path.read_bytes() for path in paths[2 * number : 2 * number + 2]}
        write_tar(tmp_path / "served" / f"x-{number:02d}.tar", content)
    cache = Cache(tmp_path / "cache", 10**8)
    with serving(tmp_path / "served") as server:
        server.trouble = ["", "503", "", "cut", "gone"]
        shards = Shards.open(f"{server.url}/x-{{00..02}}.tar", cache=cache)
        assert len(shards) == 6
        assert shards.name(2) == f"x-01.tar/{paths[2].name}"
        assert shards.blocks.tolist() == [0, 0, 1, 1, 2, 2]
        assert [frames_of(shards.media(i)) for i in range(6)] == [frames_of(path) for path in paths]
        server.trouble = []
        shards.fetch_whole = True
        again = pickle.loads(pickle.dumps(shards.part(range(6))))
        server.requests.clear()
        assert [frames_of(again.media(i)) for i in range(6)] == [frames_of(path) for path in paths]
        assert server.requests == [(f"/x-0{i}.tar", "") for i in range(3)]
        server.requests.clear()
        Shards.open(f"{server.url}/x-{{00..02}}.tar", cache=cache)
        assert not server.requests, "the index is kept"


def test_a_range_is_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(range(200)))
    with FileRange(Media("a.bin", path, 50, 100)) as file:
        assert file.name == "a.bin"
        assert file.read() == bytes(range(50, 150))
        assert file.read(5) == b""
        assert file.seek(-3, 2) == 97
        assert file.read(10) == bytes(range(147, 150))
        file.seek(10)
        file.seek(5, 1)
        buffer = bytearray(4)
        assert file.readinto(buffer) == 4
        assert buffer == bytes(range(65, 69))
        assert file.tell() == 19
        with pytest.raises(OSError):
            file.seek(-1)
    with FileRange(Media("a.bin", path, 150)) as file:
        assert file.read() == bytes(range(150, 200))


@pytest.mark.slow
@pytest.mark.parametrize("group", ["zoo", "broken"])
def test_every_file_reads_the_same_from_a_shard(shared: Path, tmp_path: Path, group: str) -> None:
    folder = shared / "data" / group
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".csv", ".md"))
    place, parts = 0, []
    with open(tmp_path / "all.tar", "wb") as tar:
        for path in paths:
            data = path.read_bytes()
            head = header(path.name, len(data))
            parts.append(Media(path.name, tmp_path / "all.tar", place + len(head), len(data)))
            place += tar.write(head + data + padding(len(data)))
    assert len(parts) > 50
    for path, part in zip(paths, parts, strict=True):
        assert frames_of(part) == frames_of(path), path.name
