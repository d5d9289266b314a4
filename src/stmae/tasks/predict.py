"""`stmae predict`: what videos show, with scores; of long ones window by window."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stmae.data.sources import Source, TensorSource
from stmae.data.views import End, windows
from stmae.engine.log import Console, Log
from stmae.errors import UserError
from stmae.runs import disk_errors
from stmae.tasks import build
from stmae.tasks.classifying import LoadedClassifier
from stmae.tasks.features import report_reading
from stmae.tasks.predict_options import PredictOptions
from stmae.tasks.task import task
from stmae.tasks.videos import open_given, places_of, printable, stride_of

VIEWS = 3
PRINTED = 40  # rows; all of them are in the file
KEPT = 1000  # rows that the Python function gives back


@dataclass(frozen=True)
class Prediction:
    """What a video, or a window of it, shows.

    Attributes:
        path: of the video.
        start, end: in seconds, of the window or of the clips looked at.
        labels, scores: the highest scores first; of a regression the outputs' names and values.
    """

    path: str
    start: float
    end: float
    labels: tuple[str, ...]
    scores: tuple[float, ...]


@task(PredictOptions)
def predict(options: PredictOptions) -> list[Prediction]:
    """Returns:
        The predictions in order, 1000 at most; `out` has all.

    Raises:
        UserError: a mistake in the options, no classifier, or no video that can be read.
    """
    with build.cpu_threads(options.threads), Log([Console()]) as log:
        classifier = LoadedClassifier(options)
        if "top" in options.given and classifier.config.problem == "regression":
            raise UserError(f'"{options.model}" gives values, of which all are written.', "Leave --top out.")
        source = open_given(options, log.message)
        if isinstance(source, TensorSource):
            raise UserError(
                "clips from Python are judged by the model itself.", "Call it: stmae.load(run)(clips) gives logits."
            )
        kept: list[Prediction] = []
        count = 0
        with writing(options.out, Report(classifier, options.top).width) as put:
            for found in _predictions(classifier, source, options, log):
                put(found)
                if count < PRINTED:
                    log.message(_line(found, classifier.config.problem == "regression", options.window is not None))
                elif count == PRINTED:
                    log.message(
                        "... more rows " + (f"go to {options.out}" if options.out else "are written with --out")
                    )
                kept += [found] if count < KEPT else []
                count += 1
        if options.out is not None:
            log.message(f"{count} rows written to {options.out}")
    return kept


def _predictions(
    classifier: LoadedClassifier, source: Source, options: PredictOptions, log: Log
) -> Iterator[Prediction]:
    """A row per video, or per window, as soon as its video has been read."""
    report = Report(classifier, options.top)
    if options.window is None:
        views = classifier.views(source, VIEWS)
        places = places_of(classifier.extras, classifier.clip.frames, views)
        videos = classifier.through(source, places, options.crops)
    elif classifier.segments:
        raise UserError(
            "the model was trained on frames spread over whole videos: windows are not what it knows.",
            "Leave --window out.",
        )
    else:
        places = windows(classifier.clip.frames, stride_of(classifier.extras), options.window)
        # A long video has very many windows: no more than what is reported of each is kept until it ends.
        videos = classifier.through(source, places, model=lambda clips: report.brief(classifier.scores(clips)))
    ends: list[End] = []
    for video in videos:
        ends.append(video.end)
        log.progress(len(ends), len(source))
        if not video.end.clips:
            continue
        path, duration = printable(source.name(video.end.item)), video.end.duration
        if options.window is None:
            mean = report.brief(torch.from_numpy(video.rows.mean(axis=0))[None]).numpy()[0]
            yield report.row(path, video.times[0][0], min(video.times[-1][1], duration), mean)
            continue
        for row, (start, end) in zip(video.rows, video.times, strict=True):
            yield report.row(path, start, min(end, duration), row)
    report_reading(log, source, ends, "have no prediction")


class Report:
    """What of an output is reported: the `top` highest scores and whose they are; of a regression everything."""

    def __init__(self, classifier: LoadedClassifier, top: int) -> None:
        self._names, self._all = classifier.names, classifier.config.problem == "regression"
        self._top = min(top, len(self._names))
        self.width = len(self._names) if self._all else self._top  # labels in a row

    def brief(self, scores: Tensor) -> Tensor:
        """(B, C) to (B, 2 top): numbers of the classes, then their scores."""
        if self._all:
            return scores
        highest = scores.float().topk(self._top, dim=1)
        return torch.cat([highest.indices.to(highest.values.dtype), highest.values], dim=1)

    def row(self, path: str, start: float, end: float, row: np.ndarray) -> Prediction:
        """From a row of `brief`."""
        if self._all:
            return Prediction(path, start, end, self._names, tuple(map(float, row)))
        places, scores = row[: self._top].astype(int), row[self._top :]
        return Prediction(path, start, end, tuple(self._names[i] for i in places), tuple(map(float, scores)))


def _line(found: Prediction, values: bool, windowed: bool) -> str:
    """`clip.mp4  2.0-3.1 s  jump 81 %, run 12 %`."""
    pairs = zip(found.labels, found.scores, strict=True)
    said = ", ".join(
        f"{printable(name)} {score:.4g}" if values else f"{printable(name)} {100 * score:.0f} %"
        for name, score in pairs
    )
    when = f"{found.start:.1f}-{found.end:.1f} s  " if windowed else ""
    return f"{found.path}  {when}{said}"


# Files ---------------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path | None, top: int) -> Iterator[Callable[[Prediction], None]]:
    """A function that writes rows into a file by its ending; the file is there when all are written, or not at all.

    Args:
        path: .csv, .jsonl or .parquet; None for no file.
        top: labels in a row.

    Raises:
        UserError: it cannot be written.
    """
    if path is None:
        yield lambda found: None
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        kinds: dict[str, type[_Rows]] = {".csv": _Csv, ".jsonl": _JsonLines, ".parquet": _Parquet}
        file = kinds[path.suffix.lower()](partial, top)
        try:
            yield file.put
            file.close()
            os.replace(partial, path)
        except BaseException:
            file.close()
            partial.unlink(missing_ok=True)
            raise


class _Rows:
    """A file that takes rows."""

    def __init__(self, path: Path, top: int) -> None:
        raise NotImplementedError

    def put(self, found: Prediction) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _Csv(_Rows):
    def __init__(self, path: Path, top: int) -> None:
        self._file = open(path, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115 (closed below)
        self._writer = csv.writer(self._file, lineterminator="\n")
        pairs = [name for place in range(1, top + 1) for name in (f"label_{place}", f"score_{place}")]
        self._writer.writerow(["path", "start", "end", *pairs])

    def put(self, found: Prediction) -> None:
        pairs = [
            cell for label, score in zip(found.labels, found.scores, strict=True) for cell in (label, f"{score:.6g}")
        ]
        self._writer.writerow([found.path, f"{found.start:.3f}", f"{found.end:.3f}", *pairs])

    def close(self) -> None:
        self._file.close()


class _JsonLines(_Rows):
    def __init__(self, path: Path, top: int) -> None:
        self._file = open(path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 (closed below)

    def put(self, found: Prediction) -> None:
        self._file.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class _Parquet(_Rows):
    ROWS = 10_000  # that are written together

    def __init__(self, path: Path, top: int) -> None:
        import pyarrow
        from pyarrow import parquet

        self._arrow = pyarrow
        self._schema = pyarrow.schema(
            {
                "path": pyarrow.string(),
                "start": pyarrow.float64(),
                "end": pyarrow.float64(),
                "labels": pyarrow.list_(pyarrow.string()),
                "scores": pyarrow.list_(pyarrow.float32()),
            }
        )
        self._file = parquet.ParquetWriter(path, self._schema)
        self._waiting: list[Prediction] = []

    def put(self, found: Prediction) -> None:
        self._waiting.append(found)
        if len(self._waiting) == self.ROWS:
            self._write()

    def _write(self) -> None:
        rows = [{**asdict(found), "labels": [printable(name) for name in found.labels]} for found in self._waiting]
        self._file.write_table(self._arrow.Table.from_pylist(rows, self._schema))
        self._waiting.clear()

    def close(self) -> None:
        if self._waiting:
            self._write()
        self._file.close()
