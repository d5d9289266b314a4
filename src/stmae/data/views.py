"""Clips at fixed places of a video, for looking at it with a trained model: one, several spread over it, or windows.

    one clip that starts at `start`       |......[........]..........|
    3 views                               |.[........].[........].[........].|   centres spread evenly
    windows, one begins every second      |[........]                |
                                          |   [........]             |
                                          |         ...    [........]|   the last one ends with the video

A file is read in one pass however many clips it has, and a clip is handed on as soon as it is whole: memory does not
grow with the length of the video.
"""

from __future__ import annotations

import functools
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .clips import NOMINAL_FPS, Box, ClipTimes, segment_times_at, times_at, view_boxes
from .container import DecodeError
from .dataset import resized
from .media import Media, read_clips
from .sources import Source
from .values import Values

LONG = 600.0  # seconds: what a file's header is believed

Places = Callable[[float], list[ClipTimes]]  # from a video's duration in seconds to the times of its clips


def spread(frames: int, stride: float, count: int) -> Places:
    """`count` clips, evenly spread; one is in the middle."""
    return lambda duration: [times_at(duration, frames, stride, (i + 0.5) / count) for i in range(count)]


def segments(frames: int, count: int) -> Places:
    """`count` clips of a frame from each of `frames` equal parts of the video; one takes the middle of each part."""
    return lambda duration: [segment_times_at(duration, frames, (i + 0.5) / count) for i in range(count)]


def starting(frames: int, stride: float, start: float) -> Places:
    """One clip that starts at `start` seconds; its stride shrinks where it would not end before the video does."""

    def places(duration: float) -> list[ClipTimes]:
        first = min(start, np.nextafter(duration, 0))
        rest = times_at(duration - first, frames, stride, 0.0)
        return [ClipTimes(np.minimum(first + rest.times, np.nextafter(duration, 0)), rest.shrunk)]

    return places


def windows(frames: int, stride: float, every: float) -> Places:
    """A clip that begins every `every` seconds, at the full stride; one more ends with the video if a rest is left."""

    def places(duration: float) -> list[ClipTimes]:
        step = stride / NOMINAL_FPS
        span = frames * step
        if duration <= span:
            return [times_at(duration, frames, stride, 0.0)]
        count = math.floor((duration - span) / every + 1e-9) + 1
        starts = [i * every for i in range(count)]
        if duration - (starts[-1] + span) > step and count * every < duration - step:
            starts.append(duration - span)
        last = np.nextafter(duration, 0)
        return [ClipTimes(np.minimum(start + step * np.arange(frames), last), False) for start in starts]

    return places


@dataclass(frozen=True)
class View:
    """One clip of a video.

    Attributes:
        item: position of the video in the index.
        number: which of the video's clips; one that comes again replaces what came first. With three crops, the clip
            at place p has the numbers 3 p, 3 p + 1 and 3 p + 2.
        times: of its frames in seconds, float64 (T,).
        clip: (C, T, H, W), uint8 but for some arrays (data/values.py).
    """

    item: int
    number: int
    times: np.ndarray
    clip: Tensor

    @property
    def end(self) -> float:
        """When the clip ends, in seconds: its last frame stands for one step too."""
        steps = len(self.times) - 1
        return float(self.times[-1] + (self.times[-1] - self.times[0]) / steps) if steps else float(self.times[0])


@dataclass(frozen=True)
class End:
    """A video has been read.

    Attributes:
        item: position of the video in the index.
        clips: how many it has; views with a higher number were of a duration that the file states wrongly.
        duration: in seconds.
        shrunk: the video is too short for the stride that was asked for, so a smaller one was taken.
        damage: why it could be read up to its duration only, or not at all (then `clips` is 0); else empty.
    """

    item: int
    clips: int
    duration: float
    shrunk: bool
    damage: str


def read_views(
    path: str | Path | Media,
    places: Places,
    *,
    image_size: tuple[int, int],
    give: Callable[[View], None],
    item: int = 0,
    crops: int = 1,
    values: Values | None = None,
) -> End:
    """Reads the clips of one video in a single pass.

    Args:
        places: where they are.
        image_size: height and width; the middle of the picture is cut to this shape and resized.
        give: is handed each clip, in order of their ends, as a rule; one may come again, and replaces the first.
        item: the number that its views carry.
        crops: 1, or 3: the picture's two ends as well (`clips.view_boxes`).
        values: what its pixels are; RGB in uint8 where None.

    Raises:
        DecodeError: not one picture can be decoded.
    """
    height, width = image_size
    media, values = Media.of(path), values if values is not None else Values()
    longest = _duration(media)
    chosen = functools.cache(lambda duration: places(min(duration, longest)))
    times: dict[int, np.ndarray] = {}
    filling: dict[int, Tensor] = {}
    newest: list[tuple[np.ndarray, list[Tensor]]] = []  # one frame may serve several clips: it is resized once

    def choose(place: int, duration: float) -> np.ndarray:
        of_this = chosen(duration)
        times[place] = of_this[min(place, len(of_this) - 1)].times
        return times[place]

    def take(place: int, position: int, pixels: np.ndarray) -> None:
        if not newest or newest[0][0] is not pixels:
            boxes: tuple[Box, ...] = view_boxes(pixels.shape[0], pixels.shape[1], width / height)
            frame = values.of(pixels, media)
            taken = [
                resized(frame, box, height, width, mirrored=False) for box in (boxes if crops == 3 else boxes[1:2])
            ]
            newest[:] = [(pixels, taken)]
        for crop, frame_of_crop in enumerate(newest[0][1]):
            number = place * crops + crop
            if position == 0:
                shape = (len(times[place]), height, width, values.channels)
                filling[number] = torch.empty(shape, dtype=values.dtype)
            filling[number][position] = frame_of_crop
            if position == len(times[place]) - 1:
                give(View(item, number, times[place], filling.pop(number).permute(3, 0, 1, 2)))

    reading = read_clips(media, len(chosen(longest)), choose, take)
    true = chosen(reading.duration)
    return End(
        item,
        crops * min(len(true), len(times)),
        min(reading.duration, longest),
        true[0].shrunk and not reading.still,
        reading.damage,
    )


def _duration(media: Media) -> float:
    """The video's duration in seconds, as the file states it or, where that is long, as its end tells.

    A wrong header can state years, which would be more windows than any memory holds.
    """
    stated: list[float] = []

    def first(_: int, duration: float) -> list[float]:
        stated.append(duration)
        return [0.0]

    def last(_: int, duration: float) -> list[float]:
        return [float(np.nextafter(duration, 0))]

    read_clips(media, 1, first, lambda *_: None)
    return stated[0] if stated[0] <= LONG else read_clips(media, 1, last, lambda *_: None).duration


class _Stopped(BaseException):
    """Nobody wants the clips any more."""


def stream_views(
    source: Source,
    places: Places,
    *,
    image_size: tuple[int, int],
    threads: int,
    crops: int = 1,
    values: Values | None = None,
) -> Iterator[View | End]:
    """The clips of all videos, in the source's order, an `End` after each video's.

    The next videos are decoded in threads meanwhile: FFmpeg and the resizing work outside Python's lock. Each thread
    is at most two clips ahead.
    """
    threads = max(1, threads)
    stop = threading.Event()
    waiting: deque[queue.Queue[View | End | BaseException]] = deque()

    def work(item: int, found: queue.Queue[View | End | BaseException]) -> None:
        def give(thing: View | End | BaseException) -> None:
            while not stop.is_set():
                try:
                    return found.put(thing, timeout=0.1)
                except queue.Full:
                    continue
            raise _Stopped

        try:
            try:
                media = source.media(item)
                size = image_size
                give(read_views(media, places, image_size=size, give=give, item=item, crops=crops, values=values))
            except DecodeError as error:
                give(End(item, 0, 0.0, False, error.reason))
            except Exception as error:
                give(error)
        except _Stopped:
            pass

    with ThreadPoolExecutor(threads, "decode") as pool:
        try:
            for item in range(len(source) + threads):
                if item < len(source):
                    waiting.append(queue.Queue(maxsize=2))
                    pool.submit(work, item, waiting[-1])
                if item >= threads and waiting:
                    yield from _drain(waiting.popleft())
        finally:
            stop.set()


def _drain(found: queue.Queue[View | End | BaseException]) -> Iterator[View | End]:
    while True:
        thing = found.get()
        if isinstance(thing, BaseException):
            raise thing
        yield thing
        if isinstance(thing, End):
            return
