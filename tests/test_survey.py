"""The facts of a file: format, frame times, what moves, where it is cut."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from stmae.data.media import Media
from stmae.data.survey import STATIC, find_cuts, survey, windows
from stmae.data.synthetic import Scene, write_video
from stmae.data.tracks import RATE, SIDE, TRACK_SIDE, Track, Tracks, make_track


def scene(seed: int, frames: int, rate: int = 15, size: tuple[int, int] = (48, 64)) -> Iterator[np.ndarray]:
    made = Scene(np.random.default_rng(seed), *size)
    return (made.frame(i / rate) for i in range(frames))


def test_facts_of_a_plain_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, scene(0, 45), 15)
    facts = survey(Media.of(path))
    assert (facts.container, facts.codec, facts.width, facts.height) == ("mov", "h264", 64, 48)
    assert (facts.frames, facts.reason, facts.damage, facts.cuts) == (45, "", "", [])
    assert facts.duration == pytest.approx(3.0, abs=0.01)
    assert facts.fps == pytest.approx(15, abs=0.05)
    assert not facts.variable_rate
    assert facts.key_seconds == pytest.approx(3.0, abs=0.05)
    assert facts.motion > 20
    assert facts.bytes == path.stat().st_size
    assert facts.track is not None
    assert facts.track.steps.tolist() == list(range(3 * RATE))


def test_a_range_of_a_file_is_an_item(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", scene(0, 10), 15)
    inner = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "pack.tar").write_bytes(b"x" * 1000 + inner + b"y" * 500)
    facts = survey(Media("a.mp4", tmp_path / "pack.tar", 1000, len(inner)))
    assert (facts.frames, facts.bytes, facts.reason) == (10, len(inner), "")


def test_cuts_are_found_and_motion_and_flashes_are_none(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    write_video(path, (frame for seed in (1, 2, 3) for frame in scene(seed, 15)), 15)
    facts = survey(Media.of(path))
    assert facts.cuts == pytest.approx([1.0, 2.0], abs=0.01)

    rng = np.random.default_rng(0)
    still = np.repeat(rng.integers(0, 255, (1, SIDE, SIDE), dtype=np.uint8), 20, axis=0)
    assert find_cuts(still) == []
    flash = still.copy()
    flash[10] = 255 - flash[10]
    assert find_cuts(flash) == []
    noise = rng.integers(0, 255, (20, SIDE, SIDE), dtype=np.uint8)  # everything changes all the time
    assert find_cuts(noise) == []
    other = still.copy()
    other[12:] = rng.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
    assert find_cuts(other) == [12]
    assert find_cuts(still[:2]) == []


def test_still_pictures_are_static_even_when_encoded_badly(tmp_path: Path) -> None:
    picture = next(scene(4, 1, size=(96, 128)))
    write_video(tmp_path / "still.mp4", iter([picture] * 30), 15, options={"crf": "32", "threads": "1"})
    assert survey(Media.of(tmp_path / "still.mp4")).motion <= STATIC
    moving = [picture.copy() for _ in range(30)]
    for i, frame in enumerate(moving):
        frame[40:50, 20 + i : 32 + i] = 255  # one small thing moves
    write_video(tmp_path / "small.mp4", iter(moving), 15)
    assert survey(Media.of(tmp_path / "small.mp4")).motion > STATIC


def test_uneven_frame_times_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "vfr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i, rgb in enumerate(scene(0, 24)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts = 40 * i + (200 * (i // 4))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    facts = survey(Media.of(path))
    assert facts.variable_rate
    assert facts.frames == 24


def test_what_cannot_be_read_has_a_reason(tmp_path: Path, videos: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all" * 100)
    assert "empty" in survey(Media.of(tmp_path / "empty.mp4")).reason
    assert survey(Media.of(tmp_path / "text.mp4")).reason
    assert "cannot be opened" in survey(Media.of(tmp_path / "missing.mp4")).reason
    whole = next(path for path in sorted(videos.iterdir()) if path.suffix == ".mkv").read_bytes()
    (tmp_path / "half.mkv").write_bytes(whole[: len(whole) // 2])
    half = survey(Media.of(tmp_path / "half.mkv"))
    assert not half.reason
    assert half.track is not None


def test_images_and_arrays(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(next(scene(0, 1))).save(tmp_path / "a.png")
    image = survey(Media.of(tmp_path / "a.png"))
    assert (image.kind, image.width, image.height, image.reason) == ("image", 64, 48, "")
    assert image.motion == 0


@pytest.mark.slow
def test_a_long_video_is_looked_at_in_windows(tmp_path: Path) -> None:
    assert windows(50, 60) == [(0.0, math.inf)]
    spread = windows(100, 30)
    assert [begin for begin, _ in spread] == pytest.approx([0, 45, 90])
    assert all(end - begin == pytest.approx(10) for begin, end in spread)
    path = tmp_path / "long.mp4"
    write_video(path, scene(0, 200, rate=10, size=(32, 32)), 10, options={"g": "10", "threads": "1"})
    facts = survey(Media.of(path), look=4.0)
    assert facts.duration == pytest.approx(20)
    assert facts.looked == pytest.approx(4, abs=0.3)
    assert facts.track is not None
    whole = survey(Media.of(path)).track
    assert whole is not None
    for step, thumb in zip(facts.track.steps, facts.track.thumbs, strict=True):
        at = int(np.searchsorted(whole.steps, step))
        assert np.abs(thumb.astype(int) - whole.thumbs[at]).max() <= 3


def test_tracks_are_means_over_time_and_come_back_from_the_file() -> None:
    thumbs = np.zeros((4, SIDE, SIDE), np.uint8)
    thumbs[1], thumbs[2], thumbs[3] = 80, 160, 240
    track = make_track(np.array([0, 1, 2, 3, 4]) / (2 * RATE), thumbs)  # two frames to a step
    assert track.steps.tolist() == [0, 1]
    assert track.thumbs[:, 0, 0].tolist() == [40, 200]
    assert track.thumbs.shape == (2, TRACK_SIDE, TRACK_SIDE)
    tiny = make_track(np.array([0.0, 0.01]), thumbs[2:3])  # shorter than a step
    assert tiny.steps.tolist() == [0]
    assert tiny.thumbs[0, 0, 0] == 160
    stored = Tracks()
    for each in (track, None, tiny):
        stored.append(each)
    assert len(stored) == 3
    assert stored[1] is None
    for found, meant in ((stored[0], track), (stored[2], tiny)):
        assert isinstance(found, Track)
        assert found.steps.tolist() == meant.steps.tolist()
        assert np.array_equal(found.thumbs, meant.thumbs)


@pytest.mark.slow
def test_the_zoo_is_read_as_its_manifest_says(shared: Path) -> None:
    folder = shared / "data" / "zoo"
    with open(folder / "MANIFEST.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 100
    off = []
    for row in rows[::2]:
        facts = survey(Media.of(folder / row["file"]))
        frames = int(row["frames"] or 0)
        assert bool(facts.reason) == (frames == 0), (row["file"], facts.reason)
        assert facts.audio_only <= (frames == 0)
        if frames and abs(facts.frames - frames) > max(2, 0.1 * frames):
            off.append((row["file"], facts.frames, frames))
    assert len(off) < 0.08 * len(rows[::2]), off  # files whose packets are not their frames


@pytest.mark.slow
def test_no_broken_file_brings_it_down(shared: Path) -> None:
    paths = sorted(path for path in (shared / "data" / "broken").iterdir() if path.suffix not in (".csv", ".md"))
    assert len(paths) > 50
    for path in paths:
        facts = survey(Media.of(path))
        assert facts.reason or facts.track is not None, path
