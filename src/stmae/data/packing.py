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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmae.data.container import FileRange
from stmae.data.encode import Part, Recipe
from stmae.data.entries import VERSION, join
from stmae.data.looking import Looked, look
from stmae.data.media import Media, segment_name
from stmae.data.names import encoded
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
from stmae.data.shards import INDEX, MANIFEST, WORKSHOP, Shards
from stmae.data.sources import Index, Source, names_of
from stmae.errors import UserError

LIMIT = 6 * 3600.0  # seconds of wall clock for one item: a decoder that hangs ends some day

Progress = Callable[[int, Totals], None]


@dataclass(frozen=True)
class Order:
    """What to pack and how.

    Attributes:
        source: the videos, images and arrays.
        origin: the source as the person named it, for the manifest.
        recipe: how videos are written anew; None stores the original bytes.
        shard_size: bytes of a shard, at most, unless a single video takes more.
        workers: processes that look at videos and write them anew; 0 does it in this one.
    """

    source: Source
    origin: str
    recipe: Recipe | None
    shard_size: int
    workers: int


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


def pack(order: Order, out: Path, progress: Progress = lambda items, totals: None) -> Result:
    """Packs a source, or goes on with it.

    Args:
        order: what to pack.
        out: the folder of the shards; made if missing.
        progress: is told how many items are done and what was packed, after each item.

    Raises:
        UserError: the folder holds something else or cannot be written, the disk is full, nothing can be read.
        NetworkError: what lies elsewhere cannot be fetched. Given again, the pack goes on.
    """
    began = time.monotonic()
    workshop = out / WORKSHOP
    with _disk_told(out):
        plan = plan_of(order)
        if (done := _done(out, plan)) is not None:
            return done
        workshop.mkdir(parents=True, exist_ok=True)
        with _alone(workshop):
            _settle_plan(order, out, plan)
            records = list(finished(out))
            resumed = records[-1].next[0] if records else 0
            records += _Packer(order, out, records).run(progress)
            totals = sum_of(records)
            if not totals.entries:
                raise _nothing(order, records)
            _conclude(order, out, records, plan)
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

    def __init__(self, order: Order, out: Path, before: list[Record]) -> None:
        self._order, self._out = order, out
        self._item, self._part = before[-1].next if before else (0, 0)
        self._number, self._totals = len(before), sum_of(before)
        self._classes = class_numbers(order.source)
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
        items = range(first, len(self._order.source))
        function = functools.partial(look, self._order.source, self._order.recipe, self._work)
        if not self._order.workers:
            yield from map(function, items)
            return
        waiting: dict[int, Looked | Lost] = {}
        following = 0
        for number, result in each(function, items, self._order.workers, LIMIT):
            waiting[number] = result
            while following in waiting:
                looked = waiting.pop(following)
                if isinstance(looked, Lost):  # killed from outside, maybe: once more, alone
                    _, looked = next(iter(each(function, items[following : following + 1], 1, LIMIT)))
                yield Looked(reason=looked.reason) if isinstance(looked, Lost) else looked
                following += 1

    def _pack_item(self, looked: Looked) -> Iterator[Record]:
        name = self._order.source.name(self._item)
        writer = self._writer or self._begin()
        entries = [] if looked.reason else self._entries(looked)
        for entry in entries[self._part :]:
            more = entry_size(entry.size, entry.texts)
            if writer.bytes and writer.size + more > self._order.shard_size:
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
        if looked.reason and self._order.recipe is None:
            # The place stays, so that all items keep their numbers: clips are those that the files would give.
            label = self._order.source.label(self._item)
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
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", entry.name.rpartition("/")[2].partition(".")[0])[:60]
        key = f"{self._totals.entries:09d}-{stem}"
        media = Media.of(entry.part.path) if entry.part else self._order.source.media(self._item)
        try:
            file = FileRange(media)
        except OSError as error:
            raise UnreadableError(f"cannot be read: {error.strerror}") from None
        before = writer.bytes
        with file:
            offset = writer.add(key, entry.ending, file, entry.size, entry.texts)
        writer.rows.add(
            name=entry.name, shard=writer.record.name, offset=offset, size=entry.size, ending=entry.ending,
            label=entry.label, start=entry.start, end=entry.end,
        )  # fmt: skip
        seconds = entry.end - entry.start
        done = Totals(entries=1, seconds=0.0 if math.isnan(seconds) else seconds)
        writer.record.totals += done
        self._totals += done
        self._totals.bytes_out += writer.bytes - before

    def _entries(self, looked: Looked) -> list[_Entry]:
        """What to store of an item: the file itself, or what was written in its place."""
        name, label = self._order.source.name(self._item), self._order.source.label(self._item)
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


def class_numbers(source: Source) -> dict[str, int]:
    """A number for each class: labels that are numbers stay, others are counted in alphabetical order."""
    labels = sorted({label for item in range(len(source)) if (label := source.label(item)) is not None})
    if all(re.fullmatch(r"0|[1-9][0-9]{0,8}", label) for label in labels):
        return {label: int(label) for label in labels}
    return {label: number for number, label in enumerate(labels)}


def plan_of(order: Order) -> dict[str, Any]:
    """What is packed and how: all that the result follows from."""
    digest = hashlib.sha256()
    for item, name in enumerate(names_of(order.source)):
        digest.update(encoded(f"{name}\0{order.source.label(item) or ''}\0"))
    sizes = _sizes(order.source)
    digest.update(b"" if sizes is None else sizes.tobytes())
    return {
        "videos": asdict(order.recipe) if order.recipe else "original bytes",
        "shard_size": order.shard_size,
        "items": len(order.source),
        "source": digest.hexdigest(),
    }


def _done(out: Path, plan: dict[str, Any]) -> Result | None:
    """The result if `out` holds this very pack already; shards of others are not written over."""
    if (out / MANIFEST).is_file():
        about = json.loads((out / MANIFEST).read_bytes())
        if about.get("plan") != plan:
            raise UserError(f'"{out}" holds another pack, which is finished.', "Choose another --out, or remove it.")
        totals = Totals(plan["items"], about["entries"], about["seconds"])
        totals.bytes_out = sum(shard["bytes"] for shard in about["shards"])
        return Result([], totals, [], 0.0, plan["items"])
    if out.is_dir() and not (out / WORKSHOP).is_dir() and next(out.glob("*.tar"), None) is not None:
        raise UserError(f'"{out}" holds other tar files.', "Choose another --out.")
    return None


def _settle_plan(order: Order, out: Path, plan: dict[str, Any]) -> None:
    """Keeps what is packed and how; a pack that was begun otherwise is not gone on with."""
    path = out / WORKSHOP / "plan.json"
    if path.exists():
        before = json.loads(path.read_bytes())
        changed = [name for name in plan if before.get(name) != plan[name]]
        if changed:
            told = {name: f"{name} {before.get(name)} is now {plan[name]}" for name in changed}
            told["source"] = "the source has changed"
            raise UserError(
                f'"{out}" holds an unfinished pack that was begun otherwise: {", ".join(told[n] for n in changed)}.',
                "Give the same source and options to go on, or another --out.",
            )
    elif order.recipe is None and (sizes := _sizes(order.source)) is not None:
        _room_for(int(sizes.sum()), out)
    write_whole(path, to_json(plan))


def _sizes(source: Source) -> np.ndarray | None:
    """Bytes of each item, 0 for what cannot be read; None where asking would take long."""
    if isinstance(source, Shards):
        return np.array([source.entries.size[source.row(item)] for item in range(len(source))], np.int64)
    if not isinstance(source, Index) or not isinstance(source.root, Path):
        return None

    def size(item: int) -> int:
        try:
            return source.path(item).stat().st_size
        except OSError:
            return 0

    return np.fromiter(map(size, range(len(source))), np.int64, len(source))


def _room_for(size: int, out: Path) -> None:
    free = shutil.disk_usage(out).free
    if size > free:
        shutil.rmtree(out / WORKSHOP)
        raise UserError(
            f'the shards take at least {size / 1e9:.1f} GB, and "{out}" has {free / 1e9:.1f} GB free.',
            "Make room, choose another --out, or write the videos smaller with --short-side.",
        )


def _nothing(order: Order, records: list[Record]) -> UserError:
    failures = [failure for record in records for failure in record.failures]
    told = "; ".join(f"{name}: {reason}" for name, _, reason in failures[:3])
    return UserError(f"none of the {len(order.source)} items can be read: {told}.", "Check the files.")


def _conclude(order: Order, out: Path, records: list[Record], plan: dict[str, Any]) -> None:
    """Writes the index, and the manifest last."""
    index = join([rows_of(out, record) for record in records])
    data = index.to_bytes()
    write_whole(out / INDEX, data)
    totals = sum_of(records)
    manifest = {
        "format": "stmae-pack",
        "version": VERSION,
        "source": order.origin,
        "plan": plan,
        "items": len(index),
        "entries": totals.entries,
        "seconds": round(totals.seconds, 3),
        "classes": class_numbers(order.source),
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
