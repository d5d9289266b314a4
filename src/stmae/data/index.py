"""Files under a folder as a source, and finding them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np

from stmae.data.media import INSIDE, Kind, Media, kind_of, split_name
from stmae.data.names import Names
from stmae.data.remote import join_url
from stmae.errors import UserError

if TYPE_CHECKING:
    from stmae.data.cache import Cache


@dataclass(frozen=True)
class Index:
    """The files of a data set, in a fixed order.

    Attributes:
        root: the folder, absolute; or its address, a text.
        paths: relative to `root`, with forward slashes; packed, whatever sequence of strings was given.
        labels: one per item, an empty one for none; None where nothing but the folders tells.
        cache: for files at addresses; None for a folder of the user's.
    """

    root: Path | str
    paths: Names
    labels: Names | None = None
    cache: Cache | None = None

    blocks = None  # files lie where they lie

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", Names.of(self.paths))
        if self.labels is not None:
            object.__setattr__(self, "labels", Names.of(self.labels))
            assert len(self.labels) == len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, item: int) -> str:
        """What people see: the path relative to the root."""
        return self.paths[item]

    def label(self, item: int) -> str | None:
        """From the list, else the first folder on the item's path; None where there is neither."""
        if self.labels is not None:
            return self.labels[item] or None
        label = label_of(self.paths[item])
        if label is not None and isinstance(self.root, str) and self.root.startswith("http"):
            return unquote(label)  # names that a web server lists are parts of addresses
        return label

    def path(self, item: int) -> Path:
        """Where an item lies on this machine."""
        assert isinstance(self.root, Path)
        return self.root / split_name(self.paths[item])[0]

    def media(self, item: int) -> Media:
        """Which bytes of which file it is; fetched first if they lie elsewhere.

        Raises:
            NetworkError: it cannot be fetched.
        """
        if isinstance(self.root, str):
            from stmae.data.cache import usual_cache

            url = join_url(self.root, split_name(self.paths[item])[0])
            return Media(self.paths[item], (self.cache or usual_cache()).fetch(url))
        return Media(self.paths[item], self.path(item))

    def part(self, items: Sequence[int] | np.ndarray) -> Index:
        """An index of some of the items."""
        labels = None if self.labels is None else self.labels.part(items)
        return Index(self.root, self.paths.part(items), labels, self.cache)


def label_of(name: str) -> str | None:
    """The class folder that an item lies in, None for one in the root. (A folder of frames is an item itself.)"""
    folder, slash, _ = name.rstrip("/").partition("/")
    return folder if slash else None


MEDIA: dict[str, Kind] = {"videos": "video", "arrays": "array", "images": "image"}  # in the order of preference
FRAMES = "frames"  # of a video, as the pictures in a folder: taken where it is asked for, as they look like any images
FEWEST = 2  # pictures in a folder that are a video


def scan(folder: str | Path, media: Sequence[str] = (), say: Callable[[str], None] = lambda text: None) -> Index:
    """Finds the files under a folder, at any depth, by their endings in capitals or not.

    Links are followed; files and folders whose names begin with a dot are not looked at. The arrays of an HDF5 or .npz
    file that holds several are items of their own, named ``file.h5::array``.

    Args:
        folder: to be looked through.
        media: what to take: "videos", "images", "arrays", "frames" (each folder of pictures is a video); empty for
            videos, or arrays where there are none, or images where there are neither: pictures beside videos are
            thumbnails, as a rule.
        say: is told what was left out.

    Raises:
        UserError: the folder is missing, is a file, cannot be read, or holds none of these.
    """
    root = absolute_folder(folder)
    found: dict[Kind | None, list[str]] = {}
    for path in files_below(root):
        found.setdefault(kind_of(path), []).append(path)
    taken = list(media) or [next((word for word in MEDIA if MEDIA[word] in found), "videos")]
    if FRAMES in taken:
        found["frames"] = _folders(found.pop("image", []))
    paths = [path for word in taken for path in found.get(MEDIA.get(word, "frames"), ())]
    if not paths:
        raise _nothing(folder, root, media)
    others = [word for word in MEDIA if word not in taken and MEDIA[word] in found]
    if others:
        counted = " and ".join(f"{len(found[MEDIA[word]])} {word}" for word in others)
        say(f"{folder}: {counted} left out; --media {' '.join([*taken, *others])} takes them as well.")
    if "arrays" in taken:
        paths = [name for path in paths for name in _arrays_in(root, path)]
    return Index(root, Names.of(sorted(paths, key=os.fsencode)))


def require_media(folder: str | Path, media: Sequence[str] = ()) -> None:
    """Raises what `scan` would raise; stops at the first file that it would take, however many there are."""
    root = absolute_folder(folder)
    kinds = {MEDIA.get(word, "image") for word in media or MEDIA}
    if not any(kind_of(path) in kinds for path in files_below(root)):
        raise _nothing(folder, root, media)


def _folders(pictures: Sequence[str]) -> list[str]:
    """The folders that hold several pictures, as names of items: with a slash at the end."""
    counts = Counter(path.rpartition("/")[0] for path in pictures)
    return [f"{folder or '.'}/" for folder, count in counts.items() if count >= FEWEST]


def _arrays_in(root: Path, path: str) -> list[str]:
    """The names of the arrays in a file: its own, or one for each where there are several."""
    ending = os.path.splitext(path)[1].lower()
    if ending not in (".npz", ".h5", ".hdf5"):
        return [path]
    from stmae.data.arrays import names_in

    names = names_in(root / path)
    return [path] if len(names) < 2 else [f"{path}{INSIDE}{name}" for name in names]


def absolute_folder(folder: str | Path) -> Path:
    """The folder's absolute path.

    Raises:
        UserError: it is missing or is a file.
    """
    root = Path(folder).expanduser().absolute()
    if not os.path.exists(root):
        parent = next(parent for parent in root.parents if os.path.exists(parent))
        raise UserError(f"{folder} does not exist; {parent} does.", "Give the folder that holds your videos.")
    if not root.is_dir():
        raise UserError(f"{folder} is a file.", f"Give the folder that holds it: {root.parent}")
    return root


def _nothing(folder: str | Path, root: Path, media: Sequence[str]) -> UserError:
    """What there is in place of what was looked for."""
    kinds = Counter(os.path.splitext(path)[1].lower() for path in files_below(root))
    if not kinds:
        return UserError(f'the folder "{folder}" is empty.', "Give the folder that holds your videos.")
    total = sum(kinds.values())
    met = ", ".join(f"{n} {ending or 'without ending'}" for ending, n in kinds.most_common(5))
    more = ", ..." if len(kinds) > 5 else ""
    return UserError(
        f"{folder} holds no {' or '.join(media) or 'videos'}, only {total} file{'s' * (total > 1)}: {met}{more}.",
        "Files are known by their endings, such as .mp4, .mkv, .webm, .avi or .mov, .jpg or .png, .npy, .h5 or .tiff.",
    )


def files_below(root: Path, inside: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Relative paths of the files in the folder `inside` of `root`, which lies in the folders `above`."""
    try:
        with os.scandir(root / inside) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
        status = os.stat(root / inside)
    except OSError as error:
        raise UserError(
            f"{root / inside} cannot be read: {error.strerror}.", "Mend its permissions or move it."
        ) from None
    here = (status.st_dev, status.st_ino)
    if here in above:
        return  # a link to a folder that it lies in
    for entry in entries:
        try:
            folder, file = entry.is_dir(), entry.is_file()
        except OSError:  # a link in a ring
            continue
        if folder:
            yield from files_below(root, f"{inside}{entry.name}/", (*above, here))
        elif file:
            yield inside + entry.name
