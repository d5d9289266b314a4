"""The list a run keeps of its items, so that it goes on with the same ones whatever happens to the folder.

index.csv has the columns split, path and, where there is something to say, label:

    root,/data/videos,                  a source of files begins
    train,x/1.mp4,jumping               one of its items
    holdout,y/2.mp4,running
    shards,/data/shards,                a packed source begins, whose items stand in its own table
    shard,shard-000000.tar,128 9f2c6e1b how many items it holds, and a checksum of their names and places
    holdout,z/3.mp4,                    its held-out items
    leftout,z/4.mp4,                    items that the run leaves out; all others are trained on
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stmae.data.cache import Cache
from stmae.data.index import Index
from stmae.data.names import Names
from stmae.data.remote import is_url
from stmae.data.sources import Mixture, Source, is_shards, open_shards, parts_of
from stmae.errors import UserError

Pair = tuple[Source, Source]  # training and held-out items of one source
Row = tuple[str, ...]


def save_index(path: str | Path, train: Source, holdout: Source | None = None) -> None:
    """Writes the list of a run's items as a CSV; whole, or not at all.

    Args:
        path: of the CSV.
        train, holdout: sources of files or shards, or mixtures of the same ones.
    """
    path = Path(path)
    nothing = [each.part(np.arange(0)) for each in parts_of(train)]
    pairs = list(zip(parts_of(train), parts_of(holdout) if holdout is not None else nothing, strict=True))
    labelled = any(is_shards(source) or getattr(source, "labels", None) is not None for source, _ in pairs)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("split", "path", "label")[: 2 + labelled])
    for pair in pairs:
        rows = _shard_rows(*pair) if is_shards(pair[0]) else _file_rows(*pair)
        writer.writerows(rows if labelled else (row[:2] for row in rows))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        # File names are bytes to the system: those that are no UTF-8 must come back as they were.
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _file_rows(train: Any, holdout: Any) -> Iterator[Row]:
    yield "root", str(train.root), ""
    for word, index in (("train", train), ("holdout", holdout)):
        labels = index.labels if index.labels is not None else [""] * len(index)
        yield from ((word, name, label) for name, label in zip(index.paths, labels, strict=True))


def _shard_rows(train: Any, holdout: Any) -> Iterator[Row]:
    yield "shards", str(train.root), ""
    yield from (("shard", name, mark) for name, mark in shard_marks(train).items())
    used = np.zeros(len(train.entries), bool)
    used[train.rows] = used[holdout.rows] = True
    names = train.entries.name
    yield from (("holdout", name, "") for name in names.part(holdout.rows))
    yield from (("leftout", name, "") for name in names.part(np.flatnonzero(~used)))


def shard_marks(shards: Any) -> dict[str, str]:
    """By shard, the number of all its items and a checksum of their names and places."""
    entries = shards.entries
    order = np.argsort(entries.shard, kind="stable")
    ends = np.searchsorted(entries.shard[order], np.arange(len(entries.tables["shard"])), side="right")
    marks, begin = {}, 0
    for name, end in zip(entries.tables["shard"], ends.tolist(), strict=True):
        rows = order[begin:end]
        told = hashlib.sha256(b"\n".join(map(os.fsencode, entries.name.part(rows))))
        told.update(entries.offset[rows].tobytes() + entries.size[rows].tobytes())
        marks[name] = f"{len(rows)} {told.hexdigest()[:16]}"
        begin = end
    return marks


def load_index(
    path: str | Path, found: Source | None = None, weights: Sequence[float] | None = None
) -> tuple[Source, Source]:
    """Reads what `save_index` wrote: the training and the held-out items.

    Args:
        path: of the CSV.
        found: the sources as they are now, which may lie elsewhere; without, they are looked for where they lay.
        weights: of the sources, where they are several.

    Raises:
        UserError: the file cannot be read or is no such list; other sources are given; shards are not what they were.
    """
    groups = _groups(Path(path))
    now = [None] * len(groups) if found is None else list(parts_of(found))
    if len(now) != len(groups):
        raise UserError(
            f'"{path}" is of a run with {len(groups)} sources, and {len(now)} are given.', "Give the same ones."
        )
    pairs = [_pair(group, source) for group, source in zip(groups, now, strict=True)]
    if len(pairs) == 1 and weights is None:
        return pairs[0]
    return Mixture([train for train, _ in pairs], weights), Mixture([held for _, held in pairs], weights)


def _groups(path: Path) -> list[dict[str, list[Row]]]:
    """The rows of each source, by their first word."""
    words = ("root", "shards", "train", "holdout", "shard", "leftout")
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            head, groups = next(rows, []), list[dict[str, list[Row]]]()
            wrong = 1 if head and head[:2] != ["split", "path"] else 0
            for number, row in enumerate(rows, 2):
                word = row[0] if len(row) == len(head) else ""
                if word in ("root", "shards"):
                    groups.append({each: [] for each in words})
                if wrong or word not in words or not groups:
                    wrong = wrong or number
                    break
                groups[-1][word].append(tuple(row[1:]))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if wrong:
        raise UserError(f"{path}, line {wrong} is no row of split and path.", "Write it with save_index().")
    if not groups:
        raise UserError(f"{path} does not say in which folder the videos lie.", "Write it with save_index().")
    return groups


def _pair(group: dict[str, list[Row]], found: Source | None) -> Pair:
    if group["shards"]:
        return _shards_pair(group, found)
    if isinstance(found, Index):
        root, cache = found.root, found.cache
    else:
        before = group["root"][0][0]
        root, cache = before if is_url(before) or not before else Path(before), None
    if found is not None and not isinstance(found, Index):
        raise UserError(f'the run was begun with files of "{root}", not with shards.', "Give what it was begun with.")
    train, holdout = (_index(root, group[word], cache) for word in ("train", "holdout"))
    return train, holdout


def _index(root: Path | str, rows: list[Row], cache: Cache | None) -> Index:
    labels = [row[1] for row in rows] if rows and len(rows[0]) > 1 else []
    return Index(root, Names.of(row[0] for row in rows), Names.of(labels) if any(labels) else None, cache)


def _shards_pair(group: dict[str, list[Row]], found: Source | None) -> Pair:
    root = group["shards"][0][0]
    if found is None:
        found = open_shards(root)
    if not is_shards(found):
        raise UserError(f'the run was begun with the shards in "{root}", not with files.', "Give these.")
    shards: Any = found
    marks, before = shard_marks(shards), {row[0]: row[1] for row in group["shard"]}
    other = [name for name in before if marks.get(name) != before[name]]
    if other:
        gone = sum(name not in marks for name in other)
        raise UserError(
            f'{len(other)} of the {len(before)} shards in "{shards.root}" are not what the run was begun with '
            f"({gone} are gone, {len(other) - gone} hold other items): {', '.join(other[:3])}.",
            "Bring them back, or begin a new run with another --out.",
        )
    entries = shards.entries
    known = np.array([name in before for name in entries.tables["shard"]], bool)
    state = np.where(known[entries.shard], 0, 2)
    for word, value in (("holdout", 1), ("leftout", 2)):
        names = {row[0] for row in group[word]}
        if names:
            state[[name in names for name in entries.name]] = value
    return shards.at_rows(np.flatnonzero(state == 0)), shards.at_rows(np.flatnonzero(state == 1))


def index_changes(frozen: Sequence[Source], found: Source) -> tuple[list[str], list[str]]:
    """What was added to the sources of a run and what is gone, sorted: files, and whole shards.

    Args:
        frozen: the run's training and held-out items.
        found: the sources as they are now.
    """
    before, after = set[str](), set[str]()
    for source in frozen:
        before.update(_things(source))
    after.update(_things(found))
    return sorted(after - before), sorted(before - after)


def _things(source: Source) -> Iterable[str]:
    for each in parts_of(source):
        if is_shards(each):
            shards: Any = each
            yield from shards.entries.tables["shard"].part(np.unique(shards.blocks))
        else:
            yield from each.paths  # type: ignore[attr-defined]
