"""Batches from a stream of video slots: where the stream stands is one integer, the cursor."""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from stmae.data.dataset import BadFile, FixedClips, Sample, VideoClips
from stmae.data.workers import FILE_TIMEOUT, Verdict, Workers, by_slot
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
        verdicts: those among them that are bad because reading them cost several workers. They must be kept and given
            back to the loader of a resumed run, before a checkpoint that lies behind this batch is saved.
        shrunk: how many clips had to take a smaller stride.
        repeated: how many clips show a frame twice.
        wait_seconds: how long the caller waited for this batch.
        items: int64 (B,), the positions in the index of the clips' videos; none where batches come from elsewhere.
    """

    clips: torch.Tensor
    keys: torch.Tensor
    cursor: int
    bad: list[BadFile] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    shrunk: int = 0
    repeated: int = 0
    wait_seconds: float = 0.0
    items: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

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
        timeout: seconds that a worker may spend on one video while it is waited for; None for ever.
        verdicts: of an earlier part of the run (`Batch.verdicts`): without them its clips may come out otherwise.
        warn: is told at once of workers that ended or hung.

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
        timeout: float | None = FILE_TIMEOUT,
        verdicts: Iterable[Verdict] = (),
        warn: Callable[[str], None] = warnings.warn,
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
        self._timeout, self._verdicts, self.warn = timeout, list(verdicts), warn
        self._samples: Workers | _InProcess | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The batch at the cursor.

        Raises:
            UserError: too many files in a row cannot be read, or workers die faster than they decode.
        """
        start = time.perf_counter()
        if self._samples is None:
            self._samples = self._start()
        batch = None
        first = self.cursor + self._rank * self._videos
        for place in range(self._videos):
            sample = self._sample()
            batch = batch or self._empty(sample)
            part = slice(place * len(sample.keys), (place + 1) * len(sample.keys))
            batch.clips[part], batch.keys[part], batch.items[part] = sample.clips, sample.keys, sample.item
            batch.bad += sample.bad
            batch.verdicts += [Verdict(first + place, bad.item, bad.reason) for bad in sample.bad if bad.verdict]
            batch.shrunk += sample.shrunk
            batch.repeated += sample.repeated
        assert batch is not None
        self.cursor = batch.cursor
        self._verdicts += batch.verdicts
        batch.wait_seconds = time.perf_counter() - start
        return batch

    @property
    def pids(self) -> list[int]:
        """Of the worker processes; empty before the first batch and after `close`."""
        return self._samples.pids if isinstance(self._samples, Workers) else []

    def close(self) -> None:
        """Ends the workers. Iterating again starts new ones at the cursor."""
        if self._samples is not None:
            self._samples.close()
        self._samples = None

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _slots(self) -> Iterator[int]:
        """This process's slots from the cursor on."""
        for start in itertools.count(self.cursor, self._videos * self._world_size):
            yield from range(start + self._rank * self._videos, start + (self._rank + 1) * self._videos)

    def _start(self) -> Workers | _InProcess:
        if not self.workers:
            return _InProcess(self._dataset, self._slots(), self._verdicts)
        return Workers(
            self._dataset,
            self._slots(),
            self.workers,
            ahead=BATCHES_AHEAD * self._videos,
            timeout=self._timeout,
            verdicts=self._verdicts,
            warn=lambda text: self.warn(text),
        )

    def _sample(self) -> Sample:
        assert self._samples is not None
        try:
            sample = next(self._samples)
        except BaseException:  # Ctrl-C too: what has been taken so far belongs to a batch that is lost
            self.close()
            raise
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
        items = torch.empty(self.batch_size, dtype=torch.int64)
        return Batch(clips, keys, self.cursor + self._videos * self._world_size, items=items)


class _InProcess:
    """What `Workers` does, without any: nothing is decoded ahead, and nothing guards against a crash."""

    def __init__(self, dataset: VideoClips | FixedClips, slots: Iterator[int], verdicts: Iterable[Verdict]) -> None:
        self._dataset, self._slots = dataset, slots
        self._verdicts = by_slot(verdicts)

    def __iter__(self) -> Iterator[Sample | Exception]:
        return self

    def __next__(self) -> Sample | Exception:
        slot = next(self._slots)
        return self._dataset.sample(self._dataset.place(slot), self._verdicts.get(slot, {}))

    def close(self) -> None:
        """There is nothing to end."""


def read_fixed(
    clips: FixedClips,
    items: Sequence[int],
    *,
    workers: int = 0,
    timeout: float | None = FILE_TIMEOUT,
    verdicts: Iterable[Verdict] = (),
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[Sample]:
    """The fixed clips of some items, in order, read as training clips are: a file may crash its decoder, or hang in it.

    Args:
        clips: of a source.
        items: which ones, each once.
        workers, timeout, warn: as for `ClipLoader`.
        verdicts: of an earlier part of the run, the item standing for the slot. New ones are among the samples' `bad`.

    Raises:
        UserError: workers end faster than they decode.
    """
    count = min(workers, len(items))
    if not count:
        samples: Workers | _InProcess = _InProcess(clips, iter(items), verdicts)
    else:
        ahead = BATCHES_AHEAD * count
        samples = Workers(clips, iter(items), count, ahead=ahead, timeout=timeout, verdicts=verdicts, warn=warn)
    with contextlib.closing(samples):
        for sample in samples:
            if isinstance(sample, Exception):
                raise sample
            yield replace(sample, clips=sample.clips.clone()) if count else sample  # the workers' memory is used again
