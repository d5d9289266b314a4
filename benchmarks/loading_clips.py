"""The videos that loading.py measures with: 10 seconds, short side 256, H.264, as x264 makes them and as we pack."""

from __future__ import annotations

import itertools
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np

from stmae.tasks.pack import pack

RATE, SHORT_SIDE = 30, 256
# What x264 does unless told otherwise: a key frame at least every 250 frames, three B-frames, CABAC, deblocking.
X264 = {"preset": "medium", "crf": "23", "g": "250", "threads": "1"}
SMALLEST, SHORTEST = 200, 3.0  # short side in pixels and duration in seconds of footage that is worth taking


def make_clips(folder: Path, *, count: int, frames: int, footage: Path | None) -> None:
    """Makes `count` clips of `frames` frames in three forms that show the same.

        folder/plain/00.mp4 ...     as x264 makes them
        folder/shards/              these, packed: written anew by `stmae pack`
        folder/packed/00.mp4 ...    the files in the shards, for those who read no shards

    Args:
        folder: where they go.
        footage: a folder of videos, whose pictures are taken and looped; None makes moving textures.
    """
    sources: list[Path | int] = list(range(count)) if footage is None else list(_suited(footage, count))
    plain, packed = folder / "plain", folder / "packed"
    plain.mkdir(parents=True)
    packed.mkdir()
    paths = [plain / f"{number:02d}.mp4" for number in range(count)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(_write, sources, paths, itertools.repeat(frames)))
    pack(plain, out=folder / "shards", short_side=SHORT_SIDE)
    for shard in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".mp4"):
                    content = tar.extractfile(member)
                    assert content is not None
                    (packed / Path(member.name).name).write_bytes(content.read())


def _suited(folder: Path, count: int) -> list[Path]:
    """The largest videos for their duration: pictures that move, rather than slides."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            with av.open(str(path), metadata_errors="replace") as container:
                stream = container.streams.video[0]
                size = min(stream.codec_context.width, stream.codec_context.height)
                seconds = (container.duration or 0) / av.time_base
        except Exception:
            continue
        if size >= SMALLEST and seconds >= SHORTEST:
            found.append((path.stat().st_size / seconds, path))
    assert len(found) >= count, f"{folder} holds {len(found)} videos of {SMALLEST} pixels and {SHORTEST} seconds"
    # Neither the dullest nor the wildest: from the middle of the upper half on downwards.
    found.sort(reverse=True)
    begin = max(0, min(len(found) // 4, len(found) - count))
    return [path for _, path in found[begin : begin + count]]


def _write(source: Path | int, path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=X264)
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        pictures = _textures(source) if isinstance(source, int) else _footage(source)
        for number, picture in enumerate(itertools.islice(pictures, frames)):
            if number == 0:
                stream.width, stream.height = picture.width, picture.height
            picture.pts, picture.time_base = number, Fraction(1, RATE)
            picture.pict_type = av.video.frame.PictureType.NONE  # not what it was in the footage
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _footage(path: Path) -> Iterator[av.VideoFrame]:
    """The frames of a video, over and over, with a short side of 256."""
    while True:
        with av.open(str(path), metadata_errors="replace") as container:
            for frame in container.decode(video=0):
                scale = SHORT_SIDE / min(frame.width, frame.height)
                width, height = (2 * round(side * scale / 2) for side in (frame.width, frame.height))
                yield frame.reformat(width, height, "yuv420p", interpolation="BICUBIC")


def _textures(seed: int) -> Iterator[av.VideoFrame]:
    """Surfaces with the spectrum of natural pictures under a moving camera, things moving in front of them, and grain.

    Drawn at twice the size, so that motion goes by half pixels.
    """
    rng = np.random.default_rng(seed)
    height, width = SHORT_SIDE, 340
    ground = _surface(rng, 1536)
    things = [
        (_surface(rng, 512), int(rng.uniform(70, 130)), rng.uniform(0.5, 2, 4), rng.uniform(0, 6, 4)) for _ in "123"
    ]
    pace, phase = rng.uniform(0.1, 0.4, 2), rng.uniform(0, 6, 2)
    grain = rng.normal(0, rng.uniform(0.3, 1.6), (height + 64, width + 64)).astype(np.int16)
    for number in itertools.count():
        time = number / RATE
        top, left = _swing(1536 - 2 * height, 1536 - 2 * width, time, pace, phase)
        canvas = ground[top : top + 2 * height, left : left + 2 * width].copy()
        for surface, radius, pace_, phase_ in things:
            top, left = _swing(2 * (height - radius), 2 * (width - radius), time, pace_[:2], phase_[:2])
            rows, cols = _swing(512 - 2 * radius, 512 - 2 * radius, time, pace_[2:], phase_[2:])
            y, x = np.ogrid[-radius:radius, -radius:radius]
            inside = np.hypot(y, x * (1 + 0.3 * np.sin(time + phase_[3]))) < radius
            part = canvas[top : top + 2 * radius, left : left + 2 * radius]
            part[inside] = surface[rows : rows + 2 * radius, cols : cols + 2 * radius][inside]
        planes = av.VideoFrame.from_ndarray(canvas, format="rgb24").reformat(width, height, "yuv420p").to_ndarray()
        top, left = rng.integers(0, 64, 2)
        noisy = planes[:height] + grain[top : top + height, left : left + width]
        planes[:height] = noisy.clip(0, 255)
        yield av.VideoFrame.from_ndarray(planes, format="yuv420p")


def _swing(height: int, width: int, time: float, pace: np.ndarray, phase: np.ndarray) -> tuple[int, int]:
    """A place in [0, height) x [0, width) that goes to and fro."""
    y, x = (0.5 + 0.49 * np.sin(pace * time + phase)) * (height, width)
    return int(y), int(x)


def _surface(rng: np.random.Generator, size: int) -> np.ndarray:
    """uint8 (size, size, 3): noise whose amplitude falls as 1 / frequency, with edges."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    frequency[0, 0] = 1

    def layer() -> np.ndarray:
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) / frequency**1.1).real
        return noise / noise.std()

    light, patches = layer(), layer() > 0.3
    colours = rng.uniform(60, 200, (2, 3))
    return (np.where(patches[..., None], *colours) + 28 * light[..., None]).clip(0, 255).astype(np.uint8)
