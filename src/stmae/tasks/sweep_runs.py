"""What a sweep needs of the tasks that it calls: fewer of their words, and what their runs say of themselves."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from stmae.data.index import Index
from stmae.interop.native import load_model
from stmae.model.mae import MaskedAutoencoder
from stmae.pictures import read_curves
from stmae.runs import RunFolder, read_config
from stmae.tasks import build
from stmae.weights import write_atomic

QUIET = 60.0  # seconds between lines of a run's progress


class _Brief(io.TextIOBase):
    """Of what a task prints, its warnings, and now and then how far it is; the whole stands in the run's log.txt."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.last, self.part = stream, time.monotonic(), ""

    def write(self, text: str) -> int:
        *lines, self.part = (self.part + text).split("\n")
        for line in lines:
            progress = re.match(r"step \d+/\d+ ", line)
            if line.startswith("warning:") or (progress and time.monotonic() - self.last > QUIET):
                self.stream.write(f"  {line}\n")
                self.stream.flush()
                self.last = time.monotonic()
        return len(text)


@contextlib.contextmanager
def brief() -> Iterator[None]:
    """While open, tasks print what matters to somebody who waits for many of them."""
    with contextlib.redirect_stdout(_Brief(sys.stdout)):
        yield


def about_run(run: RunFolder) -> dict[str, Any]:
    """What a finished run says of itself: clips, seconds of training (without evaluations), speed, held-out loss."""
    config = read_config(run.config)
    batch, steps = int(config["batch_size"]), int(config["derived"]["steps"])
    curves = read_curves(run.metrics, ("clips_per_second", "held_out_loss"))
    seconds, before = 0.0, 0
    for step, speed in curves["clips_per_second"]:
        seconds += (step - before) * batch / speed
        before = step
    clips = steps * batch
    mean = before * batch / seconds if seconds else None
    held_out = curves["held_out_loss"]
    return {
        "clips": clips, "steps": steps, "clips_per_second": None if mean is None else round(mean, 3),
        "seconds": None if mean is None else round(clips / mean, 1), "flops_per_clip": flops_of(run),
        "held_out_loss": held_out[-1][1] if held_out else None,
    }  # fmt: skip


def flops_of(run: RunFolder) -> int:
    """Floating-point operations of training on one clip."""
    model = load_model(str(run.path))
    assert isinstance(model, MaskedAutoencoder)
    return build.training_flops(model.config)


def write_list(path: Path, sources: Sequence[Index], *, labels: bool = False, root: Path | None = None) -> None:
    """Files as a list that every task reads: absolute paths, or relative to a root; and, if asked for, labels."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "label"] if labels else ["path"])
    for source in sources:
        for item in range(len(source)):
            where = source.path(item) if root is None else source.path(item).relative_to(root)
            rows.writerow([str(where), *([source.label(item) or ""] if labels else [])])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue())
