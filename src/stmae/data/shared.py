"""NumPy arrays that worker processes share: sent to another process, the bytes stay where they are."""

from __future__ import annotations

import mmap
import os
import tempfile
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any

import numpy as np

BY_VALUE = 1 << 16  # bytes: smaller arrays are copied, which costs no file descriptor


class Shared:
    """An array, read-only, whose memory all processes that it is sent to have in common.

    What `multiprocessing` sends (a data set to its workers) is a file descriptor of memory without a name, so nothing
    is left behind however the processes end, and the size of /dev/shm does not matter. Any other pickling copies.

    Attributes:
        array: the NumPy array.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = np.ascontiguousarray(array)
        self.array.flags.writeable = False
        self._file: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Shared, (self.array,)

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]  # the memory stays while it is mapped

    def _send(self) -> tuple[Any, ...]:
        """How `multiprocessing` pickles it."""
        if self.array.nbytes < BY_VALUE:
            return self.__reduce__()
        if self._file is None:
            file = nameless()
            with open(os.dup(file), "wb") as out:
                out.write(self.array.data)
            self.array = _mapped(file, self.array.dtype.str, self.array.shape)  # and let go of the first copy
            self._file = file
        return _received, (DupFd(self._file), self.array.dtype.str, self.array.shape)


ForkingPickler.register(Shared, Shared._send)


def _received(sent: Any, dtype: str, shape: tuple[int, ...]) -> Shared:
    file = sent.detach()
    try:
        return Shared(_mapped(file, dtype, shape))
    finally:
        os.close(file)


def _mapped(file: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(mmap.mmap(file, 0, access=mmap.ACCESS_READ), dtype).reshape(shape)


def nameless() -> int:
    """A descriptor of memory (or, where the system has no such thing, of a file) without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("stmae")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
