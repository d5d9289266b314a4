"""What a run tells: on the console, in log.txt, metrics.jsonl and TensorBoard, and as pictures.

`Log` hands everything to its sinks. A sink is a class with some of `Sink`'s methods; it takes ready numbers and uint8
pictures and knows nothing of the run. `Log([])` is silent.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from stmae.runs import RunFolder
from stmae.weights import write_atomic

Rows = Sequence[Sequence[object]]


class Sink:
    """One place that a run tells things to; what it does not override, it ignores."""

    def message(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def picture(self, name: str, step: int, picture: np.ndarray | bytes) -> None: ...
    def progress(self, step: int, total: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Log:
    """Tells every sink. Trouble with one (a full disk, say) is a warning in the others, once, and ends no run."""

    def __init__(self, sinks: Iterable[Sink] = ()) -> None:
        self.sinks = list(sinks)
        self._failed: set[int] = set()

    def message(self, text: str) -> None:
        """A line for people."""
        self._tell(lambda sink: sink.message(text))

    def warning(self, text: str) -> None:
        """A line that must not be missed."""
        self._tell(lambda sink: sink.warning(text))

    def table(self, title: str, rows: Rows) -> None:
        """Rows of cells under a title, aligned."""
        self.message(format_table(title, rows))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after `step` updates. Several calls for one step are several lines of metrics.jsonl."""
        self._tell(lambda sink: sink.metrics(step, values))

    def picture(self, name: str, step: int, picture: np.ndarray | bytes) -> None:
        """A picture, uint8 (H, W, 3), in the run's folder `<name>/step-000500.png`; or a moving one, as a GIF file's
        bytes under a name with the ending .gif, in the folder `<name without it>/step-000500.gif`."""
        if isinstance(picture, bytes):
            assert name.endswith(".gif"), "moving pictures are called so"
            assert picture.startswith(b"GIF8"), "moving pictures are GIFs"
        else:
            assert picture.dtype == np.uint8, "pictures are uint8"
            assert picture.ndim == 3, "pictures are (H, W, 3)"
            assert picture.shape[2] == 3, "pictures are (H, W, 3)"
        self._tell(lambda sink: sink.picture(name, step, picture))

    def progress(self, step: int, total: int) -> None:
        """`step` of `total` updates are done; cheap enough for every step."""
        self._tell(lambda sink: sink.progress(step, total))

    def flush(self) -> None:
        """What was told so far is on the disk after this."""
        self._tell(lambda sink: sink.flush())

    def close(self) -> None:
        self._tell(lambda sink: sink.close())

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _tell(self, tell: Callable[[Sink], None]) -> None:
        for place, sink in enumerate(self.sinks):
            try:
                tell(sink)
            except OSError as error:
                if place not in self._failed:
                    self._failed.add(place)
                    self.warning(
                        f"{type(sink).__name__} could not write ({error}); the run goes on without those lines."
                    )


def open_log(
    run: RunFolder,
    *,
    step: int = 0,
    console: bool = True,
    loggers: Iterable[str] = ("tensorboard",),
    config: Mapping[str, Any] | None = None,
) -> Log:
    """The log of a run that stands at `step`; what an interrupted part wrote beyond it is dropped.

    Args:
        loggers: "tensorboard" and names of trackers (`trackers.TRACKERS`), which may fail to begin with a warning.
        config: the run's resolved configuration, for the trackers.
    """
    sinks: list[Sink] = [Console()] if console else []
    sinks += [TextFile(run.log), MetricsFile(run.metrics, step), PictureFolder(run.path)]
    log = Log(sinks)
    for name in loggers:
        if name == "tensorboard":
            log.sinks.append(TensorBoard(run.tensorboard, step))
            continue
        from stmae.engine.trackers import TRACKERS

        try:
            log.sinks.append(TRACKERS[name](run, config or {}))
        except Exception as error:  # of a package that we know nothing of
            log.warning(f"{name} could not begin ({type(error).__name__}: {error}); the run goes on without it.")
    return log


class Console(Sink):
    """A progress bar with the time left on a terminal; plain lines elsewhere."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        from rich.console import Console as RichConsole

        self._console = RichConsole(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)
        self._bar: Any = None
        self._job: Any = None

    def message(self, text: str) -> None:
        self._console.print(self._printable(text), soft_wrap=True)

    def warning(self, text: str) -> None:
        self._console.print(self._printable(f"warning: {text}"), style="yellow", soft_wrap=True)

    def _printable(self, text: str) -> str:
        """What the stream's encoding lacks (file names may be any bytes) as \\xe9."""
        encoding = self._console.encoding
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def progress(self, step: int, total: int) -> None:
        if not self._console.is_terminal:
            return
        if self._bar is None:
            from rich import progress

            self._bar = progress.Progress(
                progress.BarColumn(None),
                progress.MofNCompleteColumn(),
                progress.TaskProgressColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("ETA"),
                progress.TimeRemainingColumn(),
                console=self._console,
                speed_estimate_period=300,
                transient=True,
            )
            self._job = self._bar.add_task("", total=total, completed=step)
            self._bar.start()
        self._bar.update(self._job, completed=step, total=total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class TextFile(Sink):
    """log.txt: every message with its time; a resumed run goes on below."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def message(self, text: str) -> None:
        with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def warning(self, text: str) -> None:
        self.message(f"warning: {text}")


class MetricsFile(Sink):
    """metrics.jsonl: one JSON object per line, `step` and `time` (Unix seconds) first; NaN and infinity are null.

    A line that a full disk has no room for waits for the next one, so that none is missing, cut short or double.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._waiting = b""
        if path.exists():
            write_atomic(path, "".join(f"{line}\n" for line in _lines_up_to(path, step)))
        self._size = path.stat().st_size if path.exists() else 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._waiting += (json.dumps({"step": step, "time": round(time.time(), 3), **line}) + "\n").encode()
        self._write()

    def _write(self) -> None:
        with open(self._path, "ab") as file:
            file.truncate(self._size)  # a part of a line, where the last attempt failed
            file.write(self._waiting)
            file.flush()
            self._size, self._waiting = self._size + len(self._waiting), b""

    def flush(self) -> None:
        if self._waiting:
            self._write()
        if self._path.exists():
            with open(self._path, "rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        if self._waiting:
            self._write()


def _lines_up_to(path: Path, step: int) -> Iterable[str]:
    """The lines of steps that are done, without one that a crash cut short."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                yield line
        except (ValueError, KeyError, TypeError):
            continue


class PictureFolder(Sink):
    """`<run>/<name>/step-000500.png`, or .gif."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def picture(self, name: str, step: int, picture: np.ndarray | bytes) -> None:
        path = self._folder / Path(name).stem / f"step-{step:06d}{Path(name).suffix or '.png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, picture if isinstance(picture, bytes) else _png(picture))


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


class TensorBoard(Sink):
    """Event files; imported with the first number, and told on resuming to forget what lies beyond the step."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._step = folder, step
        self._opened: Any = None

    def _writer(self) -> Any:
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter

            begun = self._folder.is_dir() and any(self._folder.iterdir())
            self._opened = SummaryWriter(str(self._folder), purge_step=self._step + 1 if begun else None)
        return self._opened

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer().add_scalar(name, value, step)

    def picture(self, name: str, step: int, picture: np.ndarray | bytes) -> None:
        if not isinstance(picture, bytes):
            self._writer().add_image(name, picture, step, dataformats="HWC")
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        # A GIF among the images, which TensorBoard shows moving; torch's add_video needs a package to make one.
        width, height = (int.from_bytes(picture[at : at + 2], "little") for at in (6, 8))
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture)
        self._writer()._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def flush(self) -> None:
        if self._opened is not None:
            self._opened.flush()  # it holds events back for up to two minutes

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None


# Words -------------------------------------------------------------------------------------------------------------


def format_table(title: str, rows: Rows) -> str:
    """The title, then one line per row with its cells aligned in columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(max(map(len, cells), default=0))]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in cells]
    return "\n".join([title, *(line.rstrip() for line in lines)])


def step_line(step: int, total: int, values: Mapping[str, float], eta: float | None = None) -> str:
    """The line of one log interval: what `train` measured, a task's own numbers after the loss."""
    rank = values.get("data_wait_rank")
    known: dict[str, Callable[[float], str]] = {
        "epoch": lambda v: f"epoch {v:.2f}",
        "loss": lambda v: f"loss {v:.4f}",
        "lr": lambda v: f"lr {v:.2e}",
        "grad_norm": lambda v: f"grad norm {v:.3g}",
        "clips_per_second": lambda v: f"{v:.0f} clips/s" if v >= 100 else f"{v:.3g} clips/s",
        "data_wait": lambda v: f"data wait {v:.0%}" + (f" (rank {rank:.0f})" if rank is not None else ""),
        "memory_gb": lambda v: f"memory {v:.2f} GB",
        "mfu": lambda v: f"MFU {v:.0%}",
        "skipped_steps": lambda v: f"{v:.0f} steps skipped" if v else "",
    }
    parts = {name: text(values[name]) for name, text in known.items() if name in values}
    own = [f"{name} {value:.4g}" for name, value in values.items() if name not in {*known, "data_wait_rank"}]
    first = [parts.pop(name) for name in ("epoch", "loss") if name in parts]
    line = [f"step {step}/{total}", *first, *own, *parts.values()]
    if eta is not None:
        line.append(f"ETA {duration(eta)}")
    return "  ".join(part for part in line if part)


def duration(seconds: float) -> str:
    """41 s, 12 min 5 s, 3 h 2 min, 2 d 4 h."""
    whole = max(0, round(seconds))
    for size, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // small} {small_name}"
    return f"{whole} s"
