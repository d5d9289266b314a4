"""From the numbers in files to those in clips: uint8 as they are, everything else as normalised floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stmae.data.arrays import open_frames
from stmae.data.container import DecodeError
from stmae.data.media import ARRAY_EXTENSIONS, INSIDE, Media, kind_of
from stmae.data.sources import Index, Source, is_shards, parts_of

if TYPE_CHECKING:  # `stmae pack` has no need of torch
    import torch

TRIES = 100  # arrays looked at until one can be read


@dataclass(frozen=True)
class Values:
    """What the pixels of a data set are.

        uint8                stays: the model normalises it
        other whole numbers  from `low`..`high` to 0..1, and from there as the model does with uint8
        floats               as they are: normalised already; with a range given, like whole numbers

    Attributes:
        channels: of all items.
        floating: whether clips are float32; else uint8.
        low, high: the values that stand for 0 and 1; None for the range of the type, or floats as they are.
        mean, std: of the model's normalisation, one value or one per channel.
    """

    channels: int = 3
    floating: bool = False
    low: float | None = None
    high: float | None = None
    mean: tuple[float, ...] = (0.45,)
    std: tuple[float, ...] = (0.225,)

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return torch.float32 if self.floating else torch.uint8

    def of(self, frame: np.ndarray, media: Media) -> np.ndarray:
        """A frame (H, W, C) as clips have it.

        Raises:
            DecodeError: it has other channels or numbers than the data set.
        """
        if frame.shape[2] != self.channels:
            raise DecodeError(media, f"has {frame.shape[2]} channels, the clips of this data set {self.channels}")
        if not self.floating:
            if frame.dtype != np.uint8:
                raise DecodeError(media, f"holds {frame.dtype}, the clips of this data set uint8")
            return frame
        low, high = self._range(frame.dtype, media)
        if low is None or high is None:
            return frame.astype(np.float32)
        scaled = (frame.astype(np.float32) - low) / (high - low)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return ((scaled - mean) / std).astype(np.float32)

    def _range(self, dtype: np.dtype, media: Media) -> tuple[float | None, float | None]:
        if dtype == np.uint8 and media.kind != "array":
            return 0.0, 255.0  # of videos and images beside arrays
        if self.low is not None or dtype.kind == "f":
            return self.low, self.high
        if dtype.kind == "b":
            return 0.0, 1.0
        return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def values_of(
    source: Source,
    value_range: tuple[float, float] | None = None,
    mean: tuple[float, ...] = (0.45,),
    std: tuple[float, ...] = (0.225,),
) -> Values:
    """What the pixels of a data set are, by its first array that can be read; videos and images are RGB in uint8."""
    low, high = value_range if value_range is not None else (None, None)
    for each in parts_of(source):
        for item in _arrays(each)[:TRIES]:
            try:
                with open_frames(each.media(int(item))) as frames:
                    floating = value_range is not None or frames.dtype != np.uint8
                    return Values(frames.shape[3], floating, low, high, mean, std)
            except DecodeError:
                continue
    return Values(mean=mean, std=std)


def _arrays(source: Source) -> np.ndarray:
    """The items that are arrays."""
    if isinstance(source, Index):
        endings = source.paths.endings()
        found = np.zeros(len(source), bool)
        for ending in ARRAY_EXTENSIONS:
            found |= np.char.endswith(endings, f".{ending}".encode())
        if source.paths.contain(INSIDE):  # arrays inside files end in anything
            found |= np.fromiter((kind_of(name) == "array" for name in source.paths), bool, len(source))
        return np.flatnonzero(found)
    if not is_shards(source):
        return np.empty(0, np.int64)
    entries, rows = source.entries, source.rows  # type: ignore[attr-defined]
    arrays = [i for i, ending in enumerate(entries.tables["ending"]) if kind_of(f"x{ending}") == "array"]
    return np.flatnonzero(np.isin(entries.ending[rows], arrays))
