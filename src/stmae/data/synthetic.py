"""Small videos of moving shapes, made on the spot: for trying the package out and for its tests.

A scene is a smooth background under a slowly panning camera and one to four large shaded shapes that bounce, orbit,
turn and breathe. All motion is a function of the time in seconds, so the frame rate does not change the scene.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

Rgb = np.ndarray  # float32 (3,), 0 to 1


@dataclass(frozen=True)
class _Coding:
    """How a file is written: its ending decides the container."""

    ending: str
    codec: str
    pixel_format: str
    options: dict[str, str]


_X264 = {"preset": "veryfast", "crf": "23", "threads": "1"}
_VPX = {"deadline": "realtime", "cpu-used": "8", "b": "600k", "threads": "1"}
_CODINGS = (
    _Coding(".mp4", "libx264", "yuv420p", _X264),
    _Coding(".webm", "libvpx-vp9", "yuv420p", _VPX),
    _Coding(".mkv", "libx264", "yuv420p", _X264),
    _Coding(".avi", "mpeg4", "yuv420p", {"qscale": "3", "flags": "+qscale", "threads": "1"}),
    _Coding(".mov", "libx264", "yuv420p", _X264 | {"bf": "0"}),
    _Coding(".mp4", "mpeg4", "yuv420p", {"b": "1500k", "threads": "1"}),
    _Coding(".mkv", "libvpx", "yuv420p", _VPX),
    _Coding(".avi", "mjpeg", "yuvj420p", {"qmin": "2", "qmax": "4", "threads": "1"}),
)
_SIZES = ((160, 120), (240, 180), (320, 240), (176, 144), (128, 192), (256, 144), (192, 192))  # (width, height)
_RATES = (25, 30, 12, 24, 60, 15, 50)


def write_videos(
    folder: str | Path, *, count: int = 24, seed: int = 0, seconds: tuple[float, float] = (2.0, 4.0)
) -> list[Path]:
    """Writes `count` videos of synthetic scenes, in mixed containers, codecs, sizes and frame rates.

    Args:
        folder: where the files go; it is made if it is missing. Files of the same names are replaced.
        count: number of files.
        seed: another seed gives other scenes; the same one gives the same pictures.
        seconds: bounds of the videos' durations.

    Returns:
        The paths, in order.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        coding, (width, height) = _CODINGS[number % len(_CODINGS)], _SIZES[number % len(_SIZES)]
        rate = _RATES[(number + number // len(_RATES)) % len(_RATES)]
        scene = Scene(rng, height, width)
        frames = (scene.frame(i / rate) for i in range(round(rng.uniform(*seconds) * rate)))
        path = folder / f"scene-{number:03d}{coding.ending}"
        write_video(path, frames, rate, codec=coding.codec, pixel_format=coding.pixel_format, options=coding.options)
        paths.append(path)
    return paths


def write_video(
    path: str | Path,
    frames: Iterator[np.ndarray],
    rate: int | Fraction,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> None:
    """Encodes frames into one video file without audio.

    Args:
        path: its ending decides the container.
        frames: uint8 (H, W, 3), all of one size.
        rate: frames per second.
        codec, pixel_format, options: of the FFmpeg encoder.
    """
    # Bit-exact writing leaves out random identifiers and dates: the same scene is the same file.
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=rate, options=(_X264 if options is None else options))
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        for i, rgb in enumerate(frames):
            if i == 0:
                stream.height, stream.width = rgb.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())


# How fast scenes move. A small model has minutes to learn them from a tenth of the patches: in a clip of about a second
# a shape goes some way, but where it was is still worth knowing.
PACE = 0.4


class Scene:
    """A moving picture without end.

    Args:
        rng: decides everything in the scene.
        height, width: in pixels.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        short = min(height, width)
        # Lengths are in short sides of the picture, so that a scene looks alike at every size.
        self._y, self._x = np.mgrid[:height, :width].astype(np.float32) / short
        self._pixel = 1 / short
        size = np.array([width / short, height / short])
        hue = rng.uniform()
        self._ground = _ground(rng, hue)
        self._pan = rng.uniform(-0.25, 0.25, 2)
        count = int(rng.integers(1, 4))
        # The shapes' hues keep clear of the background's and of each other's.
        self._shapes = [_Shape(rng, size, hue + 0.25 + 0.5 * (i + rng.uniform()) / count, count) for i in range(count)]

    def frame(self, time: float) -> np.ndarray:
        """The picture at a time in seconds: uint8 (H, W, 3)."""
        time *= PACE
        dx, dy = self._pan * time
        picture = self._ground(self._x + dx, self._y + dy)
        for shape in self._shapes:
            shape.draw(picture, self._x, self._y, self._pixel, time)
        return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _colour(hue: float, saturation: float, value: float) -> Rgb:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def _ground(rng: np.random.Generator, hue: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A background: a function of position that gives a float32 (H, W, 3) picture."""
    dark = _colour(hue, rng.uniform(0.45, 0.8), rng.uniform(0.3, 0.5))
    light = _colour(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.2, 0.5), rng.uniform(0.75, 0.95))
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    scale = np.float32(rng.uniform(2.5, 5.0))
    phase = np.float32(rng.uniform(0, 2 * np.pi))

    def gradient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 0.5 + 0.5 * np.sin(1.6 * (cos * x + sin * y) + phase)

    def stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 0.5 + 0.5 * np.tanh(2.5 * np.sin(2 * scale * (cos * x + sin * y) + phase))

    def checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 0.5 + 0.5 * np.tanh(
            4 * np.sin(scale * (cos * x + sin * y)) * np.sin(scale * (cos * y - sin * x) + phase)
        )

    def rings(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 0.5 + 0.5 * np.sin(2 * scale * np.hypot(x - 0.5 - cos / 3, y - 0.5 - sin / 3) + phase)

    def clouds(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        first = np.sin(scale * (cos * x + sin * y) + phase) + np.sin(scale * 1.3 * (cos * y - sin * x))
        return 0.5 + 0.17 * first + 0.16 * np.sin(0.9 * scale * (x + y) + 1.5 * first)

    pattern = (gradient, stripes, checks, rings, clouds)[int(rng.integers(5))]
    return lambda x, y: dark + (light - dark) * pattern(x, y).astype(np.float32)[..., None]


# The outlines: signed distance to the edge in units of the shape's radius, negative inside.


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 1


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = np.abs(u) - 0.6, np.abs(v) - 0.6
    return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - 0.25


def _bar(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(np.maximum(np.abs(u) - 0.8, 0), v) - 0.38


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.72) - 0.28


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u) * 0.866 + v * 0.5, -v) - 0.52


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.74 - 0.24 * np.cos(5 * np.arctan2(v, u))


_OUTLINES = (_disc, _square, _bar, _ring, _triangle, _star)


class _Shape:
    """A shaded shape with a soft shadow, on a path of its own."""

    def __init__(self, rng: np.random.Generator, size: np.ndarray, hue: float, among: int) -> None:
        self._outline = _OUTLINES[int(rng.integers(len(_OUTLINES)))]
        self._radius = rng.uniform(0.19, 0.28) * (1.25 if among == 1 else 1.0)
        self._colour = _colour(hue, rng.uniform(0.7, 0.95), rng.uniform(0.8, 1.0))
        self._size, self._start = size, rng.uniform(0, 1, 2)
        angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.8)
        self._speed = speed * np.array([np.cos(angle), np.sin(angle)])
        self._orbits = rng.uniform() < 0.3
        self._turn, self._spin = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 2.5) * rng.choice([-1, 1])
        self._breath, self._breaths = rng.uniform(0, 0.2), rng.uniform(1.5, 4.0)

    def _centre(self, time: float, radius: float) -> np.ndarray:
        room = self._size - 2 * radius
        if self._orbits:
            turns = 2 * np.pi * (self._start[0] + np.linalg.norm(self._speed) * time * np.sign(self._speed[0]) / 2)
            return self._size / 2 + room / 2 * (0.6 + 0.4 * self._start[1]) * np.array([np.cos(turns), np.sin(turns)])
        # A straight path folded at the walls: a triangle wave.
        folded = np.abs((self._start * room + self._speed * time + room) % (2 * room) - room)
        return radius + folded

    def draw(self, picture: np.ndarray, x: np.ndarray, y: np.ndarray, pixel: float, time: float) -> None:
        """Paints the shape into a float32 (H, W, 3) picture whose pixels lie at `x`, `y`."""
        radius = self._radius * (1 + self._breath * np.sin(self._breaths * time))
        cx, cy = self._centre(time, radius)
        reach = 1.5 * radius  # the corners and the shadow stay within
        rows = slice(max(0, int((cy - reach) / pixel)), max(0, int((cy + reach) / pixel) + 1))
        cols = slice(max(0, int((cx - reach) / pixel)), max(0, int((cx + reach) / pixel) + 1))
        part = picture[rows, cols]
        dx, dy = (
            (x[rows, cols] - np.float32(cx)) / np.float32(radius),
            (y[rows, cols] - np.float32(cy)) / np.float32(radius),
        )
        turn = self._turn + self._spin * time
        cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))

        def distance(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            return self._outline(cos * u + sin * v, cos * v - sin * u)

        shadow = np.clip(0.5 - distance(dx - 0.12, dy - 0.16) * 3, 0, 1) * 0.35
        part *= 1 - shadow[..., None]
        edge = distance(dx, dy)
        cover = np.clip(0.5 - edge * np.float32(radius / pixel), 0, 1)[..., None]
        light = np.clip(0.95 - 0.28 * (dx + dy), 0.45, 1.25)[..., None]
        gleam = (0.45 * np.exp(-6 * ((dx + 0.35) ** 2 + (dy + 0.4) ** 2)))[..., None]
        part += cover * (self._colour * light + gleam - part)
