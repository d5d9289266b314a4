"""Clips at fixed places: right in time, in order, whatever the number of threads; in memory only while needed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import clock_times, write_clock

from stmae.data.container import DecodeError
from stmae.data.dataset import FixedClips
from stmae.data.sources import Index
from stmae.data.views import End, Places, View, read_views, segments, spread, starting, stream_views, windows

STEP = 4 / 30
SPAN = 8 * STEP


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clock(tmp_path_factory.mktemp("views") / "clock.mp4", seconds=5.0)


def read(path: Path, places: Places) -> tuple[list[View], End]:
    views: list[View] = []
    end = read_views(path, places, image_size=(16, 16), give=views.append)
    return views, end


def test_windows_begin_at_regular_times_and_the_last_ends_with_the_video() -> None:
    starts = [clip.times[0] for clip in windows(8, 4.0, 1.0)(5.0)]
    np.testing.assert_allclose(starts, [0, 1, 2, 3, 5 - SPAN])
    assert all(np.allclose(np.diff(clip.times), STEP) for clip in windows(8, 4.0, 1.0)(5.0))


@pytest.mark.parametrize(
    ("duration", "every", "starts"),
    [
        (2 * SPAN, SPAN, [0, SPAN]),  # nothing is left over
        (60.0, 10.0, [0, 10, 20, 30, 40, 50]),  # gaps between windows are what was asked for
        (52.5, 10.0, [0, 10, 20, 30, 40, 50]),
        (51.0, 10.0, [0, 10, 20, 30, 40, 51 - SPAN]),  # a whole clip no longer fits at 50
        (SPAN + 0.05, 0.5, [0]),  # less than a frame is left over
        (0.5, 1.0, [0]),  # shorter than a clip
    ],
)
def test_windows_cover_the_video(duration: float, every: float, starts: list[float]) -> None:
    found = windows(8, 4.0, every)(duration)
    np.testing.assert_allclose([clip.times[0] for clip in found], starts, atol=1e-9)
    assert all(0 <= clip.times[0] <= clip.times[-1] < duration for clip in found)
    assert [clip.shrunk for clip in found] == [duration < SPAN] * len(found)


def test_a_clip_from_a_given_time_on_keeps_its_stride_if_it_fits() -> None:
    (whole,) = starting(8, 4.0, 1.25)(5.0)
    np.testing.assert_allclose(whole.times, 1.25 + STEP * np.arange(8))
    assert not whole.shrunk
    (short,) = starting(8, 4.0, 4.5)(5.0)
    np.testing.assert_allclose(short.times, 4.5 + 0.5 / 8 * np.arange(8))
    assert short.shrunk
    (late,) = starting(8, 4.0, 99.0)(5.0)
    assert late.times[-1] < 5.0


@pytest.mark.parametrize("places", [windows(8, 4.0, 0.7), spread(8, 4.0, 3), starting(8, 4.0, 2.1)])
def test_frames_are_those_of_their_times(clock: Path, places: Places) -> None:
    views, end = read(clock, places)
    assert end.duration == pytest.approx(5.0, abs=0.01)
    assert [view.number for view in views] == list(range(end.clips))
    for view, expected in zip(views, places(end.duration), strict=True):
        np.testing.assert_allclose(view.times, expected.times, atol=0.01)
        # The frame shown at a time began at most 1/30 s before; mpeg4 blurs the brightness by a grey level or two.
        np.testing.assert_allclose(clock_times(view.clip), view.times, atol=1 / 30 + 0.12)
        assert view.end == pytest.approx(view.times[0] + SPAN)
        assert view.clip.shape == (3, 8, 16, 16)


def test_the_middle_is_the_clip_that_evaluation_uses(clock: Path) -> None:
    (view,), _ = read(clock, spread(8, 4.0, 1))
    fixed = FixedClips(Index(clock.parent, (clock.name,)), frames=8, stride=4.0, image_size=(16, 16))
    assert torch.equal(view.clip, fixed[0].clips[0])


def test_a_video_shorter_than_a_clip_gives_one_window(tmp_path: Path) -> None:
    path = write_clock(tmp_path / "short.mp4", seconds=0.5)
    views, end = read(path, windows(8, 4.0, 0.1))
    assert (len(views), end.clips, end.shrunk) == (1, 1, True)


def test_windows_are_handed_on_while_the_file_is_read(clock: Path) -> None:
    class Enough(Exception):
        pass

    given: list[View] = []

    def give(view: View) -> None:
        given.append(view)
        if len(given) == 2:
            raise Enough

    with pytest.raises(Enough):
        read_views(clock, windows(8, 4.0, 1.0), image_size=(16, 16), give=give)
    assert [view.number for view in given] == [0, 1]


def test_a_file_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    with pytest.raises(DecodeError):
        read(tmp_path / "bad.mp4", spread(8, 4.0, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = tmp_path_factory.mktemp("stream")
    for n, seconds in enumerate((3.0, 0.6, 2.0, 1.5)):
        write_clock(root / f"{n}.mp4", seconds=seconds)
    (root / "2b.mp4").write_bytes(b"broken")
    return Index(root, ("0.mp4", "1.mp4", "2.mp4", "2b.mp4", "3.mp4"))


@pytest.mark.parametrize("threads", [0, 1, 3, 8])
def test_the_stream_is_the_same_for_any_number_of_threads(folder: Index, threads: int) -> None:
    things = list(stream_views(folder, windows(8, 4.0, 0.5), image_size=(16, 16), threads=threads))
    ends = [thing for thing in things if isinstance(thing, End)]
    assert [end.item for end in ends] == [0, 1, 2, 3, 4]
    assert [end.clips for end in ends] == [5, 1, 3, 0, 2]
    assert [bool(end.damage) for end in ends] == [False, False, False, True, False]
    assert [thing.item for thing in things] == sorted(thing.item for thing in things)
    views = [thing for thing in things if isinstance(thing, View)]
    alone = [read(folder.path(item), windows(8, 4.0, 0.5))[0] for item in (0, 1, 2, 4)]
    for view, expected in zip(views, (view for part in alone for view in part), strict=True):
        assert torch.equal(view.clip, expected.clip)
        np.testing.assert_array_equal(view.times, expected.times)


def test_threads_end_when_nobody_reads_on(folder: Index) -> None:
    stream = stream_views(folder, windows(8, 4.0, 0.2), image_size=(16, 16), threads=3)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    limit = time.monotonic() + 10
    while any(thread.name.startswith("decode") for thread in threading.enumerate()):
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_mistake_of_ours_in_a_thread_is_raised(folder: Index) -> None:
    def wrong(duration: float) -> list[object]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(stream_views(folder, wrong, image_size=(16, 16), threads=2))  # type: ignore[arg-type]


@pytest.mark.parametrize("stated", [8.0, 5000.0])
def test_a_wrong_duration_in_the_header_adds_no_windows(
    clock: Path, monkeypatch: pytest.MonkeyPatch, stated: float
) -> None:
    sound, end = read(clock, windows(8, 4.0, 0.7))
    monkeypatch.setattr("stmae.data.frames.Video._stated_duration", lambda self: stated)
    views, same = read(clock, windows(8, 4.0, 0.7))
    assert (same.clips, same.duration) == (end.clips, pytest.approx(end.duration))
    last = {view.number: view for view in views}  # a view that comes again replaces the first
    for view in sound:
        assert torch.equal(last[view.number].clip, view.clip)
        np.testing.assert_allclose(last[view.number].times, view.times, atol=1e-6)


@pytest.mark.slow
def test_real_files_of_all_kinds_give_all_their_windows(shared: Path) -> None:
    files = sorted(path for path in (shared / "data" / "zoo").iterdir() if path.suffix not in (".csv", ".md"))[::4]
    assert len(files) > 20
    read_some = 0
    for path in files:
        try:
            views, end = read(path, windows(4, 4.0, 1.0))
        except DecodeError:
            continue
        read_some += 1
        last = {view.number: view for view in views}
        assert end.clips >= 1
        assert all(last[number].times[-1] <= end.duration for number in range(end.clips)), path
    assert read_some > 20


def test_three_crops_show_both_ends_and_the_middle(tmp_path: Path) -> None:
    array = np.zeros((12, 8, 24, 3), np.uint8)
    array[:] = np.arange(24)[None, None, :, None] * 10 + np.arange(12)[:, None, None, None]
    np.save(tmp_path / "a.npy", array)
    views: list[View] = []
    end = read_views(tmp_path / "a.npy", spread(2, 2.0, 2), image_size=(8, 8), give=views.append, crops=3)
    assert end.clips == 6
    assert sorted(view.number for view in views) == list(range(6))
    for view in views:
        place, crop = divmod(view.number, 3)
        times = spread(2, 2.0, 2)(12 / 30)[place].times
        assert np.array_equal(view.times, times)
        first = array[int(times[0] * 30 + 1e-6), :, 8 * crop : 8 * crop + 8]
        assert np.array_equal(view.clip[:, 0].permute(1, 2, 0).numpy(), first)


def test_segments_are_right_to_the_frame(tmp_path: Path) -> None:
    numbered = np.broadcast_to(np.arange(150, dtype=np.uint8)[:, None, None, None], (150, 4, 4, 3))
    np.save(tmp_path / "a.npy", numbered)
    views, end = read(tmp_path / "a.npy", segments(5, 2))  # 5 seconds
    assert end.clips == 2
    for number, view in enumerate(sorted(views, key=lambda view: view.number)):
        shown = view.clip[0, :, 0, 0].tolist()
        assert shown == [30 * part + (7, 22)[number] for part in range(5)]
