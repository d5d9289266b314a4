"""What there is to know of a video file before training on it: its format, its frames, and what can be seen in them.

Every frame that is looked at becomes a thumbnail, 32 x 32 and grey. From the thumbnails follow whether anything moves,
where the hard cuts are, and the track by which copies are found (data/copies.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import av
import numpy as np
from av.video.reformatter import Interpolation

from stmae.data.container import (
    UNIT,
    DecodeError,
    in_words,
    open_video,
    quarter_turns,
    reasons,
    video_stream,
)
from stmae.data.media import Media, read_clips
from stmae.data.tracks import RATE, SIDE, Track, correlation, make_track

WINDOW = 10.0  # seconds: a long video is looked at in windows of about this length
MAX_PACKETS = 500_000  # read for a file's facts: four hours at 30 fps
MAX_FRAMES = 20_000  # looked at, whatever the frame rate says
MAX_BARREN = 1000  # packets in a row without a picture

# Grey levels: the largest change of any pixel of the thumbnails. A still picture, encoded, gives 0 to 6; the least that
# something small moves in real clips is 6, in nearly all it is above 20 (docs/results/check.md).
STATIC = 5.0
# A cut: the thumbnails before and after correlate less than this, and the change stands out so many times from those
# around it.
CUT_CORRELATION = 0.6
CUT_CHANGE = 8.0
CUT_RATIO = 4.0


@dataclass
class Facts:
    """What a file is.

    Attributes:
        kind: video, image or array.
        bytes: its size.
        container, codec: as FFmpeg names them; empty where they are not known.
        width, height: in pixels, as shown (upright).
        duration: in seconds.
        fps: frames per second, the mean.
        variable_rate: the distances between frames differ.
        frames: how many.
        key_seconds: mean distance between key frames.
        reason: why it cannot be read; empty if it can.
        damage: why it can be read in part only.
        audio_only: there is sound, but no picture.
        motion: the largest change of any pixel of the thumbnails over time, in grey levels (0 to 255).
        cuts: the times of the first frames after hard cuts, in seconds.
        looked: how many seconds were looked at.
        track: see there; None if it cannot be read.
    """

    kind: str = "video"
    bytes: int = 0
    container: str = ""
    codec: str = ""
    width: int = 0
    height: int = 0
    duration: float = 0.0
    fps: float = 0.0
    variable_rate: bool = False
    frames: int = 0
    key_seconds: float = 0.0
    reason: str = ""
    damage: str = ""
    audio_only: bool = False
    motion: float = 0.0
    cuts: list[float] = field(default_factory=list)
    looked: float = 0.0
    track: Track | None = None


def survey(media: Media, look: float = 60.0) -> Facts:
    """The facts of one item; that it cannot be read is a fact too, not an error.

    Args:
        media: video, image or array.
        look: seconds of a video that are decoded; of a longer one, windows spread over it.
    """
    facts = Facts(kind=media.kind)
    try:
        facts.bytes = media.bytes
        media.verify()
        if media.kind == "video":
            _read_format(media, facts)
            _read_packets(media, facts)
            _look(media, facts, look)
        else:
            _look_at_others(media, facts, look)
    except DecodeError as error:
        facts.reason, facts.damage = error.reason, ""
    except OSError as error:
        facts.reason = f"cannot be opened: {in_words(error)}"
    return facts


def _read_format(media: Media, facts: Facts) -> None:
    with open_video(media) as container:
        facts.container = container.format.name.split(",")[0]
        kinds = {stream.type for stream in container.streams}
        facts.audio_only = "audio" in kinds and "video" not in kinds
        facts.codec = video_stream(container, media).codec_context.codec.canonical_name


def _look_at_others(media: Media, facts: Facts, look: float) -> None:
    """Images and arrays, through the reader that training uses."""
    facts.container = facts.codec = os.path.splitext(media.name)[1].lower()[1:]
    pictures: list[np.ndarray] = []

    def choose(clip: int, duration: float) -> np.ndarray:
        facts.duration = duration
        return np.arange(max(1, round(min(duration, look) * RATE))) / RATE

    def take(clip: int, position: int, frame: np.ndarray) -> None:
        facts.height, facts.width = frame.shape[:2]
        pictures.append(_grey(frame))

    read_clips(media, 1, choose, take)
    values = np.stack(pictures)
    if media.kind == "array":  # of any range
        low, high = float(values.min()), float(values.max())
        values = (values - low) * (255 / max(high - low, 1e-9))
    thumbs = np.clip(values + 0.5, 0, 255).astype(np.uint8)
    facts.motion = float((thumbs.max(axis=0).astype(int) - thumbs.min(axis=0)).max())
    facts.looked = min(facts.duration, look)
    facts.track = make_track(np.arange(len(thumbs) + 1) / RATE, thumbs)


def _grey(frame: np.ndarray) -> np.ndarray:
    """(H, W, C) of any type as float32 (SIDE, SIDE)."""
    from PIL import Image

    grey = Image.fromarray(np.ascontiguousarray(frame.astype(np.float32).mean(axis=2)))
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))


# The packets: how many frames, when, and which are key frames --------------------------------------------------------


def _read_packets(media: Media, facts: Facts) -> None:
    """Fills in what follows from the packets without decoding them."""
    stamps, keys, count = [], 0, 0
    length = 0.0  # of the last packet's frame, in seconds
    with open_video(media) as container:
        stream = video_stream(container, media)
        unit = float(stream.time_base or UNIT)
        step = 1 / float(stream.average_rate or stream.guessed_rate or 30)
        try:
            for packet in container.demux(stream):
                if not packet.size or packet.is_discard:
                    continue
                count += 1
                keys += packet.is_keyframe
                length = packet.duration * unit if packet.duration else step
                if packet.pts is not None:
                    stamps.append(packet.pts)
                if count >= MAX_PACKETS:
                    facts.damage = f"only its first {MAX_PACKETS:,} packets were looked at"
                    break
        except Exception as error:
            facts.damage = in_words(error)
    # AVI has no presentation times: what stands there counts packets in the order of decoding.
    times = np.unique(np.array(stamps, np.int64)) * unit if facts.container != "avi" else np.empty(0)
    facts.frames = count
    if len(times) > 1 and len(times) >= 0.9 * count:
        gaps = np.diff(times)
        facts.duration = float(times[-1] - times[0]) + min(length, 10 * float(np.median(gaps)))
        facts.variable_rate = _uneven(gaps, unit)
    else:
        facts.duration = count * step
    facts.fps = count / facts.duration if facts.duration > 0 else 0.0
    facts.key_seconds = facts.duration / max(1, keys)


def _uneven(gaps: np.ndarray, unit: float) -> bool:
    """Whether frames are shown for differing times, beyond what rounding to the file's clock does to them."""
    median = float(np.median(gaps))
    off = np.abs(gaps - median) > max(0.2 * median, 1.01 * unit, 0.0011)
    return bool(off.mean() > 0.02)


# The pictures --------------------------------------------------------------------------------------------------------


def _look(media: Media, facts: Facts, look: float) -> None:
    """Decodes the windows and fills in what can be seen.

    Raises:
        DecodeError: not one frame can be decoded.
    """
    steps: list[np.ndarray] = []
    tracks: list[np.ndarray] = []
    low = np.full((SIDE, SIDE), 255, np.uint8)
    high = np.zeros((SIDE, SIDE), np.uint8)
    with open_video(media) as container:
        reader = _Reader(container, media, facts)
        for begin, end in windows(facts.duration, look):
            times, thumbs = reader.read(begin, end)
            if not len(times):
                break
            np.minimum(low, thumbs.min(axis=0), out=low)
            np.maximum(high, thumbs.max(axis=0), out=high)
            facts.cuts += [float(times[i]) for i in find_cuts(thumbs)]
            facts.looked += float(times[-1] - times[0]) + 1 / max(facts.fps, 1.0)
            track = make_track(np.append(times, times[-1] + 1 / max(facts.fps, 1.0)), thumbs)
            steps.append(track.steps)
            tracks.append(track.thumbs)
            if reader.at_end:
                break
    if not steps:
        raise DecodeError(media, f"no frame can be decoded: {facts.damage or 'holds no pictures'}")
    facts.motion = float((high.astype(int) - low).max())
    facts.track = Track(np.concatenate(steps), np.concatenate(tracks))


def windows(duration: float, look: float) -> list[tuple[float, float]]:
    """(begin, end) in seconds of what is looked at: the whole video, or `look` seconds spread over it."""
    if duration <= look * 1.01:
        return [(0.0, math.inf)]
    count = max(1, round(look / WINDOW))
    length = look / count
    return [(begin, begin + length) for begin in np.linspace(0, duration - length, count).tolist()]


class _Reader:
    """Thumbnails of an open video, window by window.

    Attributes:
        at_end: the file was read to its end, or to damage.
    """

    def __init__(self, container: av.container.InputContainer, media: Media, facts: Facts) -> None:
        self._container, self._media, self._facts = container, media, facts
        self._stream = video_stream(container, media)
        self._unit = float(self._stream.time_base or UNIT)
        self._step = 1 / float(self._stream.average_rate or self._stream.guessed_rate or 30)
        self._frames = self._decode()
        self._zero: int | None = None
        self._last = -self._step
        self._held: tuple[float, av.VideoFrame] | None = None  # the first frame behind the last window
        self._taken = 0
        self.at_end = False

    def read(self, begin: float, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Times (n,) in seconds and thumbnails uint8 (n, SIDE, SIDE) of the frames from `begin` to before `end`."""
        self._seek(begin)
        times, thumbs = [], []
        while (found := self._next()) is not None:
            time, frame = found
            if time >= end:
                self._held = found
                break
            if time >= begin - 1e-6:
                times.append(time)
                thumbs.append(self._thumb(frame))
        else:
            self.at_end = True
        return np.array(times), np.array(thumbs)

    def _next(self) -> tuple[float, av.VideoFrame] | None:
        if self._held is not None:
            found, self._held = self._held, None
            return found
        frame = next(self._frames, None)
        if frame is None or self._taken >= MAX_FRAMES:
            return None
        stamp = frame.dts if self._facts.container == "avi" else frame.pts
        if self._zero is None:
            self._zero = stamp or 0
            upright = (frame.width, frame.height)[:: -1 if quarter_turns(frame) % 2 else 1]
            self._facts.width, self._facts.height = upright
        time = self._last + self._step if stamp is None else (stamp - self._zero) * self._unit
        self._last = time if time > self._last else self._last + self._step
        return self._last, frame

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Frames to the end of the file, or to the first damage."""
        barren = 0
        try:
            for packet in self._container.demux(self._stream):
                frames = self._stream.codec_context.decode(packet if packet.size else None)
                barren = 0 if frames else barren + 1
                yield from frames
                if barren > MAX_BARREN:
                    self._facts.damage = f"{MAX_BARREN} packets without a picture"
                    return
                if not packet.size and packet.dts is None:
                    return
        except Exception as error:
            self._facts.damage = in_words(error)

    def _seek(self, begin: float) -> None:
        """Goes near `begin` where that saves reading; where it fails, reading just goes on to there."""
        if self._zero is None or begin < self._last + 2:
            return
        try:
            self._container.seek(self._zero + int(begin / self._unit), stream=self._stream)
        except Exception:
            return
        self._frames, self._held, self._last = self._decode(), None, -math.inf

    def _thumb(self, frame: av.VideoFrame) -> np.ndarray:
        self._taken += 1
        with reasons(self._media, "cannot be converted to grey"):
            small = frame.reformat(SIDE, SIDE, "gray", interpolation=Interpolation.AREA)
            thumb = small.to_ndarray()
        return np.rot90(thumb, quarter_turns(frame))


def find_cuts(thumbs: np.ndarray) -> list[int]:
    """The places i where the picture changes at once between thumbnails i - 1 and i.

    A change is a cut if the two pictures do not correlate, it is far larger than the changes around it, and the
    pictures further on both sides do not correlate either (a flash is no cut).

    Args:
        thumbs: uint8 (n, SIDE, SIDE), consecutive frames.
    """
    if len(thumbs) < 4:
        return []
    change = np.array([np.abs(a.astype(np.int16) - b).mean() for a, b in zip(thumbs[1:], thumbs[:-1], strict=True)])
    found: list[int] = []
    for i in np.flatnonzero(change > CUT_CHANGE).tolist():
        around = np.concatenate([change[max(0, i - 8) : i], change[i + 1 : i + 9]])
        if change[i] < CUT_RATIO * (np.median(around) + 0.5) or change[i] < 1.5 * around.max(initial=0.0):
            continue
        wide = correlation(thumbs[max(0, i - 2)], thumbs[min(len(thumbs) - 1, i + 3)])
        if max(correlation(thumbs[i], thumbs[i + 1]), wide) < CUT_CORRELATION:
            found.append(i + 1)
    return found
