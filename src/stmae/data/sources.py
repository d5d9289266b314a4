"""What there is to learn from: files, packed shards, tensors, or several of these with weights.

A source is anything with a length and, for its items 0, 1, ...:

    name(item)   the path relative to `root`, with forward slashes: for messages, and for the split
    label(item)  from the list, else the folder; None for none
    media(item)  which bytes of which local file it is (not for tensors)
    part(items)  a source of some of them
    blocks       which items lie together, as a number for each; None for files
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stmae.data.cache import Cache
from stmae.data.index import Index, scan
from stmae.data.media import VIDEO_EXTENSIONS, Media, original_name
from stmae.data.names import encoded
from stmae.data.shards import Shards
from stmae.errors import Problems, UserError

if TYPE_CHECKING:  # scanning a folder, and saying what is wrong with it, must not wait for torch
    import torch

__all__ = [
    "VIDEO_EXTENSIONS",
    "Index",
    "Media",
    "Mixture",
    "Source",
    "TensorSource",
    "is_shards",
    "kin",
    "names_of",
    "parts_of",
    "scan",
    "split",
]


class Source(Protocol):
    """What all sources have."""

    @property
    def root(self) -> Path | str: ...
    @property
    def blocks(self) -> np.ndarray | None: ...
    def __len__(self) -> int: ...
    def name(self, item: int) -> str: ...
    def label(self, item: int) -> str | None: ...
    def media(self, item: int) -> Media: ...
    def part(self, items: Sequence[int] | np.ndarray) -> Source: ...


class TensorSource:
    """Clips that are in memory, or come from a PyTorch dataset, and are used as they are.

    Args:
        clips: a tensor (N, C, T, H, W), a list of tensors (C, T, H, W), or a map-style dataset whose items are such
            tensors or tuples that begin with one. uint8, or float if normalised already; any number of channels.

    Raises:
        UserError: no clips, or the first one has another shape or type.
    """

    root = "clips from Python"
    blocks = None

    def __init__(self, clips: Any) -> None:
        if not hasattr(clips, "__getitem__") or not hasattr(clips, "__len__"):
            raise UserError(
                f"{type(clips).__name__} cannot be indexed, so the clips of an epoch cannot be put in order.",
                "Give a tensor (N, C, T, H, W), a list of tensors (C, T, H, W) or a map-style dataset.",
            )
        if len(clips) == 0:
            raise UserError("there are no clips in the data.", "Give at least one.")
        self._clips = clips
        first = self.clip(0)
        self.shape: tuple[int, int, int, int] = tuple(first.shape)  # type: ignore[assignment]
        self.dtype = first.dtype

    def __len__(self) -> int:
        return len(self._clips)

    def clip(self, item: int) -> torch.Tensor:
        """(C, T, H, W), as given."""
        import torch

        entry = self._clips[item]
        clip = torch.as_tensor(entry[0] if isinstance(entry, (tuple, list)) else entry)
        cure = "Every clip must be a tensor (C, T, H, W) of one shape, uint8 or floating-point."
        if clip.ndim != 4:
            raise UserError(f"clip {item} has the shape {tuple(clip.shape)}.", cure)
        if clip.dtype != torch.uint8 and not clip.is_floating_point():
            raise UserError(f"clip {item} holds {clip.dtype}.", cure)
        if item and (tuple(clip.shape), clip.dtype) != (self.shape, self.dtype):
            raise UserError(f"clip {item} is {clip.dtype} {tuple(clip.shape)}, clip 0 {self.dtype} {self.shape}.", cure)
        return clip

    def name(self, item: int) -> str:
        return str(item)

    def label(self, item: int) -> str | None:
        """What stands after the clip in a dataset's tuples."""
        entry = self._clips[item]
        if not isinstance(entry, (tuple, list)) or len(entry) < 2:
            return None
        value = entry[1].tolist() if hasattr(entry[1], "tolist") else entry[1]
        return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)

    def media(self, item: int) -> Media:
        raise AssertionError("clips from Python have no file")

    def part(self, items: Sequence[int] | np.ndarray) -> TensorSource:
        """A source of some of the clips."""
        from torch.utils.data import Subset

        part = copy.copy(self)
        part._clips = Subset(self._clips, [int(item) for item in items])
        return part


class Mixture:
    """Several sources, one after the other, each with a weight.

    Args:
        sources: of files or shards; at least one.
        weights: how many times each is gone through in one pass of the whole; 1 for each where None. Over any number
            of passes each source is given exactly round(weight * its length) slots a pass.

    Raises:
        UserError: another number of weights than sources, or one that is not above 0.

    Attributes:
        firsts: the number of each source's first item in the whole.
        slots: that each source is given in a pass.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None = None) -> None:
        self.sources = tuple(sources)
        self.weights = tuple(float(w) for w in weights) if weights is not None else (1.0,) * len(self.sources)
        check_weights(len(self.sources), self.weights)
        bounds = np.cumsum([0, *map(len, self.sources)])
        self.firsts, self._ends, self._length = bounds[:-1].tolist(), bounds[1:].tolist(), int(bounds[-1])
        self.slots = [
            max(1, round(w * len(each))) if len(each) else 0 for w, each in zip(self.weights, self.sources, strict=True)
        ]

    def __len__(self) -> int:
        return self._length

    @property
    def root(self) -> str:
        return ", ".join(str(each.root) for each in self.sources)

    @property
    def blocks(self) -> np.ndarray | None:
        return None  # each source has its own: data/order.py

    def place(self, item: int) -> tuple[int, int]:
        """The source that an item belongs to, and its number there."""
        assert 0 <= item < self._length, item
        number = int(np.searchsorted(self._ends, item, side="right"))
        return number, item - self.firsts[number]

    def name(self, item: int) -> str:
        """The name in its own source, after that source's root where there are several."""
        number, own = self.place(item)
        name = self.sources[number].name(own)
        return f"{self.sources[number].root}/{name}" if len(self.sources) > 1 else name

    def label(self, item: int) -> str | None:
        number, own = self.place(item)
        return self.sources[number].label(own)

    def media(self, item: int) -> Media:
        number, own = self.place(item)
        return self.sources[number].media(own)

    def part(self, items: Sequence[int] | np.ndarray) -> Mixture:
        """A mixture of some of the items, by source; a source of which there are none stays, empty."""
        items = np.asarray(items, np.int64)
        own = [items[(items >= a) & (items < b)] - a for a, b in zip(self.firsts, self._ends, strict=True)]
        return Mixture([source.part(each) for source, each in zip(self.sources, own, strict=True)], self.weights)


def check_weights(sources: int, weights: Sequence[float]) -> None:
    """Raises `UserError` where weights do not go with so many sources."""
    problems = Problems()
    problems.check(
        len(weights) == sources,
        f"{len(weights)} weight{'s' * (len(weights) != 1)} for {sources} source{'s' * (sources != 1)}.",
        "Give one for each, in their order.",
    )
    problems.check(
        all(weight > 0 for weight in weights),
        f"weights {' '.join(f'{w:g}' for w in weights)} are not all above 0.",
        "A weight is how many times its source is gone through in a pass: 2 for twice, 0.5 for half of it.",
    )
    problems.raise_any()


def parts_of(source: Source) -> tuple[Source, ...]:
    """The sources of a mixture, or the one that it is."""
    return source.sources if isinstance(source, Mixture) else (source,)


def is_shards(source: Source) -> bool:
    """Whether it is packed."""
    return isinstance(source, Shards)


def open_shards(where: str | Path, cache: Cache | None = None) -> Source:
    """The shards in a folder or at an address."""
    return Shards.open(where, cache=cache)


def kin(source: Source, item: int) -> range:
    """The items that may stand in for one that cannot be read: those of the same source."""
    if not isinstance(source, Mixture):
        return range(len(source))
    number, _ = source.place(item)
    first = source.firsts[number]
    return range(first, first + len(source.sources[number]))


def names_of(source: Source) -> Iterator[str]:
    """The names of all items, in order."""
    if isinstance(source, Index):
        return iter(source.paths)
    if isinstance(source, Shards):
        return iter(source.names)
    return (source.name(item) for item in range(len(source)))


def split(source: Source, holdout: float) -> tuple[Source, Source]:
    """Parts the items into training and held-out ones.

    A hash of an item's name alone decides, so new files never move old ones, and a file that is listed twice is on
    one side. (Except that training keeps at least one item and, with two items or more and `holdout` above 0, so does
    the other part.) The sources of a mixture are parted one by one.

    Args:
        source: all items.
        holdout: the held-out share, in [0, 1).
    """
    if isinstance(source, Mixture):
        parts = [split(each, holdout) for each in source.sources]
        sides = [[part[side] for part in parts] for side in (0, 1)]
        return Mixture(sides[0], source.weights), Mixture(sides[1], source.weights)
    count = len(source)
    if holdout <= 0 or count < 2:
        return source.part(np.arange(count)), source.part(np.arange(0))
    ranks = np.fromiter(map(rank_of, names_of(source)), np.float64, count)
    held = ranks < holdout
    if not held.any():
        held[np.argmin(ranks)] = True
    if held.all():
        held[np.argmax(ranks)] = False
    return source.part(np.flatnonzero(~held)), source.part(np.flatnonzero(held))


def rank_of(name: str) -> float:
    """A number in [0, 1) from an item's name alone: those below the held-out share are held out."""
    # The segments of a video stay together: else the held-out ones would show scenes of the others.
    return int.from_bytes(hashlib.sha256(encoded(original_name(name))).digest()[:8], "big") / 2**64
