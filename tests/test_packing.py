"""Packing: exact, in parallel, gone on with after any end; written anew to the frame."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import stmae
from stmae.data import media as media_module
from stmae.data import pack_plan, packing, shard_writer
from stmae.data.dataset import FixedClips
from stmae.data.encode import Recipe, encode
from stmae.data.entries import Entries, join
from stmae.data.media import Media, original_name, read_clips, segment_name
from stmae.data.pack_plan import Job, class_numbers
from stmae.data.packing import pack
from stmae.data.shards import Shards
from stmae.data.sources import Index, scan, split
from stmae.data.survey import survey
from stmae.data.synthetic import write_video
from stmae.data.video import Reading, every_frame
from stmae.errors import UserError

SMALL = 120_000  # bytes of a shard: two or three of the test videos


@pytest.fixture(scope="module")
def labelled(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test videos in two class folders, one with an odd name, and one file that is no video."""
    folder = tmp_path_factory.mktemp("labelled")
    for number, path in enumerate(sorted(videos.iterdir())):
        place = folder / ("walk" if number % 2 else "jump high")
        place.mkdir(exist_ok=True)
        shutil.copy(path, place / path.name)
    (folder / "walk" / "broken.mp4").write_bytes(b"no video at all" * 50)
    shutil.copy(sorted(videos.iterdir())[0], folder / os.fsdecode(b"caf\xe9 \xc3\xa9.mp4"))
    return folder


def order(folder: Path, workers: int = 0, recipe: Recipe | None = None, size: int = SMALL) -> Job:
    return Job(scan(folder), "videos", recipe, size, workers)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def packed(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack(order(labelled), out)
    return out


def test_a_pack_is_the_folder_again(labelled: Path, packed: Path) -> None:
    index, shards = scan(labelled), Shards.open(packed)
    assert len(shards) == len(index) == 8
    assert [shards.name(i) for i in range(8)] == [index.name(i) for i in range(8)]
    assert [shards.label(i) for i in range(8)] == [index.label(i) for i in range(8)]
    assert shards.blocks.max() >= 2
    bad = next(i for i in range(8) if "broken" in index.name(i))
    for item in range(8):
        if item != bad:
            assert shards.media(item).open().read() == index.path(item).read_bytes()
    with pytest.raises(Exception, match="cannot be opened"):
        shards.media(bad)
    for part, other in zip(split(index, 0.4), split(shards, 0.4), strict=True):
        assert [part.name(i) for i in range(len(part))] == [other.name(i) for i in range(len(other))]
    assert not [path for path in packed.iterdir() if path.name.startswith(".")]


def test_the_manifest_says_what_is_there(packed: Path) -> None:
    about = json.loads((packed / "stmae-pack.json").read_text())
    assert (about["items"], about["entries"]) == (8, 7)
    assert about["classes"] == {"jump high": 0, "walk": 1}
    for shard in [*about["shards"], about["index"]]:
        data = (packed / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        assert shard["name"] == "index.safetensors" or len(data) <= SMALL or shard["entries"] == 1


def test_tar_programs_and_webdataset_read_it(packed: Path, labelled: Path) -> None:
    listed = subprocess.run(["tar", "tf", packed / "shard-000000.tar"], capture_output=True, text=True, check=True)
    assert listed.stdout.split()[0].endswith(".mp4")
    import webdataset

    names = [str(path) for path in sorted(packed.glob("*.tar"))]
    samples = list(webdataset.WebDataset(names, shardshuffle=False).decode("l"))
    assert len(samples) == 7
    for sample in samples:
        about = sample["json"]
        kind = next(key for key in sample if key in ("mp4", "webm", "mkv", "avi", "mov"))
        assert sample[kind] == (labelled / about["path"]).read_bytes()
        if "label" in about:
            assert sample["cls"] == ["jump high", "walk"].index(about["label"])
    assert any("label" not in sample["json"] for sample in samples)


def test_a_pack_without_its_index_is_read_like_any_tar_files(packed: Path, tmp_path: Path) -> None:
    for path in packed.glob("*.tar"):
        shutil.copy(path, tmp_path)
    foreign, own = Shards.open(tmp_path), Shards.open(packed)
    there = [i for i in range(8) if own.entries.size[i]]
    assert [foreign.name(i) for i in range(7)] == [own.name(i) for i in there]
    assert [foreign.label(i) for i in range(7)] == [own.label(i) for i in there]
    assert [foreign.media(i).open().read() for i in range(7)] == [own.media(i).open().read() for i in there]


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(labelled: Path, packed: Path, tmp_path: Path) -> None:
    pack(order(labelled, workers=3), tmp_path / "three")
    assert content(tmp_path / "three") == content(packed)
    recipe = Recipe(short_side=64, fps=10, gop=5, segment=0.5)
    pack(order(labelled, recipe=recipe, size=20_000), tmp_path / "none")
    pack(order(labelled, recipe=recipe, size=20_000, workers=2), tmp_path / "two")
    assert content(tmp_path / "none") == content(tmp_path / "two")


class Stopped(Exception):
    """In place of a power failure."""


@pytest.mark.parametrize("recipe", [None, Recipe(short_side=32, fps=5, segment=0.5)], ids=["bytes", "anew"])
def test_a_stopped_pack_goes_on(
    videos: Path, tmp_path: Path, recipe: Recipe | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = SMALL if recipe is None else 12_000
    whole = order(videos, recipe=recipe, size=size)
    pack(whole, tmp_path / "whole")
    out = tmp_path / "stopped"
    real, count = shard_writer.ShardWriter.add, 0

    def add(self: Any, *args: Any) -> int:
        nonlocal count
        count += 1
        if count % 4 == 0:
            raise Stopped
        return real(self, *args)

    # Every fourth video ends it, so shards that were begun are given up again and again.
    monkeypatch.setattr(shard_writer.ShardWriter, "add", add)
    ends = 0
    while True:
        try:
            result = pack(whole, out)
            break
        except Stopped:
            ends += 1
            assert ends < 30
            with pytest.raises(UserError, match="not finished"):
                Shards.open(out)
    assert ends > 0
    assert result.totals.items == 6
    assert content(out) == content(tmp_path / "whole")
    assert not (out / ".packing").exists()


def test_only_the_same_pack_goes_on(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(items: int, totals: Any) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        pack(order(videos), tmp_path / "out", stop)
    with pytest.raises(UserError, match="shard_size 120000 is now 999999"):
        pack(order(videos, size=999_999), tmp_path / "out")
    with pytest.raises(UserError, match="the source has changed"):
        pack(Job(scan(videos).part([0, 2, 1, 3, 4, 5]), "videos", None, SMALL, 0), tmp_path / "out")
    pack(order(videos), tmp_path / "out")
    before = content(tmp_path / "out")
    assert pack(order(videos), tmp_path / "out").resumed == 6, "a second time there is nothing to do"
    with pytest.raises(UserError, match="another pack"):
        pack(order(videos, size=999_999), tmp_path / "out")
    assert content(tmp_path / "out") == before
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "x.tar").touch()
    with pytest.raises(UserError, match="other tar files"):
        pack(order(videos), tmp_path / "tars")


def test_what_is_not_its_own_is_left_alone(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "shard-old").mkdir(parents=True)
    for name in ("shard-000000.tar.gz", "shard-notes.txt"):
        (out / name).write_text("mine")
    stmae.pack(videos, out=out, workers=0)
    assert {path.name for path in out.iterdir()} >= {"shard-000000.tar.gz", "shard-notes.txt", "shard-old"}


def test_a_damaged_manifest_is_told(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for text in ("{", "[1]"):
        (tmp_path / "out/stmae-pack.json").write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            stmae.pack(videos, out=tmp_path / "out", workers=0)


def test_two_do_not_pack_into_one_folder(videos: Path, tmp_path: Path) -> None:
    def second(items: int, totals: Any) -> None:
        with pytest.raises(UserError, match="another process"):
            pack(order(videos), tmp_path / "out")

    pack(order(videos), tmp_path / "out", second)


def test_a_full_disk_is_told_and_gone_on_from(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shard_writer.ShardWriter._write

    def write(self: Any, part: bytes) -> None:
        if self.record.name == "shard-000001.tar":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, part)

    monkeypatch.setattr(shard_writer.ShardWriter, "_write", write)
    with pytest.raises(UserError, match=r"No space left.*Make room.*finished shards stay"):
        pack(order(videos), tmp_path / "out")
    assert (tmp_path / "out" / "shard-000000.tar").exists()
    assert not list((tmp_path / "out").glob(".shard*"))
    monkeypatch.undo()
    pack(order(videos), tmp_path / "out")
    assert len(Shards.open(tmp_path / "out")) == 6
    monkeypatch.setattr(pack_plan.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(UserError, match=r"the shards take at least \d+\.\d MB.*0\.0 MB free"):
        pack(order(videos), tmp_path / "none")


def test_files_that_change_or_vanish_are_skipped(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(videos, tmp_path / "videos")
    paths = sorted((tmp_path / "videos").iterdir())
    plan = order(tmp_path / "videos")
    paths[2].unlink()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere")
    real = packing.look

    def look(source: Any, recipe: Any, work: Path, item: int) -> Any:
        looked = real(source, recipe, work, item)
        if item == 4:
            paths[4].write_bytes(paths[4].read_bytes()[:100])
        return looked

    monkeypatch.setattr(packing, "look", look)
    result = pack(plan, tmp_path / "out")
    assert [(Path(name).name, what) for name, what, _ in result.failures] == [
        (paths[2].name, "skipped"), (paths[4].name, "skipped"),
    ]  # fmt: skip
    assert "became shorter" in result.failures[1][2]
    shards = Shards.open(tmp_path / "out")
    assert [shards.media(i).open().read() for i in (0, 1, 3, 5)] == [paths[i].read_bytes() for i in (0, 1, 3, 5)]
    for shard in sorted((tmp_path / "out").glob("*.tar")):
        subprocess.run(["tar", "tf", shard], check=True, capture_output=True)


def frames(media: Media, times: list[float]) -> list[np.ndarray]:
    """The frames (H, W, C) at these times."""
    found: list[np.ndarray] = []
    read_clips(media, 1, lambda clip, duration: times, lambda clip, i, pixels: found.append(pixels.copy()))
    return found


def times_of(path: Path) -> list[float]:
    return [time for time, _ in every_frame(path, Reading(0.0))]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds at 20 fps whose frames say their number: grey 3 i, with odd sides."""
    path = tmp_path_factory.mktemp("counted") / "counted.mkv"
    frames = (np.full((75, 121, 3), 3 * i, np.uint8) for i in range(80))
    write_video(path, frames, 20, codec="ffv1", pixel_format="bgr0", options={})
    return path


def numbers(path: Path) -> list[int]:
    return [round(float(frame.to_ndarray(format="rgb24").mean()) / 3) for _, frame in every_frame(path, Reading(0.0))]


def test_written_anew_to_the_frame(counted: Path, tmp_path: Path) -> None:
    parts, reading = encode(Media.of(counted), Recipe(short_side=40, gop=7, quality=1), tmp_path, "a")
    assert (len(parts), parts[0].frames, parts[0].start, parts[0].end) == (1, 80, 0.0, 4.0)
    assert reading.duration == 4.0
    assert (parts[0].width, parts[0].height) == (64, 40)
    assert np.abs(np.array(numbers(parts[0].path)) - np.arange(80)).max() <= 1
    assert np.allclose(times_of(parts[0].path), np.arange(80) / 20, atol=1e-4)
    with av.open(str(parts[0].path)) as file:
        assert (file.streams.video[0].codec_context.name, file.streams.video[0].pix_fmt) == ("h264", "yuv420p")
        keys = [i for i, frame in enumerate(file.decode(video=0)) if frame.key_frame]
    assert max(np.diff([*keys, 80])) <= 7


def test_rates_are_lowered_and_never_raised(counted: Path, tmp_path: Path) -> None:
    (slower,), _ = encode(Media.of(counted), Recipe(short_side=None, fps=8, quality=1), tmp_path, "a")
    assert slower.frames == 32
    assert (slower.width, slower.height) == (120, 76) or (slower.width, slower.height) == (122, 76)
    wanted = [int(k / 8 * 20 + 1e-9) for k in range(32)]
    assert np.abs(np.array(numbers(slower.path)) - wanted).max() <= 1
    (kept,), _ = encode(Media.of(counted), Recipe(short_side=300, fps=25), tmp_path, "b")
    assert kept.frames == 80


def test_segments_are_exact_and_lose_nothing(counted: Path, tmp_path: Path) -> None:
    parts, _ = encode(Media.of(counted), Recipe(short_side=40, quality=1, segment=1.5), tmp_path, "a")
    assert [(part.start, part.end, part.frames) for part in parts] == [(0, 1.5, 30), (1.5, 3, 30), (3, 4, 20)]
    assert np.abs(np.array([n for part in parts for n in numbers(part.path)]) - np.arange(80)).max() <= 1
    for part in parts:
        with av.open(str(part.path)) as file:
            first = next(file.decode(video=0))
            assert (first.pts, first.key_frame) == (0, True)
            assert float(file.streams.video[0].duration * file.streams.video[0].time_base) == pytest.approx(
                part.end - part.start, abs=1e-3
            )
    parts, _ = encode(Media.of(counted), Recipe(short_side=40, fps=8, segment=1.5), tmp_path, "b")
    assert [part.frames for part in parts] == [12, 12, 8]


def test_turned_videos_are_written_upright(shared: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader((shared / "data" / "zoo" / "MANIFEST.csv").read_text("utf-8").splitlines()))
    turned = [row["file"] for row in rows if float(row["rotation"] or 0) % 360 in (90, 270)][:2]
    assert turned
    for name in turned:
        media = Media.of(shared / "data" / "zoo" / name)
        (part,), _ = encode(media, Recipe(quality=5), tmp_path, "a")
        before, after = (frames(Media.of(each), [0.0])[0] for each in (media, part.path))
        assert (after.shape[0] > after.shape[1]) == (before.shape[0] > before.shape[1])
        few = [
            each[(np.linspace(0, 0.99, 12) * each.shape[0]).astype(int)][
                :, (np.linspace(0, 0.99, 12) * each.shape[1]).astype(int)
            ].astype(float)
            for each in (before, after)
        ]
        assert np.abs(few[0] - few[1]).mean() < 12


def test_segments_of_a_video_are_held_out_together() -> None:
    assert segment_name("a/b.avi", 10, 12.5) == "a/b.avi#t=10,12.5"
    assert original_name("a/b.avi#t=10,12.5") == original_name("a/b.avi") == "a/b.avi"
    names = [segment_name(f"{video}.mp4", start, start + 1) for video in range(40) for start in range(5)]
    for part in split(Index(Path("/"), names), 0.3):
        videos = [original_name(part.name(i)) for i in range(len(part))]
        assert len(videos) % 5 == 0
        assert all(videos.count(video) == 5 for video in videos)


def test_classes_are_counted() -> None:
    index = Index(Path("/"), ["a", "b", "c"], ["7", "0", "12"])
    assert class_numbers(index) == {"0": 0, "7": 7, "12": 12}
    assert class_numbers(Index(Path("/"), ["a", "b", "c"], ["x", "07", "x"])) == {"07": 0, "x": 1}
    assert class_numbers(Index(Path("/"), ["a.mp4"])) == {}


def test_arrays_and_images_are_stored_as_they_are(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "stills"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(folder / "a.png")
    np.save(folder / "b.npy", rng.integers(0, 255, (6, 20, 30), np.uint8))
    import h5py

    with h5py.File(folder / "c.h5", "w") as file:
        file["x/y"] = rng.integers(0, 255, (5, 8, 8, 3), np.uint8)
    names = ["a.png", "b.npy", "c.h5::x/y"]
    index = Index(folder, names)
    pack(Job(index, "stills", Recipe(), SMALL, 0), tmp_path / "out")
    shards = Shards.open(tmp_path / "out")
    assert [shards.name(i) for i in range(3)] == names
    for item in range(3):
        own, packed = (frames(source.media(item), [0.0, 0.1]) for source in (index, shards))
        assert np.array_equal(own, packed)
    assert shards.media(0).open().read() == (folder / "a.png").read_bytes()


def test_the_command(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = stmae.pack(labelled, out=tmp_path / "out", shard_size="120kB", workers=0)
    report = json.loads((out / "report.json").read_text())
    assert (report["items"], report["packed"], report["skipped"]) == (8, 7, 1)
    assert report["bytes_in"] == sum(p.stat().st_size for p in labelled.rglob("*.*") if "broken" not in p.name)
    assert report["bytes_out"] == sum(p.stat().st_size for p in out.glob("*.tar"))
    assert report["hours"] == pytest.approx(7 * 1.75 / 3600, rel=0.3)
    rows = list(csv.reader((out / "report.csv").read_text("utf-8", "surrogateescape").splitlines()))
    assert rows[1][:2] == ["walk/broken.mp4", "skipped"]
    assert "7 of 8 items" in capsys.readouterr().out
    stmae.pack(labelled, out=tmp_path / "out", shard_size="120kB", workers=0)
    assert "already, whole" in capsys.readouterr().out
    stmae.pack(labelled, out=tmp_path / "anew", short_side=32, segment=0.5, workers=0)
    shards = Shards.open(tmp_path / "anew")
    assert len(shards) > 20
    assert shards.name(0).endswith("#t=0,0.5")
    assert min(shards.entries.size) > 0, "what cannot be read has no place among videos written anew"
    with pytest.raises(UserError, match="3 mistakes"):
        stmae.pack(labelled, out=tmp_path / "x", keep_original=True, fps=-1, shard_size="many")
    with pytest.raises(UserError, match="no files to pack"):
        stmae.pack([np.zeros((3, 2, 8, 8), np.uint8)], out=tmp_path / "z")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mp4").write_bytes(b"1")
    with pytest.raises(UserError, match="none of the 1 items"):
        stmae.pack(tmp_path / "bad", out=tmp_path / "y", workers=0)


@pytest.mark.slow
def test_a_killed_pack_goes_on(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    paths = sorted(videos.iterdir())
    for number in range(18):
        shutil.copy(paths[number % 6], folder / f"{number:02d}-{paths[number % 6].name}")
    options = ["--short-side", "48", "--shard-size", "20kB", "--workers", "2"]
    command = [sys.executable, "-m", "stmae", "pack", str(folder), *options, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=200)
    out, kills = tmp_path / "killed", 0
    for wanted in (1, 4, 99):
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 150
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(out.glob("shard-*.tar"))) >= wanted:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        process.wait()
    assert kills == 2
    strip = {"report.json": b""}
    assert content(out) | strip == content(tmp_path / "whole") | strip


def test_changed_bytes_are_a_named_bad_file(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "copied"
    shutil.copytree(packed, out)
    shards = Shards.open(out)
    media = shards.media(2)
    assert media.crc == zlib.crc32(media.open().read())
    data = bytearray(media.path.read_bytes())
    data[media.offset + (media.size or 0) // 2] ^= 1  # what a decoder may well take for a picture
    media.path.write_bytes(data)
    clips = FixedClips(Shards.open(out), frames=2, stride=4, image_size=(16, 16))
    (bad,) = clips[2].bad
    assert bad.path == shards.name(2)
    assert "checksum" in bad.reason
    assert len(clips[2].clips) == 0
    assert not clips[1].bad
    assert "checksum" in survey(media).reason
    stmae.pack(out, out=tmp_path / "again", workers=0)
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    assert [each["path"] for each in report["failures"] if "checksum" in each["reason"]] == [shards.name(2)]
    monkeypatch.setattr(media_module, "VERIFIED", 10)  # larger ones take too long for every clip
    assert not any("checksum" in bad.reason for bad in clips[2].bad)


def test_packs_of_before_have_no_checksums_and_a_changed_index_is_told(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "old"
    shutil.copytree(packed, out)
    entries = Shards.open(packed).entries
    old = Entries({name: array for name, array in entries.arrays.items() if name != "crc"}).to_bytes()
    (out / "index.safetensors").write_bytes(old)
    with pytest.raises(UserError, match="not the index of this pack"):
        Shards.open(out)
    about = json.loads((out / "stmae-pack.json").read_text())
    about["index"]["sha256"] = hashlib.sha256(old).hexdigest()
    (out / "stmae-pack.json").write_text(json.dumps(about))
    assert Shards.open(out).media(0).crc is None
    assert Shards.open(out).media(0).open().read() == Shards.open(packed).media(0).open().read()
    assert join([Shards.open(out).entries, entries]).crc.tolist() == [-1] * 8 + entries.crc.tolist()
