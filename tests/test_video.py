"""Frames at given times are those of a full decode, and every damaged file ends as frames or as a DecodeError."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stmae.data import container, video
from stmae.data.clips import clip_key, clip_times
from stmae.data.container import DecodeError
from stmae.data.frames import Video
from stmae.data.synthetic import write_video
from stmae.data.video import Reading, read_clips

Frames = dict[tuple[int, int], np.ndarray]


def read(path: Path, times: list[list[float]]) -> tuple[Frames, Reading]:
    """The frames at fixed times, whatever the duration."""
    got: Frames = {}
    reading = read_clips(
        path, len(times), lambda clip, _: times[clip], lambda c, i, px: got.update({(c, i): px.copy()})
    )
    return got, reading


def read_random(
    path: Path, clips: int = 3, frames: int = 6, stride: float = 4
) -> tuple[Frames, list[np.ndarray], Reading]:
    """Random clips as training takes them."""
    got: Frames = {}
    times = [np.empty(0)] * clips

    def choose(clip: int, duration: float) -> np.ndarray:
        times[clip] = clip_times(duration, frames, stride, clip_key(0, 0, 0, clip)).times
        return times[clip]

    reading = read_clips(path, clips, choose, lambda c, i, px: got.update({(c, i): px.copy()}))
    assert len(got) == clips * frames
    return got, times, reading


def decode_all(path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Times since the first frame and pictures of all frames, the slow and obvious way."""
    with av.open(str(path), metadata_errors="replace") as container:
        stream = next(s for s in container.streams.video)
        stream.codec_context.thread_count = 1
        found = []
        try:
            for frame in container.decode(stream):
                turns = round(frame.rotation / 90) % 4 if abs(frame.rotation) <= 360 else 0
                rgb = np.rot90(frame.to_ndarray(format="rgb24", threads=1), turns)
                found.append((frame.dts if container.format.name == "avi" else frame.pts, rgb))
        except av.FFmpegError:
            pass
        unit = float(stream.time_base)
    stamps = [stamp for stamp, _ in found]
    if None in stamps or (np.diff(stamps) <= 0).any():
        pytest.skip("time stamps do not rise: which frame belongs to a time is open")
    return (np.array(stamps) - stamps[0]) * unit, [rgb for _, rgb in found]


def check_against_full_decode(path: Path) -> None:
    shown, pictures = decode_all(path)
    got, times, _ = read_random(path)
    for (clip, i), pixels in got.items():
        expected = pictures[np.searchsorted(shown, times[clip][i] + video.TOLERANCE, side="right") - 1]
        assert pixels.dtype == np.uint8
        assert pixels.shape == pictures[0].shape
        if expected.shape == pixels.shape:
            np.testing.assert_array_equal(pixels, expected)


def test_frames_are_those_of_a_full_decode(videos: Path) -> None:
    for path in sorted(videos.iterdir()):
        check_against_full_decode(path)


# Large ones take their time, without showing more.
MAX_PIXELS_OF_A_FILE = 4e6


def small_zoo(shared: Path) -> list[tuple[Path, dict[str, str]]]:
    with open(shared / "data/zoo/MANIFEST.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["frames"] or 0)]
    pixels = {row["file"]: int(row["frames"]) * int(row["width"]) * int(row["height"]) for row in rows}
    return [(shared / "data/zoo" / row["file"], row) for row in rows if pixels[row["file"]] <= MAX_PIXELS_OF_A_FILE]


@pytest.mark.slow
def test_real_files_of_many_kinds(shared: Path) -> None:
    checked = 0
    for path, _ in small_zoo(shared):
        try:
            check_against_full_decode(path)
        except pytest.skip.Exception:
            read_random(path)
        checked += 1
    assert checked > 60


def test_rotated_files_come_upright_and_their_size_does_not_change(shared: Path) -> None:
    turned = [(path, row) for path, row in small_zoo(shared) if abs(int(row["rotation"] or 0)) == 90]
    assert len(turned) >= 4
    for path, row in turned:
        got, _, _ = read_random(path)
        assert got[0, 0].shape == (int(row["width"]), int(row["height"]), 3)
    for path, row in small_zoo(shared):
        if "frame size changes" in row["note"]:
            got, _, _ = read_random(path)
            assert len({pixels.shape for pixels in got.values()}) == 1


def test_every_broken_file_ends_as_frames_or_a_readable_reason(shared: Path) -> None:
    reasons, sound = {}, 0
    for path in sorted((shared / "data/broken").iterdir()):
        try:
            read_random(path)
            sound += 1
        except DecodeError as error:
            reasons[path] = error
    assert sound >= 12
    assert len(reasons) >= 45
    for path, error in reasons.items():
        assert error.path == str(path)
        assert 5 < len(error.reason) < 200
        assert "Errno" not in error.reason
        assert path.name not in error.reason


def picture(n: int) -> np.ndarray:
    """uint8 (32, 64, 3) that shows n in binary, as 8 black or white squares."""
    bits = np.array([n >> bit & 1 for bit in range(8)], np.uint8).reshape(2, 4) * 255
    return np.repeat(bits.repeat(16, 0).repeat(16, 1)[..., None], 3, 2)


def number(pixels: np.ndarray) -> int:
    """What `picture` shows."""
    bits = pixels.reshape(2, 16, 4, 16, 3).mean((1, 3, 4)).ravel() > 127
    return sum(int(bit) << place for place, bit in enumerate(bits))


def numbered(path: Path, count: int, rate: int = 30, **options: str) -> Path:
    """A video whose frames show their numbers, in x264 with B-frames."""
    x264 = {"preset": "veryfast", "crf": "10", "threads": "1", **options}
    write_video(path, map(picture, range(count)), rate, options=x264)
    return path


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".mov", ".avi", ".ts", ".flv"])
@pytest.mark.parametrize("bframes", ["0", "3"])
def test_the_frame_for_a_time_is_the_last_that_is_not_after_it(tmp_path: Path, ending: str, bframes: str) -> None:
    path = numbered(tmp_path / f"n{ending}", 100, bf=bframes, g="20")
    wanted = [0, 1, 2, 33, 34, 59, 60, 61, 98, 99]
    early, late = [n / 30 + 0.002 for n in wanted], [(n + 1) / 30 - 0.002 for n in wanted]
    got, reading = read(path, [early, late, [50.5 / 30]])
    assert [number(got[0, i]) for i in range(len(wanted))] == wanted
    assert [number(got[1, i]) for i in range(len(wanted))] == wanted
    assert number(got[2, 0]) == 50
    assert reading.repeated == [False, False, False]
    assert reading.damage == ""


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_times_in_any_structure(tmp_path: Path, data: st.DataObject) -> None:
    """Random key frame distances, reordering and starts; random times, near and far, of several clips."""
    group, bframes = data.draw(st.sampled_from(["1", "3", "12", "250"])), data.draw(st.sampled_from(["0", "2", "5"]))
    ending, start = data.draw(st.sampled_from([".mp4", ".mkv"])), data.draw(st.sampled_from([0, 2, 7]))
    path = tmp_path / f"{group}-{bframes}-{start}{ending}"
    if not path.exists():
        options = {"crf": "10", "threads": "1", "g": group, "bf": bframes, "preset": "veryfast", "b-pyramid": "normal"}
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
            for n in range(150):
                frame = av.VideoFrame.from_ndarray(picture(n), format="rgb24")
                frame.pts = start + n
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    wanted = data.draw(
        st.lists(st.lists(st.integers(0, 149), min_size=1, max_size=6).map(sorted), min_size=1, max_size=3)
    )
    got, _ = read(path, [[(n + data.draw(st.floats(0.05, 0.95))) / 25 for n in clip] for clip in wanted])
    assert {key: number(pixels) for key, pixels in got.items()} == {
        (c, i): n for c, clip in enumerate(wanted) for i, n in enumerate(clip)
    }


def test_frames_of_uneven_length_are_found_by_their_stamps(tmp_path: Path) -> None:
    stamps = [0, 5, 6, 30, 90, 91, 120]
    with av.open(str(tmp_path / "vfr.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "10", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for n, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(n), format="rgb24")
            frame.pts = stamp
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    at = [0, 4.9, 5.1, 29, 31, 89, 90.5, 91.5, 119, 121]
    got, reading = read(tmp_path / "vfr.mkv", [[t / 30 for t in at]])
    assert [number(got[0, i]) for i in range(len(at))] == [0, 0, 1, 2, 3, 3, 4, 5, 5, 6]
    assert reading.repeated == [True]


def test_only_what_is_needed_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = numbered(tmp_path / "long.mp4", 120, g="20", bf="3", sc_threshold="0")
    decoded = []
    decode = Video._decoded
    monkeypatch.setattr(Video, "_decoded", lambda self: decoded.append(1) or decode(self))
    converted = []
    pixels = Video.pixels
    monkeypatch.setattr(Video, "pixels", lambda self, frame: converted.append(1) or pixels(self, frame))
    got, _ = read(path, [[105.5 / 30, 107.5 / 30], [105.5 / 30, 109.5 / 30]])
    assert [number(got[key]) for key in sorted(got)] == [105, 107, 105, 109]
    assert len(decoded) <= 16  # the first one, then from key frame 100 on: not 110
    assert len(converted) == 3  # 105 serves two clips


def fed_packets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Presentation times of the packets that go into the decoder from now on."""
    fed: list[int] = []
    feed = Video._feed

    def counted(self: Video, packet: av.Packet | None) -> None:
        if packet is not None:
            fed.append(round(packet.pts * float(packet.time_base) * 30))
        feed(self, packet)

    monkeypatch.setattr(Video, "_feed", counted)
    return fed


def test_packets_that_no_wanted_frame_needs_stay_undecoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without B-frames every frame refers to the one before: from the key frame to the wanted one, and no further."""
    path = numbered(tmp_path / "v.mp4", 120, g="12", bf="0", sc_threshold="0")
    fed = fed_packets(monkeypatch)
    got, reading = read(path, [[n / 30 + 0.01 for n in (30, 33, 45, 46, 100)]])
    assert [number(got[0, i]) for i in range(5)] == [30, 33, 45, 46, 100]
    assert fed == [*range(24, 34), *range(36, 47), *range(96, 101)]
    assert reading.repeated == [False]
    fed.clear()
    got, reading = read(path, [[0.0, 0.001, 1 / 30], [3.98, 3.99]])  # the first frames and the last one
    assert [number(got[key]) for key in sorted(got)] == [0, 0, 1, 119, 119]
    assert fed == [0, 1, *range(108, 120)]
    assert reading.repeated == [True, True]


def test_a_first_packet_without_a_picture_is_no_first_frame(tmp_path: Path) -> None:
    """Its time tells nothing then; and what cannot be relied on costs a second reading, not a wrong frame."""
    path = numbered(tmp_path / "v.mp4", 60, g="12", bf="0", sc_threshold="0")
    with av.open(str(path)) as container:
        packet = next(container.demux(video=0))
        begin, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[begin : begin + size] = bytes(size)
    path.write_bytes(data)
    got, _ = read(path, [[0.001, 1.01]])
    slow: Frames = {}
    video._read_clips(
        path, 1, lambda *_: [0.001, 1.01], lambda c, i, px: slow.update({(c, i): px.copy()}), seeking=False
    )
    for key in slow:
        np.testing.assert_array_equal(got[key], slow[key])
    assert number(got[0, 0]) > 0


def test_a_clip_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    path = numbered(tmp_path / "v.mp4", 110, g="15", bf="3")
    together, times, _ = read_random(path, clips=4)
    for clip in range(4):
        alone, _ = read(path, [list(times[clip])])
        for i in range(len(times[clip])):
            np.testing.assert_array_equal(alone[0, i], together[clip, i])


@pytest.mark.parametrize("ending", [".mkv", ".flv", ".ts"])
def test_a_file_that_ends_early_gives_what_it_has(tmp_path: Path, ending: str) -> None:
    whole = numbered(tmp_path / f"whole{ending}", 120, g="10", crf="1")
    data = whole.read_bytes()
    cut = tmp_path / f"cut{ending}"
    cut.write_bytes(data[: len(data) // 2])
    got, times, reading = read_random(cut, clips=8)
    again, times_again, _ = read_random(cut, clips=8)
    assert reading.duration < 3.5
    for clip in range(8):
        assert times[clip][-1] < reading.duration
        np.testing.assert_array_equal(times[clip], times_again[clip])
        for i, time in enumerate(times[clip]):
            np.testing.assert_array_equal(got[clip, i], again[clip, i])
            assert abs(number(got[clip, i]) - time * 30) <= 1.5
    # Clips that fit into what is left are where they would be in the whole file.
    _, planned, _ = read_random(whole, clips=8)
    if ending != ".ts":  # which states no duration: the cut file simply is a shorter one
        kept = [clip for clip in range(8) if planned[clip][-1] < reading.duration - 0.1]
        assert kept
        for clip in kept:
            np.testing.assert_allclose(times[clip], planned[clip], atol=2e-3)


def test_damage_inside_a_file_is_reported(shared: Path) -> None:
    _, times, reading = read_random(shared / "data/broken/decord__corrupted.mp4", clips=6)
    assert "Invalid data" in reading.damage
    assert all(clip[-1] < reading.duration for clip in times)


def test_short_videos_repeat_frames_and_say_so(tmp_path: Path) -> None:
    one = numbered(tmp_path / "one.mp4", 1)
    got, _, reading = read_random(one)
    assert {number(pixels) for pixels in got.values()} == {0}
    assert reading.repeated == [True] * 3
    slow = numbered(tmp_path / "slow.mp4", 20, rate=5)
    _, _, reading = read_random(slow, stride=2)
    assert reading.repeated == [True] * 3
    _, _, reading = read_random(slow, stride=6)
    assert reading.repeated == [False] * 3


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_what_is_no_video_is_refused_with_its_reason(tmp_path: Path) -> None:
    files = {
        name: tmp_path / name for name in ("empty.mp4", "text.mp4", "list.mp4", "pipe.mp4", "folder.mp4", "sound.mp4")
    }
    files["empty.mp4"].touch()
    files["text.mp4"].write_text("not a video\n" * 500)
    files["list.mp4"].write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    os.mkfifo(files["pipe.mp4"])
    files["folder.mp4"].mkdir()
    audio_only(files["sound.mp4"])
    reasons = {}
    for name, path in {**files, "missing.mp4": tmp_path / "missing.mp4"}.items():
        with pytest.raises(DecodeError) as caught:
            read_random(path)
        reasons[name] = caught.value.reason
        assert str(path) not in caught.value.reason
    assert "empty" in reasons["empty.mp4"]
    assert "only audio" in reasons["sound.mp4"]
    assert "not a file" in reasons["pipe.mp4"]
    assert "not a file" in reasons["folder.mp4"]
    assert "No such file" in reasons["missing.mp4"]


def test_metadata_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert b"caf\xc3\xa9" in data
    odd = tmp_path / os.fsdecode(b"caf\xe9.mkv")
    odd.write_bytes(data.replace(b"caf\xc3\xa9", b"caf\xe9\xe9"))
    got, _, _ = read_random(odd)
    assert got[0, 0].shape == (32, 32, 3)


def test_giant_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = numbered(tmp_path / "v.mp4", 3)
    monkeypatch.setattr(container, "MAX_PIXELS", 64 * 32 - 1)
    with pytest.raises(DecodeError):
        read_random(path)


def test_animated_and_grey_pictures(tmp_path: Path) -> None:
    for ending, codec, pixel_format in ((".gif", "gif", "rgb8"), (".apng", "apng", "rgb24"), (".mkv", "ffv1", "gray")):
        path = tmp_path / f"a{ending}"
        frames = (np.full((24, 32, 3), 36 * n, np.uint8) for n in range(5))
        write_video(path, frames, 10, codec=codec, pixel_format=pixel_format, options={})
        got, reading = read(path, [[0.05, 0.15, 0.25, 0.35, 0.45]])
        assert [round(float(got[0, i].mean()) / 36) for i in range(5)] == [0, 1, 2, 3, 4]
        assert got[0, 0].shape == (24, 32, 3)
        assert reading.repeated == [False]


def test_nothing_stays_open(tmp_path: Path) -> None:
    good, bad = numbered(tmp_path / "v.mp4", 40), tmp_path / "bad.mp4"
    bad.write_bytes(good.read_bytes()[:500])
    read_random(good)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read_random(good)
        with pytest.raises(DecodeError):
            read_random(bad)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_an_error_of_the_caller_is_not_taken_for_a_bad_file(tmp_path: Path) -> None:
    path = numbered(tmp_path / "v.mp4", 10)

    def take(clip: int, position: int, pixels: np.ndarray) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read_clips(path, 1, lambda *_: [0.0], take)
