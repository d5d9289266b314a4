"""Clips of videos through a model, in batches, and what it made of each video: for embedding, probing and judging."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stmae.data.sources import Source
from stmae.data.views import End, Places, View, stream_views
from stmae.engine.log import Log
from stmae.engine.precision import computing
from stmae.model.config import ClipConfig
from stmae.tasks import build
from stmae.tasks.videos import none_readable, printable, values_for


class Batches:
    """Gathers clips into batches for a model, and gives what it makes of them in the order in which they came.

    Args:
        model: of clips (B, C, T, H, W) on `device`, to one row each: (B, ...).
        device, precision: where and with which arithmetic it is computed (`engine.precision`).
        batch_size: clips in a batch.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], device: torch.device, precision: str, batch_size: int
    ) -> None:
        self.model, self.device, self.precision, self.batch_size = model, device, precision, batch_size
        self._clips: list[tuple[Any, Tensor]] = []

    def add(self, label: Any, clip: Tensor) -> list[tuple[Any, np.ndarray]]:
        """Takes a clip (C, T, H, W); returns (label, row) of each in a batch when one is full, else nothing."""
        self._clips.append((label, clip))
        return self.flush() if len(self._clips) >= self.batch_size else []

    @torch.inference_mode()
    def flush(self) -> list[tuple[Any, np.ndarray]]:
        """What is left, as a smaller batch."""
        if not self._clips:
            return []
        labels, clips = zip(*self._clips, strict=True)
        self._clips = []
        batch = torch.stack(clips).to(self.device, non_blocking=True)
        with computing(self.device, self.precision):
            rows = self.model(batch)
        return list(zip(labels, rows.float().cpu().numpy(), strict=True))


@dataclass
class VideoRows:
    """What a model made of a video.

    Attributes:
        end: of its reading; a video of which nothing could be read has no clips.
        times: of each view in seconds, begin and end of its clip.
        rows: (V, ...) float32, a row for each view in their order.
    """

    end: End
    times: list[tuple[float, float]]
    rows: np.ndarray


@dataclass
class _Waiting:
    """A video whose views are on their way; a view that comes again replaces the first."""

    due: int = 0
    end: End | None = None
    times: dict[int, tuple[float, float]] = field(default_factory=dict)
    rows: dict[int, np.ndarray] = field(default_factory=dict)


def rows_of_videos(stream: Iterator[View | End], batches: Batches) -> Iterator[VideoRows]:
    """What the model makes of each video's views, video by video in the order of the stream.

    Clips are held until their batch is full and no longer, rows until their video has ended: memory does not grow with
    the number of videos, and with a video's length only by its rows.
    """
    waiting: deque[tuple[int, _Waiting]] = deque()  # item and what came of it
    open_now: dict[int, _Waiting] = {}

    def receive(found: list[tuple[Any, np.ndarray]]) -> None:
        for (item, number), row in found:
            open_now[item].rows[number] = row
            open_now[item].due -= 1

    def finished() -> Iterator[VideoRows]:
        while waiting and waiting[0][1].end is not None and not waiting[0][1].due:
            item, video = waiting.popleft()
            del open_now[item]
            assert video.end is not None
            numbers = range(video.end.clips)
            rows = np.stack([video.rows[i] for i in numbers]) if numbers else np.empty((0,), np.float32)
            yield VideoRows(video.end, [video.times[i] for i in numbers], rows)

    for thing in stream:
        if thing.item not in open_now:
            open_now[thing.item] = _Waiting()
            waiting.append((thing.item, open_now[thing.item]))
        video = open_now[thing.item]
        if isinstance(thing, View):
            video.times[thing.number] = (float(thing.times[0]), thing.end)
            video.due += 1
            receive(batches.add((thing.item, thing.number), thing.clip))
        else:
            video.end = thing
        yield from finished()
    receive(batches.flush())
    yield from finished()
    assert not waiting, "a video did not end"


def through(
    model: Callable[[Tensor], Tensor],
    source: Source,
    places: Places,
    *,
    clip: ClipConfig,
    extras: Mapping[str, Any],
    options: Any,
    device: torch.device,
    precision: str,
    crops: int = 1,
) -> Iterator[VideoRows]:
    """What a model makes of each video's views, video by video.

    Args:
        model: as for `Batches`.
        source: the videos.
        places: of the views in them.
        clip, extras: the clips that the model takes, and what its weights say of them.
        options: with `batch_size` and `workers`.
        device, precision: where and how the model computes.
        crops: 1 or 3 for each place.

    Raises:
        UserError: the model takes clips of other channels.
    """
    threads = build.default_workers(device, source) if options.workers is None else options.workers
    size, values = (clip.height, clip.width), values_for(source, clip, extras)
    stream = stream_views(source, places, image_size=size, threads=threads, crops=crops, values=values)
    return rows_of_videos(stream, Batches(model, device, precision, options.batch_size))


def report_reading(log: Log, source: Source, ends: list[End], missing: str = "have no row") -> None:
    """Says which videos could not be read, in part or at all.

    Raises:
        UserError: none could be.
    """
    bad = {source.name(end.item): end.damage for end in ends if not end.clips}
    if bad and len(bad) == len(source):
        raise none_readable(bad)
    if bad:
        rows = [(printable(path), reason) for path, reason in bad.items()]
        log.table(f"{len(bad)} of {len(source)} videos cannot be read and {missing}:", rows)
    partly = [end for end in ends if end.clips and end.damage]
    if partly:
        rows = [(printable(source.name(end.item)), f"up to {end.duration:.2f} s: {end.damage}") for end in partly]
        log.table(f"{len(partly)} videos are damaged; the part before the damage was used:", rows)
    shrunk = sum(end.shrunk for end in ends)
    if shrunk:
        are = "video is" if shrunk == 1 else "videos are"
        log.message(f"{shrunk} {are} shorter than a clip: frames were taken closer together.")
