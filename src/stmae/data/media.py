"""One item of a data set: which bytes of which file, and who reads them: the video, image or array reader."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

if TYPE_CHECKING:
    import numpy as np

    from stmae.data.video import Reading

# Whatever holds moving pictures.
_VIDEOS = """
264 265 3g2 3gp amv apng asf avi avs divx dv f4v flv gif h261 h263 h264 h265 hevc ivf m1v m2t m2ts m2v m4v
mjpeg mjpg mk3d mkv mng mod mov mp4 mp4v mpe mpeg mpg mpv mts mxf nsv nut ogm ogv ps qt rm rmvb roq swf ts
vob vp8 vp9 webm wmv wtv xvid y4m
"""
VIDEO_EXTENSIONS = frozenset(_VIDEOS.split())
_IMAGES = "avif bmp jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm webp"
IMAGE_EXTENSIONS = frozenset(_IMAGES.split())
_ARRAYS = "h5 hdf5 npy npz tif tiff"
ARRAY_EXTENSIONS = frozenset(_ARRAYS.split())

Kind = Literal["video", "image", "array", "frames"]
SEGMENT = "#t="
VERIFIED = 2**24  # bytes: of what is larger, the checksum is looked at by `stmae check` and `stmae pack` alone
INSIDE = "::"  # "file.h5::group/clip" is one array of several in a file

Choose = Callable[[int, float], "Sequence[float] | np.ndarray"]
Take = Callable[[int, int, "np.ndarray"], None]


def kind_of(name: str) -> Kind | None:
    """What a file is by its name's ending, in capitals or not; None for what is none of ours.

    A name that ends in a slash is a folder with the frames of one video.
    """
    if name.endswith("/"):
        return "frames"
    ending = os.path.splitext(split_name(name)[0])[1].lower()[1:]
    if ending in VIDEO_EXTENSIONS:
        return "video"
    if ending in IMAGE_EXTENSIONS:
        return "image"
    return "array" if ending in ARRAY_EXTENSIONS else None


def split_name(name: str) -> tuple[str, str]:
    """An item's name as the file's name and what is named inside the file (mostly nothing)."""
    file, _, inside = name.partition(INSIDE)
    ending = os.path.splitext(file)[1].lower()[1:]
    return (file, inside) if inside and ending in ARRAY_EXTENSIONS else (name, "")


def segment_name(name: str, start: float, end: float) -> str:
    """The name of a part of a video, `start` to `end` in seconds, as a media fragment: ``film.mkv#t=20,30``."""
    first, last = (f"{seconds:.3f}".rstrip("0").rstrip(".") for seconds in (start, end))
    return f"{name}{SEGMENT}{first},{last}"


def original_name(name: str) -> str:
    """The name of the video that a segment was cut from; any other name as it is."""
    return name.partition(SEGMENT)[0]


@dataclass(frozen=True)
class Media:
    """Where the bytes of an item lie: in a local file, all of it or a range.

    Attributes:
        name: what people see; its ending tells the kind.
        path: of the file that holds the bytes.
        offset: where they begin.
        size: how many they are; None for all up to the file's end.
        crc: their CRC-32, where it is known what they should be.
    """

    name: str
    path: Path
    offset: int = 0
    size: int | None = None
    crc: int | None = None

    @classmethod
    def of(cls, what: Media | str | Path) -> Media:
        """A file as a whole, or what is a Media already."""
        return what if isinstance(what, Media) else cls(os.fspath(what), Path(what))

    def __str__(self) -> str:
        return str(self.path) if self.whole else f"{self.name} in {self.path}"

    @property
    def bytes(self) -> int:
        """How many there are; of a folder of frames, those of its files. Raises OSError."""
        if self.kind == "frames":
            return sum(entry.stat().st_size for entry in os.scandir(self.path))
        return os.stat(self.path).st_size - self.offset if self.size is None else self.size

    @property
    def whole(self) -> bool:
        """Whether it is a file as a whole."""
        return self.offset == 0 and self.size is None

    @property
    def kind(self) -> Kind:
        """Which reader reads it; what has no known ending is tried as a video."""
        return kind_of(self.name) or "video"

    @property
    def inside(self) -> str:
        """Which array of a file that holds several; else empty."""
        return split_name(self.name)[1]

    def open(self) -> BinaryIO:
        """Its bytes as a file open for reading."""
        if self.whole:
            return open(self.path, "rb")
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(-1 if self.size is None else self.size))

    def verify(self, most: int | None = None) -> None:
        """Holds the bytes against their checksum, if there is one.

        Args:
            most: bytes; what is larger is let through.

        Raises:
            DecodeError: they are not what was packed.
        """
        if self.crc is None:
            return
        from stmae.data.container import DecodeError

        try:
            left = self.bytes
            if most is not None and left > most:
                return
            crc = 0
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                while left and (part := file.read(min(left, 2**20))):
                    left, crc = left - len(part), zlib.crc32(part, crc)
        except OSError as error:
            raise DecodeError(self, f"cannot be opened: {error.strerror}") from None
        if left or crc != self.crc:
            raise DecodeError(
                self, "its bytes are not those that were packed (the checksum differs): copy or pack anew"
            )


def read_clips(media: Media | str | Path, clips: int, choose: Choose, take: Take) -> Reading:
    """Reads several clips of one item in a single pass over it, whatever it is.

    Args:
        media: the item.
        clips: how many.
        choose: gives the times of a clip's frames in seconds, in increasing order, from the clip's number and the
            item's duration. It is asked again, with a smaller duration, if the clip reaches beyond a video's true end.
        take: is given every frame: number of the clip, position in it, pixels (H, W, C), valid during the call only.
            Positions come in order; all of a clip's may come a second time, and then replace the first ones. Videos
            and images give uint8 RGB, arrays what they hold.

    Raises:
        DecodeError: not one picture can be decoded.
    """
    media = Media.of(media)
    media.verify(VERIFIED)
    # Each reader brings a library of its own, which is loaded when it is first needed.
    if media.kind == "video":
        from stmae.data import video

        return video.read_clips(media, clips, choose, take)
    if media.kind == "image":
        from stmae.data import images

        return images.read_clips(media, clips, choose, take)
    if media.kind == "frames":
        from stmae.data import frame_folders

        return frame_folders.read_clips(media, clips, choose, take)
    from stmae.data import arrays

    return arrays.read_clips(media, clips, choose, take)
