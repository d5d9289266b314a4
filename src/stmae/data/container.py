"""Opens video files and says in words why one cannot be opened; knows nothing of clips."""

from __future__ import annotations

import errno
import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from stmae.data.media import Media
from stmae.errors import UserError

MAX_PIXELS = 2**26  # of one frame; 8192 x 8192. Damaged headers ask for more than any memory.
UNIT = Fraction(1, 90_000)  # of time stamps, where a damaged file states none


class DecodeError(Exception):
    """No picture can be had from a file.

    Attributes:
        path: of the file.
        reason: why, in words.
    """

    def __init__(self, path: str | Path | Media, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(self.path, reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def open_video(path: str | Path | Media) -> av.container.InputContainer:
    with reasons(path, "cannot be opened"):
        media = Media.of(path)
        found = os.stat(media.path)
        if not stat.S_ISREG(found.st_mode):
            raise DecodeError(path, "is not a file")  # opening a pipe would wait for ever
        size = found.st_size - media.offset if media.size is None else media.size
        if size <= 0:
            raise DecodeError(path, "the file is empty")
        # Play lists and the like, whatever they are named, must not reach out to the network.
        options = {"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
        file = str(media.path) if media.whole else FileRange(media)
        return av.open(file, metadata_errors="replace", options=options)


class FileRange(io.RawIOBase):
    """A range of a file as a file of its own.

    FFmpeg tells formats apart by a file's ending too, and asks for its name here. (Its own protocol for ranges,
    `subfile`, shows it the ending of the file around: damaged files then read otherwise. It is no faster.)
    """

    def __init__(self, media: Media) -> None:
        self.name = media.name
        self._file = os.open(media.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._begin = media.offset
        self._size = os.fstat(self._file).st_size - media.offset if media.size is None else media.size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if place < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._place = place
        return place

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._place)
        size = left if size is None or size < 0 else min(size, left)
        part = os.pread(self._file, size, self._begin + self._place)
        self._place += len(part)
        return part

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        part = self.read(len(view))
        view[: len(part)] = part
        return len(part)

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()


def video_stream(container: av.container.InputContainer, path: str | Path | Media) -> av.VideoStream:
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise DecodeError(path, f"holds no video stream, only {kinds}")
    stream = streams[0]
    if stream.codec_context is None:
        raise DecodeError(path, "no decoder knows its codec")
    with reasons(path, "cannot be decoded"):
        # Loaders run one worker per core: more threads here would only get in each other's way.
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def scanned_duration(path: str | Path | Media) -> float:
    """The video's duration in seconds by reading all packets without decoding them."""
    with open_video(path) as container:
        stream = video_stream(container, path)
        step = 1 / float(stream.average_rate or stream.guessed_rate or 30)
        unit = float(stream.time_base or UNIT)
        count, begin, end = 0, math.inf, -math.inf
        try:
            for packet in container.demux(stream):
                count += packet.size > 0
                if packet.pts is not None:
                    begin = min(begin, packet.pts * unit)
                    end = max(end, packet.pts * unit + (packet.duration * unit if packet.duration else step))
        except Exception:
            pass  # the part before the damage counts
    return max(end - begin, step) if count and end > begin else max(count, 1) * step


def quarter_turns(frame: av.VideoFrame) -> int:
    """How many quarter turns counterclockwise show the frame upright."""
    degrees = frame.rotation
    return round(degrees / 90) % 4 if abs(degrees) <= 360 else 0  # damaged matrices give -2147483648


@contextmanager
def reasons(path: str | Path | Media, problem: str) -> Iterator[None]:
    """Turns whatever the decoding library raises into a `DecodeError`."""
    try:
        yield
    except (DecodeError, UserError):
        raise
    except Exception as error:
        raise DecodeError(path, f"{problem}: {in_words(error)}") from error


def in_words(error: Exception) -> str:
    """The reason without numbers and paths."""
    text = getattr(error, "strerror", None) or str(error)
    return text.strip() or type(error).__name__
