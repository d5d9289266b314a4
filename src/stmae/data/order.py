"""Which item a place in the endless stream of slots shows: exact, and a function of the slot alone.

    global   a pass is a permutation of all items
    blocks   a pass visits blocks of items (shards) in random order, a few at a time, and mixes the items of these:
             a worker then reads neighbouring bytes, and a cache in front of an object store need hold but a few shards

    shards in random order    | 7  2  0  5 | 3  8  1  4 | ...
    items of a group, mixed   | 2 0 7 7 5 2 ...

Several sources with weights: in one pass of the mixture source i is given round(weight_i * len_i) slots, spread at
random over the pass, and continues with them its own permutations where the pass before left off. So over any number
of passes the shares are exact, and no item comes a second time before all of its source's have come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from stmae.data.clips import pass_order, seed_of, splitmix64
from stmae.data.sources import Mixture, Source

Kind = Literal["global", "blocks"]
BLOCKS_MIXED = 8  # blocks whose items are mixed with each other
BLOCK_ITEMS = 256  # neighbouring items that stand for a block where a source has none


class Place(NamedTuple):
    """What a slot shows.

    Attributes:
        slot: its number in the stream.
        item: position of the item in the source.
        pass_: how many times the item was shown before.
    """

    slot: int
    item: int
    pass_: int


@dataclass(frozen=True)
class _Stream:
    """One source of a mixture: its first item's number in the whole, its items, its slots in a pass."""

    first: int
    items: int
    slots: int
    seed: int
    blocks: np.ndarray | None


class Order:
    """The order of a source's items; that of one pass is kept in memory, 16 bytes per item.

    Args:
        source: of the items.
        seed: of the run.
        kind: "global" or "blocks".
    """

    def __init__(self, source: Source, seed: int, kind: Kind = "global") -> None:
        self.seed, self.kind = seed, kind
        if isinstance(source, Mixture):
            self._streams = [
                _Stream(first, len(each), slots, seed_of(seed, number), _blocks(each, kind))
                for number, (each, first, slots) in enumerate(
                    zip(source.sources, source.firsts, source.slots, strict=True)
                )
                if len(each)
            ]
        else:
            self._streams = [_Stream(0, len(source), len(source), seed, _blocks(source, kind))]
        self._length = sum(stream.slots for stream in self._streams)
        self._pass = -1
        self._items = self._passes = np.empty(0, np.int64)

    def __len__(self) -> int:
        """Slots of a pass."""
        return self._length

    def at(self, slot: int) -> Place:
        """What a slot shows."""
        pass_, place = divmod(slot, self._length)
        if pass_ != self._pass:
            self._items, self._passes = self._whole_pass(pass_)
            self._pass = pass_
        return Place(slot, int(self._items[place]), int(self._passes[place]))

    def _whole_pass(self, pass_: int) -> tuple[np.ndarray, np.ndarray]:
        """Item and own pass of each slot."""
        stream = self._streams[0]
        if len(self._streams) == 1 and stream.slots == stream.items:
            return self._permutation(stream, pass_), np.full(stream.items, pass_)
        counts = [stream.slots for stream in self._streams]
        turn = np.repeat(np.arange(len(counts)), counts)[pass_order(self.seed, pass_, self._length)]
        items, passes = np.empty(self._length, np.int64), np.empty(self._length, np.int64)
        for number, stream in enumerate(self._streams):
            own, place = np.divmod(pass_ * stream.slots + np.arange(stream.slots), stream.items)
            chosen = np.empty(stream.slots, np.int64)
            for each in np.unique(own):
                chosen[own == each] = self._permutation(stream, int(each))[place[own == each]]
            mine = turn == number
            items[mine], passes[mine] = stream.first + chosen, own
        return items, passes

    def _permutation(self, stream: _Stream, pass_: int) -> np.ndarray:
        if stream.blocks is None:
            return pass_order(stream.seed, pass_, stream.items)
        return block_order(stream.seed, pass_, stream.blocks)


def block_order(seed: int, pass_: int, blocks: np.ndarray) -> np.ndarray:
    """A permutation in which items of few blocks are near each other.

    Args:
        seed: of the run.
        pass_: number of the pass.
        blocks: (n,), the number of each item's block.
    """
    numbers, block = np.unique(blocks, return_inverse=True)
    rank = np.empty(len(numbers), np.int64)
    rank[pass_order(seed_of(seed, -1), pass_, len(numbers))] = np.arange(len(numbers))
    start = np.uint64(seed_of(seed_of(seed, -2), pass_))
    hashes = splitmix64(start ^ np.arange(len(blocks), dtype=np.uint64))
    return np.lexsort((hashes, rank[block] // BLOCKS_MIXED))


def _blocks(source: Source, kind: Kind) -> np.ndarray | None:
    if kind == "global":
        return None
    return np.arange(len(source)) // BLOCK_ITEMS if source.blocks is None else source.blocks
