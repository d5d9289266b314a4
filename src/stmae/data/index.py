"""Files under a folder as a source: finding them, and the list that a run keeps of them."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stmae.data.media import Media, kind_of, split_name
from stmae.data.names import Names
from stmae.errors import UserError


@dataclass(frozen=True)
class Index:
    """The files of a data set, in a fixed order.

    Attributes:
        root: the folder, absolute.
        paths: relative to `root`, with forward slashes; packed, whatever sequence of strings was given.
        labels: one per item, an empty one for none; None where nothing but the folders tells.
    """

    root: Path
    paths: Names
    labels: Names | None = None

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
        return label_of(self.paths[item])

    def path(self, item: int) -> Path:
        """Where an item lies."""
        return self.root / split_name(self.paths[item])[0]

    def media(self, item: int) -> Media:
        """Which bytes of which file it is."""
        return Media(self.paths[item], self.path(item))

    def part(self, items: Sequence[int] | np.ndarray) -> Index:
        """An index of some of the items."""
        labels = None if self.labels is None else self.labels.part(items)
        return Index(self.root, self.paths.part(items), labels)


def label_of(name: str) -> str | None:
    """The class folder that an item lies in, None for one in the root."""
    folder, slash, _ = name.partition("/")
    return folder if slash else None


def scan(folder: str | Path) -> Index:
    """Finds the video files under a folder, at any depth, by their endings in capitals or not.

    Links are followed; files and folders whose names begin with a dot are not looked at.

    Raises:
        UserError: the folder is missing, is a file, cannot be read, or holds no videos.
    """
    root = absolute_folder(folder)
    paths = sorted(filter(_is_video, files_below(root)), key=os.fsencode)
    if not paths:
        raise _no_videos(folder, root)
    return Index(root, Names.of(paths))


def require_videos(folder: str | Path) -> None:
    """Raises what `scan` would raise; stops at the first video, so it takes no time where there are many."""
    root = absolute_folder(folder)
    if not any(map(_is_video, files_below(root))):
        raise _no_videos(folder, root)


def _is_video(path: str) -> bool:
    return kind_of(path) == "video"


def absolute_folder(folder: str | Path) -> Path:
    """The folder's absolute path.

    Raises:
        UserError: it is missing or is a file.
    """
    root = Path(folder).expanduser().absolute()
    if not root.exists():
        parent = next(parent for parent in root.parents if parent.exists())
        raise UserError(f"{folder} does not exist; {parent} does.", "Give the folder that holds your videos.")
    if not root.is_dir():
        raise UserError(f"{folder} is a file.", f"Give the folder that holds it: {root.parent}")
    return root


def _no_videos(folder: str | Path, root: Path) -> UserError:
    """What there is in place of videos."""
    kinds = Counter(os.path.splitext(path)[1].lower() for path in files_below(root))
    if not kinds:
        return UserError(f'the folder "{folder}" is empty.', "Give the folder that holds your videos.")
    total = sum(kinds.values())
    met = ", ".join(f"{n} {ending or 'without ending'}" for ending, n in kinds.most_common(5))
    more = ", ..." if len(kinds) > 5 else ""
    return UserError(
        f"{folder} holds no videos, only {total} file{'s' * (total > 1)}: {met}{more}.",
        "Videos are known by their endings, such as .mp4, .mkv, .webm, .avi or .mov.",
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
        if entry.is_dir():
            yield from files_below(root, f"{inside}{entry.name}/", (*above, here))
        elif entry.is_file():
            yield inside + entry.name


def save_index(path: str | Path, train: Index, holdout: Index) -> None:
    """Writes the list of a run's videos as a CSV with the columns split and path; whole, or not at all.

    The row "root" holds the folder, the others are "train" or "holdout".
    """
    path = Path(path)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("split", "path"))
    writer.writerow(("root", str(train.root)))
    writer.writerows(("train", name) for name in train.paths)
    writer.writerows(("holdout", name) for name in holdout.paths)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        # File names are bytes to the system: those that are no UTF-8 must come back as they were.
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_index(path: str | Path, root: str | Path | None = None) -> tuple[Index, Index]:
    """Reads what `save_index` wrote: the training and the held-out videos.

    Args:
        path: of the CSV.
        root: where the videos lie now, if elsewhere.

    Raises:
        UserError: the file cannot be read or is no such list.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = [tuple(row) for row in csv.reader(file)]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    named: dict[str, list[str]] = {"root": [], "train": [], "holdout": []}
    for number, row in enumerate(rows):
        if number == 0 and row == ("split", "path"):
            continue
        if number == 0 or len(row) != 2 or row[0] not in named:
            raise UserError(f"{path}, line {number + 1} is no row of split and path.", "Write it with save_index().")
        named[row[0]].append(row[1])
    if len(named["root"]) != 1:
        raise UserError(f"{path} does not say in which folder the videos lie.", "Write it with save_index().")
    folder = Path(root).expanduser().absolute() if root is not None else Path(named["root"][0])
    return Index(folder, Names.of(named["train"])), Index(folder, Names.of(named["holdout"]))


def index_changes(old: Iterable[str], new: Iterable[str]) -> tuple[list[str], list[str]]:
    """The paths that were added and those that were removed, sorted, from two collections of paths."""
    before, after = set(old), set(new)
    return sorted(after - before), sorted(before - after)
