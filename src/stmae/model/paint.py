"""From a prediction back to a picture, and two baselines that any model has to beat.

Only the frames that a model predicts are painted: t' of them, one per patch ("strided", "linspace") or all.

A model with normalised targets predicts each hidden patch up to a mean and a deviation, which nobody knows:

    painted = prediction * deviation + mean

They are estimated from the visible patches around ("visible"). Taking the hidden patch's own ("true") is what most
published pictures show; it gives away the brightness and the contrast of every hidden patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from .config import Grid
from .mae import MaeOutput, MaskedAutoencoder
from .patches import patchify, take, unpatchify
from .targets import PAINTED, channel_statistics, patch_statistics, target_frames

Statistics = Literal["visible", "true"]

GREY = 0.5  # hidden patches in the masked picture

# How near a visible patch is: distance ** -FALL, where a step of time counts as TIME_SCALE of a step in space. Measured
# on 20 real videos against powers 3 to 8, time scales 0.15 to 1, Gaussian and exponential weights: within 0.01 of the
# best explained variance at mask ratios 0.75 and 0.9 (0.02 at 0.98), with no width that would have to fit the ratio.
FALL, TIME_SCALE = 4.0, 0.2


@dataclass
class Painting:
    """Pictures of B clips, each (B, C, t', H, W) float32 in 0..1, of the frames that the model predicts.

    Attributes:
        frames: which frames of the clip these are, t' of them.
        original: the clip.
        masked: what the encoder saw, hidden patches grey.
        painted: the prediction where patches are hidden, the original elsewhere.
        nothing: baseline. Every hidden pixel is the mean colour of the clip's visible patches.
        copied: baseline. Every hidden patch is the nearest visible one in time at the same place; where none is
            visible there at any time, the nearest one in time and space by grid distance. Of equally near ones the
            first in token order.
        hidden: (B, 1, t', H, W) bool, True = hidden from the encoder.
        statistics: which statistics turned normalised predictions into pixels; None where pixels are predicted.
    """

    frames: list[int]
    original: Tensor
    masked: Tensor
    painted: Tensor
    nothing: Tensor
    copied: Tensor
    hidden: Tensor
    statistics: Statistics | None


@torch.no_grad()
def paint(model: MaskedAutoencoder, clip: Tensor, output: MaeOutput, *, statistics: Statistics = "visible") -> Painting:
    """Pictures of what a model made of clips.

    Args:
        clip: (B, C, T, H, W) as it was given to the model: uint8, or float already normalised.
        output: what the model gave for it.
        statistics: for normalised targets, un-normalise with visible neighbours' statistics, or with the hidden
            patch's own (a leak).

    Raises:
        UserError: the model predicts something else than pixels.
    """
    require_pixels(model)
    assert output.decoded.shape == output.hidden_ids.shape, "give decode_all=True"
    config, normalizer = model.config, model.encoder.normalize
    frames = target_frames(config, clip.shape[2])
    shown = clip[:, :, frames]
    patch = (config.target_frames, *config.encoder.clip.patch[1:])
    t, h, w = (size // step for size, step in zip(shown.shape[2:], patch, strict=True))
    grid = (t, h, w)
    patches = normalizer(patchify(shown, patch))  # (B, N, P)

    prediction, channels = output.prediction.float(), config.encoder.clip.channels
    if config.target != "pixels":
        per_channel = config.target == "normalized_pixels_per_channel"
        of = partial(channel_statistics, channels=channels) if per_channel else patch_statistics
        mean, deviation = (
            of(take(patches, output.hidden_ids))
            if statistics == "true"
            else visible_statistics(patches, output.visible, output.hidden_ids, grid, of)
        )
        prediction = prediction * deviation + mean

    colour = take(patches, output.visible).unflatten(-1, (-1, channels)).mean(dim=(1, 2))  # (B, C)
    nothing = colour.repeat(1, patches.shape[-1] // channels)[:, None].expand_as(prediction)
    copied = take(patches, nearest_visible(output.visible, output.hidden_ids, grid))

    def picture(values: Tensor) -> Tensor:
        """Patches (B, N, P), normalised, to pixels."""
        return unpatchify(normalizer.undo(values), grid, patch)

    def filled(values: Tensor) -> Tensor:
        """The original with hidden patches replaced by `values` (B, M, P)."""
        ids = output.hidden_ids[..., None].expand(-1, -1, values.shape[-1])
        return torch.where(hidden, picture(patches.scatter(1, ids, values)).clamp(0, 1), original)

    hidden = unpatchify(output.hidden[..., None].expand(-1, -1, patch[0] * patch[1] * patch[2]), grid, patch)
    original = shown.float() / 255 if shown.dtype == torch.uint8 else picture(patches)
    return Painting(
        frames=frames,
        original=original,
        masked=torch.where(hidden, GREY, original),
        painted=filled(prediction),
        nothing=filled(nothing),
        copied=filled(copied),
        hidden=hidden,
        statistics=None if config.target == "pixels" else statistics,
    )


def require_pixels(model: MaskedAutoencoder) -> None:
    """Raises `UserError` for a model whose predictions are no pictures."""
    if model.config.target not in PAINTED:
        raise UserError(
            f'the model predicts "{model.config.target}", which is no picture.',
            f"Only models with target {', '.join(PAINTED)} paint.",
        )


def visible_statistics(
    patches: Tensor,
    visible: Tensor,
    hidden_ids: Tensor,
    grid: Grid,
    of: Callable[[Tensor], tuple[Tensor, Tensor]] = patch_statistics,
) -> tuple[Tensor, Tensor]:
    """Estimates of hidden patches' mean and deviation, (B, M, 1 or P) each, that look at visible patches alone.

    Means of the visible patches' own, weighted by how near they are in time and space.

    Args:
        patches: (B, N, P), normalised.
        of: gives patches' own mean and deviation.
    """
    own = torch.cat(of(take(patches, visible)), dim=-1)
    weights = _nearness(visible, hidden_ids, grid)
    mean, deviation = ((weights @ own) / weights.sum(dim=-1, keepdim=True)).chunk(2, dim=-1)
    return mean, deviation


def _nearness(visible: Tensor, hidden_ids: Tensor, grid: Grid) -> Tensor:
    """Weights (B, M, V) of visible patches for each hidden one, not normalised."""
    time, rows, columns = _offsets(visible, hidden_ids, grid)
    square = (TIME_SCALE * time).square() + rows.square() + columns.square()
    return square ** (-FALL / 2)


def nearest_visible(visible: Tensor, hidden_ids: Tensor, grid: Grid) -> Tensor:
    """For each hidden token the visible one that "copied" takes, (B, M)."""
    time, rows, columns = _offsets(visible, hidden_ids, grid)
    square = time.square() + rows.square() + columns.square()
    far = sum(size**2 for size in grid)
    elsewhere = (rows != 0) | (columns != 0)
    # argmin gives the first of equal ones, and `visible` ascends.
    return visible.gather(1, (square + far * elsewhere).argmin(dim=-1))


def _offsets(visible: Tensor, hidden_ids: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Steps from each hidden token to each visible one, over time, rows and columns: (B, M, V) float32 each."""
    _, h, w = grid
    here, there = hidden_ids[:, :, None], visible[:, None, :]
    parts = (
        (here // (h * w), there // (h * w)),
        (here // w % h, there // w % h),
        (here % w, there % w),
    )
    time, rows, columns = ((b - a).float() for a, b in parts)
    return time, rows, columns
