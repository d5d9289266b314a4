"""`stmae embed`: a row of features per video, or per window of it, as Parquet or NumPy file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stmae.data.sources import Source, TensorSource
from stmae.data.views import End, windows
from stmae.engine.log import Console, Log
from stmae.errors import UserError
from stmae.interop.native import load_with_extras
from stmae.model.config import ClipConfig
from stmae.model.encoder import VideoViT
from stmae.tasks import build
from stmae.tasks.embed_options import EmbedOptions
from stmae.tasks.features import Batches, report_reading, through
from stmae.tasks.task import task
from stmae.tasks.videos import open_videos, places_of, printable, stride_of
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
    stride, layer = stride_of(extras), encoder.layer(options.layer)

    def features(clips: Tensor) -> Tensor:
        return encoder(clips, layer=layer)

    with build.cpu_threads(options.threads), Log([Console()]) as log:
        source, _ = open_videos(options, encoder.config.clip, extras, log.message)
        if isinstance(source, TensorSource):
            rows = _embed_tensors(source, Batches(features, device, precision, options.batch_size), options, log)
        else:
            rows = _embed_videos(source, features, encoder.config.clip, options, extras, device, precision, log)
        about = {
            "model": str(options.model), "stride": stride, "window": options.window, "views": options.views,
            "crops": options.crops, "layer": layer, "precision": precision,
        }  # fmt: skip
        write(options.out, rows, about)
        width = len(rows.features[0])
        log.message(f"{len(rows.path)} rows of {width} features written to {options.out}")
    return options.out


def _embed_tensors(source: TensorSource, batches: Batches, options: EmbedOptions, log: Log) -> Features:
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
    model: Callable[[Tensor], Tensor],
    clip: ClipConfig,
    options: EmbedOptions,
    extras: Mapping[str, Any],
    device: torch.device,
    precision: str,
    log: Log,
) -> Features:
    """A row per video or per window; a table of the videos that have none."""
    if options.window is None:
        places = places_of(extras, clip.frames, options.views)
    elif extras.get("clip", {}).get("sampling") == "segments":
        raise UserError(
            "the model was trained on frames spread over whole videos: windows are not what it knows.",
            "Leave --window out.",
        )
    else:
        places = windows(clip.frames, stride_of(extras), options.window)
    rows, ends = Features(), list[End]()
    shown = through(
        model, source, places, clip=clip, extras=extras, options=options, device=device, precision=precision,
        crops=options.crops,
    )  # fmt: skip
    for video in shown:
        end = video.end
        ends.append(end)
        log.progress(len(ends), len(source))
        if not end.clips:
            continue
        path, times = printable(source.name(end.item)), video.times
        if options.window is None:
            mean = video.rows.mean(axis=0, dtype=np.float64).astype(np.float32)
            rows.add(path, times[0][0], min(times[-1][1], end.duration), clip.frames * end.clips, mean)
            continue
        for (first, last), row in zip(times, video.rows, strict=True):
            rows.add(path, first, min(last, end.duration), clip.frames, row)
    report_reading(log, source, ends)
    return rows


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
