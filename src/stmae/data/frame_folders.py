"""A folder with the frames of a video as pictures, in the order of the numbers in their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import av
import numpy as np
from PIL import Image

from stmae.data.clips import NOMINAL_FPS
from stmae.data.container import DecodeError
from stmae.data.images import read_image
from stmae.data.media import Choose, Media, Take, kind_of
from stmae.data.video import TOLERANCE, Reading


def read_clips(media: Media, clips: int, choose: Choose, take: Take) -> Reading:
    """Reads the frames wanted, each once; arguments as in `media.read_clips`. Pictures have no clock: 30 a second.

    Raises:
        DecodeError: there are no pictures, or a wanted one cannot be read.
    """
    pictures = pictures_of(media)
    reading = Reading(len(pictures) / NOMINAL_FPS, [False] * clips)
    wanted: list[tuple[int, int, int]] = []  # number of the picture, clip, position
    for clip in range(clips):
        times = np.asarray(choose(clip, reading.duration))
        numbers = np.clip((times + TOLERANCE) * NOMINAL_FPS, 0, len(pictures) - 1).astype(int).tolist()
        reading.repeated[clip] = len(set(numbers)) < len(numbers)
        wanted += [(number, clip, position) for position, number in enumerate(numbers)]
    size, shown, pixels = _size(pictures[0]), -1, np.empty(0)
    for number, clip, position in sorted(wanted):
        if number != shown:
            shown, pixels = number, _picture(pictures[number], size)
        take(clip, position, pixels)
    return reading


def every_frame(media: Media, reading: Reading) -> Iterator[tuple[float, av.VideoFrame]]:
    """All pictures and their times, as `video.every_frame` gives a video's; one that cannot be read ends them."""
    pictures = pictures_of(media)
    reading.rate = NOMINAL_FPS
    size = _size(pictures[0])
    for number, picture in enumerate(pictures):
        try:
            pixels = _picture(picture, size)
        except DecodeError as error:
            if not number:
                raise
            reading.damage = f"{picture.path.name}: {error.reason}"
            return
        yield number / NOMINAL_FPS, av.VideoFrame.from_ndarray(pixels, format="rgb24")
        reading.duration = (number + 1) / NOMINAL_FPS


def pictures_of(media: Media) -> list[Media]:
    """The folder's pictures, in order.

    Raises:
        DecodeError: it has none, or cannot be read.
    """
    try:
        names = [name for name in os.listdir(media.path) if kind_of(name) == "image" and not name.startswith(".")]
    except OSError as error:
        raise DecodeError(media, f"the folder cannot be read: {error.strerror}") from None
    if not names:
        raise DecodeError(media, "the folder holds no pictures")
    return [Media(name, media.path / name) for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    """By the numbers in a name: 9.jpg stands before 10.jpg."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _size(picture: Media) -> tuple[int, int]:
    """(height, width) that all frames come in: the first one's."""
    height, width, _ = read_image(picture).shape
    return height, width


def _picture(picture: Media, size: tuple[int, int]) -> np.ndarray:
    try:
        pixels = read_image(picture)
    except DecodeError as error:
        raise DecodeError(picture, f"{picture.name}: {error.reason}") from None
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))
