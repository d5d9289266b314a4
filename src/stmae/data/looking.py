"""What packing does with one item, in a worker process: probes it, or writes it anew into the workshop."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stmae.data.container import DecodeError
from stmae.data.encode import Part, Recipe, encode
from stmae.data.media import Media, read_clips
from stmae.data.remote import MissingError
from stmae.data.sources import Source


@dataclass
class Looked:
    """What came of one item.

    Attributes:
        parts: files to store in its place; none where it is stored as it is.
        ending: of what is stored, with the dot.
        size: bytes of the original.
        seconds: its duration; NaN without.
        about: width and height in pixels.
        reason: why there is nothing to store; else empty.
        damage: why only its beginning can be used; else empty.
    """

    parts: list[Part] = field(default_factory=list)
    ending: str = ""
    size: int = 0
    seconds: float = float("nan")
    about: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    damage: str = ""


def look(source: Source, recipe: Recipe | None, work: Path, item: int) -> Looked:
    """Looks at an item; with a recipe, videos are written anew into the folder `work`.

    Raises:
        NetworkError: it cannot be fetched.
        OSError: the folder cannot be written.
    """
    try:
        media = source.media(item)
    except MissingError:
        return Looked(reason="does not exist")
    except DecodeError as error:
        return Looked(reason=error.reason)
    looked = Looked(ending=os.path.splitext(media.name)[1].lower())
    try:
        looked.size = media.bytes
    except OSError as error:
        looked.reason = f"cannot be read: {error.strerror}"
        return looked
    try:
        media.verify()
        if media.kind in ("video", "frames") and recipe is not None:
            _write_anew(media, recipe, work, item, looked)
        else:
            _probe(media, looked)
            if media.inside:
                _take_out(media, work, item, looked)
    except DecodeError as error:
        looked.reason = error.reason
    return looked


def _write_anew(media: Media, recipe: Recipe, work: Path, item: int, looked: Looked) -> None:
    looked.parts, reading = encode(media, recipe, work, f"{item:09d}")
    looked.ending, looked.seconds, looked.damage = ".mp4", reading.duration, reading.damage
    looked.about = {"width": looked.parts[0].width, "height": looked.parts[0].height}


def _probe(media: Media, looked: Looked) -> None:
    """Reads the first frame, as training does: what fails here fails there, for the same reason."""

    def take(clip: int, position: int, pixels: np.ndarray) -> None:
        looked.about = {"width": pixels.shape[1], "height": pixels.shape[0]}

    reading = read_clips(media, 1, lambda clip, duration: [0.0], take)
    if media.kind == "video":
        looked.seconds = reading.duration


def _take_out(media: Media, work: Path, item: int, looked: Looked) -> None:
    """One array of a file that holds several becomes a file: (T, H, W, C), as it is read."""
    from stmae.data.arrays import open_frames

    path = work / f"{item:09d}.npy"
    with open_frames(media) as frames:
        out = np.lib.format.open_memmap(path, "w+", frames.dtype, frames.shape)
        for i in range(frames.shape[0]):
            out[i] = frames.read(i)
        out.flush()
    nan = float("nan")
    looked.ending = ".npy"
    looked.parts = [Part(path, nan, nan, frames.shape[0], frames.shape[2], frames.shape[1])]
