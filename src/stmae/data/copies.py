"""Finds videos that show the same footage, among any number of them: re-encoded, resized, slightly cropped, or in part.

    track ──1 s windows──> descriptors ──cells──> candidate pairs (i, j, offset) ──frame by frame──> pairs

A descriptor says roughly what a second of video looks like and where in the picture things move; both change slowly
over time, so windows need not line up. Descriptors are compared only within cells around some of them, so that the work
grows a little faster than the number of videos, not with its square. A candidate is then held against the other frame
by frame: copies agree not only in what stands still (as do all clips of one camera) but in how the picture changes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stmae.data.tracks import RATE, TRACK_SIDE, Track

WINDOW = RATE  # thumbnails in a window: 1 s
HOP = RATE // 2
LIKE = 0.85  # cosine of two windows' descriptors from which on they are a candidate
NEAREST = 12  # candidates looked at for each window
OFFSETS = 3  # tried for each pair
CELLS = 4  # cells in which a window looks for its like
# Of copies held against each other, frame by frame (measured: docs/results/check.md).
SAME_PICTURE = 0.80  # correlation of the frames
SAME_MOTION = 0.95  # correlation of their changes over time
STILL = 1.0  # grey levels: root mean square of the changes below which there is nothing to compare ...
SAME_STILL = 1.5  # ... but the pictures themselves, whose difference must then be smaller than this
SURE = 0.97  # score from which on no crop is tried
# Below a second the same move, made again in front of the same camera, scores up to 0.99: from here on most are copies.
SHORT, SAME_IN_SHORT = 1.0, 0.98
CROPS = (0.95, 0.9, 0.85, 0.8)  # sides of the part of one video that the other may show


@dataclass(frozen=True)
class Pair:
    """Two videos that show the same footage.

    Attributes:
        first, second: their numbers.
        offset: seconds to add to a time in the first to be at the same picture in the second.
        seconds: how much they share.
        score: correlation of the pictures' changes over time (of the pictures, where nothing changes).
    """

    first: int
    second: int
    offset: float
    seconds: float
    score: float

    @property
    def sure(self) -> bool:
        """Whether it is a copy, rather than perhaps the same move again (see docs/results/check.md)."""
        return self.seconds >= SHORT or self.score > SAME_IN_SHORT


def find_copies(tracks: Sequence[Track | None], others: Sequence[Track | None] | None = None) -> list[Pair]:
    """All pairs of videos with common footage, sorted.

    Args:
        tracks: of the videos; None for those that have none.
        others: of a second set; then pairs are (number in `tracks`, number in `others`), and none within a set.
    """
    chances = _candidates(tracks, others)
    pairs = []
    for (first, second), offsets in sorted(chances.items()):
        a, b = tracks[first], (tracks if others is None else others)[second]
        assert a is not None
        assert b is not None
        score, offset, seconds = max(_agreement(a, b, each) for each in offsets)
        if score > SAME_MOTION:
            pairs.append(Pair(first, second, offset, seconds, score))
    return pairs


# Candidates ----------------------------------------------------------------------------------------------------------


@dataclass
class _Windows:
    """Descriptors float32 (n, D) of unit length; the video and the first step that each belongs to."""

    descriptors: np.ndarray
    videos: np.ndarray
    steps: np.ndarray


def _windows(tracks: Sequence[Track | None]) -> _Windows:
    rows: list[np.ndarray] = []
    videos: list[int] = []
    steps: list[int] = []
    for number, track in enumerate(tracks):
        if track is None:
            continue
        for begin, end in _runs(track.steps):
            for at in _starts(end - begin):
                rows.append(describe(track.thumbs[begin + at : min(begin + at + WINDOW, end)]))
                videos.append(number)
                steps.append(int(track.steps[begin + at]))
    width = 2 * (TRACK_SIDE // 2) ** 2
    stacked = np.stack(rows) if rows else np.empty((0, width), np.float32)
    return _Windows(stacked, np.array(videos, np.int32), np.array(steps, np.int32))


def _runs(steps: np.ndarray) -> Iterator[tuple[int, int]]:
    """Begin and end of the parts of a track without gaps."""
    bounds = [0, *(np.flatnonzero(np.diff(steps) != 1) + 1).tolist(), len(steps)]
    return itertools.pairwise(bounds)


def _starts(length: int) -> list[int]:
    """Where windows begin in a run: every `HOP`, and one that ends where the run ends."""
    last = max(0, length - WINDOW)
    return sorted({*range(0, last + 1, HOP), last})


def describe(thumbs: np.ndarray) -> np.ndarray:
    """What a window looks like and where it moves: float32 (2 * 64,) of unit length.

    Args:
        thumbs: uint8 (n, TRACK_SIDE, TRACK_SIDE).
    """
    pictures = thumbs.astype(np.float32)
    look = _coarse(pictures.mean(axis=0))
    look -= look.mean()
    moves = _coarse(np.abs(np.diff(pictures, axis=0)).mean(axis=0)) if len(thumbs) > 1 else np.zeros_like(look)
    # What an encoder does to a still picture is no motion.
    moves = np.sqrt(np.maximum(moves - 0.5, 0))
    return np.concatenate([_unit(look), _unit(moves)]) * np.float32(np.sqrt(0.5))


def _coarse(picture: np.ndarray) -> np.ndarray:
    half = TRACK_SIDE // 2
    return picture.reshape(half, 2, half, 2).mean(axis=(1, 3)).ravel()


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = float(np.sqrt(vector @ vector))
    return vector / np.float32(norm) if norm > 1e-3 else np.full_like(vector, 1 / np.sqrt(len(vector)))


def _candidates(tracks: Sequence[Track | None], others: Sequence[Track | None] | None) -> dict[Any, list[int]]:
    """For each pair of videos with windows alike: the offsets in steps of those that are most alike.

    Several, because what is repeated (a push-up) looks alike at each repetition, and only one is the same footage.
    """
    ours = _windows(tracks)
    theirs = ours if others is None else _windows(others)
    best: dict[tuple[int, int], dict[int, float]] = {}
    for mine, yours, likeness in _alike(ours.descriptors, theirs.descriptors):
        for i, j, score in zip(mine.tolist(), yours.tolist(), likeness.tolist(), strict=True):
            first, second = int(ours.videos[i]), int(theirs.videos[j])
            offset = int(theirs.steps[j]) - int(ours.steps[i])
            if others is None:
                if first == second:
                    continue
                if first > second:
                    first, second, offset = second, first, -offset
            offsets = best.setdefault((first, second), {})
            offsets[offset] = max(score, offsets.get(offset, 0.0))
    return {pair: _apart(offsets) for pair, offsets in best.items()}


def _apart(offsets: dict[int, float]) -> list[int]:
    """The `OFFSETS` best offsets that are not next to each other."""
    chosen: list[int] = []
    for offset in sorted(offsets, key=lambda offset: -offsets[offset]):
        if len(chosen) < OFFSETS and all(abs(offset - other) > HOP // 2 for other in chosen):
            chosen.append(offset)
    return chosen


def _alike(ours: np.ndarray, theirs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Numbers of windows whose descriptors are alike, and their cosines, in portions.

    The space is divided into cells around descriptors drawn from the data, so there are more of them where it is
    crowded. Windows of the one set go to their nearest cell, those of the other look into the `CELLS` nearest ones.
    """
    if not len(ours) or not len(theirs):
        return
    count = max(1, int(np.sqrt(len(theirs))))
    drawn = np.random.default_rng(0).choice(len(theirs), count, replace=False)
    centres = theirs[np.sort(drawn)]
    homes = _nearest(theirs, centres, 1)[:, 0]
    visits = _nearest(ours, centres, min(CELLS, count))
    order = np.argsort(homes, kind="stable")
    bounds = np.searchsorted(homes[order], np.arange(count + 1))
    for cell in range(count):
        there = order[bounds[cell] : bounds[cell + 1]]
        here = np.flatnonzero((visits == cell).any(axis=1))
        for part in np.array_split(here, max(1, len(here) * max(1, len(there)) // 4_000_000)):
            if not len(part) or not len(there):
                continue
            cosines = ours[part] @ theirs[there].T
            keep = min(NEAREST, len(there))
            near = np.argpartition(-cosines, keep - 1, axis=1)[:, :keep]
            likeness = np.take_along_axis(cosines, near, axis=1)
            rows, columns = np.nonzero(likeness > LIKE)
            yield part[rows], there[near[rows, columns]], likeness[rows, columns]


def _nearest(rows: np.ndarray, centres: np.ndarray, count: int) -> np.ndarray:
    """The numbers of the `count` centres nearest to each row: int32 (n, count)."""
    parts = []
    for begin in range(0, len(rows), 8192):
        cosines = rows[begin : begin + 8192] @ centres.T
        near = np.argpartition(-cosines, count - 1, axis=1)[:, :count] if count < cosines.shape[1] else None
        parts.append((np.tile(np.arange(count), (len(cosines), 1)) if near is None else near).astype(np.int32))
    return np.concatenate(parts)


# Frame by frame ------------------------------------------------------------------------------------------------------


def _agreement(a: Track, b: Track, offset: int) -> tuple[float, float, float]:
    """(score, offset and length in seconds) of what two tracks share near an offset in steps."""
    near = [float(offset + shift) for shift in range(-HOP // 2 - 1, HOP // 2 + 2)]
    best = max((_shared(a, b, shift), shift) for shift in near)
    if best[0][0] < SURE:
        best = max(best, *((_shared(a, b, best[1] + shift), best[1] + shift) for shift in (-0.5, 0.5)))
    if best[0][0] < SAME_MOTION:  # perhaps one shows a part of the other's picture
        shifts = [best[1]] if best[0][0] > 0 else [float(offset)]
        for part in CROPS:
            for x, y in ((_inner(a, part), _smooth(b)), (_smooth(a), _inner(b, part))):
                best = max(best, *((_shared(x, y, shift), shift) for shift in shifts))
    (score, steps), shift = best
    return score, shift / RATE, steps / RATE


def _shared(a: Track, b: Track, shift: float) -> tuple[float, int]:
    """How well two tracks agree at a shift in steps (below 0: not at all), and for how many steps in a row."""
    whole = math.floor(shift)
    if shift != whole:  # halfway between two of the second one's pictures
        near = np.flatnonzero(np.diff(b.steps) == 1)
        b = Track(b.steps[near], (b.thumbs[near].astype(np.float32) + b.thumbs[near + 1]) / 2)
    _, ours, theirs = np.intersect1d(a.steps + whole, b.steps, assume_unique=True, return_indices=True)
    least = min(WINDOW, len(a.steps), len(b.steps))
    if len(ours) < max(2, least):
        return -1.0, 0
    x, y = _rows(a.thumbs[ours]), _rows(b.thumbs[theirs])
    begin, end = _longest(_correlations(x, y) > SAME_PICTURE)
    if end - begin < max(2, round(0.9 * least)):
        return -1.0, 0
    x, y = x[begin:end], y[begin:end]
    # Each is set against its own mean over time: what stands still proves nothing.
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    changes = sorted([float(np.sqrt((dx**2).mean())), float(np.sqrt((dy**2).mean()))])
    if changes[0] < STILL:
        apart = float(np.sqrt(((x.mean(axis=0) - y.mean(axis=0)) ** 2).mean()))
        return (1 - apart / 128 if changes[1] < 2 * STILL and apart < SAME_STILL else -1.0), end - begin
    return float((dx * dy).sum() / np.sqrt((dx**2).sum() * (dy**2).sum())), end - begin


def _rows(thumbs: np.ndarray) -> np.ndarray:
    """(n, side, side) as float32 rows with their mean taken off: brightness is no matter."""
    rows = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    return rows - rows.mean(axis=1, keepdims=True)


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each row of `x` with its row of `y`, both of mean 0; flat ones agree with flat ones."""
    xx, yy = (x * x).sum(axis=1), (y * y).sum(axis=1)
    flat = np.maximum(xx, yy) < x.shape[1]  # both within a grey level of their mean
    return np.where(flat, 1.0, (x * y).sum(axis=1) / np.sqrt(np.maximum(xx * yy, 1e-6)))


def _longest(fine: np.ndarray) -> tuple[int, int]:
    """Begin and end of the longest run of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], fine, [False]]).astype(np.int8)))
    if not len(edges):
        return 0, 0
    begins, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - begins))
    return int(begins[longest]), int(ends[longest])


def _inner(track: Track, part: float) -> Track:
    """The track of the middle of the picture, `part` of its side, at the same size; as smooth as `_smooth` makes it."""
    at = (np.arange(TRACK_SIDE) + 0.5) * part + TRACK_SIDE * (1 - part) / 2
    # Each pixel is the mean of the picture over 2 pixels around its place, by a kernel of hats.
    weights = np.clip(1.5 - np.abs(at[:, None] - (np.arange(TRACK_SIDE) + 0.5)[None]), 0, 1)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return Track(track.steps, weights @ track.thumbs.astype(np.float32) @ weights.T)


def _smooth(track: Track) -> Track:
    return _inner(track, 1.0)
