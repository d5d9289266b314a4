"""Reads the frames of a video file that are shown at given times: right to the frame, and no more decoding than needed.

Time 0 is the first frame. The frame for time t is the last one whose time stamp is not after t.

    key frame          key frame                 key frame
    |--1--2--3--4--5--6--|--1--2--3--4--5--6--7--8--|--1--2--
                         ^ seek here    ^     ^     ^    ^
                                        wanted: converted to RGB; the rest is decoded only where wanted frames need it:
                                        here 7 and 8 are left out, and what comes after the last one
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from stmae.data.container import scanned_duration
from stmae.data.frames import Damaged, SeekFailed, Video
from stmae.data.media import Choose, Media, Take

TOLERANCE = 1e-6  # seconds: a time this close before a frame's stamp means that frame


@dataclass
class Reading:
    """What came of reading a file.

    Attributes:
        duration: in seconds; the true one if the end was met, else what the file states.
        repeated: for each clip, whether one frame had to serve twice.
        damage: why the rest of the file cannot be read, if a clip would have reached into it; else empty.
        still: it is an image: that its frames are all the same is no shortage of frames.
        rate: frames per second, as the file states them; known to `every_frame` alone.
    """

    duration: float
    repeated: list[bool] = field(default_factory=list)
    damage: str = ""
    still: bool = False
    rate: float = 0.0


def read_clips(path: str | Path | Media, clips: int, choose: Choose, take: Take) -> Reading:
    """Reads several clips of one video in a single pass over it.

    Args:
        path: of the file; as a `Media`, all of it or a range.
        clips: how many.
        choose: gives the times of a clip's frames in seconds, in increasing order, from the clip's number and the
            video's duration. It is asked again, with a smaller duration, if the clip reaches beyond the true end.
        take: is given every frame: number of the clip, position in it, pixels uint8 (H, W, 3), valid during the call
            only. Positions come in order; all of a clip's may come a second time, and then replace the first ones.

    A clip's frames follow from the file and its own times alone. (In a damaged file not quite: the video ends with the
    first damaged packet that had to be decoded, and other clips of the same pass may need that packet.)

    Raises:
        DecodeError: not one picture can be decoded.
    """
    try:
        return _read_clips(path, clips, choose, take, seeking=True)
    except SeekFailed:
        return _read_clips(path, clips, choose, take, seeking=False)


def every_frame(path: str | Path | Media, reading: Reading) -> Iterator[tuple[float, av.VideoFrame]]:
    """All frames of a video and their times in seconds, in order; `reading` is filled in on the way.

    Frames are as they were coded: in sizes of their own, not upright (see `container.quarter_turns`).

    Raises:
        DecodeError: not one frame can be decoded.
    """
    with Video(path, seeking=False) as video:
        reading.rate = 1 / video.step
        shown: tuple[float, av.VideoFrame] | None = video.first
        while shown is not None:
            yield shown
            reading.duration = shown[0] + video.frame_duration(shown[1])
            try:
                shown = video.next(math.inf)
            except Damaged as error:
                shown, reading.damage = None, str(error)


def _read_clips(path: str | Path | Media, clips: int, choose: Choose, take: Take, seeking: bool) -> Reading:
    with Video(path, seeking) as video:
        reading = Reading(video.stated_duration or scanned_duration(path), [False] * clips)
        times = {clip: choose(clip, reading.duration) for clip in range(clips)}
        end = _deliver(video, times, take, reading)
    # Only clips that reached beyond the end get new times: what a clip shows must not depend on its neighbours.
    late = [clip for clip in times if end is not None and times[clip][-1] > end - TOLERANCE]
    if end is not None:
        reading.duration = end
    if late:
        times = {clip: choose(clip, reading.duration) for clip in late}
        with Video(path, seeking) as video:
            _deliver(video, times, take, reading)
    return reading


def _deliver(
    video: Video, times: dict[int, Sequence[float] | np.ndarray], take: Take, reading: Reading
) -> float | None:
    """Hands out the frames for `times`; returns the video's true duration if its end was met, else None."""
    wanted = sorted((float(t), clip, i) for clip in times for i, t in enumerate(times[clip]))
    stamps = [t + TOLERANCE for t, _, _ in wanted]
    for clip in times:
        reading.repeated[clip] = False
    video.wanted = stamps
    done, shown = 0, video.first
    while done < len(wanted):
        try:
            following = video.next(stamps[done])
        except Damaged as error:
            following, reading.damage = None, str(error)
        upto = len(wanted) if following is None else bisect_left(stamps, following[0], done)
        if upto > done:
            if shown[1] is None:
                raise SeekFailed  # the first frame was not where its packet says
            pixels = video.pixels(shown[1])
            served = [clip for _, clip, _ in wanted[done:upto]]
            for clip in served:
                reading.repeated[clip] |= served.count(clip) > 1
            for _, clip, i in wanted[done:upto]:
                take(clip, i, pixels)
            done = upto
        if following is None:
            assert shown[1] is not None
            return shown[0] + video.frame_duration(shown[1])
        shown = following
    return None
