"""`stmae embed`: a row of features per video, or per window of it, as Parquet or NumPy file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stmae.data.sources import Source, TensorSource
from stmae.data.values import Values
from stmae.data.views import End, View, stream_views, windows
from stmae.engine.log import Console, Log
from stmae.engine.precision import computing
from stmae.errors import UserError
from stmae.interop.native import load_with_extras
from stmae.model.encoder import VideoViT
from stmae.tasks import build
from stmae.tasks.embed_options import EmbedOptions
from stmae.tasks.task import task
from stmae.tasks.videos import none_readable, open_videos, places_of, printable, stride_of
from stmae.weights import write_atomic


@dataclass
class Features:
    """Rows of features; equally many entries each.

    Attributes:
        path: of the video, relative to the folder that was given; for clips from Python their number.
        start, end: seconds in the video between which the row's frames lie; NaN for clips from Python.
        frames: how many frames the encoder saw for the row.
        features: float32 (D,).
    """

    path: list[str] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    end: list[float] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)

    def add(self, path: str, start: float, end: float, frames: int, features: np.ndarray) -> None:
        self.path.append(path)
        self.start.append(start)
        self.end.append(end)
        self.frames.append(frames)
        self.features.append(features)


@task(EmbedOptions)
def embed(options: EmbedOptions) -> Path:
    """Returns:
        The file written. Columns: path, start and end (seconds), frames, features (float32).

    Raises:
        UserError: a mistake in the options, or not one video that can be read.
    """
    device = build.pick_device(options.device)
    precision, _ = build.pick_precision(options.precision, device)
    model, extras = load_with_extras(options.model)
    encoder = (model if isinstance(model, VideoViT) else model.encoder).to(device)
    stride = stride_of(extras)
    batches = Encoding(encoder, device, precision, options.batch_size)
    with build.cpu_threads(options.threads), Log([Console()]) as log:
        source, values = open_videos(options, encoder.config.clip, extras, log.message)
        if isinstance(source, TensorSource):
            rows = _embed_tensors(source, batches, options, log)
        else:
            rows = _embed_videos(source, values, batches, options, extras, device, log)
        about = {
            "model": str(options.model), "stride": stride, "window": options.window, "views": options.views,
            "crops": options.crops, "precision": precision,
        }  # fmt: skip
        write(options.out, rows, about)
        width = len(rows.features[0])
        log.message(f"{len(rows.path)} rows of {width} features written to {options.out}")
    return options.out


class Encoding:
    """Gathers clips into batches for the encoder, and gives their features in the order in which they came."""

    def __init__(self, encoder: VideoViT, device: torch.device, precision: str, batch_size: int) -> None:
        self.encoder, self.device, self.precision, self.batch_size = encoder, device, precision, batch_size
        self._clips: list[tuple[Any, Tensor]] = []

    def add(self, label: Any, clip: Tensor) -> list[tuple[Any, np.ndarray]]:
        """Takes a clip (C, T, H, W); returns (label, features (D,)) of a batch when one is full, else nothing."""
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
            features = self.encoder(batch)
        return list(zip(labels, features.float().cpu().numpy(), strict=True))


def _embed_tensors(source: TensorSource, batches: Encoding, options: EmbedOptions, log: Log) -> Features:
    """A row per clip."""
    if options.window is not None or options.views != 1 or options.crops != 1:
        raise UserError("window, views and crops have no meaning for clips from Python.", "Leave them out.")
    rows = Features()

    def note(done: list[tuple[Any, np.ndarray]]) -> None:
        for item, features in done:
            rows.add(str(item), float("nan"), float("nan"), source.shape[1], features)
            log.progress(len(rows.path), len(source))

    for item in range(len(source)):
        note(batches.add(item, source.clip(item)))
    note(batches.flush())
    return rows


def _embed_videos(
    source: Source,
    values: Values,
    batches: Encoding,
    options: EmbedOptions,
    extras: Mapping[str, Any],
    device: torch.device,
    log: Log,
) -> Features:
    """A row per video or per window; a table of the videos that have none."""
    clip = batches.encoder.config.clip
    if options.window is None:
        places = places_of(extras, clip.frames, options.views)
    elif extras.get("clip", {}).get("sampling") == "segments":
        raise UserError(
            "the model was trained on frames spread over whole videos: windows are not what it knows.",
            "Leave --window out.",
        )
    else:
        places = windows(clip.frames, stride_of(extras), options.window)
    threads = build.default_workers(device, source) if options.workers is None else options.workers
    size = (clip.height, clip.width)
    stream = stream_views(source, places, image_size=size, threads=threads, crops=options.crops, values=values)
    features: dict[int, dict[int, np.ndarray]] = {}  # by item and number of the view
    views: dict[int, dict[int, tuple[float, float]]] = {}
    ends: list[End] = []
    for thing in _encoded(stream, batches, features):
        if isinstance(thing, End):
            ends.append(thing)
            log.progress(len(ends), len(source))
        else:
            views.setdefault(thing.item, {})[thing.number] = (float(thing.times[0]), thing.end)
    rows = Features()
    for end in ends:
        if not end.clips:
            continue
        path = printable(source.name(end.item))
        times = [views[end.item][i] for i in range(end.clips)]
        found = [features[end.item][i] for i in range(end.clips)]
        if options.window is None:
            mean = np.stack(found).mean(axis=0, dtype=np.float64).astype(np.float32)
            rows.add(path, times[0][0], min(times[-1][1], end.duration), clip.frames * end.clips, mean)
            continue
        for (first, last), row in zip(times, found, strict=True):
            rows.add(path, first, min(last, end.duration), clip.frames, row)
    _report(log, source, ends)
    return rows


def _encoded(
    stream: Iterator[View | End], batches: Encoding, features: dict[int, dict[int, np.ndarray]]
) -> Iterator[View | End]:
    """Passes the stream on while its clips are encoded into `features`; a view that comes again replaces the first."""
    for thing in stream:
        if isinstance(thing, View):
            for (item, number), row in batches.add((thing.item, thing.number), thing.clip):
                features.setdefault(item, {})[number] = row
        yield thing
    for (item, number), row in batches.flush():
        features.setdefault(item, {})[number] = row


def _report(log: Log, source: Source, ends: list[End]) -> None:
    """Says which videos could not be read, in part or at all.

    Raises:
        UserError: none could be.
    """
    bad = {source.name(end.item): end.damage for end in ends if not end.clips}
    if len(bad) == len(source):
        raise none_readable(bad)
    if bad:
        rows = [(printable(path), reason) for path, reason in bad.items()]
        log.table(f"{len(bad)} of {len(source)} videos cannot be read and have no row:", rows)
    partly = [end for end in ends if end.clips and end.damage]
    if partly:
        rows = [(printable(source.name(end.item)), f"up to {end.duration:.2f} s: {end.damage}") for end in partly]
        log.table(f"{len(partly)} videos are damaged; the part before the damage was used:", rows)
    shrunk = sum(end.shrunk for end in ends)
    if shrunk:
        log.message(f"{shrunk} videos are shorter than a clip: their frames were taken closer together.")


def write(path: Path, rows: Features, about: dict[str, Any]) -> None:
    """Writes rows as .parquet or .npz, by the ending of `path`; whole, or not at all.

    Args:
        about: how the features were made; stands in the Parquet schema's metadata under "stmae".

    Raises:
        UserError: the file cannot be written.
    """
    features = np.stack(rows.features)
    buffer = io.BytesIO()
    if path.suffix.lower() == ".npz":
        np.savez(
            buffer,
            path=np.array(rows.path),
            start=np.array(rows.start),
            end=np.array(rows.end),
            frames=np.array(rows.frames),
            features=features,
        )
    else:
        import pyarrow
        from pyarrow import parquet

        flat = pyarrow.array(features.reshape(-1))
        table = pyarrow.table(
            {
                "path": pyarrow.array(rows.path, pyarrow.string()),
                "start": pyarrow.array(rows.start, pyarrow.float64()),
                "end": pyarrow.array(rows.end, pyarrow.float64()),
                "frames": pyarrow.array(rows.frames, pyarrow.int32()),
                "features": pyarrow.FixedSizeListArray.from_arrays(flat, features.shape[1]),
            }
        )
        parquet.write_table(table.replace_schema_metadata({"stmae": json.dumps(about)}), buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise UserError(f'"{path}" cannot be written: {error.strerror or error}.', "Choose another --out.") from None
