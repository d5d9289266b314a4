"""Packs a source into shards: looks at the items in parallel, writes them in order, goes on where it was stopped.

workers    | look at item 0 | item 2 | item 3 ...     probe it, or write it anew into the workshop
           | item 1         | item 4 ...
here       |                | 0 1 2 | 3 ...           into shards, in the source's order: the number of workers
                                                      changes nothing in the result
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae.data.container import FileRange
from stmae.data.encode import Part
from stmae.data.entries import VERSION, join
from stmae.data.looking import Looked, look
from stmae.data.media import Media, segment_name
from stmae.data.pack_plan import Job, class_numbers, done, plan_of, settle_plan
from stmae.data.processes import Lost, each
from stmae.data.shard_writer import (
    Record,
    ShardWriter,
    Totals,
    UnreadableError,
    entry_size,
    finished,
    rows_of,
    to_json,
    write_whole,
)
from stmae.data.shards import INDEX, MANIFEST, WORKSHOP
from stmae.errors import UserError

LIMIT = 6 * 3600.0  # seconds of wall clock for one item: a decoder that hangs ends some day

Progress = Callable[[int, Totals], None]


@dataclass
class Result:
    """A finished pack.

    Attributes:
        records: of its shards.
        totals: of all of it.
        failures: (name, what came of it, reason).
        seconds: that this call took.
        resumed: items that earlier calls had packed.
    """

    records: list[Record]
    totals: Totals
    failures: list[tuple[str, str, str]]
    seconds: float
    resumed: int


def pack(job: Job, out: Path, progress: Progress = lambda items, totals: None) -> Result:
    """Packs a source, or goes on with it.

    Args:
        job: what to pack.
        out: the folder of the shards; made if missing.
        progress: is told how many items are done and what was packed, after each item.

    Raises:
        UserError: the folder holds something else or cannot be written, the disk is full, nothing can be read.
        NetworkError: what lies elsewhere cannot be fetched. Given again, the pack goes on.
    """
    began = time.monotonic()
    workshop = out / WORKSHOP
    with _disk_told(out):
        plan = plan_of(job)
        if (whole := done(out, plan)) is not None:
            return Result([], whole, [], 0.0, whole.items)
        workshop.mkdir(parents=True, exist_ok=True)
        with _alone(workshop):
            settle_plan(job, out, plan)
            records = list(finished(out))
            resumed = records[-1].next[0] if records else 0
            records += _Packer(job, out, records).run(progress)
            totals = sum_of(records)
            if not totals.entries:
                raise _nothing(job, records)
            _conclude(job, out, records, plan)
        shutil.rmtree(workshop)
    failures = [failure for record in records for failure in record.failures]
    return Result(records, totals, failures, time.monotonic() - began, resumed)


def sum_of(records: list[Record]) -> Totals:
    totals = Totals()
    for record in records:
        totals += record.totals
    return totals


@dataclass(frozen=True)
class _Entry:
    """One video to store: a file or a part of one, and what stands beside it."""

    name: str
    label: str | None
    ending: str
    size: int
    part: Part | None
    start: float
    end: float
    texts: dict[str, bytes]


class _Packer:
    """Writes the shards that are missing."""

    def __init__(self, job: Job, out: Path, before: list[Record]) -> None:
        self._job, self._out = job, out
        self._item, self._part = before[-1].next if before else (0, 0)
        self._number, self._totals = len(before), sum_of(before)
        self._classes = class_numbers(job.source)
        self._work = out / WORKSHOP / "work"
        self._writer: ShardWriter | None = None

    def run(self, progress: Progress) -> Iterator[Record]:
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir()
        try:
            for looked in self._in_order():
                yield from self._pack_item(looked)
                progress(self._item, self._totals)
            if self._writer is not None:
                yield self._writer.finish((self._item, 0))
        finally:
            if self._writer is not None:
                self._writer.__exit__()

    def _in_order(self) -> Iterator[Looked]:
        """What came of each item from the first missing one on."""
        first = self._item
        items = range(first, len(self._job.source))
        function = functools.partial(look, self._job.source, self._job.recipe, self._work)
        if not self._job.workers:
            yield from map(function, items)
            return
        waiting: dict[int, Looked | Lost] = {}
        following = 0
        for number, result in each(function, items, self._job.workers, LIMIT):
            waiting[number] = result
            while following in waiting:
                looked = waiting.pop(following)
                if isinstance(looked, Lost):  # killed from outside, maybe: once more, alone
                    _, looked = next(iter(each(function, items[following : following + 1], 1, LIMIT)))
                yield Looked(reason=looked.reason) if isinstance(looked, Lost) else looked
                following += 1

    def _pack_item(self, looked: Looked) -> Iterator[Record]:
        name = self._job.source.name(self._item)
        writer = self._writer or self._begin()
        entries = [] if looked.reason else self._entries(looked)
        for entry in entries[self._part :]:
            more = entry_size(entry.size, entry.texts)
            if writer.bytes and writer.size + more > self._job.shard_size:
                yield writer.finish((self._item, self._part))
                writer = self._begin()
            try:
                self._store(writer, entry)
            except UnreadableError as error:
                looked.reason = str(error)
                break
            self._part += 1
        for part in looked.parts:
            part.path.unlink(missing_ok=True)
        if looked.reason and self._job.recipe is None:
            # The place stays, so that all items keep their numbers: clips are those that the files would give.
            label = self._job.source.label(self._item)
            writer.rows.add(
                name=name, shard=writer.record.name, offset=0, size=0, ending="", label=label, reason=looked.reason
            )
        if looked.reason or looked.damage:
            what = "skipped" if looked.reason else "used up to the damage"
            writer.record.failures.append((name, what, looked.reason or looked.damage))
        done = Totals(items=1, bytes_in=0 if looked.reason else looked.size)
        writer.record.totals += done
        self._totals += done
        self._item, self._part = self._item + 1, 0

    def _begin(self) -> ShardWriter:
        if self._writer is not None:
            self._writer.__exit__()
            self._number += 1
        self._writer = ShardWriter(self._out, self._number)
        return self._writer

    def _store(self, writer: ShardWriter, entry: _Entry) -> None:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", entry.name.rstrip("/").rpartition("/")[2].partition(".")[0])[:60]
        key = f"{self._totals.entries:09d}-{stem}"
        media = Media.of(entry.part.path) if entry.part else self._job.source.media(self._item)
        try:
            file = FileRange(media)
        except OSError as error:
            raise UnreadableError(f"cannot be read: {error.strerror}") from None
        before = writer.bytes
        with file:
            offset, crc = writer.add(key, entry.ending, file, entry.size, entry.texts)
        writer.rows.add(
            name=entry.name, shard=writer.record.name, offset=offset, size=entry.size, ending=entry.ending, crc=crc,
            label=entry.label, start=entry.start, end=entry.end,
        )  # fmt: skip
        seconds = entry.end - entry.start
        done = Totals(entries=1, seconds=0.0 if math.isnan(seconds) else seconds)
        writer.record.totals += done
        self._totals += done
        self._totals.bytes_out += writer.bytes - before

    def _entries(self, looked: Looked) -> list[_Entry]:
        """What to store of an item: the file itself, or what was written in its place."""
        name, label = self._job.source.name(self._item), self._job.source.label(self._item)
        entries = []
        parts: list[Part | None] = [*looked.parts] or [None]
        for part in parts:
            start, end = (part.start, part.end) if part else (0.0, looked.seconds)
            own = name if len(parts) < 2 else segment_name(name, start, end)
            about: dict[str, Any] = {"path": own}
            about |= {} if label is None else {"label": label}
            about |= {} if math.isnan(end) else {"start": start, "end": end}
            texts = {".json": json.dumps(about | looked.about).encode()}
            if label is not None:
                texts[".cls"] = str(self._classes[label]).encode()
            size = part.path.stat().st_size if part else looked.size
            start = float("nan") if math.isnan(end) else start
            entries.append(_Entry(own, label, looked.ending, size, part, start, end, texts))
        return entries


def _nothing(job: Job, records: list[Record]) -> UserError:
    failures = [failure for record in records for failure in record.failures]
    told = "; ".join(f"{name}: {reason}" for name, _, reason in failures[:3])
    return UserError(f"none of the {len(job.source)} items can be read: {told}.", "Check the files.")


def _conclude(job: Job, out: Path, records: list[Record], plan: dict[str, Any]) -> None:
    """Writes the index, and the manifest last."""
    index = join([rows_of(out, record) for record in records])
    data = index.to_bytes()
    write_whole(out / INDEX, data)
    totals = sum_of(records)
    manifest = {
        "format": "stmae-pack",
        "version": VERSION,
        "source": job.origin,
        "plan": plan,
        "items": len(index),
        "entries": totals.entries,
        "seconds": round(totals.seconds, 3),
        "classes": class_numbers(job.source),
        "index": {"name": INDEX, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "shards": [
            {"name": record.name, "entries": record.totals.entries, "bytes": record.bytes, "sha256": record.sha256}
            for record in records
        ],
    }
    write_whole(out / MANIFEST, to_json(manifest))


@contextlib.contextmanager
def _alone(workshop: Path) -> Iterator[None]:
    with open(workshop / "lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f'"{workshop.parent}" is being packed by another process.', "Wait for it, or choose another --out."
            ) from None
        yield


@contextlib.contextmanager
def _disk_told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "Make room" if full else "Mend that"
        raise UserError(
            f'"{out}" cannot be written: {error.strerror or error}.',
            f"{cure} and give the same command again: finished shards stay. Or choose another --out.",
        ) from None
