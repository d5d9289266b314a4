"""What `stmae check` prints: counts, histograms, what is wrong, and what to do about it."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stmae.data.opening import paths_of
from stmae.tasks.check_options import CheckOptions

if TYPE_CHECKING:
    from stmae.tasks.check import Findings, Row

# What each flag means, and what to do about it.
TROUBLES = {
    "unreadable": ("not one frame can be decoded", "Leave them out; training would report and replace them each time."),
    "audio": ("sound without pictures", "Leave them out with the unreadable ones."),
    "damaged": ("readable in part only", "Training uses the sound part. Fetch them again, or leave them out."),
    "short": ("shorter than one clip", "Their frames are taken closer together. Lower --frames or --stride, or leave"
              " them out."),
    "static": ("nothing moves", "There is no motion to learn from: leave them out."),
    "cuts": ("hard cuts inside", "A clip may span two scenes. Split them at the times in the CSV, or leave them out."),
    "variable_rate": ("frames at uneven times", "Nothing: frames are chosen by their times."),
    "far_keys": ("key frames far apart", "Each clip decodes from the key frame before it: `stmae pack` with a short GOP"
                 " loads faster."),
    "duplicate": ("show what another video shows", "Leave them out: the best of each group is not flagged."),
    "overlap": ("share less than half with another one", "Nothing, if some repetition does no harm."),
    "alike": ("look like another one for less than a second", "A copy, or the same move again before the same camera:"
              " look at a few."),
    "leak": ("also in the set held against", "Leave them out, or that set tests nothing."),
    "leak_alike": ("look like what is in the set held against", "The same scene at least: leave them out to be safe."),
}  # fmt: skip
HARMLESS = ("variable_rate", "overlap", "alike")
EXAMPLES = 3
LEAVE_OUT = ("unreadable", "static", "duplicate", "leak", "leak_alike")  # what most people want left out
BAR = 24  # characters of the longest bar


class Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._shown: Any = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            from rich import progress

            self._shown = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(None),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None:
            self._shown.stop()

    def bar(self, what: str) -> Callable[[int, int], None]:
        """A function that is told how many are done, and of how many."""
        if self._shown is None:
            return lambda done, total: None
        job = self._shown.add_task(what, total=None)
        return lambda done, total: self._shown.update(job, completed=done, total=total)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """A bar without an end while something is done."""
        job = None if self._shown is None else self._shown.add_task(what, total=None)
        yield
        if job is not None:
            self._shown.update(job, total=1, completed=1)


def say(text: str) -> None:
    """Prints what there is to know of a source."""
    Console(highlight=False).print(Text(_printable(text)), soft_wrap=True)


def show(findings: Findings, options: CheckOptions, workers: int) -> None:
    """Prints the summary."""
    console = Console(highlight=False)
    readable = [row for row in findings.rows if not row.facts.reason]
    _counts(console, findings, readable)
    if readable:
        _histograms(console, readable)
    _troubles(console, findings, options)
    _speed(console, findings, options, workers)
    console.print(f"Written: {_printable(str(findings.out))}, a line for each of {len(findings.rows):,} items.")


def _counts(console: Console, findings: Findings, readable: Sequence[Row]) -> None:
    facts = [row.facts for row in readable]
    hours = sum(each.duration for each in facts) / 3600
    size = sum(row.facts.bytes for row in findings.rows)
    console.print(
        Text.assemble(
            (f"{len(findings.rows):,} items", "bold"),
            f" in {_printable(findings.root)}: {len(readable):,} readable, {_hours(hours)}, {in_bytes(size)}",
        ),
        soft_wrap=True,
    )
    part = [each for each in facts if not each.damage and each.looked < 0.9 * each.duration]
    if part:
        share = sum(each.looked for each in part) / sum(each.duration for each in part)
        console.print(f"{len(part):,} long ones were looked at in part, {share:.0%} of them (--look).")


def _histograms(console: Console, readable: Sequence[Row]) -> None:
    facts = [row.facts for row in readable]
    sides = [min(each.width, each.height) for each in facts]
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for title, values, edges, unit in (
        ("short side", sides, (0, 128, 224, 256, 320, 480, 720, 1080, 2160), "px"),
        ("frames per second", [each.fps for each in facts if each.fps], (0, 10, 20, 26, 31, 51, 61), ""),
        ("duration", [each.duration for each in facts], (0, 1, 2, 5, 10, 20, 60, 300, 3600), "s"),
    ):
        for place, (label, count) in enumerate(histogram(values, edges)):
            bar = "█" * max(1, round(BAR * count / len(facts))) if count else ""
            table.add_row(Text(title if not place else "", style="bold"), f"{label} {unit}".strip(), f"{count:,}", bar)
    for title, names in (
        ("codec", Counter(each.codec for each in facts)),
        ("container", Counter(each.container for each in facts)),
    ):
        text = ", ".join(f"{name or 'unknown'} {count:,}" for name, count in names.most_common(8))
        console.print(Text.assemble((f"{title}: ", "bold"), text), soft_wrap=True)
    console.print(table)


def histogram(values: Sequence[float], edges: Sequence[float]) -> list[tuple[str, int]]:
    """(bounds, how many) of the bins that are not empty; a bin holds its lower bound, the last one has no upper."""
    bins: list[tuple[str, int]] = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        count = sum(low <= value and (high is None or value < high) for value in values)
        label = f"{low:g} and more" if high is None else f"below {high:g}" if not low else f"{low:g} to {high:g}"
        if count:
            bins.append((label, count))
    return bins


def _troubles(console: Console, findings: Findings, options: CheckOptions) -> None:
    found = {flag: rows for flag in TROUBLES if (rows := findings.flagged(flag))}
    if not found:
        console.print("Nothing is wrong with them.", style="green")
        return
    for flag, rows in found.items():
        what, cure = TROUBLES[flag]
        style = "bold" if flag in HARMLESS else "bold yellow"
        console.print(Text.assemble((f"{flag:<14}", style), f"{len(rows):>7,}  {what}. ", cure), soft_wrap=True)
        for row in rows[:EXAMPLES]:
            console.print(Text(f"{'':<23}{_example(row, flag)}", style="dim"), soft_wrap=True)
        if len(rows) > EXAMPLES:
            console.print(Text(f"{'':<23}...", style="dim"))
    present = [flag for flag in LEAVE_OUT if findings.flagged(flag)]
    if present:
        console.print("To train without them: ", end="")
        places = " ".join(shlex.quote(str(place)) for place in paths_of(options.videos))
        command = f"stmae pretrain {places} --checked {findings.out} --leave-out {' '.join(present)} ..."
        console.print(Text(_printable(command), style="cyan"), soft_wrap=True)


def _example(row: Row, flag: str) -> str:
    facts = row.facts
    more = {
        "unreadable": facts.reason,
        "damaged": facts.damage,
        "short": f"{facts.duration:.2f} s",
        "cuts": "at " + ", ".join(f"{cut:.2f}" for cut in facts.cuts[:3]) + " s",
        "far_keys": f"every {facts.key_seconds:.0f} s",
        "duplicate": f"as {row.duplicate_of}",
        "overlap": f"with {row.duplicate_of}",
        "alike": f"as {row.duplicate_of}",
        "leak": f"as {row.leak_of}",
        "leak_alike": f"as {row.leak_of}",
    }.get(flag, "")
    return _printable(f"{row.path}: {more}" if more else row.path)


def _speed(console: Console, findings: Findings, options: CheckOptions, workers: int) -> None:
    speed = findings.speed
    if speed is None:
        return
    clip = f"{options.frames} x {options.image_size} px, stride {options.stride:g}, repeats {options.repeats}"
    console.print(
        Text.assemble(
            ("Loading: ", "bold"),
            f"{speed.clips_per_second:.3g} clips/s per core, measured over {speed.clips} clips ({clip});"
            f" this machine's {workers} cores: up to {workers * speed.clips_per_second:.3g}."
            " `stmae plan` says how many cores a GPU needs.",
        ),
        soft_wrap=True,
    )


def in_bytes(count: float) -> str:
    """1.5 GB, 20 kB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} bytes"


def _hours(hours: float) -> str:
    return f"{hours:,.3g} hours" if hours >= 1 else f"{hours * 60:.3g} minutes"


def _printable(text: str) -> str:
    """Bytes of a name that are not UTF-8 as ``\\xe9``."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")
