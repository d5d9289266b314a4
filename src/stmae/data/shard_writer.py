"""Writes the shards of a pack one after the other, with a journal that a stopped pack goes on from.

out/
├── .packing/                      the workshop, gone when the pack is whole
│   ├── plan.json                  what is packed and how: only the same may go on
│   ├── shard-000000.json          what is in a finished shard, and where the next one begins
│   └── shard-000000.safetensors   its rows
├── shard-000000.tar               finished
└── .shard-000001.tar              being written: given up when the pack is stopped
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from stmae.data.container import FileRange
from stmae.data.entries import Entries, EntriesBuilder
from stmae.data.tars import BLOCK, END, header, padding, small

CHUNK = 4 << 20  # bytes copied at a time


@dataclass
class Totals:
    """What was packed so far.

    Attributes:
        items: of the source that were looked at.
        entries: videos in the shards; one of the source may give several.
        seconds: their duration, of those that have one.
        bytes_in: of the originals.
        bytes_out: of the shards.
    """

    items: int = 0
    entries: int = 0
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0

    def __iadd__(self, other: Totals) -> Totals:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass
class Record:
    """What the journal keeps of a finished shard.

    Attributes:
        name: of its file.
        entries: videos in it.
        bytes: of the file.
        sha256: of the file.
        next: the source's item that the next shard begins with, and which of its segments.
        totals: of this shard alone.
        failures: (name, what came of it, reason) of the source's items that were met on the way.
    """

    name: str
    entries: int = 0
    bytes: int = 0
    sha256: str = ""
    next: tuple[int, int] = (0, 0)
    totals: Totals = field(default_factory=Totals)
    failures: list[tuple[str, str, str]] = field(default_factory=list)


class UnreadableError(Exception):
    """The file to be stored cannot be read, or has fewer bytes than it had when it was looked at."""


class ShardWriter:
    """One shard. A context manager: what is not finished is removed."""

    def __init__(self, out: Path, number: int) -> None:
        self.record = Record(shard_name(number))
        self.rows = EntriesBuilder()
        self.bytes = 0
        self._out, self._workshop = out, out / ".packing"
        self._temporary = out / f".{self.record.name}"
        self._hash = hashlib.sha256()
        self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by __exit__)

    def add(
        self, key: str, ending: str, file: IO[bytes] | FileRange, size: int, texts: dict[str, bytes]
    ) -> tuple[int, int]:
        """Appends `size` bytes of a file as the member `key + ending`, and small members `key + <name>` after it.

        Returns:
            Where the bytes begin in the shard, and their CRC-32.

        Raises:
            UnreadableError: the file is at fault. The shard is as it was.
            OSError: the shard cannot be written.
        """
        before, place = self._hash.copy(), self.bytes
        try:
            self._write(header(key + ending, size))
            offset = self.bytes
            left, crc = size, 0
            while left:
                try:
                    part = file.read(min(left, CHUNK))
                except OSError as error:
                    raise UnreadableError(f"cannot be read: {error.strerror}") from None
                if not part:
                    raise UnreadableError("became shorter while it was packed")
                self._write(part)
                left, crc = left - len(part), zlib.crc32(part, crc)
        except UnreadableError:
            self._file.seek(place)
            self._file.truncate()
            self._hash, self.bytes = before, place
            raise
        self._write(padding(size))
        for name, text in texts.items():
            self._write(small(key + name, text))
        return offset, crc

    @property
    def size(self) -> int:
        """Bytes of the file if it were finished now."""
        return self.bytes + len(END)

    def finish(self, following: tuple[int, int]) -> Record:
        """Makes the shard and its record last.

        Args:
            following: the item, and the segment of it, that the next shard begins with.
        """
        self._write(END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        record = self.record
        record.entries, record.bytes, record.sha256 = len(self.rows), self.bytes, self._hash.hexdigest()
        record.next, record.totals.bytes_out = following, self.bytes
        os.replace(self._temporary, self._out / record.name)
        stem = record.name.removesuffix(".tar")
        write_whole(self._workshop / f"{stem}.safetensors", self.rows.build().to_bytes())
        write_whole(self._workshop / f"{stem}.json", to_json(asdict(record)))
        return record

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self, part: bytes) -> None:
        self._file.write(part)
        self._hash.update(part)
        self.bytes += len(part)


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def entry_size(size: int, texts: dict[str, bytes]) -> int:
    """Bytes that a video and what stands beside it take in a shard."""
    return sum(BLOCK + each + len(padding(each)) for each in (size, *map(len, texts.values())))


def finished(out: Path) -> Iterator[Record]:
    """The records of the shards that are finished, in order; removes what a stopped pack left of others."""
    number = 0
    while True:
        name = shard_name(number)
        try:
            kept = json.loads((out / ".packing" / f"{name.removesuffix('.tar')}.json").read_bytes())
        except FileNotFoundError:
            break
        record = Record(**kept | {"totals": Totals(**kept["totals"]), "next": tuple(kept["next"])})
        record.failures = [(name, what, reason) for name, what, reason in record.failures]
        yield record
        number += 1
    for path in out.iterdir():
        if re.fullmatch(r"\.?shard-\d{6,}\.tar", path.name) and path.name.lstrip(".") >= shard_name(number):
            path.unlink()


def rows_of(out: Path, record: Record) -> Entries:
    """The rows of a finished shard."""
    return Entries.open(out / ".packing" / f"{record.name.removesuffix('.tar')}.safetensors")


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def to_json(content: Any) -> bytes:
    """JSON in ASCII, so that file names that are no UTF-8 come back as they were."""
    return (json.dumps(content, indent=1) + "\n").encode()
