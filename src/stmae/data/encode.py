"""Writes a video anew so that clips are read from it fast: small, with key frames close together, cut into segments.

H.264 in MP4 without audio, upright, yuv420p with even sides. A frame keeps its own time unless there are too many:

    source   |--0--1--2--3--4--5--6--7--8--9--|     60 fps
    fps 30   |--0-----2-----4-----6-----8-----|     at k / 30 s the frame shown at that time
    segments |--0-----2-----4--|--6-----8-----|     each a file that starts with a key frame
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from stmae.data import frame_folders
from stmae.data.container import DecodeError, quarter_turns, reasons
from stmae.data.media import Media
from stmae.data.video import TOLERANCE, Reading, every_frame

CLOCK = 90_000  # time stamps a second
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EMFILE}
SLACK = 1.01  # a video counts as too fast from so many times the rate asked for

# Measured on real clips (docs/decisions.md): without CABAC and deblocking, decoding takes 40 % less time for 12 % more
# bytes; B-frames that nothing refers to are skipped by the reader where they are not wanted, so there are always three
# of them between others (x264 left to itself uses fewer), and cuts do not move the key frames.
FIXED = "b-pyramid=none:b-adapt=0:scenecut=0"
X264 = {"preset": "veryfast", "tune": "fastdecode", "bf": "3", "x264-params": FIXED, "threads": "1"}
GOP = 17  # frames: IBBBPBBBPBBBPBBBP, so that no group ends with a shorter run


@dataclass(frozen=True)
class Recipe:
    """How videos are written.

    Attributes:
        short_side: pixels of the shorter side at most, even; None keeps the size.
        fps: frames per second at most; None keeps all frames.
        gop: frames between key frames, at most.
        quality: x264's constant rate factor: 0 is lossless, 18 looks the same, 51 is the worst.
        segment: seconds of a segment; None writes each video whole.
    """

    short_side: int | None = 256
    fps: float | None = None
    gop: int = GOP
    quality: int = 23
    segment: float | None = None


@dataclass(frozen=True)
class Part:
    """One file that was written: `start` to `end` of the original, in seconds."""

    path: Path
    start: float
    end: float
    frames: int
    width: int
    height: int


def encode(media: Media, recipe: Recipe, folder: Path, stem: str) -> tuple[list[Part], Reading]:
    """Writes a video as one or more files `<stem>-<number>.mp4` into a folder.

    The same video and recipe give the same bytes. Memory holds a few frames, however long the video.

    Returns:
        The files in order of time, and what came of reading: its duration, and the damage that ended it, if any.

    Raises:
        DecodeError: not one frame can be decoded.
        OSError: a file cannot be written.
    """
    reading = Reading(0.0)
    parts: list[Part] = []
    writer: _Writer | None = None
    number = -1
    try:
        for time, duration, frame in _timed(media, recipe, reading):
            now = 0 if recipe.segment is None else math.floor((time + TOLERANCE) / recipe.segment)
            if writer is None or now != number:
                if writer is not None:
                    parts.append(writer.finish(min(time, (number + 1) * (recipe.segment or 0))))
                path = folder / f"{stem}-{len(parts):06d}.mp4"
                writer = _Writer(media, path, frame, recipe, reading.rate, now * (recipe.segment or 0.0), time)
                number = now
            writer.add(frame, time, duration)
        assert writer is not None
        parts.append(writer.finish(reading.duration))
    except BaseException:
        if writer is not None:
            writer.abandon()
        for part in parts:
            part.path.unlink(missing_ok=True)
        raise
    return parts, reading


def _timed(media: Media, recipe: Recipe, reading: Reading) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """The frames to write: time and duration in seconds, and the frame in the size and shape to be written."""
    shown: tuple[float, av.VideoFrame] | None = None
    shape: _Shape | None = None
    step = 0  # of the resampled video
    source = frame_folders.every_frame if media.kind == "frames" else every_frame
    for time, frame in source(media, reading):
        shape = shape or _Shape(frame, recipe.short_side)
        fast = recipe.fps is not None and reading.rate > SLACK * recipe.fps
        if shown is not None:
            if not fast:
                yield shown[0], time - shown[0], shape.of(shown[1], media)
            else:
                assert recipe.fps is not None
                while step / recipe.fps + TOLERANCE < time:
                    yield step / recipe.fps, 1 / recipe.fps, shape.of(shown[1], media)
                    step += 1
        shown = (time, frame)
    assert shown is not None
    assert shape is not None
    if recipe.fps is None or reading.rate <= SLACK * recipe.fps:
        yield shown[0], reading.duration - shown[0], shape.of(shown[1], media)
        return
    while step == 0 or step / recipe.fps + TOLERANCE < reading.duration:
        yield step / recipe.fps, 1 / recipe.fps, shape.of(shown[1], media)
        step += 1


class _Shape:
    """The size and turn that all frames of a video are written in: those of its first frame."""

    def __init__(self, first: av.VideoFrame, short_side: int | None) -> None:
        scale = min(1.0, (short_side or math.inf) / min(first.width, first.height))
        self.width, self.height = (max(2, 2 * round(side * scale / 2)) for side in (first.width, first.height))
        self.turns = quarter_turns(first)

    def of(self, frame: av.VideoFrame, media: Media) -> av.VideoFrame:
        with reasons(media, "cannot be converted to yuv420p"):
            small = frame.reformat(self.width, self.height, "yuv420p", interpolation="BICUBIC", threads=1)
            return small if not self.turns else _turned(small, self.turns)


def _turned(frame: av.VideoFrame, turns: int) -> av.VideoFrame:
    """The frame upright: quarter turns counterclockwise of its three planes."""
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        planes.append(np.rot90(rows, turns))
    height, width = planes[0].shape
    flat = np.concatenate([plane.reshape(-1) for plane in planes])
    turned = av.VideoFrame.from_ndarray(flat.reshape(height * 3 // 2, width), format="yuv420p")
    turned.color_range, turned.colorspace = frame.color_range, frame.colorspace
    return turned


class _Writer:
    """One MP4 file; times in it count from its first frame."""

    def __init__(
        self,
        media: Media,
        path: Path,
        first: av.VideoFrame,
        recipe: Recipe,
        rate: float,
        start: float,
        first_time: float,
    ) -> None:
        self.path, self._media, self._start, self._zero, self._frames = path, media, start, first_time, 0
        self._durations: dict[int, int] = {}
        rate = min(rate, recipe.fps or math.inf)
        # Bit-exact writing leaves out dates and version numbers. The index goes to the front: one read finds it.
        self._file = av.open(str(path), "w", options={"fflags": "+bitexact", "movflags": "+faststart"})
        nominal = Fraction(min(max(rate, 1), 1000)).limit_denominator(1001)
        options = X264 | {"g": str(recipe.gop), "crf": str(recipe.quality)}
        self._stream: Any = self._file.add_stream("libx264", rate=nominal, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = first.width, first.height, "yuv420p"
        context = self._stream.codec_context
        context.thread_count = 1
        context.time_base = self._stream.time_base = Fraction(1, CLOCK)
        context.color_range, context.colorspace = first.color_range, first.colorspace
        context.color_primaries, context.color_trc = first.color_primaries, first.color_trc
        self.size = (first.width, first.height)

    def add(self, frame: av.VideoFrame, time: float, duration: float) -> None:
        # Two frames of one moment would end the file; decoders' times differ by more than a 90,000th of a second.
        stamp = max(round((time - self._zero) * CLOCK), max(self._durations, default=-1) + 1)
        self._durations = {stamp: max(1, round(duration * CLOCK))} | self._durations
        frame.pts, frame.time_base, frame.pict_type = stamp, Fraction(1, CLOCK), av.video.frame.PictureType.NONE
        with reasons(self._media, "cannot be written as H.264"):
            packets = self._stream.encode(frame)
        self._mux(packets)
        self._frames += 1

    def finish(self, end: float) -> Part:
        with reasons(self._media, "cannot be written as H.264"):
            packets = self._stream.encode()
        self._mux(packets)
        with self._disk_told():
            self._file.close()
        return Part(self.path, self._start, end, self._frames, *self.size)

    def abandon(self) -> None:
        """Closes and removes what is there."""
        with contextlib.suppress(Exception):  # that is why
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            # The last frame's duration is that of the video's end; the muxer knows it from nowhere else.
            if packet.pts in self._durations:
                packet.duration = self._durations.pop(packet.pts)
            with self._disk_told():
                self._file.mux(packet)

    @contextlib.contextmanager
    def _disk_told(self) -> Iterator[None]:
        """A full disk is no fault of the video."""
        try:
            yield
        except av.FFmpegError as error:
            if error.errno in _DISK:
                raise OSError(error.errno, os.strerror(error.errno), str(self.path)) from None
            raise DecodeError(self._media, f"cannot be written as MP4: {error.strerror}") from error
