"""What videos there are: a folder of any depth, or tensors; training and held-out part; the list a run keeps."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stmae.errors import UserError

if TYPE_CHECKING:  # scanning a folder, and saying what is wrong with it, must not wait for torch
    import torch

# Whatever holds moving pictures. Still images are left out: they have no motion to learn from.
_ENDINGS = """
264 265 3g2 3gp amv apng asf avi avs divx dv f4v flv gif h261 h263 h264 h265 hevc ivf m1v m2t m2ts m2v m4v
mjpeg mjpg mk3d mkv mng mod mov mp4 mp4v mpe mpeg mpg mpv mts mxf nsv nut ogm ogv ps qt rm rmvb roq swf ts
vob vp8 vp9 webm wmv wtv xvid y4m
"""
VIDEO_EXTENSIONS = frozenset(_ENDINGS.split())


@dataclass(frozen=True)
class Index:
    """The videos of a data set, in a fixed order.

    Attributes:
        root: the folder, absolute.
        paths: relative to `root`, with forward slashes, sorted by their bytes.
    """

    root: Path
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, item: int) -> Path:
        """Where an item lies."""
        return self.root / self.paths[item]


class TensorSource:
    """Clips that are in memory, or come from a PyTorch dataset, and are used as they are.

    Args:
        clips: a tensor (N, C, T, H, W), a list of tensors (C, T, H, W), or a map-style dataset whose items are such
            tensors or tuples that begin with one. uint8, or float if normalised already; any number of channels.

    Raises:
        UserError: no clips, or the first one has another shape or type.
    """

    def __init__(self, clips: Any) -> None:
        if not hasattr(clips, "__getitem__") or not hasattr(clips, "__len__"):
            raise UserError(
                f"{type(clips).__name__} cannot be indexed, so the clips of an epoch cannot be put in order.",
                "Give a tensor (N, C, T, H, W), a list of tensors (C, T, H, W) or a map-style dataset.",
            )
        if len(clips) == 0:
            raise UserError("there are no clips in the data.", "Give at least one.")
        self._clips = clips
        first = self.clip(0)
        self.shape: tuple[int, int, int, int] = tuple(first.shape)  # type: ignore[assignment]
        self.dtype = first.dtype

    def __len__(self) -> int:
        return len(self._clips)

    def clip(self, item: int) -> torch.Tensor:
        """(C, T, H, W), as given."""
        import torch

        entry = self._clips[item]
        clip = torch.as_tensor(entry[0] if isinstance(entry, (tuple, list)) else entry)
        cure = "Every clip must be a tensor (C, T, H, W) of one shape, uint8 or floating-point."
        if clip.ndim != 4:
            raise UserError(f"clip {item} has the shape {tuple(clip.shape)}.", cure)
        if clip.dtype != torch.uint8 and not clip.is_floating_point():
            raise UserError(f"clip {item} holds {clip.dtype}.", cure)
        if item and (tuple(clip.shape), clip.dtype) != (self.shape, self.dtype):
            raise UserError(f"clip {item} is {clip.dtype} {tuple(clip.shape)}, clip 0 {self.dtype} {self.shape}.", cure)
        return clip

    def part(self, items: Sequence[int]) -> TensorSource:
        """A source of some of the clips."""
        from torch.utils.data import Subset

        return TensorSource(Subset(self._clips, items))


Source = Index | TensorSource


def scan(folder: str | Path) -> Index:
    """Finds the video files under a folder, at any depth, by their endings in capitals or not.

    Links are followed; files and folders whose names begin with a dot are not looked at.

    Raises:
        UserError: the folder is missing, is a file, cannot be read, or holds no videos.
    """
    root = _folder(folder)
    paths = sorted(filter(_is_video, _files(root, "", ())), key=os.fsencode)
    if not paths:
        raise _no_videos(folder, root)
    return Index(root, tuple(paths))


def require_videos(folder: str | Path) -> None:
    """Raises what `scan` would raise; stops at the first video, so it takes no time where there are many."""
    root = _folder(folder)
    if not any(map(_is_video, _files(root, "", ()))):
        raise _no_videos(folder, root)


def _is_video(path: str) -> bool:
    return os.path.splitext(path)[1].lower()[1:] in VIDEO_EXTENSIONS


def _folder(folder: str | Path) -> Path:
    root = Path(folder).expanduser().absolute()
    if not root.exists():
        parent = next(parent for parent in root.parents if parent.exists())
        raise UserError(f"{folder} does not exist; {parent} does.", "Give the folder that holds your videos.")
    if not root.is_dir():
        raise UserError(f"{folder} is a file.", f"Give the folder that holds it: {root.parent}")
    return root


def _no_videos(folder: str | Path, root: Path) -> UserError:
    """What there is in place of videos."""
    kinds = Counter(os.path.splitext(path)[1].lower() for path in _files(root, "", ()))
    if not kinds:
        return UserError(f'the folder "{folder}" is empty.', "Give the folder that holds your videos.")
    total = sum(kinds.values())
    met = ", ".join(f"{n} {ending or 'without ending'}" for ending, n in kinds.most_common(5))
    more = ", ..." if len(kinds) > 5 else ""
    return UserError(
        f"{folder} holds no videos, only {total} file{'s' * (total > 1)}: {met}{more}.",
        "Videos are known by their endings, such as .mp4, .mkv, .webm, .avi or .mov.",
    )


def _files(root: Path, inside: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
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
            yield from _files(root, f"{inside}{entry.name}/", (*above, here))
        elif entry.is_file():
            yield inside + entry.name


def split(source: Source, holdout: float) -> tuple[Source, Source]:
    """Parts the items into training and held-out ones.

    A hash of an item's path alone decides, so new files never move old ones. (Except that training keeps at least one
    item and, with two items or more and `holdout` above 0, so does the other part.)

    Args:
        source: all items.
        holdout: the held-out share, in [0, 1).
    """
    names = source.paths if isinstance(source, Index) else [str(item) for item in range(len(source))]
    ranks = [int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") / 2**64 for name in names]
    held = {item for item, rank in enumerate(ranks) if rank < holdout}
    if holdout > 0 and len(names) >= 2:
        held = held or {ranks.index(min(ranks))}
        held = held - {ranks.index(max(ranks))} if len(held) == len(names) else held
    else:
        held = set()
    rest = [item for item in range(len(names)) if item not in held]
    if isinstance(source, Index):
        parts = (Index(source.root, tuple(source.paths[item] for item in items)) for items in (rest, sorted(held)))
        return next(parts), next(parts)
    return source.part(rest), source.part(sorted(held))


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
    return Index(folder, tuple(named["train"])), Index(folder, tuple(named["holdout"]))


def index_changes(old: Iterable[str], new: Iterable[str]) -> tuple[list[str], list[str]]:
    """The paths that were added and those that were removed, sorted, from two collections of paths."""
    before, after = set(old), set(new)
    return sorted(after - before), sorted(before - after)
