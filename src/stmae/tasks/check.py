"""`stmae check`: what is in a set of videos, what is wrong with it, and what to do about that, before any training."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stmae.data.copies import Pair, find_copies
from stmae.data.media import Media
from stmae.data.opening import open_source
from stmae.data.processes import Lost, each
from stmae.data.sources import Source, TensorSource
from stmae.data.survey import STATIC, Facts, survey
from stmae.data.tracks import Tracks
from stmae.engine.launch import cores
from stmae.errors import UserError
from stmae.tasks.check_options import CheckOptions
from stmae.tasks.task import task
from stmae.tasks.videos import cache_of, open_given
from stmae.weights import write_atomic

if TYPE_CHECKING:  # measuring the speed is the only part that needs torch
    from stmae.tasks.speed import Speed

NOMINAL_FPS = 30.0
FAR_KEYS = 4.0  # seconds between key frames from which on reaching a clip means much decoding for nothing
SHARED_PART = 0.5  # of a video's length that another one shows too: from there on it is a duplicate
COLUMNS = (
    "path", "flags", "kind", "bytes", "container", "codec", "width", "height", "duration", "fps", "variable_rate",
    "frames", "key_seconds", "motion", "cuts", "duplicate_of", "leak_of", "score", "reason",
)  # fmt: skip


@dataclass
class Row:
    """One item and what was found about it.

    Attributes:
        path: its name in the source.
        facts: see `Facts`.
        flags: words for what is wrong with it: see `TROUBLES`.
        duplicate_of: the item that shows the same and is kept.
        leak_of: an item of the other source that shows the same.
        score: how sure the copy is: correlation of the two pictures' changes over time, up to 1.
    """

    path: str
    facts: Facts
    flags: list[str] = field(default_factory=list)
    duplicate_of: str = ""
    leak_of: str = ""
    score: float | None = None


@dataclass
class Findings:
    """What `check` returns.

    Attributes:
        root: of the source.
        rows: one for each item, in the source's order.
        speed: clips per second and core, measured; None if nothing can be read.
        out: the CSV that was written.
        against: root of the other source; empty without one.
    """

    root: str
    rows: list[Row]
    speed: Speed | None
    out: Path
    against: str = ""

    def flagged(self, flag: str) -> list[Row]:
        """The rows with a flag."""
        return [row for row in self.rows if flag in row.flags]


@task(CheckOptions)
def check(options: CheckOptions) -> Findings:
    """Returns:
        A `Findings`; its summary is also printed.

    Raises:
        UserError: a mistake in the options, or nothing to look at.
    """
    from stmae.tasks.check_report import Progress, say, show

    source = require_files(open_given(options, say))
    other = None
    if options.against is not None:
        other = require_files(open_source(options.against, media=options.media, cache=cache_of(options), say=say))
    workers = options.workers or cores()
    with Progress() as progress:
        facts, tracks = look_at(source, options, workers, progress.bar("looking at videos"))
        rows = [Row(source.name(item), found) for item, found in enumerate(facts)]
        for row in rows:
            row.flags += troubles(row.facts, options.frames * options.stride / NOMINAL_FPS)
        with progress.waiting("looking for copies"):
            mark_duplicates(rows, find_copies(tracks))
        if other is not None:
            _, theirs = look_at(other, options, workers, progress.bar("looking at the other set"))
            with progress.waiting("looking for leaks"):
                mark_leaks(rows, find_copies(tracks, theirs), other)
        with progress.waiting("measuring the loading speed"):
            speed = _speed(source, rows, options)
    write_csv(options.out, rows)
    findings = Findings(str(source.root), rows, speed, options.out, "" if other is None else str(other.root))
    show(findings, options, workers)
    return findings


def require_files(source: Source) -> Source:
    """The source, unless it is clips from Python."""
    if isinstance(source, TensorSource):
        raise UserError("clips from Python are no files that could be checked.", "Give a folder, a list or shards.")
    return source


# Looking -------------------------------------------------------------------------------------------------------------


class _Jobs(Sequence[tuple[Media, float]]):
    """What the processes are given, made when it is its turn: fetching a remote item takes its time."""

    def __init__(self, source: Source, look: float) -> None:
        self.source, self.look = source, look

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: Any) -> Any:
        return self.source.media(item), self.look


def _survey(job: tuple[Media, float]) -> Facts:
    return survey(*job)


def look_at(source: Source, options: CheckOptions, workers: int, progress: Any) -> tuple[list[Facts], Tracks]:
    """The facts of every item, and beside them what copies are found by."""
    facts: list[Facts | None] = [None] * len(source)
    tracks = Tracks()
    jobs = _Jobs(source, options.look)
    waiting: dict[int, Facts] = {}
    for done, (item, found) in enumerate(each(_survey, jobs, workers, options.patience), 1):
        waiting[item] = Facts(kind=source.media(item).kind, reason=found.reason) if isinstance(found, Lost) else found
        while len(tracks) in waiting:  # in order, and only the small part stays in memory
            ready = waiting.pop(len(tracks))
            facts[len(tracks)] = ready
            tracks.append(ready.track)
            ready.track = None
        progress(done, len(source))
    return [found for found in facts if found is not None], tracks


def troubles(facts: Facts, clip_seconds: float) -> list[str]:
    """The flags that follow from an item's own facts; see `TROUBLES`.

    Args:
        facts: of the item.
        clip_seconds: what a clip spans.
    """
    if facts.reason:
        return ["unreadable", "audio"] if facts.audio_only else ["unreadable"]
    video = facts.kind == "video"
    found = {
        "damaged": bool(facts.damage),
        "short": facts.kind != "image" and facts.duration < clip_seconds * (1 - 1e-3),
        "static": facts.kind != "image" and facts.motion <= STATIC,
        "cuts": bool(facts.cuts),
        "variable_rate": video and facts.variable_rate,
        "far_keys": video and facts.key_seconds > FAR_KEYS,
    }
    return [flag for flag, is_so in found.items() if is_so]


def mark_duplicates(rows: list[Row], pairs: Sequence[Pair]) -> None:
    """Flags of each group of copies all but the best: the longest, of these the largest, of these the least packed.

    A video that shares less than half of its length with a kept one is flagged "overlap" and not "duplicate"; one that
    may show another repetition of a move is flagged "alike".
    """
    linked: dict[int, list[tuple[int, Pair]]] = {}
    for pair in filter(lambda pair: pair.sure, pairs):
        linked.setdefault(pair.first, []).append((pair.second, pair))
        linked.setdefault(pair.second, []).append((pair.first, pair))

    def worth(number: int) -> tuple[Any, ...]:
        facts = rows[number].facts
        return (-round(facts.duration), -facts.width * facts.height, -facts.bytes, number)

    kept: set[int] = set()
    for number in sorted(linked, key=worth):
        row = rows[number]
        for other, pair in sorted(linked[number], key=lambda entry: -entry[1].seconds):
            if other not in kept:
                continue
            duplicate = pair.seconds >= SHARED_PART * min(row.facts.duration, row.facts.looked)
            if row.duplicate_of and not duplicate:
                continue
            row.duplicate_of, row.score = rows[other].path, pair.score
            row.flags.append("duplicate" if duplicate else "overlap")
            break
        if "duplicate" not in row.flags:
            kept.add(number)
    for pair in sorted(pairs, key=lambda pair: -pair.score):
        row = rows[pair.second]
        if not pair.sure and not row.duplicate_of and "alike" not in row.flags:
            row.flags.append("alike")
            row.duplicate_of, row.score = rows[pair.first].path, pair.score


def mark_leaks(rows: list[Row], pairs: Sequence[Pair], other: Source) -> None:
    """Flags the items that show, in whole or in part, what an item of the other source shows."""
    for pair in sorted(pairs, key=lambda pair: (not pair.sure, -pair.score)):
        row = rows[pair.first]
        if not row.leak_of:
            row.flags.append("leak" if pair.sure else "leak_alike")
            row.leak_of, row.score = other.name(pair.second), pair.score


def _speed(source: Source, rows: Sequence[Row], options: CheckOptions) -> Speed | None:
    sound = [item for item, row in enumerate(rows) if not {"unreadable", "damaged"} & set(row.flags)]
    if not sound:
        return None
    from stmae.tasks.speed import loading_speed

    return loading_speed(
        source.part(sound),
        frames=options.frames,
        stride=options.stride,
        image_size=options.image_size,
        repeats=options.repeats,
        seconds=options.speed_seconds,
    )


# The file ------------------------------------------------------------------------------------------------------------


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A line for each item, with the columns `COLUMNS`; whole, or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        facts = row.facts
        cells = {
            "path": row.path,
            "flags": " ".join(row.flags),
            "kind": facts.kind,
            "bytes": facts.bytes,
            "container": facts.container,
            "codec": facts.codec,
            "width": facts.width or "",
            "height": facts.height or "",
            "duration": f"{facts.duration:.3f}",
            "fps": f"{facts.fps:.3f}",
            "variable_rate": "yes" if facts.variable_rate else "no",
            "frames": facts.frames,
            "key_seconds": f"{facts.key_seconds:.2f}",
            "motion": f"{facts.motion:.0f}",
            "cuts": " ".join(f"{cut:.2f}" for cut in facts.cuts),
            "duplicate_of": row.duplicate_of,
            "leak_of": row.leak_of,
            "score": "" if row.score is None else f"{row.score:.3f}",
            "reason": facts.reason or facts.damage,
        }
        writer.writerow([cells[column] for column in COLUMNS])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise UserError(f'"{path}" cannot be written: {error.strerror or error}.', "Choose another --out.") from None
