"""Painting over what a mask of one's own hides, in place of tokens drawn at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stmae import charts, pictures
from stmae.data.clips import centre_box
from stmae.engine.precision import computing
from stmae.errors import UserError
from stmae.model.config import ClipConfig
from stmae.model.mae import MaskedAutoencoder
from stmae.model.paint import Painting, Statistics, paint

WHITE = 128  # pixels of an image from which on they hide


def read_mask(path: str | Path, clip: ClipConfig) -> np.ndarray:
    """The tokens that a file says to hide: bool (N,), time slowest, then row, then column.

    Args:
        path: an image, whose white hides; or a .npy array, whose values above 0 do: (rows, columns) for all frames, or
            (time, rows, columns), which is spread over the clip. Of any size: like a frame of the video it is cut to
            the clip's shape about its middle, and a token is hidden that it touches anywhere. An array of the size of
            the token grid says it for each token.
        clip: that the model takes.

    Raises:
        UserError: it cannot be read, has other dimensions, or hides nothing or everything.
    """
    path = Path(path)
    mask = _array(path) if path.suffix.lower() == ".npy" else _image(path)
    if mask.ndim not in (2, 3) or 0 in mask.shape:
        raise UserError(f'mask "{path}" has the shape {mask.shape}.', "Give (rows, columns), or (time, rows, columns).")
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.shape[1:] != clip.grid[1:]:
        box = centre_box(mask.shape[1], mask.shape[2], clip.width / clip.height)
        mask = mask[:, box.top : box.top + box.height, box.left : box.left + box.width]
    for axis, size in enumerate(clip.grid):
        mask = _any_in(mask, axis, size)
    if not mask.any() or mask.all():
        raise UserError(
            f'mask "{path}" hides {"everything" if mask.any() else "nothing"} of the clip.',
            "White (in arrays, above 0) is what is hidden and painted anew; leave some of both.",
        )
    return mask.reshape(-1)


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False) > 0
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise UserError(f'mask "{path}" cannot be read: {error}.', "Give an image, or a .npy array.") from None


def _image(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L")) >= WHITE
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f'mask "{path}" cannot be read: {error}.', "Give an image, or a .npy array.") from None


def _any_in(mask: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Along an axis, `size` equal parts: whether anything is set in each, whole or in part."""
    have = mask.shape[axis]
    parts = []
    for i in range(size):
        first, last = i * have // size, -(-(i + 1) * have // size)  # rounded down and up
        parts.append(np.take(mask, range(first, max(last, first + 1)), axis).any(axis))
    return np.stack(parts, axis)


@torch.no_grad()
def inpaint(
    model: MaskedAutoencoder, clips: Tensor, hidden: np.ndarray, statistics: Statistics, precision: str = "fp32"
) -> Painting:
    """Paints the same hidden tokens (N,) of each clip (B, C, T, H, W) from the others."""
    device = next(model.parameters()).device
    clips = clips.to(device)
    with computing(device, precision):
        output = model(clips, hidden=torch.from_numpy(hidden).to(device).expand(len(clips), -1), decode_all=True)
    return paint(model, clips, output, statistics=statistics)


def save_painted(path: Path, painting: Painting, fps: float) -> Path:
    """Writes the first clip with what was painted into it, and nothing around it, as MP4."""
    frames = charts.rgb(painting.painted[0].permute(1, 2, 3, 0).cpu().numpy())
    return pictures.save_mp4(path, list(frames), fps)
