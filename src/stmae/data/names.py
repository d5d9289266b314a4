"""Many strings in two arrays: a million file names without a million Python objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from stmae.data.shared import Shared

CHUNK = 1 << 16  # names gathered at a time


class Names(Sequence[str]):
    """A read-only sequence of strings, packed: the bytes of all one after the other, and where each ends.

    Worker processes share the memory. File names are bytes to the system: those that are no UTF-8 come back as they
    were (as Python's "surrogateescape").

        names = Names.of(["b/x.mp4", "a.mp4"])
        names[1]  ->  "a.mp4"
    """

    __slots__ = ("_bounds", "_text")

    def __init__(self, text: np.ndarray, bounds: np.ndarray) -> None:
        """`text` uint8 (bytes,); `bounds` int64 (n + 1,): name i is text[bounds[i]:bounds[i + 1]]."""
        self._text, self._bounds = Shared(text), Shared(bounds)

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Packs strings; what is packed already is returned as it is."""
        if isinstance(names, Names):
            return names
        parts = [encoded(name) for name in names]
        return cls(np.frombuffer(b"".join(parts), np.uint8), bounds_of(np.fromiter(map(len, parts), np.int64)))

    def __len__(self) -> int:
        return len(self._bounds.array) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Names: ...
    def __getitem__(self, place: int | slice) -> str | Names:
        if isinstance(place, slice):
            return self.part(np.arange(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        begin, end = self._bounds.array[place % len(self) :][:2]
        return decoded(self._text.array[begin:end].tobytes())

    def __iter__(self) -> Iterator[str]:
        text, bounds = self._text.array.tobytes(), self._bounds.array.tolist()
        return (decoded(text[bounds[i] : bounds[i + 1]]) for i in range(len(self)))

    def part(self, items: Sequence[int] | np.ndarray) -> Names:
        """The names at these places, in this order."""
        items = np.asarray(items, np.int64)
        starts, lengths = self._bounds.array[items], np.diff(self._bounds.array)[items]
        bounds = bounds_of(lengths)
        text = np.empty(bounds[-1], np.uint8)
        for at in range(0, len(items), CHUNK):  # the places of all bytes at once would take 8 times their memory
            upto = min(at + CHUNK, len(items))
            begin, end = bounds[at], bounds[upto]
            shift = np.repeat(starts[at:upto] - bounds[at:upto], lengths[at:upto])
            text[begin:end] = self._text.array[shift + np.arange(begin, end)]
        return Names(text, bounds)

    def endings(self) -> np.ndarray:
        """The last 8 bytes of each name in small letters, as an array of bytes "S8": what kinds of files these are."""
        bounds, text = self._bounds.array, self._text.array
        tails = np.zeros((len(self), 8), np.uint8)
        for back in range(1, 9):
            there = bounds[1:] - bounds[:-1] >= back
            tails[there, 8 - back] = text[bounds[1:][there] - back]
        capitals = (tails >= ord("A")) & (tails <= ord("Z"))
        tails[capitals] += 32
        # A zero byte at the end would be cut off, and one in front stay: names hold none.
        return tails.view("S8").reshape(-1)

    def contain(self, text: str) -> bool:
        """Whether some name (or two neighbours, end to end) contains a text."""
        return encoded(text) in self._text.array.tobytes()

    def __add__(self, other: Names) -> Names:
        text = np.concatenate([self._text.array, other._text.array])
        return Names(text, np.concatenate([self._bounds.array, other._bounds.array[1:] + self._bounds.array[-1]]))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return np.array_equal(self._bounds.array, other._bounds.array) and np.array_equal(
                self._text.array, other._text.array
            )
        return isinstance(other, tuple | list) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Names({[*self[:3]]}{f' and {len(self) - 3} more' if len(self) > 3 else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _joined, (self._text, self._bounds)


def _joined(text: Shared, bounds: Shared) -> Names:
    names = Names.__new__(Names)
    names._text, names._bounds = text, bounds
    return names


def bounds_of(lengths: np.ndarray) -> np.ndarray:
    """Where runs of these lengths begin, and the end of the last one: int64 (n + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
