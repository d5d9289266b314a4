"""What is predicted for a hidden token: its pixels, as they are or normalised within the patch."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import MaeConfig
from .patches import Normalizer, patchify, take


def target_frames(config: MaeConfig, frames: int) -> list[int]:
    """Which frames of a clip are predicted, in order.

    "strided" is the first of each patch (0, 2, ..., 14: PySlowFast); "linspace" is mae_st's choice, which for the
    last patch is its second (0, 2, ..., 12, 15); "all" is every frame.
    """
    pt = config.encoder.clip.patch[0]
    if config.predict_frames == "all":
        return list(range(frames))
    if config.predict_frames == "strided":
        return list(range(0, frames, pt))
    return torch.linspace(0, frames - 1, frames // pt).long().tolist()


def pixel_targets(
    clip: Tensor, patches: Tensor, hidden_ids: Tensor, config: MaeConfig, normalize: Normalizer
) -> Tensor:
    """The targets of the hidden tokens, (B, M, P) float32.

    Args:
        clip: (B, C, T, H, W), for target frames that are not the first of their patch.
        patches: (B, N, pt*ph*pw*C), the same clip cut.
    """
    _, ph, pw = config.encoder.clip.patch
    if config.predict_frames == "linspace":
        chosen = torch.tensor(target_frames(config, clip.shape[2]), device=clip.device)
        patches = patchify(clip.index_select(2, chosen), (1, ph, pw))
    # The first frame's values come first in a patch, so "strided" is a slice.
    values = normalize(take(patches, hidden_ids)[..., : config.target_values])
    if config.target == "normalized_pixels_per_channel":
        return standardize_channels(normalize.undo(values), config.encoder.clip.channels)
    return standardize(values) if config.target == "normalized_pixels" else values


def standardize(values: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-6) over the last dimension, unbiased variance (paper, section 4; MAE)."""
    mean, deviation = patch_statistics(values)
    return (values - mean) / deviation


def standardize_channels(pixels: Tensor, channels: int) -> Tensor:
    """VideoMAE's: each colour channel of a patch (..., P) on its own, of pixels in 0..1, divisor deviation + 1e-6."""
    mean, deviation = channel_statistics(pixels, channels)
    return (pixels - mean) / deviation


def channel_statistics(pixels: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(variance) + 1e-6 of each channel, in the shape of `pixels` (..., P), channel fastest."""
    each = pixels.unflatten(-1, (-1, channels))
    variance, mean = torch.var_mean(each, dim=-2, keepdim=True)
    return mean.expand_as(each).flatten(-2), (variance.sqrt() + 1e-6).expand_as(each).flatten(-2)


def patch_statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(variance + 1e-6) over the last dimension, which is kept."""
    variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
