"""An open video file that is read forwards, frame by frame, and decodes no more of it than wanted frames need.

`video.py` hands its frames out to clips.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from stmae.data.container import UNIT, DecodeError, in_words, open_video, quarter_turns, reasons, video_stream
from stmae.data.media import Media

MAX_BARREN_PACKETS = 1000  # in a row that give no picture
MAX_DECODED = 2**35  # pixels in one pass over a file: a minute's work or so; 16,000 frames of 1080p
LOOK_AHEAD = 24  # packets read before one is decoded: more than any codec reorders
SEEK_GAIN = 0.25  # seconds that a seek must save

# Containers whose duration comes from a table or a header made by the muxer; for others it is a guess from bit rates.
_DURATION_STATED = {"mov", "matroska", "avi", "flv", "asf"}
# Containers with an index of key frames and a presentation time for each frame.
_SEEKABLE = {"mov", "matroska"}

_INTRA = av.video.frame.PictureType.I


class Damaged(Exception):
    """A packet cannot be read or decoded."""


class SeekFailed(Exception):
    """The container's index, or a packet, says what does not hold: read everything from the start instead."""


class Video:
    """An open video file, read forwards frame by frame; a context manager that closes it.

    Attributes:
        first: time 0 and the first frame; None for one that is decoded only if it is wanted.
        wanted: sorted times, in seconds; other frames may be left out.
        stated_duration: in seconds, as the file states it; 0 where it does not or cannot be trusted.
        step: seconds from one frame to the next, as the file states it.
    """

    def __init__(self, path: str | Path | Media, seeking: bool) -> None:
        self.path = path
        self.wanted: list[float] = []
        self._container = open_video(path)
        try:
            self._stream = video_stream(self._container, path)
            self._decoder = self._stream.codec_context
            self._unit = float(self._stream.time_base or UNIT)  # of stamps, in seconds
            self.step = 1 / float(self._stream.average_rate or self._stream.guessed_rate or 30)
            self._format = self._container.format.name.split(",")[0]
            self._trusted = self._format in _SEEKABLE  # the packets' presentation times are the frames'
            self._seeking = seeking and self._trusted
            self._packets: Iterator[av.Packet] = self._container.demux(self._stream)
            self._ahead: deque[av.Packet] = deque()  # read, not yet decoded
            self._ahead_stamps: list[int] = []  # sorted presentation times of these and of a few before them
            self._read_error: Damaged | None = None  # met beyond the packets in `_ahead`
            self._frames: deque[av.VideoFrame] = deque()  # decoded, not yet handed out
            self._sought = False  # not everything from the start was decoded
            self._decoded_pixels = 0
            self._fed = 0  # stamp of decoding of the last packet that went into the decoder, or was gone to
            self._last = -math.inf  # time of the newest frame
            self._landed: int | None = None  # the key frame that was gone to, until it comes out of the decoder
            self._floor: int | None = None  # its stamp: frames before it are not whole
            self._over = False  # all that is wanted has gone through the decoder
            self._zero = 0  # the first frame's stamp, in units of the stream's time base
            self._size, self._turns = (self._decoder.height, self._decoder.width), -1
            self.first: tuple[float, av.VideoFrame | None] = (0.0, None)
            if self._seeking and self._plain_start():
                self._zero = self._fed = self._ahead_stamps[0]
            else:
                first = self._first_frame()
                self._zero = self._stamp(first) or 0
                self._last = 0.0
                self._size, self._turns = (first.height, first.width), quarter_turns(first)
                self.first = (0.0, first)
            self.stated_duration = self._stated_duration()
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def next(self, goal: float) -> tuple[float, av.VideoFrame | None] | None:
        """The next frame and its time, None at the end of the file.

        Frames before the one shown at time `goal` may be left out, so may frames that no time in `wanted` needs; what
        follows the last one that is wanted comes as (infinity, None).

        Raises:
            Damaged, SeekFailed
        """
        if self._seeking:
            self._seek(goal)
        try:
            found = self._next()
        except Damaged:
            if self._landed is not None:
                raise SeekFailed from None
            raise
        if self._landed is not None and (found is None or found[1] is None):
            raise SeekFailed
        return found

    def _next(self) -> tuple[float, av.VideoFrame | None] | None:
        frame = self._decoded()
        if frame is None:
            return (math.inf, None) if self._over else None
        if frame.is_corrupt and self._sought:
            raise SeekFailed  # what conceals its damage comes from all that was decoded before
        stamp = self._stamp(frame)
        time = self._last + self.step if stamp is None else (stamp - self._zero) * self._unit
        # Frames leave the decoder in the order they are shown in; where stamps contradict it, they are wrong.
        self._last = time if time > self._last else self._last + self.step
        return self._last, frame

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 (H, W, 3), upright, in the size of the first frame."""
        height, width = self._size
        if self._turns < 0:  # the first frame was not seen: this one stands for it
            if (frame.height, frame.width) != self._size:
                raise SeekFailed
            self._turns = quarter_turns(frame)
        with reasons(self.path, "cannot be converted to RGB"):
            array = frame.to_ndarray(format="rgb24", height=height, width=width, threads=1)
        return np.ascontiguousarray(np.rot90(array, self._turns)) if self._turns else array

    def frame_duration(self, frame: av.VideoFrame) -> float:
        """In seconds; from the file alone, so that it does not depend on which frames were read before."""
        return frame.duration * self._unit if frame.duration and self._trusted else self.step

    def _stamp(self, frame: av.VideoFrame) -> int | None:
        # AVI has no presentation times: what stands there counts packets in the order of decoding.
        return frame.dts if self._format == "avi" else frame.pts

    def _seconds(self, stamp: int) -> float:
        return (stamp - self._zero) * self._unit

    def _stated_duration(self) -> float:
        if self._format not in _DURATION_STATED:
            return 0.0
        if self._stream.duration:
            seconds = self._stream.duration * self._unit
        else:  # of the whole file, counted from its time 0 rather than from the first frame
            seconds = (self._container.duration or 0) / av.time_base - max(0.0, self._zero * self._unit)
        return seconds if seconds > 0 else 0.0

    def _plain_start(self) -> bool:
        """Whether the packets tell the first frame's time: a whole key frame that is shown before all others."""
        try:
            self._read_ahead()
        except Damaged:
            return False
        pictures = [packet for packet in self._ahead if packet.size]
        return (
            bool(pictures and self._ahead_stamps)
            and pictures[0] is self._ahead[0]
            and pictures[0].is_keyframe
            and pictures[0].pts == self._ahead_stamps[0]
            and not any(packet.pts is None or packet.is_discard or packet.is_corrupt for packet in pictures)
        )

    def _first_frame(self) -> av.VideoFrame:
        reason = "holds no pictures"
        for _ in range(MAX_BARREN_PACKETS):
            try:
                frame = self._decoded()
            except Damaged as error:
                reason = str(error)
                continue
            if frame is None:
                break
            return frame
        raise DecodeError(self.path, f"no frame can be decoded: {reason}")

    def _decoded(self) -> av.VideoFrame | None:
        """The next frame out of the decoder, None at the end of the file or of what is wanted."""
        barren = 0
        while not self._frames:
            self._read_ahead()
            if not self._ahead or self._over:
                return None
            packet = self._ahead[0]
            needed = self._needed(packet)
            if not needed and self._seeking and self._passed_over():
                continue
            self._ahead.popleft()
            if not packet.size and (packet.pts is not None or packet.dts is not None):
                continue  # a gap in the stream; the empty packet at its end has no stamps
            self._fed = _decoding_stamp(packet, self._fed)
            if not needed and self._decoder.codec.intra_only:
                continue
            # A frame that no other one refers to costs nothing if it is not wanted: the decoder skips it.
            self._skip("DEFAULT" if needed else "NONREF")
            self._feed(packet if packet.size else None)
            barren += needed
            if barren > MAX_BARREN_PACKETS:
                raise Damaged(f"{MAX_BARREN_PACKETS} packets without a picture")
            # Counted, not timed, so that every machine gives up at the same place.
            self._decoded_pixels += self._decoder.width * self._decoder.height
            if self._decoded_pixels > MAX_DECODED:
                raise Damaged(f"{MAX_DECODED >> 20} million pixels decoded, and no key frame with an index nearby")
        return self._frames.popleft()

    def _feed(self, packet: av.Packet | None) -> None:
        """Decodes a packet, or all that is left inside the decoder."""
        try:
            frames = self._decoder.decode(packet)
        except Exception as error:
            raise Damaged(in_words(error)) from error
        for frame in frames:
            if self._floor is not None and frame.pts is not None and frame.pts < self._floor:
                continue  # its references were not decoded
            if self._landed is not None:
                # Some indexes call frames key frames that refer to others.
                if frame.pts != self._landed or frame.is_corrupt or frame.pict_type != _INTRA:
                    raise SeekFailed
                self._landed = None
            self._frames.append(frame)

    def _passed_over(self) -> bool:
        """Leaves out the packets up to the next key frame, or all, if no wanted frame needs them."""
        later = itertools.islice(self._ahead, 1, None)
        key = next((packet for packet in later if packet.is_keyframe and packet.pts is not None), None)
        limit = math.inf if key is None else self._seconds(key.pts)

        def wanted(begin: int) -> bool:
            place = bisect_left(self.wanted, self._seconds(begin))
            return place < len(self.wanted) and self.wanted[place] < limit

        # What is read first is not what is shown first; but it ends most calls.
        if wanted(self._ahead[0].pts):
            return False
        least = min(packet.pts for packet in self._ahead if packet.pts is not None)
        if wanted(least):
            return False
        self._over = self.wanted[-1] < self._seconds(least)
        self._feed(None)
        if key is not None and not self._over:
            self._decoder.flush_buffers()
            while self._ahead[0] is not key:
                self._ahead.popleft()
            self._landed = self._floor = key.pts
            self._fed = _decoding_stamp(key, self._fed)
            self._sought = True
        return True

    def _skip(self, which: str) -> None:
        if self._decoder.skip_frame != which:
            self._decoder.skip_frame = which

    def _read_ahead(self) -> None:
        while self._read_error is None and len(self._ahead) < (LOOK_AHEAD if self._trusted else 1):
            try:
                packet = next(self._packets, None)
            except Exception as error:
                self._read_error = Damaged(in_words(error))
                break
            if packet is None:
                break
            self._ahead.append(packet)
            if packet.pts is not None:
                insort(self._ahead_stamps, packet.pts)
                del self._ahead_stamps[: -4 * LOOK_AHEAD]
        if self._read_error is not None and not self._ahead:
            raise self._read_error

    def _needed(self, packet: av.Packet) -> bool:
        """Whether a wanted time may fall to the packet's own frame, by the presentation times read so far."""
        if not self._trusted or not self.wanted or packet.pts is None or not packet.size:
            return True
        later = bisect_right(self._ahead_stamps, packet.pts)
        # At the end of the file the last frame stays: its end is the end of the video.
        if later == len(self._ahead_stamps):
            return True
        begin, end = self._seconds(packet.pts), self._seconds(self._ahead_stamps[later])
        return bisect_left(self.wanted, begin) < bisect_left(self.wanted, end)

    def _seek(self, goal: float) -> None:
        """Goes to the last key frame not after `goal`, if that saves decoding."""
        if goal < self._seconds(self._fed) + SEEK_GAIN:
            return
        try:
            index = self._stream.index_entries
            stamp = self._zero + math.floor(goal / self._unit)
            place = index.search_timestamp(stamp)
            if place < 0 or index[place].timestamp < self._fed + SEEK_GAIN / self._unit:
                return
            # The frame for `goal` may be shown before the key frame found and refer to the one before that.
            if self._land(stamp, goal) or self._land(index[place].timestamp - 1, goal):
                return
        except Exception as error:
            raise SeekFailed from error
        raise SeekFailed

    def _land(self, target: int, goal: float) -> bool:
        """Seeks; returns whether the next packet is a key frame from which the frame for `goal` can be decoded."""
        self._container.seek(target, stream=self._stream)
        self._packets = self._container.demux(self._stream)
        self._sought = True
        self._frames.clear()
        self._ahead.clear()
        self._ahead_stamps.clear()
        self._read_ahead()
        key = self._ahead[0] if self._ahead else None
        if key is None or not key.is_keyframe or key.pts is None or self._seconds(key.pts) > goal:
            return False
        self._landed = self._floor = key.pts
        self._last = -math.inf
        # An index that leads backwards misleads: go on from here, which is right all the same, but seek no more.
        before, self._fed = self._fed, _decoding_stamp(key, self._fed)
        self._seeking = self._fed > before
        return True


def _decoding_stamp(packet: av.Packet, default: int) -> int:
    """When a packet goes into the decoder; behind a seek some have no such stamp, and the time of showing stands in."""
    return next((stamp for stamp in (packet.dts, packet.pts) if stamp is not None), default)
