"""What a run tells, and that a resumed run tells each step once."""

from __future__ import annotations

import errno
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy import Memory

from stmae.engine.log import Console, Log, MetricsFile, Sink, duration, format_table, open_log, step_line
from stmae.pictures import gif
from stmae.runs import RunFolder


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_everything_goes_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    with RunFolder.open(tmp_path / "run") as run, open_log(run, loggers=()) as log:
        log.message("begins " + "on one line " * 20)
        log.warning("look [bold] here")
        log.table("sizes", [("clips", 64), ("steps per epoch", 7)])
        log.metrics(5, {"loss": 0.5, "worst": math.inf, "none": math.nan})
        log.picture("reconstructions", 5, picture)
        log.progress(5, 10)
    out = capsys.readouterr().out
    text = run.log.read_text()
    for told in ("begins " + "on one line " * 20, "warning: look [bold] here", "sizes\n  clips            64\n"):
        assert told.rstrip() in out
        assert told.rstrip() in text
    assert "10" not in out.replace("steps per epoch  7", ""), "no progress bar where nobody sees one"
    assert text[:2] == "20"
    (line,) = lines(run.metrics)
    assert isinstance(line.pop("time"), float)
    assert line == {"step": 5, "loss": 0.5, "worst": None, "none": None}
    saved = np.asarray(Image.open(run.reconstructions / "step-000005.png"))
    np.testing.assert_array_equal(saved, picture)


def test_names_that_the_console_cannot_show_are_shown_as_bytes() -> None:
    for encoding, shown in (("utf-8", b"a\\udce9 \xc3\xb6\n"), ("ascii", b"a\\udce9 \\xf6\n")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
        Console(stream).message("a\udce9 \xf6")
        assert stream.buffer.getvalue() == shown  # type: ignore[attr-defined]


def test_pictures_are_checked() -> None:
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)):
        with pytest.raises(AssertionError, match="pictures are"):
            Log().picture("x", 0, wrong)


def test_a_terminal_sees_a_bar_with_the_time_left() -> None:
    stream = Terminal()
    console = Console(stream)
    for step in range(30, 101):
        console.progress(step, 100)
    console.message("a line above it")
    console._bar.refresh()
    console.close()
    assert "100/100" in stream.getvalue()
    assert "ETA" in stream.getvalue()
    assert "a line above it" in stream.getvalue()
    console.close()


def test_resuming_drops_the_lines_beyond_the_step_and_those_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, 0)
    for step in (2, 4, 4, 6):
        first.metrics(step, {"loss": step / 10})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    again = MetricsFile(path, 4)
    again.metrics(6, {"loss": 0.7})
    assert [(line["step"], line["loss"]) for line in lines(path)] == [(2, 0.2), (4, 0.4), (4, 0.4), (6, 0.7)]


def test_the_text_log_goes_on_below(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with RunFolder.open(tmp_path) as run, open_log(run, console=False, loggers=()) as log:
            log.message(text)
        run.settle_config({})
    assert [line[20:] for line in run.log.read_text().splitlines()] == ["one", "two"]


@pytest.mark.slow
def test_tensorboard_shows_each_step_once_after_resuming(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(tmp_path)
    for start, steps, loss in ((0, (1, 2, 3), 0.5), (1, (2, 3), 0.25)):
        with open_log(run, step=start, console=False) as log:
            for step in steps:
                log.metrics(step, {"loss": loss})
            still = np.zeros((4, 6, 3), np.uint8)
            log.picture("reconstructions", steps[-1], still)
            log.picture("reconstructions.gif", steps[-1], gif([still, still + 255], fps=4))
        time.sleep(1.1)  # TensorBoard sorts its files by the second in which they were begun
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25), (3, 0.25)]
    (picture,) = events.Images("reconstructions")
    assert (picture.width, picture.height) == (6, 4)
    (moving,) = events.Images("reconstructions.gif")
    assert (moving.width, moving.height) == (6, 4)
    assert Image.open(io.BytesIO(moving.encoded_image_string)).n_frames == 2
    assert (run.reconstructions / "step-000003.gif").read_bytes() == moving.encoded_image_string


def test_a_sink_in_trouble_is_told_once_and_ends_nothing() -> None:
    class Full(Sink):
        def metrics(self, step: int, values: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def warning(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    memory = Memory()
    log = Log([Full(), memory])
    for step in range(3):
        log.metrics(step, {"loss": 1.0})
    assert len(memory.lines) == 3
    (warning,) = memory.warnings
    assert "Full" in warning
    assert "No space left" in warning


def test_a_step_in_one_line() -> None:
    values = {
        "epoch": 12.5, "loss": 0.81234, "grad_norm": 0.3412, "explained": 0.25, "clips": 5.0, "clips_per_second": 412.4,
        "data_wait": 0.03, "memory_gb": 2.1, "mfu": 0.41, "skipped_steps": 0.0, "lr": 1.2e-4,
    }  # fmt: skip
    del values["clips"]
    assert step_line(500, 10_000, values, 3723.0) == (
        "step 500/10000  epoch 12.50  loss 0.8123  explained 0.25  lr 1.20e-04  grad norm 0.341  412 clips/s  "
        "data wait 3%  memory 2.10 GB  MFU 41%  ETA 1 h 2 min"
    )
    assert (
        step_line(1, 2, {"skipped_steps": 3.0, "clips_per_second": 0.512}) == "step 1/2  0.512 clips/s  3 steps skipped"
    )


def test_words() -> None:
    times = {
        0: "0 s",
        59.4: "59 s",
        59.6: "1 min 0 s",
        725: "12 min 5 s",
        10_920: "3 h 2 min",
        187_200: "2 d 4 h",
        -1: "0 s",
    }
    assert {seconds: duration(seconds) for seconds in times} == times
    assert format_table("empty", []) == "empty"
    assert format_table("t", [("a", 1), ("long", 2.5)]) == "t\n  a     1\n  long  2.5"
