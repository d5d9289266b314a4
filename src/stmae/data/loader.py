"""Batches from a stream of video slots: where the stream stands is one integer, the cursor."""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import signal
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker

import torch
from torch.utils.data import DataLoader, Dataset

from stmae.data.dataset import BadFile, Sample, VideoClips
from stmae.data.order import Place
from stmae.data.sources import TensorSource
from stmae.errors import UserError

BATCHES_AHEAD = 2  # decoded before they are asked for, over all workers


@dataclass
class Batch:
    """What one process takes for one step.

    Attributes:
        clips: (B, C, T, H, W), uint8 unless the source is floating-point.
        keys: int64 (B,).
        cursor: video slots used up once this batch is, over all processes: where to go on from.
        bad: the files that could not be read on the way.
        shrunk: how many clips had to take a smaller stride.
        repeated: how many clips show a frame twice.
        wait_seconds: how long the caller waited for this batch.
    """

    clips: torch.Tensor
    keys: torch.Tensor
    cursor: int
    bad: list[BadFile] = field(default_factory=list)
    shrunk: int = 0
    repeated: int = 0
    wait_seconds: float = 0.0

    def to(self, device: str | torch.device) -> Batch:
        """The batch with clips and keys on a device; copies from pinned memory do not make the host wait."""
        clips, keys = (tensor.to(device, non_blocking=True) for tensor in (self.clips, self.keys))
        return replace(self, clips=clips, keys=keys)


class ClipLoader:
    """Endless batches of training clips; a batch depends on the dataset and the cursor alone, not on `workers`.

    The slots of a global batch are shared out so that each process takes one run of neighbours:

        cursor                                      next cursor
        | rank 0: v slots | rank 1: v slots | ...   |               v = batch_size / repeats

    Args:
        dataset: the stream of slots.
        batch_size: clips in a batch of this process; a multiple of the dataset's `repeats`.
        cursor: slots that are used up already.
        workers: processes that decode; 0 decodes in this one.
        device: where the batches go later; for "cuda" they are made in pinned memory.
        rank, world_size: of this process among those that train together.

    Raises:
        UserError: `batch_size` is no multiple of `repeats`.
    """

    def __init__(
        self,
        dataset: VideoClips,
        *,
        batch_size: int,
        cursor: int = 0,
        workers: int = 0,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert 0 <= rank < world_size
        if batch_size < 1 or batch_size % dataset.repeats:
            raise UserError(
                f"a batch of {batch_size} clips cannot be filled with {dataset.repeats} clips from each video.",
                f"Choose a multiple of {dataset.repeats}.",
            )
        self.batch_size, self.cursor, self.workers = batch_size, cursor, workers
        self._dataset = dataset
        self._videos, self._rank, self._world_size = batch_size // dataset.repeats, rank, world_size
        self._pin = torch.device(device).type == "cuda"
        self._loader = DataLoader(
            _ErrorsAsValues(dataset),
            batch_size=None,  # batches are put together here: a worker's memory then holds videos, not batches
            sampler=_Slots(self),
            num_workers=workers,
            multiprocessing_context=_forkserver() if workers else None,
            prefetch_factor=max(2, math.ceil(BATCHES_AHEAD * self._videos / workers)) if workers else None,
        )
        self._samples: Iterator[Sample | Exception] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The batch at the cursor.

        Raises:
            UserError: too many files in a row cannot be read, or a worker died.
        """
        start = time.perf_counter()
        if self._samples is None:
            ours = not isinstance(self._dataset.source, TensorSource)
            hidden = _main_hidden() if ours else contextlib.nullcontext()
            with hidden, _ctrl_c_held_back() if self.workers else contextlib.nullcontext():
                self._samples = iter(self._loader)
        batch = None
        for place in range(self._videos):
            sample = self._sample()
            batch = batch or self._empty(sample)
            part = slice(place * len(sample.keys), (place + 1) * len(sample.keys))
            batch.clips[part], batch.keys[part] = sample.clips, sample.keys
            batch.bad += sample.bad
            batch.shrunk += sample.shrunk
            batch.repeated += sample.repeated
        assert batch is not None
        self.cursor = batch.cursor
        batch.wait_seconds = time.perf_counter() - start
        return batch

    def close(self) -> None:
        """Ends the workers. Iterating again starts new ones at the cursor."""
        if self._samples is not None and self.workers:
            self._samples._shutdown_workers()  # type: ignore[attr-defined]  # there is no public way
        self._samples = None

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _slots(self) -> Iterator[int]:
        """This process's slots from the cursor on."""
        for start in itertools.count(self.cursor, self._videos * self._world_size):
            yield from range(start + self._rank * self._videos, start + (self._rank + 1) * self._videos)

    def _sample(self) -> Sample:
        assert self._samples is not None
        try:
            sample = next(self._samples)
        except (RuntimeError, ConnectionError, EOFError) as error:
            self.close()
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            raise UserError(
                f"a worker process that decodes videos died ({error}).",
                "If memory ran out, use fewer workers, fewer clips or smaller ones; if this is a script, its code must "
                'stand under `if __name__ == "__main__":`.',
            ) from error
        if isinstance(sample, Exception):
            self.close()
            raise sample
        return sample

    def _empty(self, sample: Sample) -> Batch:
        _, channels, frames, height, width = sample.clips.shape
        # Decoded clips lie as (T, H, W, C); one that is laid out alike is filled by plain copying.
        shape = (self.batch_size, frames, height, width, channels)
        clips = torch.empty(shape, dtype=sample.clips.dtype, pin_memory=self._pin).permute(0, 4, 1, 2, 3)
        keys = torch.empty(self.batch_size, dtype=torch.int64, pin_memory=self._pin)
        return Batch(clips, keys, self.cursor + self._videos * self._world_size)


class _Slots:
    """The loader's slots, with what they show, as a sampler: iterating begins at the cursor of that moment."""

    def __init__(self, loader: ClipLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Place]:
        return map(self._loader._dataset.place, self._loader._slots())


class _ErrorsAsValues(Dataset[Sample | Exception]):
    """Hands the user's mistakes over as they are; PyTorch would wrap them into a worker's traceback."""

    def __init__(self, dataset: VideoClips) -> None:
        self._dataset = dataset

    def __getitem__(self, place: Place) -> Sample | Exception:
        try:
            return self._dataset[place]
        except UserError as error:
            return error


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """While workers start: they need nothing of the caller's script, which multiprocessing would run again in each.

    So a script may train without an ``if __name__ == "__main__":``. (A data set of the caller's own does need it.)
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """While workers start: they inherit that SIGINT is blocked, so that Ctrl-C, which a terminal sends to all processes
    of a command, reaches this one alone, which may need them for the step that it is in.
    """
    resource_tracker.ensure_running()  # unblocks SIGINT when it starts, in Python 3.11
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forkserver() -> multiprocessing.context.BaseContext:
    """Workers branch off a clean process that has loaded this package, not off ours with its threads."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "a worker process has started the script again instead of decoding videos.",
            'Put the script\'s code under `if __name__ == "__main__":`.',
        )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stmae.data.dataset"])
    return context
