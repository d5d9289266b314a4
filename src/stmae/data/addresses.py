"""Sources on other machines: what an address names is told by its ending, and by what is found there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from stmae.data.cache import Cache
from stmae.data.index import MEDIA, Index
from stmae.data.lists import Listed, is_list, read_list
from stmae.data.media import kind_of
from stmae.data.names import Names
from stmae.data.remote import MissingError, is_url, list_files, read_bytes
from stmae.data.shards import Shards
from stmae.errors import UserError


def open_address(
    url: str,
    *,
    cache: Cache | None,
    media: Sequence[str] = (),
    subset: str = "train",
    label_map: str | Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Index | Shards:
    """A pack, tar files, a list, a single file or a folder of files at an address.

    Args:
        url: `{000..127}` in it stands for many tar files.
        cache: for what is fetched; without, a folder of the user's.
        media, subset, label_map, say: as for `opening.open_source`.

    Raises:
        NetworkError: it cannot be reached, or cannot be listed.
        UserError: there is nothing to learn from.
    """
    folder, _, name = url.partition("?")[0].rpartition("/")
    if name.lower().endswith(".tar"):
        return Shards.open(url, cache=cache)
    if is_list(Path(name)):
        return remote_index(folder, _read_list(url, subset, label_map), cache)
    if kind_of(name) is not None:
        return Index(folder, Names.of([name]), cache=cache)
    try:
        return Shards.open_pack(url, cache)
    except MissingError:
        files = list_files(url)
    if "frames" in media:
        raise UserError(
            f'folders of frames cannot be read from an address ("{url}"): each is many small files.',
            "Pack them where they lie: stmae pack FOLDER --media frames --short-side 256 --out SHARDS, and give these.",
        )
    tars = [file for file in files if file.name.lower().endswith(".tar")]
    if tars:
        return Shards.open_tars(url, tars, cache)
    found = [(kind_of(file.name), file.name) for file in files if not _hidden(file.name)]
    kinds = {kind for kind, _ in found}
    taken = list(media) or [next((word for word in MEDIA if MEDIA[word] in kinds), "videos")]
    names = [name for kind, name in found if kind in [MEDIA[word] for word in taken]]
    if not names:
        raise UserError(
            f'"{url}" holds no {" or ".join(taken)}, only {len(files)} other files.',
            "Give the address of videos, of shards or of a list.",
        )
    left = len([kind for kind, _ in found if kind is not None]) - len(names)
    if left:
        say(f"{url}: {left} files of other kinds than {' and '.join(taken)} left out (--media).")
    return Index(url.rstrip("/"), Names.of(names), cache=cache)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def remote_index(folder: str, listed: Listed, cache: Cache | None) -> Index:
    """The files that a list names: addresses, or paths below the address `folder`."""
    labels = listed.labels
    if labels is None and any(map(is_url, listed.paths)):
        labels = [""] * len(listed.paths)  # the first part of an address is no class
    return Index(folder, Names.of(listed.paths), None if labels is None else Names.of(labels), cache)


def _read_list(url: str, subset: str, label_map: str | Path | None) -> Listed:
    """A list at an address."""
    name = url.partition("?")[0].rpartition("/")[2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(read_bytes(url))
        try:
            return read_list(path, subset=subset, label_map=label_map)
        except UserError as error:
            problem, cure = error.problems[0]
            raise UserError(problem.replace(str(path), url), cure) from None
