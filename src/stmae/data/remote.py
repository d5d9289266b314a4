"""Reads files from elsewhere: http, s3, gs and whatever fsspec knows; tries again when the network fails."""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import os
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, TypeVar

from stmae.errors import UserError

WAITS = (0.1, 0.5, 2.0, 5.0, 10.0, 20.0)  # seconds before each new try
TIMEOUT = 30.0  # seconds without an answer
CHUNK = 1 << 20  # bytes
WINDOW = 1 << 14  # bytes read at least, where a file is read piece by piece

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}

T = TypeVar("T")


class NetworkError(UserError):
    """Something could not be read over the network, though tried again and again: never a fault of the file."""


class MissingError(NetworkError):
    """The server answers that there is no such file."""


def is_url(text: object) -> bool:
    """Whether a text names something on another machine, such as s3://bucket/videos."""
    return isinstance(text, str) and _URL.match(text) is not None


def join_url(folder: str, name: str) -> str:
    """The address of a file in a folder; a name that is an address itself stays what it is."""
    return name if is_url(name) else f"{folder.rstrip('/')}/{name}"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a listing: its name below the folder, its bytes, and a text that changes when its content does."""

    name: str
    size: int
    version: str


def read_bytes(url: str) -> bytes:
    """A small file as it is now, past the cache. Raises NetworkError."""

    def load() -> bytes:
        out = io.BytesIO()
        download(url, out, None, None)
        return out.getvalue()

    return retried(load)


class RemoteRange(io.RawIOBase):
    """A file at an address, read piece by piece past the cache: for the headers of a tar file.

    Raises:
        NetworkError: when it is opened or read.
    """

    def __init__(self, url: str) -> None:
        self.name = url
        self._place = 0
        self._window, self._window_begin = b"", 0
        self._size = retried(lambda: _size(url))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._place)
        size = left if size is None or size < 0 else min(size, left)
        inside = self._place - self._window_begin
        if inside < 0 or inside + size > len(self._window):
            out = io.BytesIO()
            many = min(max(size, WINDOW), left)
            retried(functools.partial(afresh, out, lambda out: download(self.name, out, self._place, many)))
            self._window, self._window_begin, inside = out.getvalue(), self._place, 0
        self._place += size
        return self._window[inside : inside + size]


def _size(url: str) -> int:
    with _answers(url):
        if _scheme(url) not in ("http", "https"):
            files, path = _filesystem(url)
            return int(files.info(path)["size"])
        with urllib.request.urlopen(_request(url, "HEAD"), timeout=TIMEOUT) as answer:
            return int(answer.headers["Content-Length"])


def list_files(folder: str) -> list[RemoteFile]:
    """The files under an address, at any depth, sorted by the bytes of their names.

    Raises:
        NetworkError: it cannot be listed.
    """
    if _scheme(folder) in ("http", "https"):
        from stmae.data.listings import list_pages

        return list_pages(folder)

    def load() -> list[RemoteFile]:
        with _answers(folder):
            files, path = _filesystem(folder)
            found = (
                files.find(path, detail=True, refresh=True)
                if _scheme(folder) == "s3"
                else files.find(path, detail=True)
            )
            below = path.rstrip("/") + "/"
            return [
                RemoteFile(name.removeprefix(below).lstrip("/"), int(about["size"]), _version(about))
                for name, about in found.items()
                if about.get("type", "file") == "file"
            ]

    return sorted(retried(load), key=lambda file: os.fsencode(file.name))


def _version(about: dict[str, Any]) -> str:
    marks = (about.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "updated", "created"))
    return f"{about.get('size')} {next((mark for mark in marks if mark), '')}"


def afresh(out: BinaryIO, download: Callable[[BinaryIO], None]) -> None:
    out.seek(0)
    out.truncate()
    download(out)


def retried(load: Callable[[], T]) -> T:
    """What `load` returns, tried again after growing pauses while the network fails.

    Raises:
        NetworkError
    """
    for wait in (*WAITS, None):
        try:
            return load()
        except _Failed as error:
            if wait is None:
                tries = len(WAITS) + 1
                raise NetworkError(
                    f'"{error.url}" cannot be read: {error.reason} ({tries} tries in {sum(WAITS):.0f} s).',
                    "Check the network and the address, and give the command again: it goes on where it stood.",
                ) from None
            time.sleep(wait * (0.5 + random.random()))  # not all processes at once
    raise AssertionError


class _Failed(Exception):
    """One try failed in a way that another may not."""

    def __init__(self, url: str, reason: str) -> None:
        self.url, self.reason = url, reason
        super().__init__(url, reason)


@contextlib.contextmanager
def _answers(url: str) -> Iterator[None]:
    """Sorts what may go wrong into what is final (NetworkError) and what is worth another try (_Failed)."""
    try:
        yield
    except (NetworkError, _Failed):
        raise
    except (ImportError, ValueError) as error:
        # fsspec knows the protocol but not its package, or does not know it.
        package = _PACKAGES.get(_scheme(url))
        cure = f"pip install {package}" if package else "Use an address that fsspec knows, such as s3:// or https://."
        raise NetworkError(f'"{url}" cannot be read: {error}.', cure) from None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise MissingError(f'"{url}" does not exist.', "Check the address.") from None
    except PermissionError as error:
        raise NetworkError(
            f'"{url}" may not be read: {error.strerror or error}.', "Give this machine the credentials for it."
        ) from None
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise MissingError(f'"{url}" does not exist (status {error.code}).', "Check the address.") from None
        if error.code in (401, 403):
            raise NetworkError(
                f'"{url}" may not be read (status {error.code}).', "Use an address that needs no log-in, or s3://."
            ) from None
        raise _Failed(url, f"status {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _Failed(url, str(getattr(error.reason, "strerror", None) or error.reason)) from None
    except http.client.HTTPException as error:
        raise _Failed(url, f"broken answer ({type(error).__name__})") from None
    except OSError as error:
        raise _Failed(url, error.strerror or str(error) or type(error).__name__) from None
    except Exception as error:  # clients of object stores raise errors of their own
        raise _Failed(url, f"{type(error).__name__}: {error}") from None


def download(url: str, out: BinaryIO, offset: int | None, size: int | None) -> None:
    """Appends a file, or a range of it, to `out`. Raises NetworkError, _Failed, or OSError if `out` cannot take it."""
    begin = out.tell()
    scheme = _scheme(url)
    for part in _http_parts(url, offset, size) if scheme in ("http", "https") else _parts(url, offset, size):
        out.write(part)
    out.flush()
    if size is not None and out.tell() - begin != size:
        raise _Failed(url, f"{out.tell() - begin} bytes came instead of {size}")


def _request(url: str, method: str = "GET") -> urllib.request.Request:
    """With blanks and letters that addresses do not have written as they have them."""
    quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    return urllib.request.Request(quoted, headers={"User-Agent": "stmae"}, method=method)


def _http_parts(url: str, offset: int | None, size: int | None) -> Iterator[bytes]:
    """The standard library is enough for the web, and needs no package nor threads of its own."""
    with _answers(url):
        request = _request(url)
        if offset is not None:
            assert size is not None
            request.add_header("Range", f"bytes={offset}-{offset + size - 1}")
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    with answer:
        length = answer.headers.get("Content-Length")
        left = int(length) if length else None
        whole = offset is not None and answer.status != 206  # a server that knows no ranges
        skip = offset if whole and offset else 0
        stop = skip + size if whole and size is not None else None
        place = 0
        while stop is None or place < stop:
            with _answers(url):
                part = answer.read(CHUNK)
            if not part:
                break
            cut = part[max(0, skip - place) : None if stop is None else max(0, stop - place)]
            place += len(part)
            if cut:
                yield cut
        if left is not None and stop is None and place != left:
            raise _Failed(url, f"the connection broke after {place} of {left} bytes")


def _parts(url: str, offset: int | None, size: int | None) -> Iterator[bytes]:
    with _answers(url):
        files, path = _filesystem(url)
        if offset is None:
            file: IO[bytes] = files.open(path, "rb", cache_type="none", block_size=8 * CHUNK)
    if offset is not None:
        assert size is not None
        for begin in range(offset, offset + size, 64 * CHUNK):
            with _answers(url):
                part = files.cat_file(path, start=begin, end=min(begin + 64 * CHUNK, offset + size))
            yield part
        return
    with file:
        while True:
            with _answers(url):
                part = file.read(8 * CHUNK)
            if not part:
                return
            yield part


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


@functools.lru_cache(maxsize=64)
def _opened(root: str, process: int) -> Any:
    from fsspec.core import url_to_fs

    return url_to_fs(root)[0]


def _filesystem(url: str) -> tuple[Any, str]:
    """The file system of an address (one per process and host), and its path there."""
    host = "/".join(url.split("/")[:3])
    files = _opened(host, os.getpid())
    return files, files._strip_protocol(url)
