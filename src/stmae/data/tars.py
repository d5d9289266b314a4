"""Tar files as shards: writes members that every tar program and WebDataset read, and lists those of any tar file."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from stmae.data.media import kind_of

BLOCK = 512  # bytes: the unit of tar files
END = bytes(2 * BLOCK)  # what a tar file ends with
MAX_TEXT = 1 << 20  # bytes of a label or description that is read


@dataclass(frozen=True)
class Member:
    """One video of a shard.

    Attributes:
        name: the path it had in its source, if the shard says so, else its name in the shard.
        ending: of its name in the shard, with the dot.
        offset, size: of its bytes in the shard.
        stated: whether the shard says which path it had.
        label: class name or number; None without.
        start, end: seconds of the original; NaN where unknown.
    """

    name: str
    ending: str
    offset: int
    size: int
    stated: bool
    label: str | None
    start: float = float("nan")
    end: float = float("nan")


def header(name: str, size: int) -> bytes:
    """A member's header. Nothing in it tells when, where and by whom it was written: same content, same shard."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """What follows a member of `size` bytes."""
    return bytes(-size % BLOCK)


def small(name: str, content: bytes) -> bytes:
    """A whole member."""
    return header(name, len(content)) + content + padding(len(content))


def members(file: BinaryIO) -> Iterator[Member]:
    """The videos, images and arrays of a tar file, in its order, with what WebDataset's neighbours say of them.

    Files that share everything before the first dot of their name are one sample: `x.mp4` with the label in `x.cls`
    or under "label" in `x.json`, where "path", "start" and "end" are understood as well. Of several videos in a
    sample each counts.

    Raises:
        tarfile.TarError: it is none, or damaged.
        EOFError: it is cut off.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    found: list[tuple[str, int, int]] = []
    about: dict[str, Any] = {}
    current = None
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
            if not info.isreg() or info.name.rpartition("/")[2].startswith("."):
                continue
            if info.offset_data + info.size > length:
                raise EOFError(f"ends within {info.name}")
            key, ending = split_key(info.name)
            if key != current:
                yield from _sample(found, about)
                current, found, about = key, [], {}
            if ending in (".json", ".cls") and info.size <= MAX_TEXT:
                about |= _described(tar, info, ending)
            elif kind_of(info.name):
                found.append((info.name, info.offset_data, info.size))
    yield from _sample(found, about)


def split_key(name: str) -> tuple[str, str]:
    """WebDataset's key and ending of a member: they meet at the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return folder + slash + stem, dot + ending


def _described(tar: tarfile.TarFile, info: tarfile.TarInfo, ending: str) -> dict[str, Any]:
    file = tar.extractfile(info)
    assert file is not None
    text = file.read()
    if ending == ".cls":
        return {"cls": text.decode("utf-8", "replace").strip()}
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return {key: content[key] for key in _KNOWN if key in content} if isinstance(content, dict) else {}


_KNOWN = ("path", "label", "start", "end")


def _sample(found: list[tuple[str, int, int]], about: dict[str, Any]) -> Iterator[Member]:
    label = about.get("label", about.get("cls"))
    label = str(label) if isinstance(label, str | int | float) and label != "" else None
    path = about.get("path") if len(found) == 1 else None
    path = path if isinstance(path, str) and path else None
    start, end = (
        float(v) if isinstance(v := about.get(key), int | float) else float("nan") for key in ("start", "end")
    )
    for name, offset, size in found:
        dot = name.rfind(".")
        yield Member(path or name, name[dot:].lower(), offset, size, path is not None, label, start, end)
