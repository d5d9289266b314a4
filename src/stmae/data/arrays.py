"""Arrays as clips: NumPy, HDF5 and TIFF files; grey, colour, depth or any channels, of any type of number.

What the axes are goes by their number and lengths (TIFF files say it themselves):

    (H, W)          one grey frame
    (T, H, W)       grey frames
    (T, H, W, C)    the last axis has at most 16 entries
    (T, C, H, W)    else, the second axis has
    (C, T, H, W)    else, the first axis has

Arrays have no clock: they are taken as 30 frames a second, so that a stride of 4 is every fourth frame.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmae.data.clips import NOMINAL_FPS
from stmae.data.container import MAX_PIXELS, DecodeError, reasons
from stmae.data.media import Choose, Media, Take
from stmae.data.video import TOLERANCE, Reading
from stmae.errors import UserError

MOST_CHANNELS = 16  # where an axis must be told from rows and columns


@dataclass(frozen=True)
class Frames:
    """An open array.

    Attributes:
        shape: (T, H, W, C).
        dtype: of its numbers.
        read: a frame (H, W, C) by its number.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype
    read: Callable[[int], np.ndarray]


def read_clips(media: Media, clips: int, choose: Choose, take: Take) -> Reading:
    """Gives frames (H, W, C) of the array's own type; arguments as in `media.read_clips`. Frames not wanted are not
    read, where the format allows it.

    Raises:
        DecodeError: it cannot be read, or is no array of pictures.
    """
    with open_frames(media) as frames:
        length = frames.shape[0]
        duration = length / NOMINAL_FPS
        wanted = []
        repeated = []
        for clip in range(clips):
            places = [min(int((float(t) + TOLERANCE) * NOMINAL_FPS), length - 1) for t in choose(clip, duration)]
            wanted += [(place, clip, position) for position, place in enumerate(places)]
            repeated.append(len(set(places)) < len(places))
        shown, pixels = -1, np.empty(0)
        for place, clip, position in sorted(wanted):
            if place != shown:
                with reasons(media, f"frame {place} cannot be read"):
                    shown, pixels = place, np.array(frames.read(place), order="C")  # a copy: mapped ones are read-only
            take(clip, position, pixels)
    return Reading(duration, repeated)


@contextlib.contextmanager
def open_frames(media: Media) -> Iterator[Frames]:
    """Opens an array.

    Raises:
        DecodeError: it cannot be read, or is no array of pictures.
    """
    ending = media.name.partition("::")[0].rpartition(".")[2].lower()
    opener = {"npy": _npy, "npz": _npz, "h5": _hdf5, "hdf5": _hdf5, "tif": _tiff, "tiff": _tiff}[ending]
    with contextlib.ExitStack() as stack:
        with reasons(media, "cannot be opened"):
            if not media.path.is_file():
                raise DecodeError(media, "is not a file")
            array, axes = opener(media, stack)
            frames = _frames(media, array, axes)
        yield frames


def _frames(media: Media, array: Any, axes: str) -> Frames:
    """`axes` names those of the array: T, C, Y and X in their order."""
    if array.dtype.kind not in "buif":
        raise DecodeError(media, f"holds {array.dtype}, not numbers")
    size = dict(zip(axes, array.shape, strict=True))
    shape = (size.get("T", 1), size["Y"], size["X"], size.get("C", 1))
    if min(shape) < 1:
        raise DecodeError(media, f"is empty: {array.shape}")
    if shape[1] * shape[2] > MAX_PIXELS:
        raise DecodeError(media, f"has frames of {shape[2]} x {shape[1]} pixels, more than {MAX_PIXELS}")
    time, rest = axes.find("T"), axes.replace("T", "")
    turned = [rest.index(axis) for axis in ("YXC" if "C" in rest else "YX")]

    def read(place: int) -> np.ndarray:
        frame = array if time < 0 else array[(slice(None),) * time + (place,)]
        frame = np.asarray(frame).transpose(turned)
        return frame if "C" in rest else frame[..., None]

    return Frames(shape, np.dtype(array.dtype), read)


def guessed_axes(shape: tuple[int, ...]) -> str:
    """What the axes of an array are (see above): "TYXC", for example.

    Raises:
        ValueError: nothing goes with so many axes, or no axis can be the channels.
    """
    if len(shape) in (2, 3):
        return "TYX"[-len(shape) :]
    if len(shape) != 4:
        raise ValueError(f"has {len(shape)} axes {tuple(shape)}; give (T, H, W) or (T, H, W, C), one clip per array")
    for axis, axes in ((3, "TYXC"), (1, "TCYX"), (0, "CTYX")):
        if shape[axis] <= MOST_CHANNELS:
            return axes
    raise ValueError(f"has no axis of at most {MOST_CHANNELS} channels: {tuple(shape)}; give (T, H, W, C)")


def _npy(media: Media, stack: contextlib.ExitStack) -> tuple[Any, str]:
    with open(media.path, "rb") as file:
        file.seek(media.offset)
        shape, fortran, dtype = _header(file)
        begin = file.tell()
    if dtype.hasobject:
        raise DecodeError(media, "holds Python objects, which may run code when loaded")
    # Mapped: only the frames that are wanted are read from the disk.
    return np.memmap(media.path, dtype, "r", begin, shape, "F" if fortran else "C"), guessed_axes(shape)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array that an open .npy file begins with."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _npz(media: Media, stack: contextlib.ExitStack) -> tuple[Any, str]:
    file = stack.enter_context(media.open())
    arrays = stack.enter_context(np.load(file, allow_pickle=False))
    array = arrays[_only(media, npz_names(arrays))]
    return array, guessed_axes(array.shape)


def _hdf5(media: Media, stack: contextlib.ExitStack) -> tuple[Any, str]:
    file = stack.enter_context(
        need("h5py", media).File(media.path if media.whole else stack.enter_context(media.open()), "r")
    )
    array = file[_only(media, hdf5_names(file))]
    return array, guessed_axes(array.shape)


def _tiff(media: Media, stack: contextlib.ExitStack) -> tuple[Any, str]:
    file = stack.enter_context(need("tifffile", media).TiffFile(stack.enter_context(media.open()), name=str(media)))
    series = file.series[0]
    axes = series.axes.replace("S", "C")
    kept = [i for i, n in enumerate(series.shape) if n > 1 or axes[i] in "YX"]
    axes, shape = "".join(axes[i] for i in kept), tuple(series.shape[i] for i in kept)
    others = [axis for axis in axes if axis not in "CYX"]
    if len(others) > 1 or len(set(axes)) < len(axes):
        raise DecodeError(media, f"has the axes {axes} {shape}: one of time at most, and channels, can be read")
    axes = axes.replace(others[0], "T") if others else axes
    if axes in ("TYX", "TYXC") and len(series.pages) == shape[0]:
        return _Pages(series.pages, shape, series.dtype), axes
    return series.asarray().reshape(shape), axes


@dataclass(frozen=True)
class _Pages:
    """A TIFF's pages as an array that reads one when it is asked for."""

    pages: Any
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, place: tuple[int]) -> np.ndarray:
        return self.pages[place[0]].asarray().reshape(self.shape[1:])


def need(module: str, media: Media) -> Any:
    """The library that reads a format.

    Raises:
        UserError: it is not installed. (No bad file: all others of its kind would fail as well.)
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f'"{media}" is read by {module}, which is not installed.', "pip install 'stmae[arrays]'"
        ) from None


def names_in(path: Path) -> list[str]:
    """The names of the arrays in an .npz or HDF5 file; none where it cannot be read, which is said when it is used.

    Raises:
        UserError: h5py is not installed.
    """
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return npz_names(arrays)
        with need("h5py", Media.of(path)).File(path, "r") as file:
            return hdf5_names(file)
    except UserError:
        raise
    except Exception:  # of which there is one for every kind of damage
        return []


def npz_names(arrays: Any) -> list[str]:
    """The names of the arrays of at least two axes in an open .npz file, by their headers alone."""
    names = []
    for member in (name for name in arrays.zip.namelist() if name.endswith(".npy")):
        with arrays.zip.open(member) as file:
            if len(_header(file)[0]) >= 2:
                names.append(member.removesuffix(".npy"))
    return names


def hdf5_names(file: Any) -> list[str]:
    """The names of the arrays of at least two axes in an open HDF5 file, sorted."""
    names: list[str] = []
    file.visititems(lambda name, thing: names.append(name) if len(getattr(thing, "shape", ()) or ()) >= 2 else None)
    return sorted(names)


def _only(media: Media, names: list[str]) -> str:
    """The array that is meant."""
    if media.inside:
        if media.inside not in names:
            raise DecodeError(media, f"holds no array {media.inside}")
        return media.inside
    if len(names) != 1:
        which = f"{len(names)} arrays ({', '.join(names[:3])}, ...)" if names else "no arrays"
        raise DecodeError(media, f"holds {which}; name one: {media.name}::{names[0] if names else 'name'}")
    return names[0]
