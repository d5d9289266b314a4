"""From a place in the stream of videos to uint8 clips; what happens to a file that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from stmae.data import clips as choice
from stmae.data.container import DecodeError
from stmae.data.media import Media, read_clips
from stmae.data.order import Kind, Order, Place
from stmae.data.remote import MissingError
from stmae.data.sources import Source, TensorSource, kin
from stmae.data.values import Values
from stmae.errors import Problems, UserError

Sampling = Literal["dense", "segments"]

GATHERED = 2**22  # bytes of frames that are resized together: what a cache holds
MAX_STAND_INS = 50  # unreadable files in a row
KINDRED_STAND_INS = 10  # of them those of the same source or class
NO_VERDICTS: Mapping[int, str] = {}


def _unwatched(item: int) -> None:
    """What `begin` is where nobody wants to know."""


@dataclass(frozen=True)
class BadFile:
    """A file that could not be read, or not to its end.

    Attributes:
        path: of the file.
        reason: in words.
        item: its position in the index.
        used: whether the sound part before the damage was used; else another file stood in.
        verdict: whether it was not read because it had cost several worker processes in this slot (`workers.Verdict`).
    """

    path: str
    reason: str
    item: int
    used: bool = False
    verdict: bool = False


@dataclass
class Sample:
    """The clips taken from one decoding of one video.

    Attributes:
        clips: (R, C, T, H, W), uint8 unless the source is floating-point; in memory it may lie as (R, T, H, W, C).
        keys: int64 (R,), the clips' keys.
        item: position of the video in the index.
        bad: the files that could not be read on the way.
        shrunk: how many clips had to take a smaller stride because the video is short.
        repeated: how many clips show a frame twice because the video has too few.
    """

    clips: torch.Tensor
    keys: torch.Tensor
    item: int
    bad: list[BadFile] = field(default_factory=list)
    shrunk: int = 0
    repeated: int = 0


class _Clips(Dataset[Sample]):
    """What training and evaluation clips share: their shape, and reading them."""

    repeats = 1

    def __init__(
        self,
        source: Source,
        frames: int,
        stride: float,
        image_size: tuple[int, int],
        sampling: Sampling,
        values: Values | None,
    ) -> None:
        self.source, self.frames, self.stride, self.sampling = source, frames, stride, sampling
        self.values = values if values is not None else Values()
        height, width = self.image_size = image_size
        problems = Problems()
        problems.check(frames >= 1, f"frames is {frames}; a clip has at least 1.", "Choose 8 or 16, for example.")
        problems.check(stride > 0, f"stride is {stride}; frames must lie apart in time.", "Choose one above 0.")
        problems.check(min(height, width) >= 1, f"image_size is {image_size}.", "Choose one above 0.")
        if isinstance(source, TensorSource):
            asked, given = (frames, height, width), source.shape[1:]
            cure = f"Ask for frames={given[0]} and image_size={given[1:]}, or make other clips."
            problems.check(
                asked == given, f"clips are (frames, height, width) = {asked} but the data has {given}.", cure
            )
        problems.raise_any()

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Of a slot's clips: (R, C, T, H, W)."""
        channels = self.source.shape[0] if isinstance(self.source, TensorSource) else self.values.channels
        return (self.repeats, channels, self.frames, *self.image_size)

    @property
    def dtype(self) -> torch.dtype:
        """Of the clips."""
        return self.source.dtype if isinstance(self.source, TensorSource) else self.values.dtype

    def _read(self, item: int, keys: list[int], begin: Callable[[int], None] = _unwatched) -> Sample:
        """The clips with these keys from one item.

        Raises:
            DecodeError
        """
        if isinstance(self.source, TensorSource):
            begin(item)
            return self._take(item, keys)
        try:
            media = self.source.media(item)  # may have to be fetched first
        except MissingError as error:
            raise DecodeError(self.source.name(item), "does not exist") from error
        begin(item)
        return self._decode(media, item, keys)

    def _take(self, item: int, keys: list[int]) -> Sample:
        assert isinstance(self.source, TensorSource)
        clip = self.source.clip(item)
        clips = torch.stack([clip.flip(-1) if self._flip(key) else clip for key in keys])
        return Sample(clips, torch.tensor(keys), item)

    def _decode(self, media: Media, item: int, keys: list[int]) -> Sample:
        height, width = self.image_size
        values = self.values
        pixels = torch.empty(len(keys), self.frames, height, width, values.channels, dtype=values.dtype)
        filling: dict[int, _Filling] = {}
        shrunk = [False] * len(keys)

        def choose(clip: int, duration: float) -> np.ndarray:
            chosen = self._times(duration, keys[clip])
            shrunk[clip] = chosen.shrunk
            return chosen.times

        def take(clip: int, position: int, frame: np.ndarray) -> None:
            if clip not in filling:  # all frames of a video come in one size
                box = self._box(keys[clip], frame.shape[0], frame.shape[1])
                filling[clip] = _Filling(pixels[clip], box, self._flip(keys[clip]))
            filling[clip].add(position, values.of(frame, media))

        reading = read_clips(media, len(keys), choose, take)
        bad = [BadFile(self.source.name(item), reading.damage, item, used=True)] if reading.damage else []
        clips = pixels.permute(0, 4, 1, 2, 3)
        return Sample(clips, torch.tensor(keys), item, bad, 0 if reading.still else sum(shrunk), sum(reading.repeated))

    def _times(self, duration: float, key: int) -> choice.ClipTimes:
        raise NotImplementedError

    def _box(self, key: int, height: int, width: int) -> choice.Box:
        raise NotImplementedError

    def _flip(self, key: int) -> bool:
        raise NotImplementedError


class VideoClips(_Clips):
    """Training clips: an endless stream of video slots, each of which gives `repeats` clips of one video.

    Slot s shows the video at place s % n in the order of pass s // n over all n videos (data/order.py). What a slot
    holds depends on nothing but the arguments here. Asked for a slot, the whole order of its pass is worked out;
    worker processes are asked for a `Place` instead, so that only the loader's process holds it.

    Args:
        source: of the videos, or of clips as tensors, which are flipped at most.
        frames: T.
        stride: between frames, in frames of a nominal 30 fps clock.
        image_size: (height, width) in pixels.
        repeats: clips taken from each decoding of a video (repeated sampling).
        seed: of the run.
        crop_area, crop_aspect: of the random resized crop.
        flip: whether half of the clips are mirrored left to right.
        order: of a pass: a permutation of everything, or block by block (of shards).
        sampling: of frames: "dense", a stride apart, or "segments", one from each of T equal parts of the video.
        values: what the pixels of the source are; RGB in uint8 where None.

    Raises:
        UserError: a value that cannot work, or no items.
    """

    def __init__(
        self,
        source: Source,
        *,
        frames: int,
        stride: float,
        image_size: tuple[int, int],
        repeats: int,
        seed: int,
        crop_area: tuple[float, float] = (0.5, 1.0),
        crop_aspect: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
        order: Kind = "global",
        sampling: Sampling = "dense",
        values: Values | None = None,
    ) -> None:
        super().__init__(source, frames, stride, image_size, sampling, values)
        problems = Problems()
        problems.check(len(source) > 0, "there is no video to train on.", "Add some, or hold out fewer.")
        problems.check(repeats >= 1, f"repeats is {repeats}; no clip would be taken.", "Choose 1 to 4.")
        low, high = crop_area
        problems.check(
            0 < low <= high <= 1, f"crop_area is {crop_area}.", "Choose two rising shares above 0, at most 1."
        )
        low, high = crop_aspect
        problems.check(0 < low <= high, f"crop_aspect is {crop_aspect}.", "Choose two rising ratios above 0.")
        problems.raise_any()
        self.repeats, self.seed = repeats, seed
        self.crop_area, self.crop_aspect, self.flip = crop_area, crop_aspect, flip
        self.order = order
        self._order: Order | None = None

    def __len__(self) -> int:
        return len(self._whole_order())  # of one pass; slots go on beyond it

    def place(self, slot: int) -> Place:
        """What a slot shows, whether or not it can be read."""
        return self._whole_order().at(slot)

    def _whole_order(self) -> Order:
        self._order = self._order or Order(self.source, self.seed, self.order)
        return self._order

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_order": None}

    def __getitem__(self, slot: int) -> Sample:
        return self.sample(self.place(slot))

    def sample(
        self,
        place: Place,
        verdicts: Mapping[int, str] = NO_VERDICTS,
        begin: Callable[[int], None] = _unwatched,
    ) -> Sample:
        """The clips of a slot; if its video cannot be read, those of the next readable one in its own chain of keys.

        Args:
            place: what the slot shows, `self.place(slot)`.
            verdicts: items that are bad files in this slot whatever reading them would give, and why.
            begin: is told of each item when its bytes are there and are about to be decoded.

        Raises:
            UserError: too many unreadable videos in a row.
        """
        _, item, pass_ = place
        root, kindred = self.seed, kin(self.source, item)
        bad: list[BadFile] = []
        while len(bad) < MAX_STAND_INS:
            try:
                if item in verdicts:
                    raise DecodeError(self.source.name(item), verdicts[item])
                sample = self._read(item, [choice.clip_key(root, pass_, item, r) for r in range(self.repeats)], begin)
            except DecodeError as error:
                bad.append(BadFile(self.source.name(item), error.reason, item, verdict=item in verdicts))
                # Keys of its own as well: the stand-in must not repeat a clip from its own slot.
                root = choice.next_key(choice.clip_key(root, pass_, item, 0))
                if len(bad) == KINDRED_STAND_INS:  # none of its kind may be sound
                    kindred = range(len(self.source))
                item = kindred[int(choice.uniform(root, choice.ITEM) * len(kindred))]
            else:
                sample.bad[:0] = bad
                return sample
        raise UserError(
            f"{len(bad)} videos in a row could not be read; the last was {bad[-1].path}: {bad[-1].reason}.",
            "Look at the files, and take out those that are no videos.",
        )

    def _times(self, duration: float, key: int) -> choice.ClipTimes:
        if self.sampling == "segments":
            return choice.segment_times(duration, self.frames, key)
        return choice.clip_times(duration, self.frames, self.stride, key)

    def _box(self, key: int, height: int, width: int) -> choice.Box:
        return choice.crop_box(key, height, width, self.crop_area, self.crop_aspect)

    def _flip(self, key: int) -> bool:
        return self.flip and choice.flip(key)


class FixedClips(_Clips):
    """Evaluation clips: of each video the one in the middle, cropped to the centre, never mirrored; one key for ever.

    An unreadable video gives a sample of 0 clips with `bad` set. Arguments as for `VideoClips`.
    """

    def __init__(
        self,
        source: Source,
        *,
        frames: int,
        stride: float,
        image_size: tuple[int, int],
        seed: int = 0,
        sampling: Sampling = "dense",
        values: Values | None = None,
    ) -> None:
        super().__init__(source, frames, stride, image_size, sampling, values)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: int) -> Sample:
        if not 0 <= item < len(self):
            raise IndexError(item)  # ends a for loop over the dataset
        return self.sample(self.place(item))

    def place(self, slot: int) -> Place:
        """Of a slot's item, which has the same number: so that worker processes read these clips as they do others."""
        return Place(slot, slot, 0)

    def sample(
        self,
        place: Place,
        verdicts: Mapping[int, str] = NO_VERDICTS,
        begin: Callable[[int], None] = _unwatched,
    ) -> Sample:
        """The clip of an item; arguments as for `VideoClips.sample`."""
        item = place.item
        try:
            if item in verdicts:
                raise DecodeError(self.source.name(item), verdicts[item])
            return self._read(item, [choice.clip_key(self.seed, -1, item, 0)], begin)
        except DecodeError as error:
            none = torch.empty(0, *self.shape[1:], dtype=self.dtype)
            bad = [BadFile(self.source.name(item), error.reason, item, verdict=item in verdicts)]
            return Sample(none, torch.empty(0, dtype=torch.int64), item, bad)

    def _times(self, duration: float, key: int) -> choice.ClipTimes:
        if self.sampling == "segments":
            return choice.segment_times_at(duration, self.frames, 0.5)
        return choice.times_at(duration, self.frames, self.stride, 0.5)

    def _box(self, key: int, height: int, width: int) -> choice.Box:
        return choice.centre_box(height, width, self.image_size[1] / self.image_size[0])

    def _flip(self, key: int) -> bool:
        return False


class _Filling:
    """Cuts a clip's frames out and resizes several in one call, which takes two thirds of the time of one by one.

    Args:
        out: where they go, (T, height, width, C).
        box: the part of each frame (H, W, C).
        mirrored: left to right.
    """

    def __init__(self, out: torch.Tensor, box: choice.Box, mirrored: bool) -> None:
        self._out, self._box, self._mirrored = out, box, mirrored
        self._parts: np.ndarray | None = None  # not resized yet
        self._count = 0

    def add(self, position: int, frame: np.ndarray) -> None:
        """The frame of a position; positions come in order, and all of them may come once more."""
        part = _part(frame, self._box)
        if self._parts is None:
            self._parts = np.empty((min(len(self._out), max(1, GATHERED // part.nbytes)), *part.shape), part.dtype)
        self._count = 0 if position == 0 else self._count
        self._parts[self._count] = part
        self._count += 1
        if self._count == len(self._parts) or position == len(self._out) - 1:
            height, width = self._out.shape[1:3]
            small = _resized(self._parts[: self._count], height, width, self._mirrored)
            self._out[position + 1 - self._count : position + 1] = small
            self._count = 0


def resized(frame: np.ndarray, box: choice.Box, height: int, width: int, mirrored: bool) -> torch.Tensor:
    """The part `box` of a frame (H, W, C) in another size, bilinear with antialiasing: (height, width, C)."""
    return _resized(np.array(_part(frame, box)[None], order="C"), height, width, mirrored)[0]


def _part(frame: np.ndarray, box: choice.Box) -> np.ndarray:
    return frame[box.top : box.top + box.height, box.left : box.left + box.width]


def _resized(frames: np.ndarray, height: int, width: int, mirrored: bool) -> torch.Tensor:
    """Whole frames (T, H, W, C), one behind the other in memory: (T, height, width, C)."""
    # PyTorch takes its path for packed uint8 pixels only where the strides are exactly those of packed frames.
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if images.shape[2:] != (height, width):
        images = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)
    return (images.flip(-1) if mirrored else images).permute(0, 2, 3, 1)
