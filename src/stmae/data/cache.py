"""A bounded cache on the local disk for files from elsewhere, shared by any number of processes.

    fetch(url), fetch_range(url, offset, size)  ->  a local file with exactly those bytes

What comes back can be read until a good many more files have been fetched: the newest ones of each process are held
against eviction by a shared lock, which the system lets go of however the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stmae.data.remote import afresh, download, retried
from stmae.errors import UserError

HELD = 64  # newest files of a process that are not evicted,
HELD_BYTES = 64 * 2**20  # as long as they take no more than this: of whole shards just the newest
HELD_SURELY = 4
ROOM = 0.9  # share of the cache that is left full by an eviction
SIZE = 20 * 10**9  # bytes of a cache where nothing is said
STALE = 3600.0  # seconds after which an unfinished download belongs to nobody


def default_cache() -> Path:
    """Where files are kept when nothing else is said."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stmae"


@dataclass(frozen=True)
class Cache:
    """Files from elsewhere, kept on the local disk; the least recently used ones make room for new ones.

    Any number of processes share it. Pickles as two values.

    Attributes:
        folder: where the files are kept; made if missing.
        size: bytes that it may take. What is being read is never removed, so it may be more for a moment.
    """

    folder: Path
    size: int

    def fetch(self, url: str, *, version: str = "", size: int | None = None) -> Path:
        """A whole file.

        Args:
            url: its address.
            version: anything that changes with the file's content.
            size: its bytes, if known.

        Raises:
            NetworkError: it cannot be had.
            UserError: it cannot be kept.
        """
        ending = os.path.splitext(url.partition("?")[0])[1]
        return self._kept(f"{url}\n{version}", ending, lambda out: download(url, out, None, size))

    def fetch_range(self, url: str, offset: int, size: int, *, ending: str = "", version: str = "") -> Path:
        """`size` bytes of a file from `offset` on, as a file whose name ends in `ending`. Raises as `fetch` does."""
        what = f"{url}\n{version}\n{offset}+{size}"
        return self._kept(what, ending, lambda out: download(url, out, offset, size))

    def fetch_index(self, url: str, *, version: str, size: int) -> Path:
        """A file that stays in the cache for good. Raises as `fetch` does."""
        path = self.folder / "indexes" / f"{version}{os.path.splitext(url)[1]}"
        if not path.exists():
            fetched = self.fetch(url, version=version, size=size)
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            shutil.copyfile(fetched, temporary)
            os.replace(temporary, path)
        return path

    def _kept(self, what: str, ending: str, load: Callable[[BinaryIO], None]) -> Path:
        digest = hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()
        ending = ending if re.fullmatch(r"\.[A-Za-z0-9]{1,10}", ending) else ""
        path = self.folder / digest[:2] / f"{digest[2:34]}{ending}"
        try:
            if _hold(path):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            # One process loads, others that want the same wait. (256 locks for all files: they need no tidying.)
            with _locked(path.parent / "lock"):
                while not _hold(path):
                    self._load(path, load)
        except OSError as error:
            raise UserError(
                f'the cache "{self.folder}" cannot be written: {error.strerror or error}.',
                "Choose another folder for it (--cache), or let it take less space (--cache-size).",
            ) from None
        return path

    def _load(self, path: Path, load: Callable[[BinaryIO], None]) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with open(temporary, "wb") as out:
                retried(functools.partial(afresh, out, load))
                added = out.tell()
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        _hold(path)
        self._make_room(added)

    def _make_room(self, added: int) -> None:
        """Counts a new file, and removes old ones if the cache has grown too large."""
        with _locked(self.folder / "lock"):
            count = self.folder / "bytes"
            try:
                total = int(count.read_text()) + added
            except (OSError, ValueError):
                total = self.size + 1  # not counted yet, or by halves: look
            if total > self.size:
                total = self._evict()
            count.write_text(str(total))

    def _evict(self) -> int:
        """Removes the least recently used files; returns the bytes that are left."""
        found: list[tuple[float, int, str]] = []
        for folder in os.scandir(self.folder):
            if not folder.is_dir() or len(folder.name) != 2:
                continue  # indexes stay: they are mapped all the time, and small
            for entry in os.scandir(folder.path):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    if entry.name.startswith(".") and time.time() - status.st_mtime > STALE:
                        os.unlink(entry.path)
                    elif entry.name != "lock":
                        found.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        if total <= self.size:
            return total
        for _, size, path in sorted(found):
            if total <= ROOM * self.size:
                break
            if not os.path.basename(path).startswith(".") and _unlink_unless_held(path):
                total -= size
        return total


def usual_cache() -> Cache:
    """The cache where nothing is said."""
    return Cache(default_cache(), SIZE)


# The newest files of this process by path, each open and under a shared lock.
_held: OrderedDict[Path, int] = OrderedDict()
_held_lock = threading.Lock()


def _hold(path: Path) -> bool:
    """Keeps a file from eviction for a while and notes its use; returns whether it is there."""
    with _held_lock:
        file = _held.pop(path, None)
        if file is None:
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return False
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(file, fcntl.LOCK_SH)
        try:
            with contextlib.suppress(PermissionError):  # another user's
                os.utime(path)
            gone = os.stat(path).st_ino != os.fstat(file).st_ino
        except FileNotFoundError:
            gone = True
        if gone:  # it was removed between opening and locking, or by hand
            os.close(file)
            return False
        _held[path] = file
        sizes = [os.fstat(each).st_size for each in _held.values()]
        while len(_held) > HELD or (len(_held) > HELD_SURELY and sum(sizes) > HELD_BYTES):
            os.close(_held.popitem(last=False)[1])
            del sizes[0]
        return True


def _unlink_unless_held(path: str) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        with contextlib.suppress(FileNotFoundError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:  # file systems without locks: what this process holds is known
                if Path(path) in _held:
                    return False
            os.unlink(path)
    finally:
        os.close(file)
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "ab") as file:
        with contextlib.suppress(OSError):  # file systems without locks: a file is loaded twice at worst
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
