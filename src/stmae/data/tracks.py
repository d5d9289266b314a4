"""What a video shows over time, small enough to compare it with a hundred thousand others."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

SIDE = 32  # of a thumbnail in pixels
RATE = 8  # pictures a second in a track
TRACK_SIDE = 16  # of a track's pictures


@dataclass
class Track:
    """What a video shows over time, small: the mean picture of each step of 1 / RATE seconds since its first frame.

    Means over time rather than single frames: they change slowly, so that those of a copy with another frame rate or
    beginning are nearly the same.

    Attributes:
        steps: int32 (n,), numbers of the steps, increasing.
        thumbs: uint8 (n, TRACK_SIDE, TRACK_SIDE), grey.
    """

    steps: np.ndarray
    thumbs: np.ndarray


def make_track(edges: np.ndarray, thumbs: np.ndarray) -> Track:
    """The mean picture of each step that a run of frames fills by half or more (of one step, if they fill none).

    Args:
        edges: float64 (n + 1,), when each frame begins to be shown, and when the last one ends; seconds.
        thumbs: uint8 (n, SIDE, SIDE).
    """
    half = SIDE // TRACK_SIDE
    rows = thumbs.reshape(len(thumbs), TRACK_SIDE, half, TRACK_SIDE, half).mean(axis=(2, 4)).reshape(len(thumbs), -1)
    sums = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows * np.diff(edges)[:, None], axis=0)])

    def integral(times: np.ndarray) -> np.ndarray:
        """Of the picture from the first frame to each of `times`."""
        frame = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, len(rows) - 1)
        return sums[frame] + rows[frame] * (times - edges[frame])[:, None]

    first, last = round(edges[0] * RATE), round(edges[-1] * RATE)
    steps = np.arange(first, max(last, first + 1))
    begins = np.clip(steps / RATE, edges[0], edges[-1])
    ends = np.clip((steps + 1) / RATE, edges[0], edges[-1])
    if last <= first:
        begins, ends = edges[:1], edges[-1:]
    means = (integral(ends) - integral(begins)) / np.maximum(ends - begins, 1e-9)[:, None]
    pictures = np.clip(means + 0.5, 0, 255).astype(np.uint8)
    return Track(steps.astype(np.int32), pictures.reshape(-1, TRACK_SIDE, TRACK_SIDE))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two pictures, over their pixels; 0 where one is flat."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    x -= x.mean()
    y -= y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 1e-9 else 0.0


class Tracks(Sequence[Track | None]):
    """Tracks one after the other in a temporary file: 2 kB for each second of video that would else fill the memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as this object)
        self._steps: list[np.ndarray | None] = []
        self._places: list[int] = []
        self._count = 0
        self._map: np.ndarray | None = None

    def append(self, track: Track | None) -> None:
        """Adds a track, or None for a video that has none."""
        self._steps.append(None if track is None else track.steps)
        self._places.append(self._count)
        if track is not None:
            self._file.write(track.thumbs.tobytes())
            self._count += len(track.thumbs)
            self._map = None

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, place: int) -> Track | None: ...
    @overload
    def __getitem__(self, place: slice) -> list[Track | None]: ...
    def __getitem__(self, place: int | slice) -> Track | list[Track | None] | None:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        steps = self._steps[place]
        if steps is None:
            return None
        if self._map is None:
            self._file.flush()
            self._map = np.memmap(self._file, np.uint8, "r", shape=(self._count, TRACK_SIDE, TRACK_SIDE))
        begin = self._places[place]
        return Track(steps, np.asarray(self._map[begin : begin + len(steps)]))
