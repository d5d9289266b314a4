"""Memory that the loader and its workers share: what each worker is on, and a block for the clips of each slot."""

from __future__ import annotations

import mmap
import os
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch


class Blocks:
    """Memory that all processes see: per worker a row (slot, item, whether at work on it), then the blocks.

    Args:
        file: descriptor of a file without a name.
        workers, blocks: how many.
        shape, dtype: of a slot's clips (R, C, T, H, W).
    """

    def __init__(
        self, file: int, workers: int, blocks: int, shape: tuple[int, int, int, int, int], dtype: torch.dtype
    ) -> None:
        self._made = (file, workers, blocks, shape, dtype)
        repeats, channels, frames, height, width = shape
        count = repeats * channels * frames * height * width
        page = mmap.PAGESIZE
        size = -(-count * dtype.itemsize // page) * page
        start = -(-workers * 24 // page) * page
        os.ftruncate(file, start + blocks * size)
        map_ = mmap.mmap(file, start + blocks * size)
        self._table = np.frombuffer(map_, np.int64, workers * 3).reshape(workers, 3)
        # As decoded clips lie: channels last.
        lying = (repeats, frames, height, width, channels)
        flat = [torch.frombuffer(map_, dtype=dtype, count=count, offset=start + at * size) for at in range(blocks)]
        self.blocks = [block.view(lying).permute(0, 4, 1, 2, 3) for block in flat]

    def __reduce__(self) -> tuple[object, ...]:  # on the way to a worker, which opens the same file
        file, *rest = self._made
        return _opened, (reduction.DupFd(file), *rest)

    def work(self, number: int, slot: int, item: int) -> None:
        """Notes that a worker begins with a file."""
        self._table[number] = (slot, item, 1)

    def rest(self, number: int) -> None:
        """Notes that it is done with it."""
        self._table[number, 2] = 0

    def at_work(self, number: int) -> tuple[int, int] | None:
        """The slot and item that a worker is on."""
        slot, item, busy = self._table[number].tolist()
        return (slot, item) if busy else None

    def close(self) -> None:
        """Gives the file back; the memory goes when the last tensor in it does."""
        os.close(self._made[0])


def _opened(file: Any, *rest: Any) -> Blocks:
    return Blocks(file.detach(), *rest)
