"""The sides that loading.py compares: each fetches the same frames and gives the same clips, in its best known way.

A job is one video and the clips to be taken from it. The peers are told the frames' numbers, the boxes and which clips
are mirrored, and so need no time for choosing them; ours chooses them itself.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from loading_clips import RATE
from torch import Tensor

from stmae.data.clips import Box, clip_times, crop_box, flip
from stmae.data.dataset import VideoClips

os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "threads;1")  # read when OpenCV is imported
try:
    import cv2

    cv2.setNumThreads(1)
except ImportError:
    cv2 = None
try:
    import decord
except ImportError:
    decord = None

SIZE, FRAMES, STRIDE = 224, 16, 4
SEEK_GAIN = 8  # frames that a seek must save: as the package has it (0.25 s)


@dataclass(frozen=True)
class Clip:
    """Frame numbers, rising, and what is cut out of them."""

    frames: list[int]
    box: Box
    mirrored: bool


@dataclass(frozen=True)
class Job:
    """What is to be had from one video.

    Attributes:
        slot: the place in our own stream of clips where the same is had.
        wanted: numbers of all frames of all clips, rising.
        keys: numbers of the video's key frames.
        spare: presentation times of the frames that neither are wanted nor does another frame refer to.
    """

    slot: int
    path: Path
    clips: list[Clip]
    wanted: list[int]
    keys: list[int]
    spare: frozenset[int]


def jobs_of(dataset: VideoClips, slots: int) -> list[Job]:
    """What our data set gives in its first slots, told to others beforehand; it reads a folder."""
    jobs = []
    for slot in range(slots):
        sample = dataset[slot]
        path = dataset.source.media(sample.item).path
        keys, references, count, size = _structure(path)
        clips = []
        for key in sample.keys.tolist():
            times = clip_times(count / RATE, FRAMES, STRIDE, key).times
            clips.append(Clip([int(t * RATE + 1e-4) for t in times], crop_box(key, *size), flip(key)))
        wanted = sorted({number for clip in clips for number in clip.frames})
        spare = {number for number in range(count) if number not in references and number not in wanted}
        jobs.append(Job(slot, path, clips, wanted, keys, frozenset(spare)))
    return jobs


def _structure(path: Path) -> tuple[list[int], set[int], int, tuple[int, int]]:
    """Numbers of the key frames and of the frames that others refer to, how many there are, (height, width)."""
    shown: dict[str, list[tuple[int, bool]]] = {}
    for which in ("DEFAULT", "NONREF"):
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.skip_frame = which
            found = [(frame.pts, frame.key_frame, frame.height, frame.width) for frame in container.decode(video=0)]
        shown[which] = [(pts, key) for pts, key, *_ in found]
    numbers = {pts: number for number, (pts, _) in enumerate(shown["DEFAULT"])}
    keys = [numbers[pts] for pts, key in shown["DEFAULT"] if key]
    return keys, {numbers[pts] for pts, _ in shown["NONREF"]}, len(numbers), (found[0][2], found[0][3])


def ours(dataset: VideoClips) -> Callable[[Job], Tensor]:
    return lambda job: dataset[job.slot].clips


def bare(pixels: bool, skipping: bool) -> Callable[[Job], Tensor | None]:
    """A PyAV loop: seek to the key frame before where that saves something, decode, take what is wanted.

    Args:
        pixels: whether wanted frames become clips; else they are decoded and dropped.
        skipping: whether frames that nobody needs are known and left out.
    """

    def load(job: Job) -> Tensor | None:
        pictures: dict[int, np.ndarray] = {}
        for number, frame in _decoded(job, skipping):
            if pixels:
                pictures[number] = frame.to_ndarray(format="rgb24", threads=1)
        return cut(job, pictures) if pixels else None

    return load


def _decoded(job: Job, skipping: bool):
    """The wanted frames and their numbers, as they come."""
    with av.open(str(job.path)) as container:
        stream = container.streams.video[0]
        decoder = stream.codec_context
        decoder.thread_count, decoder.thread_type = 1, "NONE"
        ticks = round(1 / (RATE * stream.time_base))  # of the stream's clock in a frame
        left, last = set(job.wanted), -1
        spare = {number * ticks for number in job.spare} if skipping else ()
        for goal in job.wanted:
            if goal not in left:
                continue
            key = job.keys[bisect_right(job.keys, goal) - 1]
            if key >= last + SEEK_GAIN:
                container.seek(key * ticks, stream=stream)
            while goal in left:
                for packet in container.demux(stream):
                    if skipping:
                        which = "NONREF" if packet.pts in spare else "DEFAULT"
                        if decoder.skip_frame != which:
                            decoder.skip_frame = which
                    for frame in decoder.decode(packet if packet.size else None):
                        last = frame.pts // ticks
                        if last in left:
                            left.discard(last)
                            yield last, frame
                    if goal not in left:
                        break


def whole(job: Job, path: Path | None = None) -> Tensor:
    """Decodes the video from its beginning to its end and converts every frame, as mae_st does in pre-training."""
    with av.open(str(path or job.path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        video = [frame.to_ndarray(format="rgb24", threads=1) for frame in container.decode(stream)]
    return cut(job, dict(enumerate(video)))


def by_decord(job: Job) -> Tensor:
    reader = decord.VideoReader(str(job.path), ctx=decord.cpu(0), num_threads=1)
    frames = reader.get_batch(job.wanted).asnumpy()
    return cut(job, dict(zip(job.wanted, frames, strict=True)))


def by_opencv(job: Job) -> Tensor:
    """Seeks as the bare loop does; `grab` passes over what is not wanted, and only wanted frames are converted."""
    video = cv2.VideoCapture(str(job.path), cv2.CAP_FFMPEG)
    pictures, at = {}, 0  # the next frame's number
    for goal in job.wanted:
        key = job.keys[bisect_right(job.keys, goal) - 1]
        if key >= at + SEEK_GAIN:
            video.set(cv2.CAP_PROP_POS_FRAMES, key)
            at = key
        while at <= goal:
            video.grab()
            at += 1
        pictures[goal] = video.retrieve()[1]
    video.release()
    clips = np.empty((len(job.clips), FRAMES, SIZE, SIZE, 3), np.uint8)
    for place, clip in enumerate(job.clips):
        for position, number in enumerate(clip.frames):
            small = cv2.resize(_part(pictures[number], clip.box), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
            small = cv2.flip(small, 1) if clip.mirrored else small
            cv2.cvtColor(small, cv2.COLOR_BGR2RGB, dst=clips[place, position])
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3)


def cut(job: Job, pictures: dict[int, np.ndarray]) -> Tensor:
    """Crops, resizes and mirrors as the package does, with PyTorch, a clip at a time: uint8 (R, C, T, H, W)."""
    clips = torch.empty(len(job.clips), FRAMES, SIZE, SIZE, 3, dtype=torch.uint8)
    for place, clip in enumerate(job.clips):
        parts = np.stack([_part(pictures[number], clip.box) for number in clip.frames])
        small = torch.from_numpy(parts).permute(0, 3, 1, 2)
        if small.shape[-2:] != (SIZE, SIZE):
            small = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        small = small.permute(0, 2, 3, 1)
        clips[place] = small.flip(2) if clip.mirrored else small
    return clips.permute(0, 4, 1, 2, 3)


def _part(picture: np.ndarray, box: Box) -> np.ndarray:
    return picture[box.top : box.top + box.height, box.left : box.left + box.width]


def peers() -> tuple[dict[str, Callable[[Job], Tensor]], list[str]]:
    """The other libraries' sides, and how to get those that are missing."""
    found: dict[str, Callable[[Job], Tensor]] = {}
    missing: Sequence[tuple[object, str, Callable[[Job], Tensor], str]] = (
        (decord, "decord", by_decord, "pip install decord"),
        (cv2, "OpenCV", by_opencv, "pip install opencv-python-headless"),
    )
    notes = []
    for module, name, side, cure in missing:
        if module is None:
            notes.append(f"{name} is not installed, so it has no row: {cure}")
        else:
            found[name] = side
    return found, notes


__all__ = ["Job", "bare", "jobs_of", "ours", "peers", "whole"]
