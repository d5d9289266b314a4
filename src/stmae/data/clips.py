"""Which frames and which part of the picture a clip shows: pure functions of the clip's 64-bit key.

Nothing here keeps state, so a clip is the same whoever asks for it: any worker, rank, process or day.

    (seed, pass, item, repeat) --clip_key--> key --uniform(key, stream)--> start time, crop box, flip
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

NOMINAL_FPS = 30.0  # strides are counted in frames of this clock, whatever the video's own rate

# One number per purpose: draws for different purposes are independent. A purpose may use the 1000 numbers from its own.
TIME, CROP, FLIP, ITEM, SEGMENTS, AUGMENT, ERASE, MIX = 0, 1000, 2000, 3000, 4000, 5000, 6000, 7000

_BITS = 0xFFFF_FFFF_FFFF_FFFF
_GAMMA, _MUL1, _MUL2 = 0x9E37_79B9_7F4A_7C15, 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB
# These keep the uses of the hash apart.
_ORDER, _NEXT, _DRAW, _STREAM = 0x6F72_6465_7200, 0x6E65_7874_0000, 0x6472_6177_0000, 0x7374_7265_616D
_NOISE = 0x6E6F_6973_6500


@overload
def splitmix64(x: int) -> int: ...
@overload
def splitmix64(x: Words) -> Words: ...
def splitmix64(x: int | Words) -> int | Words:
    """The SplitMix64 hash (Steele, Lea and Flood 2014): a bijection of the 64-bit integers that scatters all bits.

    Args:
        x: a Python integer (its low 64 bits count) or an array of uint64.

    Returns:
        An integer in [0, 2**64), or an array of uint64.
    """
    if isinstance(x, np.ndarray):
        words: Words = x + np.uint64(_GAMMA)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(_MUL1)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(_MUL2)
        return words ^ (words >> np.uint64(31))
    x = (x + _GAMMA) & _BITS
    x = ((x ^ (x >> 30)) * _MUL1) & _BITS
    x = ((x ^ (x >> 27)) * _MUL2) & _BITS
    return x ^ (x >> 31)


def _chain(*numbers: int) -> int:
    """One hash of several integers, in order."""
    state = 0
    for number in numbers:
        state = splitmix64(state ^ (number & _BITS))
    return state


def _signed(x: int) -> int:
    """The same 64 bits as a number that fits int64."""
    return x - (1 << 64) if x >> 63 else x


def clip_key(seed: int, pass_: int, item: int, repeat: int) -> int:
    """The 64-bit key of a clip, as a signed integer (it goes into int64 tensors).

    Args:
        seed: of the run.
        pass_: how many times all files were gone through before.
        item: position of the file in the index.
        repeat: which of the clips taken from one decoding of the file (repeated sampling, paper section 4).
    """
    return _signed(_chain(seed, pass_, item, repeat))


def seed_of(seed: int, stream: int) -> int:
    """A seed of its own, in [0, 2**64), for each `stream` of what is drawn with `seed`."""
    return _chain(_STREAM, seed, stream)


def next_key(key: int) -> int:
    """The key that follows in `key`'s own chain: it picks what stands in for a clip that cannot be read."""
    return _signed(_chain(_NEXT, key))


def uniform(key: int, stream: int) -> float:
    """A number in [0, 1), uniform over keys and independent for every `stream`."""
    return (_chain(_DRAW, key, stream) >> 11) * 2.0**-53


def uniforms(keys: NDArray[np.int64], streams: Sequence[int]) -> NDArray[np.float64]:
    """`uniform` of many keys (B,) and streams at once: (B, len(streams))."""
    start = splitmix64(np.uint64(splitmix64(_DRAW)) ^ np.asarray(keys, np.int64).view(np.uint64))
    words = splitmix64(start[:, None] ^ np.array(streams, np.uint64))
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, np.float64)


def noise(key: int, stream: int, count: int) -> NDArray[np.float64]:
    """Numbers (count,) of a normal distribution, drawn from `key` and independent for every `stream`."""
    own = np.uint64(_chain(_NOISE, key, stream))
    half = -(-count // 2)
    words = splitmix64(own ^ np.arange(2 * half, dtype=np.uint64))
    u, v = ((words >> np.uint64(11)) * 2.0**-53).reshape(2, half)
    radius, angle = np.sqrt(-2 * np.log1p(-u)), 2 * np.pi * v  # Box and Muller 1958
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def pass_order(seed: int, pass_: int, n: int) -> np.ndarray:
    """The order in which pass number `pass_` visits `n` items: an int64 permutation, another one for every pass."""
    start = np.uint64(_chain(_ORDER, seed, pass_))
    hashes = splitmix64(start ^ np.arange(n, dtype=np.uint64))
    return np.argsort(hashes, kind="stable")


@dataclass(frozen=True)
class ClipTimes:
    """When a clip's frames are shown.

    Attributes:
        times: float64 (T,), seconds since the video's first frame, increasing, inside [0, duration).
        shrunk: the video is too short for the stride that was asked for, so a smaller one was taken.
    """

    times: np.ndarray
    shrunk: bool


def times_at(duration: float, frames: int, stride: float, position: float) -> ClipTimes:
    """The clip at a relative `position` of the video: 0 the first possible one, 0.5 the one in the middle.

    Every frame of the clip stands for one step of `stride / 30` seconds, and `frames` steps must fit into the video:

        |.....:0....:1....:2....:3....|.......................|      4 frames, position 0.2
        0     start                                        duration

    Where they do not, the step shrinks to ``duration / frames``: a video of exactly T frames gives each of them once.

    Args:
        duration: of the video in seconds, above 0.
        frames: T.
        stride: in frames of a nominal 30 fps clock.
        position: in [0, 1).
    """
    assert min(duration, frames, stride) > 0 <= position < 1, (duration, frames, stride, position)
    nominal = stride / NOMINAL_FPS
    step = min(nominal, duration / frames)
    # One frame has no stride. The tolerance: durations in file headers are rounded to milliseconds or worse.
    shrunk = frames > 1 and step < nominal * (1 - 1e-3)
    start = position * (duration - (frames - 1) * step)
    times = start + step * np.arange(frames)
    return ClipTimes(np.minimum(times, np.nextafter(duration, 0)), shrunk)


def clip_times(duration: float, frames: int, stride: float, key: int) -> ClipTimes:
    """A clip at a random place of the video, drawn from `key`; the other arguments as in `times_at`."""
    return times_at(duration, frames, stride, uniform(key, TIME))


def segment_times_at(duration: float, frames: int, position: float | np.ndarray) -> ClipTimes:
    """A frame from each of `frames` equal parts of the whole video, at a relative `position` of each part.

    |.....0..........|.....1..........|.....2..........|      3 frames, position 0.35
    0                                           duration

    0.5 is the test clip of Something-Something (TSN's sampling): the middle of each part.

    Args:
        duration: of the video in seconds, above 0.
        frames: T.
        position: in [0, 1), for all parts or one for each.
    """
    times = (np.arange(frames) + position) * (duration / frames)
    return ClipTimes(np.minimum(times, np.nextafter(duration, 0)), False)


def segment_times(duration: float, frames: int, key: int) -> ClipTimes:
    """A clip with a random frame from each of `frames` equal parts of the video, drawn from `key`."""
    return segment_times_at(duration, frames, np.array([uniform(key, SEGMENTS + i) for i in range(frames)]))


@dataclass(frozen=True)
class Box:
    """A part of the picture in pixels; it lies inside the picture and is at least 1 x 1."""

    top: int
    left: int
    height: int
    width: int


def crop_box(
    key: int,
    height: int,
    width: int,
    area: tuple[float, float] = (0.5, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A random box for a random resized crop, one for all frames of a clip (paper section 4, appendix A).

    Args:
        key: of the clip.
        height, width: of the picture in pixels.
        area: bounds of the box's share of the picture, drawn uniformly.
        aspect: bounds of the box's width / height, drawn uniformly on a logarithmic scale.

    Returns:
        The first of 10 drawn boxes that fits; if none does, the largest central box with an allowed aspect.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for attempt in range(10):
        stream = CROP + 4 * attempt
        pixels = height * width * (area[0] + (area[1] - area[0]) * uniform(key, stream))
        ratio = math.exp(low + (high - low) * uniform(key, stream + 1))
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            top = int(uniform(key, stream + 2) * (height - h + 1))
            left = int(uniform(key, stream + 3) * (width - w + 1))
            return Box(top, left, h, w)
    return centre_box(height, width, min(max(width / height, aspect[0]), aspect[1]))


def centre_box(height: int, width: int, ratio: float) -> Box:
    """The largest central box whose width / height is `ratio`, to the pixel."""
    h = max(1, min(height, round(width / ratio)))
    w = max(1, min(width, round(height * ratio)))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def view_boxes(height: int, width: int, ratio: float) -> tuple[Box, Box, Box]:
    """Three boxes of the shape `ratio` that together cover the picture as far as they can: its two ends and the middle.

    |0000|         of a wide picture the left, the middle and the right part, in this order;
    |  1111  |     of a high one the upper, the middle and the lower part
    |      2222|
    """
    middle = centre_box(height, width, ratio)
    first = Box(0, 0, middle.height, middle.width)
    last = Box(height - middle.height, width - middle.width, middle.height, middle.width)
    return first, middle, last


def flip(key: int) -> bool:
    """Whether the clip is mirrored left to right: true for half of the keys."""
    return uniform(key, FLIP) < 0.5
