"""Frame choice is right to the frame: beside a full decode by PyAV, and beside the ffmpeg program where there is one.

The files here are generated, one for each property that has misled readers; the zoo of real files is used where it is.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_video import check_against_full_decode, number, picture, read, read_random, small_zoo

from stmae.data.container import DecodeError

X264 = {"crf": "10", "threads": "1", "preset": "veryfast"}


def encode(
    path: Path,
    count: int = 90,
    *,
    size: tuple[int, int] = (64, 32),
    stamp: Callable[[int], int] = lambda n: n,
    codec: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    first: int = 0,
) -> Path:
    """Frames that show their numbers, 30 a second unless `stamp` gives other times."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream("libx264", rate=30, options={**X264, **(codec or {})})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        for n in range(count):
            pixels = picture(first + n)
            enlarged = pixels.repeat(size[1] // 32, 0).repeat(size[0] // 64, 1)
            frame = av.VideoFrame.from_ndarray(enlarged, format="rgb24")
            frame.pts, frame.time_base = stamp(n), Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rotated(path: Path) -> Path:
    """A quarter turn, written into the track header's matrix."""
    encode(path)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version 0: the matrix stands behind 40 bytes
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def joined(path: Path) -> Path:
    """The picture's size changes half-way, as in a broadcast."""
    sizes = ((64, 32), (128, 64))
    parts = [
        encode(
            path.with_name(f"{n}.ts"), 45, size=size, first=45 * n, codec={"bf": "0"}, stamp=lambda k, n=n: k + 45 * n
        )
        for n, size in enumerate(sizes)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


MADE: dict[str, Callable[[Path], Path]] = {
    "b-frames": lambda folder: encode(folder / "a.mp4", codec={"bf": "4", "b-pyramid": "normal", "g": "24"}),
    "open-gops": lambda folder: encode(
        folder / "a.mkv", codec={"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"}
    ),
    "open-gops-mp4": lambda folder: encode(
        folder / "a.mp4", codec={"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"}
    ),
    "variable-rate": lambda folder: encode(folder / "a.mkv", stamp=lambda n: n * n // 8 + n, codec={"g": "15"}),
    "late-start": lambda folder: encode(folder / "a.mkv", stamp=lambda n: n + 777, codec={"g": "15", "bf": "2"}),
    "late-start-ts": lambda folder: encode(folder / "a.ts", stamp=lambda n: n + 777, codec={"g": "15", "bf": "2"}),
    "negative-stamps": lambda folder: encode(
        folder / "a.mp4", stamp=lambda n: n - 20, codec={"g": "15", "bf": "2"},
        muxer={"avoid_negative_ts": "disabled", "use_editlist": "0"},
    ),
    "edit-list": lambda folder: encode(folder / "a.mov", stamp=lambda n: n + 30, codec={"g": "15", "bf": "2"}),
    "fragmented": lambda folder: encode(
        folder / "a.mp4", codec={"g": "15", "bf": "2"}, muxer={"movflags": "frag_keyframe+empty_moov"}
    ),
    "no-index-mkv": lambda folder: encode(folder / "a.mkv", codec={"g": "15", "bf": "2"}, muxer={"live": "1"}),
    "no-index-avi": lambda folder: without_index(encode(folder / "a.avi", codec={"g": "15", "bf": "0"})),
    "no-container": lambda folder: encode(folder / "a.h264", codec={"g": "15", "bf": "2"}),
    "rotation": lambda folder: rotated(folder / "a.mp4"),
    "size-changes": lambda folder: joined(folder / "a.ts"),
}  # fmt: skip


def without_index(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"idx1")])
    return path


@pytest.mark.parametrize("kind", MADE)
def test_generated_files_are_read_to_the_frame(kind: str, tmp_path: Path) -> None:
    path = MADE[kind](tmp_path)
    if kind in ("rotation", "size-changes", "no-container"):
        check_by_numbers(path, turned=kind == "rotation")
    else:
        check_against_full_decode(path)
    if shutil.which("ffmpeg") and kind != "no-container":  # which has no time stamps, only guesses
        check_against_ffmpeg(path)


def check_by_numbers(path: Path, turned: bool) -> None:
    wanted = [0, 1, 14, 15, 16, 44, 45, 46, 88, 89]
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate) if path.suffix == ".h264" else 30
    got, _ = read(path, [[(n + 0.5) / rate for n in wanted]])
    for i, n in enumerate(wanted):
        pixels = np.rot90(got[0, i]) if turned else got[0, i]
        assert pixels.shape == (32, 64, 3)
        assert number(pixels) == n


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """float (16, 16, 3), the means of areas."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()
    return F.interpolate(image, (16, 16), mode="area")[0].permute(1, 2, 0).numpy()


def ffmpeg_frames(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times since the first frame and thumbnails of all frames by the ffmpeg program."""
    options = "-map 0:v:0 -vsync passthrough -vf showinfo,scale=16:16:flags=area -f rawvideo -pix_fmt rgb24 -"
    command = ["ffmpeg", "-nostdin", "-threads", "1", "-copyts", "-i", str(path)]
    done = subprocess.run([*command, *options.split()], capture_output=True, check=False, timeout=120)
    stamps = re.findall(r"n: *\d+ pts: *(\S+) pts_time: *(\S+)", done.stderr.decode(errors="replace"))
    frames = np.frombuffer(done.stdout, np.uint8)
    frames = frames[: len(frames) // 768 * 768].reshape(-1, 16, 16, 3).astype(np.float32)
    count = min(len(frames), len(stamps))
    if not count or any("NOPTS" in stamp for stamp, _ in stamps[:count]):
        pytest.skip("ffmpeg states no times")
    times = np.array([float(time) for _, time in stamps[:count]])
    if (np.diff(times) <= 0).any():
        pytest.skip("time stamps do not rise: which frame belongs to a time is open")
    return times - times[0], frames[:count]


def check_against_ffmpeg(path: Path) -> None:
    """Another version of FFmpeg converts colours a little otherwise, so frames are told apart by likeness."""
    shown, frames = ffmpeg_frames(path)
    got, times, _ = read_random(path)
    for (clip, i), pixels in got.items():
        at = np.searchsorted(shown, times[clip][i] + 1e-4, side="right") - 1  # pts_time is rounded to 6 digits
        near = np.abs(frames - thumbnail(pixels)).mean((1, 2, 3))
        assert near[at] <= near.min() + 1.5, (path.name, clip, i, at, int(near.argmin()), near[at], near.min())


@pytest.mark.slow
def test_real_files_beside_the_ffmpeg_program(shared: Path) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("the ffmpeg program is not here")
    checked = 0
    for path, _ in small_zoo(shared):
        try:
            check_against_ffmpeg(path)
        except pytest.skip.Exception:
            continue
        checked += 1
    assert checked > 50


def test_decoding_that_never_ends_is_cut_off_at_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "long.ts", codec={"bf": "0", "g": "15"})  # no index: the end is reached through the whole
    monkeypatch.setattr("stmae.data.frames.MAX_DECODED", 20 * 64 * 32)
    _, reading = read(path, [[0.1, 0.5]])
    assert reading.damage == ""
    clips = []
    for _ in range(2):
        got, times, reading = read_random(path)
        assert "pixels decoded" in reading.damage
        assert all(clip[-1] < 21 / 30 for clip in times)
        clips.append(got)
    assert all(np.array_equal(clips[0][key], clips[1][key]) for key in clips[0])


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".avi", ".gif"])
def test_headers_that_claim_giant_pictures(tmp_path: Path, ending: str) -> None:
    """Such a file gives its frames, if the stream itself says better, or a reason; never memory for 2.7 GB a frame."""
    path = tmp_path / f"a{ending}"
    if ending == ".gif":
        from stmae.data.synthetic import write_video

        write_video(path, map(picture, range(9)), 10, codec="gif", pixel_format="rgb8", options={})
        data = path.read_bytes()
        path.write_bytes(data[:6] + struct.pack("<HH", 30000, 30000) + data[10:])
    else:
        data = encode(path, 9).read_bytes()
        for form in (">HH", "<HH", ">II", "<II"):
            data = data.replace(struct.pack(form, 64, 32), struct.pack(form, 30000, 30000))
        data = data.replace(b"\xb0\x81\x40\xba\x81\x20", b"\xb0\x82\x75\x30\xba\x81\x20")
        path.write_bytes(data)
    try:
        read_random(path, clips=1)
    except DecodeError as error:
        print(error.reason)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 4 << 20
