"""Labelled clips for the tests of what learns from labels: a bright square that moves to one side over noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_run import save_run
from tiny import tiny_config
from torch import Tensor

from stmae.data.synthetic import write_video
from stmae.model.mae import MaskedAutoencoder

DIRECTIONS = ("down", "left", "right", "up")
SMALL: dict[str, Any] = {
    "workers": 0, "precision": "fp32", "epochs": 6, "batch_size": 8, "repeats": 1, "flip": False, "log_every": 2,
    "loggers": (), "threads": 1,
}  # fmt: skip


def write_start(folder: Path) -> str:
    """A run of a tiny autoencoder that was never trained: 4 frames of 32 x 32 pixels, a stride of 2."""
    config = tiny_config(
        shape=(4, 32, 32), width=48, depth=3, heads=4, class_token=False, position_values="learned_from_sincos"
    )
    torch.manual_seed(0)
    return str(save_run(folder, MaskedAutoencoder(config), stride=2.0))


def moving(direction: str, seed: int, frames: int = 12, size: int = 40) -> np.ndarray:
    """Pictures (T, size, size, 3) uint8 of a square that moves by two pixels a frame."""
    rng = np.random.default_rng((DIRECTIONS.index(direction), seed))
    pictures = rng.integers(0, 60, (frames, size, size, 3), np.uint8)
    rows, columns = {"down": (2, 0), "up": (-2, 0), "left": (0, -2), "right": (0, 2)}[direction]
    start = rng.integers(10, 20, 2)
    for t in range(frames):
        at = [(start[0] + rows * t) % (size - 10), (start[1] + columns * t) % (size - 10)]
        pictures[t, at[0] : at[0] + 10, at[1] : at[1] + 10] = 230
    return pictures


def write_labelled(folder: Path, each: int = 4, classes: tuple[str, ...] = ("left", "right")) -> Path:
    """`each` videos in a folder for each class."""
    for name in classes:
        for number in range(each):
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_video(folder / name / f"{number}.mp4", _frames(moving(name, number)), 15)
    return folder


def _frames(pictures: np.ndarray) -> Iterator[np.ndarray]:
    yield from pictures


def labelled_clips(each: int = 4, classes: tuple[str, ...] = ("left", "right")) -> list[tuple[Tensor, str]]:
    """Clips (3, 4, 32, 32) and the names of their classes."""
    found = []
    for number in range(each):
        for name in classes:
            pictures = moving(name, number, frames=4)[:, 4:36, 4:36]
            found.append((torch.from_numpy(pictures.copy()).permute(3, 0, 1, 2).contiguous(), name))
    return found
