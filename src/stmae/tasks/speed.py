"""How many training clips a second one core makes of some videos: decoding, cropping and resizing, nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from stmae.data.dataset import VideoClips
from stmae.data.sources import Source
from stmae.errors import UserError

SAMPLE = 64  # items that are tried


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        clips_per_second: of one core.
        clips: how many were made.
        seconds: how long that took.
        repeats: clips from each decoding of a video.
    """

    clips_per_second: float
    clips: int
    seconds: float
    repeats: int


def loading_speed(
    source: Source, *, frames: int, stride: float, image_size: int, repeats: int, seconds: float = 6.0
) -> Speed:
    """Makes clips on one core for a while, as a worker process of a training run does.

    Args:
        source: the videos; a sample spread over them is used.
        frames, stride, image_size, repeats: of the clips, as for training.
        seconds: how long to measure, after one video that does not count.

    Raises:
        UserError: the videos cannot be read.
    """
    items = np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int))
    clips = VideoClips(
        source.part(items), frames=frames, stride=stride, image_size=(image_size, image_size), repeats=repeats, seed=0
    )
    made, spent, slot = 0, 0.0, 1
    with _one_thread():
        clips[0]  # loads what is loaded once
        while spent < seconds and (slot <= len(items) or spent < seconds / 2):
            began = time.perf_counter()
            made += len(clips[slot].clips)
            spent += time.perf_counter() - began
            slot += 1
    if not made:
        raise UserError("not one clip could be made of the videos.", "`stmae check` says why.")
    return Speed(made / spent, made, spent, repeats)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
