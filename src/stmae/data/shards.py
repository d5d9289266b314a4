"""Videos packed into tar files: our own packs, and those that others made for WebDataset; read at random.

shards/
├── stmae-pack.json            what it is: written last, so a folder with it is whole
├── index.safetensors          where each video lies (data/entries.py)
└── shard-000000.tar ...       tar files; each video beside a .json, and a .cls where it has a label
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from stmae.data.cache import Cache, default_cache, usual_cache
from stmae.data.entries import VERSION, Entries, EntriesBuilder
from stmae.data.media import INSIDE, Media
from stmae.data.names import Names
from stmae.data.remote import (
    MissingError,
    RemoteFile,
    RemoteRange,
    is_url,
    join_url,
    list_files,
    read_bytes,
)
from stmae.data.shared import Shared
from stmae.data.tars import Member, members
from stmae.errors import UserError

MANIFEST = "stmae-pack.json"
INDEX = "index.safetensors"
WORKSHOP = ".packing"  # the folder that a pack has while it is not finished
READERS = 16  # remote tar files listed at a time

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Shards:
    """Videos in tar files, in the order of their source.

    Attributes:
        root: the folder or address of the tar files.
        entries: the rows of all of them.
        about: what the pack's manifest says; of foreign tar files nothing.
    """

    def __init__(
        self,
        root: Path | str,
        entries: Entries,
        *,
        about: dict[str, Any] | None = None,
        items: np.ndarray | None = None,
        cache: Cache | None = None,
        versions: dict[str, str] | None = None,
    ) -> None:
        self.root, self.entries, self.about = root, entries, about or {}
        self._items = None if items is None else Shared(np.asarray(items, np.int64))
        self._cache, self._versions = cache, versions or {}
        # Whole shards are fetched where a pass goes through them one by one, single videos where it jumps about.
        self.fetch_whole = False

    @classmethod
    def open(cls, where: str | Path, *, cache: Cache | None = None) -> Shards:
        """A pack, or a folder of tar files, or one of them; on this machine or at an address.

        Args:
            where: folder, tar file or address; `{000..127}` in an address stands for many.
            cache: for what comes from other machines; without, a folder of the user's and 20 GB.

        Raises:
            NetworkError: it cannot be reached.
            UserError: there are no shards, or they are not whole.
        """
        if is_url(where):
            return cls._open_address(str(where), cache)
        path = Path(where).expanduser().absolute()
        if (path / MANIFEST).is_file():
            about = _manifest((path / MANIFEST).read_bytes(), str(path / MANIFEST))
            for shard in about["shards"]:
                _check_size(path / shard["name"], shard["bytes"])
            _check_index(path / INDEX, about["index"]["sha256"])
            return cls(path, _entries(path / INDEX), about=about)
        if (path / WORKSHOP).is_dir():
            raise UserError(
                f'the pack "{where}" is not finished.', "Give its `stmae pack` again: it goes on where it stood."
            )
        root = path if path.is_dir() else path.parent
        names = _tars_below(path) if path.is_dir() else [path.name]
        if not names:
            raise UserError(f'"{where}" holds no tar files.', "Pack a folder of videos with `stmae pack`.")
        return cls(root, _foreign(root, names))

    @classmethod
    def _open_address(cls, url: str, cache: Cache | None) -> Shards:
        if url.lower().partition("?")[0].endswith(".tar"):
            root, names = _expanded(url)
            return cls.open_tars(root, [RemoteFile(name, 0, "") for name in names], cache)
        try:
            return cls.open_pack(url, cache)
        except MissingError:
            tars = [file for file in list_files(url) if file.name.lower().endswith(".tar")]
        if not tars:
            raise UserError(f'"{url}" holds no tar files.', "Pack a folder of videos with `stmae pack`.")
        return cls.open_tars(url, tars, cache)

    @classmethod
    def open_pack(cls, url: str, cache: Cache | None) -> Shards:
        """A pack of ours at an address. Raises MissingError where there is none."""
        cache = cache or usual_cache()
        about = _manifest(read_bytes(join_url(url, MANIFEST)), join_url(url, MANIFEST))
        mark = about["index"]["sha256"]
        entries = _entries(cache.fetch_index(join_url(url, INDEX), version=mark, size=about["index"]["bytes"]))
        versions = {shard["name"]: shard["sha256"] for shard in about["shards"]}
        return cls(url.rstrip("/"), entries, about=about, cache=cache, versions=versions)

    @classmethod
    def open_tars(cls, root: str, tars: list[RemoteFile], cache: Cache | None) -> Shards:
        """Tar files below an address, listed by reading their headers once; the index is kept in the cache's folder."""
        cache = cache or usual_cache()
        versions = {tar.name: tar.version for tar in tars}
        return cls(root, _foreign_remote(root, tars, versions, cache), cache=cache, versions=versions)

    def __len__(self) -> int:
        return len(self.entries) if self._items is None else len(self._items.array)

    def name(self, item: int) -> str:
        """The video's path in the source that was packed; a segment of it ends in ``#t=start,end``."""
        return self.entries.name[self.row(item)]

    def label(self, item: int) -> str | None:
        """The video's class, None without."""
        return self.entries.text("label", self.row(item))

    def media(self, item: int) -> Media:
        """Where the video's bytes lie on this machine; fetched first if they lie elsewhere.

        Raises:
            DecodeError: it could not be read when it was packed.
            NetworkError: it cannot be fetched.
        """
        row = self.row(item)
        name, ending = self.entries.name[row], self.entries.text("ending", row) or ""
        reason = self.entries.text("reason", row)
        if reason is not None:
            from stmae.data.container import DecodeError

            raise DecodeError(name, reason)
        # What lay inside a file with others is one of its own here.
        name = name if name.lower().endswith(ending) else name.replace(INSIDE, "/") + ending
        shard = cast(str, self.entries.text("shard", row))
        offset, size, known = (
            int(column[row]) for column in (self.entries.offset, self.entries.size, self.entries.crc)
        )
        crc = None if known < 0 else known
        if self._cache is None:
            return Media(name, self.root / Path(shard), offset, size, crc)
        url, version = join_url(str(self.root), shard), self._versions.get(shard, "")
        if self.fetch_whole:
            return Media(name, self._cache.fetch(url, version=version), offset, size, crc)
        return Media(name, self._cache.fetch_range(url, offset, size, ending=ending, version=version), crc=crc)

    @property
    def names(self) -> Names:
        """The names of all items."""
        return self.entries.name if self._items is None else self.entries.name.part(self._items.array)

    def part(self, items: Sequence[int] | np.ndarray) -> Shards:
        """A source of some of the videos, in this order."""
        rows = np.asarray(items, np.int64)
        return self.at_rows(rows if self._items is None else self._items.array[rows])

    @property
    def blocks(self) -> np.ndarray:
        """int32 (n,): the number of the shard that each video lies in."""
        return self.entries.shard if self._items is None else self.entries.shard[self._items.array]

    @property
    def rows(self) -> np.ndarray:
        """int64 (n,): the row of each video in the pack's table."""
        return np.arange(len(self.entries)) if self._items is None else self._items.array

    def at_rows(self, rows: np.ndarray) -> Shards:
        """A source of the videos in these rows of the pack's table."""
        part = Shards(self.root, self.entries, about=self.about, items=rows, cache=self._cache, versions=self._versions)
        part.fetch_whole = self.fetch_whole
        return part

    def row(self, item: int) -> int:
        """The item's row in `entries`."""
        return item if self._items is None else int(self._items.array[item])


def _manifest(text: bytes, where: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
        version = int(about["version"])
        shards = [(str(shard["name"]), int(shard["bytes"])) for shard in about["shards"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f'"{where}" is not the description of a pack.', "Pack the videos again.") from None
    if version > VERSION:
        raise UserError(
            f'"{where}" has the version {version}; this stmae reads up to {VERSION}.',
            "Upgrade it: pip install -U stmae",
        )
    assert len(shards) == len(about["shards"])
    return cast(dict[str, Any], about)


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise UserError(f'"{path}" cannot be read: {error.strerror}.', "Bring it back, or pack again.") from None
    if found != size:
        raise UserError(f'"{path}" has {found:,} bytes instead of {size:,}.', "Copy it again, or pack again.")


def _check_index(path: Path, sha256: str) -> None:
    """An index that was changed would have wrong bytes taken for videos."""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # `_entries` says why it cannot be read
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise UserError(f'"{path}" is not the index of this pack.', "Copy it again, or pack again.")


def _entries(path: Path) -> Entries:
    try:
        return Entries.open(path)
    except OSError as error:
        raise UserError(f'"{path}" cannot be read: {error.strerror}.', "Bring it back, or pack again.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'"{path}" {error}.', "Copy it again, or pack again.") from None


def _tars_below(folder: Path) -> list[str]:
    found, seen = list[str](), set[str]()
    for inside, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(inside)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:  # else a link to a folder that was looked through
            tars = [name for name in names if name.lower().endswith(".tar") and not name.startswith(".")]
            found += [os.path.relpath(os.path.join(inside, name), folder).replace(os.sep, "/") for name in tars]
        seen.add(real)
    return sorted(found, key=os.fsencode)


def _foreign(root: Path, names: list[str]) -> Entries:
    """The rows of tar files that have no index: read from their headers once, then kept beside them."""
    statuses = [(name, os.stat(root / name)) for name in names]
    marks = [(name, status.st_size, status.st_mtime_ns) for name, status in statuses]
    file = f".stmae-index-{_digest(marks)}.safetensors"
    for folder in (root, default_cache() / "indexes"):
        with contextlib.suppress(OSError, ValueError):
            return Entries.open(folder / file)

    def opened() -> Iterator[tuple[str, list[Member]]]:
        for name in names:
            with open(root / name, "rb") as tar:
                yield name, _listed(tar, str(root / name))

    entries = _gathered(opened())
    for folder in (root, default_cache() / "indexes"):
        with contextlib.suppress(OSError):
            return _kept(folder, file, entries)
    return entries


def _kept(folder: Path, file: str, entries: Entries) -> Entries:
    """Writes an index, whole or not at all, and maps it."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{file}.{os.getpid()}"
    temporary.write_bytes(entries.to_bytes())
    os.replace(temporary, folder / file)
    return Entries.open(folder / file)


def _listed(tar: BinaryIO, where: str) -> list[Member]:
    try:
        return list(members(tar))
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f'"{where}" is no whole tar file: {error}.', "Copy it again; if it is compressed, unpack it (gzip -d)."
        ) from None


def _gathered(shards: Iterator[tuple[str, list[Member]]]) -> Entries:
    rows = EntriesBuilder()
    for shard, found in shards:
        for member in found:
            # Only a name that the shard states itself is one of the whole set: others are told apart by their shard.
            name = member.name if member.stated else f"{shard}/{member.name}"
            rows.add(
                name=name, shard=shard, offset=member.offset, size=member.size, ending=member.ending,
                label=member.label, start=member.start, end=member.end,
            )  # fmt: skip
    if not len(rows):
        raise UserError("the tar files hold no videos, images or arrays.", "Name them by their kind, such as 0001.mp4.")
    return rows.build()


def _digest(marks: object) -> str:
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]


def _expanded(url: str) -> tuple[str, list[str]]:
    """`https://host/a-{00..11}.tar` as its folder and the names in it."""
    names = [url]
    while (braces := _BRACES.search(names[0])) is not None:
        first, last = braces.groups()
        numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
        names = [name.replace(braces[0], number, 1) for name in names for number in numbers]
    root = url.partition("{")[0].rpartition("/")[0]
    return root, [name.removeprefix(root).lstrip("/") for name in names]


def _foreign_remote(root: str, tars: list[RemoteFile], versions: dict[str, str], cache: Cache) -> Entries:
    folder = cache.folder / "indexes"
    file = f"{_digest([root, *versions.items()])}.safetensors"
    with contextlib.suppress(OSError, ValueError):
        return Entries.open(folder / file)

    def listed(tar: RemoteFile) -> list[Member]:
        url = join_url(root, tar.name)
        return _listed(cast(BinaryIO, RemoteRange(url)), url)

    with ThreadPoolExecutor(READERS) as threads:
        found = zip((tar.name for tar in tars), threads.map(listed, tars), strict=True)
        entries = _gathered(found)
    with contextlib.suppress(OSError):
        entries = _kept(folder, file, entries)
    return entries
