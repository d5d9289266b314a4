"""Folders with the frames of videos as pictures: found, read to the frame, listed, packed as videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stmae
from stmae.data.container import DecodeError
from stmae.data.dataset import VideoClips
from stmae.data.frozen import load_index, save_index
from stmae.data.media import Media, read_clips
from stmae.data.opening import open_source
from stmae.data.shards import Shards
from stmae.data.sources import names_of, split
from stmae.data.survey import survey
from stmae.data.video import Reading
from stmae.errors import UserError

COUNT = 12  # frames of a clip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clips in two classes; frame n of clip c is a picture of grey level 10 n + c, without zeros in its name."""
    for clip, place in enumerate(("walk/a b", "walk/b", "run/c")):
        (tmp_path / "set" / place).mkdir(parents=True)
        for n in range(COUNT):
            picture = Image.new("RGB", (48, 32), (10 * n + clip,) * 3)
            picture.save(tmp_path / "set" / place / f"img{n + 1}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "set" / "cover.jpg")
    return tmp_path / "set"


def shown(media: Media, times: list[list[float]]) -> tuple[list[list[int]], Reading]:
    found: list[list[int]] = [[] for _ in times]
    reading = read_clips(
        media, len(times), lambda clip, _: times[clip], lambda clip, _, pixels: found[clip].append(int(pixels[0, 0, 0]))
    )
    return found, reading


def test_each_folder_is_a_video_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    assert len(open_source(folder)) == 3 * COUNT + 1  # pictures are pictures unless told otherwise
    source = open_source(folder, media=("frames",))
    assert [*names_of(source)] == ["run/c/", "walk/a b/", "walk/b/"]
    assert [source.label(item) for item in range(3)] == ["run", "walk", "walk"]
    found, reading = shown(source.media(1), [[n / 30 + 0.001 for n in (0, 3, 9, 11)], [0.35, 0.36]])
    assert found == [[0, 30, 90, 110], [100, 100]]
    assert reading.duration == pytest.approx(COUNT / 30)
    assert reading.repeated == [False, True]
    train, held = split(source, 0.4)
    save_index(tmp_path / "index.csv", train, held)
    again, _ = load_index(tmp_path / "index.csv")
    assert [*names_of(again)] == [*names_of(train)]
    one = open_source(folder / "run" / "c", media=("frames",))
    assert (len(one), shown(one.media(0), [[0.0]])[0]) == (1, [[2]])
    clips = VideoClips(source, frames=4, stride=2, image_size=(16, 16), repeats=2, seed=0)
    assert clips[0].clips.shape == (2, 3, 4, 16, 16)
    assert (clips[0].clips[0].float().mean((0, 2, 3)).diff() == 20).all()


def test_lists_of_folders_as_rawframes_lists_have_them(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(f"walk/b {COUNT} 1\nrun/c {COUNT} 0\n")
    source = open_source(tmp_path / "train.txt", root=folder)
    assert [*names_of(source)] == ["walk/b/", "run/c/"]
    assert [source.label(0), source.label(1)] == ["1", "0"]
    assert shown(source.media(0), [[0.0]])[0] == [[1]]
    (tmp_path / "train.txt").write_text("walk/b 1\nrun/none 0\n")
    with pytest.raises(UserError, match="run/none"):
        open_source(tmp_path / "train.txt", root=folder)


def test_what_is_wrong_with_them_is_named(folder: Path) -> None:
    (folder / "run/c/img3.png").write_bytes(b"no picture")
    Image.new("RGB", (96, 64), (7, 7, 7)).save(folder / "run/c/img4.png")  # another size than the first
    media = open_source(folder, media=("frames",)).media(0)
    with pytest.raises(DecodeError, match=r"img3\.png: cannot be opened"):
        shown(media, [[2 / 30]])
    assert shown(media, [[3 / 30]])[0] == [[7]]
    with pytest.raises(DecodeError, match="holds no pictures"):
        shown(Media("x/", folder / "run"), [[0.0]])
    with pytest.raises(DecodeError, match="cannot be read"):
        shown(Media("x/", folder / "none"), [[0.0]])
    facts = survey(open_source(folder, media=("frames",)).media(1))
    assert (facts.kind, facts.width, facts.height, facts.reason) == ("frames", 48, 32, "")
    assert facts.motion > 50
    with pytest.raises(UserError, match="cannot be read from an address"):
        open_source("memory://nowhere", media=("frames",))


def test_they_are_packed_as_videos(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--short-side"):
        stmae.pack(folder, out=tmp_path / "raw", media=("frames",), workers=0)
    stmae.pack(folder, out=tmp_path / "out", media=("frames",), workers=0, short_side=0, quality=4)
    shards = Shards.open(tmp_path / "out")
    assert list(shards.names) == ["run/c/", "walk/a b/", "walk/b/"]
    found, reading = shown(shards.media(2), [[n / 30 + 0.001 for n in range(COUNT)]])
    assert np.abs(np.array(found[0]) - [10 * n + 1 for n in range(COUNT)]).max() <= 3
    assert reading.duration == pytest.approx(COUNT / 30, abs=0.002)
