"""A frozen encoder and what it makes of labelled videos: features that are computed once, in memory or on disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from stmae.data.labels import Labels
from stmae.data.sources import Source
from stmae.data.views import End
from stmae.engine.log import Log
from stmae.errors import UserError
from stmae.interop.native import load_with_extras
from stmae.model.config import ClipConfig
from stmae.model.encoder import VideoViT
from stmae.tasks import build
from stmae.tasks.features import VideoRows, report_reading, through
from stmae.tasks.judging import Predictions
from stmae.tasks.labelled import Part
from stmae.tasks.protocol import leaks, protocol_of
from stmae.tasks.videos import places_of

Kind = Literal["mean", "pooled", "tokens"]


@dataclass
class Features:
    """Of the videos of a part that could be read, in their order.

    Attributes:
        labels: of these videos.
        paths: their names.
        rows: (R, ...), every view of every video one after the other: float32 (R, D), or float16 (R, N, D) on disk.
        counts: how many rows each video has.
        times: of each video begin and end of every view, in seconds.
    """

    labels: Labels
    paths: list[str]
    rows: np.ndarray
    counts: list[int]
    times: list[list[tuple[float, float]]]

    @property
    def targets(self) -> np.ndarray:
        """Of the rows: (R,) or (R, C)."""
        return np.repeat(self.labels.targets, self.counts, axis=0)

    def means(self) -> np.ndarray:
        """A row for each video, the mean of its views'."""
        return np.stack([part.mean(axis=0, dtype=np.float64) for part in self._parts(self.rows)])

    def predictions(self, scores: np.ndarray) -> Predictions:
        """From scores of the rows (R, C) to the videos': views are averaged."""
        views = self._parts(scores)
        return Predictions(self.labels, self.paths, np.stack([part.mean(axis=0) for part in views]), views, self.times)

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        return np.split(rows, np.cumsum(self.counts)[:-1])


class Frozen:
    """An encoder on its device, with how it is shown videos.

    Args:
        options: with `model`, `layer`, `views`, `crops`, `batch_size` and `workers`.
        folder: for features that are too many to be held in memory.
    """

    def __init__(self, options: Any, log: Log, folder: Path) -> None:
        self.options, self.log, self._folder = options, log, folder
        self.device = build.pick_device(options.device)
        self.precision, _ = build.pick_precision(options.precision, self.device)
        model, self.extras = load_with_extras(options.model)
        encoder = model if isinstance(model, VideoViT) else model.encoder
        self.layer = encoder.layer(options.layer)
        if told := leaks(options.model, options.videos):
            log.message(told)
        self.encoder = encoder.to(self.device).eval()

    @property
    def clip(self) -> ClipConfig:
        return self.encoder.config.clip

    def read(self, part: Part, kind: Kind, name: str) -> Features:
        """Shows the encoder a part's videos and keeps its features.

        Args:
            part: the videos.
            kind: "pooled": the mean of normed tokens, as `embed` has it; "mean": the mean of tokens, then the norm, as
                a classifier has it; "tokens": all of them, on disk.
            name: of the part, for messages.

        Raises:
            UserError: not one video can be read, or no room on the disk.
        """
        source = part.source
        self.log.message(f"{name}: reading {len(source)} videos ...")
        kept, ends, store = [], list[End](), _Store(self._folder / f"{name}.npy", self._room(source, kind))
        for video in self._videos(source, kind):
            ends.append(video.end)
            self.log.progress(len(ends), len(source))
            if video.end.clips:
                kept.append(video)
                store.add(video.rows)
                video.rows = np.empty(0)  # they are in the store
        report_reading(self.log, source, ends, "are left out")
        items = [video.end.item for video in kept]
        labels = replace(part.labels, targets=part.labels.targets[items])
        paths = [source.name(item) for item in items]
        return Features(labels, paths, store.rows(), [len(v.times) for v in kept], [v.times for v in kept])

    def _videos(self, source: Source, kind: Kind) -> Iterator[VideoRows]:
        return through(
            self._function(kind),
            source,
            places_of(self.extras, self.clip.frames, self.options.views),
            clip=self.clip,
            extras=self.extras,
            options=self.options,
            device=self.device,
            precision=self.precision,
            crops=self.options.crops,
        )

    def _function(self, kind: Kind) -> Callable[[Tensor], Tensor]:
        encoder, layer = self.encoder, self.layer
        if kind != "mean":
            return lambda clips: encoder(clips, features=kind, layer=layer)

        def mean(clips: Tensor) -> Tensor:
            tokens = encoder.encode(encoder.embed(*encoder.cut(clips)), layer=layer)
            return encoder.norm(tokens[:, int(encoder.config.class_token) :].mean(dim=1))

        return mean

    def _room(self, source: Source, kind: Kind) -> tuple[int, ...] | None:
        """The shape of all tokens, where these are kept; None for features that fit into memory."""
        if kind != "tokens":
            return None
        views = len(source) * self.options.views * self.options.crops
        return views, self.clip.tokens, self.encoder.config.blocks.width

    def about(self) -> dict[str, Any]:
        """The protocol, for results."""
        options = self.options
        return {
            **protocol_of(options, self.clip, self.extras, self.precision, self.device),
            "layer": self.layer,
            "views": options.views,
            "crops": options.crops,
        }


class _Store:
    """Rows one after the other: in memory, or as float16 in a file that is mapped into memory.

    Args:
        path: of the file.
        shape: of at most all rows together, where they go to the file.
    """

    def __init__(self, path: Path, shape: tuple[int, ...] | None) -> None:
        self._rows: list[np.ndarray] = []
        self._filled, self._map = 0, None
        if shape is not None:
            size = 2 * int(np.prod(shape))
            free = shutil.disk_usage(path.parent).free
            if size > 0.9 * free:
                raise UserError(
                    f"the tokens of {shape[0]} clips take {size / 1e9:.1f} GB, and the disk of"
                    f' "{path.parent}" has {free / 1e9:.1f} GB left.',
                    "Take fewer views or videos, probe linearly, or give --out on a larger disk.",
                )
            self._map = np.lib.format.open_memmap(path, "w+", np.float16, shape)

    def add(self, rows: np.ndarray) -> None:
        if self._map is None:
            self._rows.append(rows)
            return
        self._map[self._filled : self._filled + len(rows)] = np.clip(rows, -65504, 65504)
        self._filled += len(rows)

    def rows(self) -> np.ndarray:
        return np.concatenate(self._rows) if self._map is None else self._map[: self._filled]


@contextmanager
def scratch(out: Path | None) -> Iterator[Path]:
    """A folder for files that nobody wants to keep; on the disk of `out`, where there is one."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".features-", dir=out) as folder:
        yield Path(folder)
