"""The table of a pack: what lies where in its shards, one row per video, as a file that opens at once at any size.

The file is a safetensors file (8 bytes with the length of a JSON header, the header, plain little-endian arrays), so it
is read by mapping it into memory, here or with the `safetensors` library. Columns, n rows:

    offset, size        int64 (n,)      the bytes of the video in its shard; size 0: there are none, see `reason`
    crc                 int64 (n,)      CRC-32 of these bytes, -1 where unknown; packs of before have no such column
    start, end          float64 (n,)    the span of the original that the bytes show, in seconds; NaN where unknown
    name                texts           the path in the source, forward slashes; a segment ends in #t=start,end
    shard label ending reason           texts that repeat: int32 (n,) numbers in a table of texts, -1 for none

A column of texts x is kept as `x_bytes` uint8 and `x_offsets` int64: text i is x_bytes[x_offsets[i]:x_offsets[i + 1]],
in UTF-8, where bytes of a file name that are no UTF-8 stand as they are. For a column that repeats it is the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from stmae.data.names import Names, bounds_of, encoded

VERSION = 1

_NUMBERS = {"offset": "I64", "size": "I64", "crc": "I64", "start": "F64", "end": "F64"}
_REPEATING = ("shard", "label", "ending", "reason")
_DTYPES = {"I64": "<i8", "F64": "<f8", "I32": "<i4", "U8": "u1"}


class Entries:
    """Rows of a pack, in the order of its source. Read-only; made by `EntriesBuilder`, `join` or `open`.

    Attributes:
        offset, size: int64 (n,), of the bytes in the shard.
        crc: int64 (n,), their CRC-32; -1 for unknown.
        start, end: float64 (n,), seconds.
        name: Names (n,).
        shard, label, ending, reason: int32 (n,), numbers in `tables[...]`; -1 for none.
        tables: the texts of the columns that repeat.
        path: the file that is mapped, None where there is none.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], path: Path | None = None) -> None:
        self.arrays, self.path = dict(arrays), path
        self.offset, self.size = arrays["offset"], arrays["size"]
        self.crc = arrays.get("crc", np.broadcast_to(np.int64(-1), len(self.offset)))
        self.start, self.end = arrays["start"], arrays["end"]
        self.shard, self.label = arrays["shard"], arrays["label"]
        self.ending, self.reason = arrays["ending"], arrays["reason"]
        self.name = Names(arrays["name_bytes"], arrays["name_offsets"])
        self.tables = {column: Names(arrays[f"{column}_bytes"], arrays[f"{column}_offsets"]) for column in _REPEATING}

    def __len__(self) -> int:
        return len(self.offset)

    def __reduce__(self) -> tuple[object, ...]:
        # Other processes map the file as well: nothing is copied to them, and the pages are shared.
        return (Entries.open, (self.path,)) if self.path else (Entries, (self.arrays,))

    def text(self, column: str, row: int) -> str | None:
        """Of a column that repeats; None where there is none."""
        number = int(getattr(self, column)[row])
        return None if number < 0 else self.tables[column][number]

    @classmethod
    def open(cls, path: str | Path) -> Entries:
        """Maps a file into memory.

        Raises:
            ValueError: it is no such table, or not whole.
            OSError: it cannot be read.
        """
        path = Path(path)
        whole = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        length = int.from_bytes(whole[:8].tobytes(), "little")
        if len(whole) < 8 or length > len(whole) - 8:
            raise ValueError("is cut off")
        header = json.loads(whole[8 : 8 + length].tobytes())
        if not isinstance(header, dict):
            raise ValueError("is no table of a pack")
        about = header.pop("__metadata__", {})
        if about.get("format") != "stmae-pack":
            raise ValueError("is no table of a pack")
        if int(about["version"]) > VERSION:
            raise ValueError(f"has the version {about['version']}; this stmae reads up to {VERSION}")
        data = whole[8 + length :]
        arrays = {}
        for name, place in header.items():
            begin, end = place["data_offsets"]
            if end > len(data):
                raise ValueError("is cut off")
            # Mapped arrays are handed out as plain ones: indexing those is several times as fast.
            arrays[name] = np.asarray(data[begin:end]).view(_DTYPES[place["dtype"]])
        return cls(arrays, path)

    def to_bytes(self) -> bytes:
        """The file; the same rows give the same bytes."""
        kinds = {name: _kind(name) for name in self.arrays}
        # Widest types first: then every array lies at a multiple of its element's size.
        order = sorted(self.arrays, key=lambda name: (-np.dtype(_DTYPES[kinds[name]]).itemsize, name))
        parts = [np.ascontiguousarray(self.arrays[name], _DTYPES[kinds[name]]).tobytes() for name in order]
        header: dict[str, object] = {"__metadata__": {"format": "stmae-pack", "version": str(VERSION)}}
        begin = 0
        for name, part in zip(order, parts, strict=True):
            place = [begin, begin + len(part)]
            header[name] = {"dtype": kinds[name], "shape": [len(self.arrays[name])], "data_offsets": place}
            begin += len(part)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + b"".join(parts)


def join(parts: Sequence[Entries]) -> Entries:
    """The rows of several tables, one after the other."""
    arrays: dict[str, np.ndarray] = {}
    for column, kind in _NUMBERS.items():
        arrays[column] = np.concatenate([np.empty(0, _DTYPES[kind]), *(getattr(part, column) for part in parts)])
    lengths = [np.diff(part.arrays["name_offsets"]) for part in parts]
    arrays["name_offsets"] = bounds_of(np.concatenate([np.empty(0, np.int64), *lengths]))
    arrays["name_bytes"] = np.concatenate([np.empty(0, np.uint8), *(part.arrays["name_bytes"] for part in parts)])
    for column in _REPEATING:
        table: dict[str, int] = {}
        numbers = [np.empty(0, np.int32)]
        for part in parts:
            own = [table.setdefault(text, len(table)) for text in part.tables[column]]
            numbers.append(np.array([*own, -1], np.int32)[getattr(part, column)])  # number -1 takes the last one, -1
        arrays[column] = np.concatenate(numbers)
        arrays |= _texts(column, table)
    return Entries(arrays)


class EntriesBuilder:
    """Gathers rows."""

    def __init__(self) -> None:
        self._numbers: dict[str, list[float]] = {column: [] for column in _NUMBERS}
        self._texts: dict[str, list[int]] = {column: [] for column in _REPEATING}
        self._tables: dict[str, dict[str, int]] = {column: {} for column in _REPEATING}
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(
        self,
        *,
        name: str,
        shard: str,
        offset: int,
        size: int,
        ending: str,
        crc: int = -1,
        label: str | None = None,
        start: float = float("nan"),
        end: float = float("nan"),
        reason: str | None = None,
    ) -> None:
        """Appends a row; see `Entries`."""
        self._names.append(name)
        for column, number in zip(_NUMBERS, (offset, size, crc, start, end), strict=True):
            self._numbers[column].append(number)
        for column, text in (("shard", shard), ("label", label), ("ending", ending), ("reason", reason)):
            table = self._tables[column]
            self._texts[column].append(-1 if text is None else table.setdefault(text, len(table)))

    def build(self) -> Entries:
        arrays = {column: np.array(self._numbers[column], _DTYPES[kind]) for column, kind in _NUMBERS.items()}
        arrays |= {column: np.array(self._texts[column], np.int32) for column in _REPEATING}
        for column, texts in [("name", self._names), *self._tables.items()]:
            arrays |= _texts(column, texts)
        return Entries(arrays)


def _texts(column: str, texts: Iterable[str]) -> dict[str, np.ndarray]:
    parts = [encoded(text) for text in texts]
    lengths = np.fromiter(map(len, parts), np.int64)
    return {f"{column}_bytes": np.frombuffer(b"".join(parts), np.uint8), f"{column}_offsets": bounds_of(lengths)}


def _kind(array: str) -> str:
    """The safetensors type of an array, by its name."""
    if array in _NUMBERS:
        return _NUMBERS[array]
    return "I32" if array in _REPEATING else "U8" if array.endswith("_bytes") else "I64"
