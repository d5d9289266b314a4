"""What is predicted for a hidden token: pixels, normalised or not, HOG, a tokenizer's codes, a teacher's features.

`TARGETS` has one entry for each: a function of a `Scene`. Codes and features come from outside, for all tokens, as
`given`: whoever has a tokenizer or a teacher calls it, and the model stays what it is without them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .config import HOG_BINS, HOG_CELL, MaeConfig, TargetKind
from .patches import Normalizer, patchify, take


@dataclass(frozen=True)
class Scene:
    """Everything that targets are made of.

    clip: (B, C, T, H, W); patches: (B, N, pt*ph*pw*C), the same clip cut; ids: (B, K), the tokens to make targets of;
    given: codes (B, N) int64 or features (B, N, P) from outside, or None.
    """

    clip: Tensor
    patches: Tensor
    ids: Tensor
    config: MaeConfig
    normalize: Normalizer
    given: Tensor | None = None


def targets(scene: Scene) -> Tensor:
    """The targets of the tokens `ids`: (B, K, P) float32, or (B, K) int64 codes.

    Raises:
        UserError: the target comes from outside, and nothing that goes with the clips is given.
    """
    return TARGETS[scene.config.target](scene)


def compare(prediction: Tensor, target: Tensor) -> Tensor:
    """The loss: mean squared error over values and tokens; cross-entropy where the target is codes. In float32."""
    if target.is_floating_point():
        return F.mse_loss(prediction.to(target.dtype), target)
    return F.cross_entropy(prediction.float().flatten(0, 1), target.flatten())


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
    return torch.linspace(0, frames - 1, frames // pt, device="cpu").long().tolist()


# Pixels -------------------------------------------------------------------------------------------------------------


def pixels(scene: Scene) -> Tensor:
    """Pixels normalised with the model's mean and deviation, as they are."""
    config, patches = scene.config, scene.patches
    _, ph, pw = config.encoder.clip.patch
    if config.predict_frames == "linspace":
        patches = patchify(_frames(scene.clip, config), (1, ph, pw))
    # The first frame's values come first in a patch, so "strided" is a slice.
    values = config.target_frames * ph * pw * config.encoder.clip.channels
    return scene.normalize(take(patches, scene.ids)[..., :values])


def _frames(clip: Tensor, config: MaeConfig) -> Tensor:
    """The frames that are predicted. Their numbers stay on the host: a tensor of them would have to be waited for."""
    return torch.stack([clip[:, :, frame] for frame in target_frames(config, clip.shape[2])], dim=2)


def standardize(values: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-6) over the last dimension, unbiased variance (paper, section 4; MAE)."""
    mean, deviation = patch_statistics(values)
    return (values - mean) / deviation


def standardize_channels(pixels: Tensor, channels: int) -> Tensor:
    """VideoMAE's: each colour channel of a patch (..., P) on its own, of pixels in 0..1, divisor deviation + 1e-6."""
    mean, deviation = channel_statistics(pixels, channels)
    return (pixels - mean) / deviation


def per_channel(scene: Scene) -> Tensor:
    """Pixels normalised within each colour of the patch."""
    return standardize_channels(scene.normalize.undo(pixels(scene)), scene.config.encoder.clip.channels)


def channel_statistics(pixels: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(variance) + 1e-6 of each channel, in the shape of `pixels` (..., P), channel fastest."""
    each = pixels.unflatten(-1, (-1, channels))
    variance, mean = torch.var_mean(each, dim=-2, keepdim=True)
    return mean.expand_as(each).flatten(-2), (variance.sqrt() + 1e-6).expand_as(each).flatten(-2)


def patch_statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(variance + 1e-6) over the last dimension, which is kept."""
    variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


# HOG ----------------------------------------------------------------------------------------------------------------


def hog(scene: Scene) -> Tensor:
    """Histograms of oriented gradients: a token's values stand by (frame, channel, bin, cell row, cell column)."""
    config, clip = scene.config, scene.clip
    _, ph, pw = config.encoder.clip.patch
    # A scale per channel changes nothing, and whole numbers have exact gradients: flat stays flat.
    cells = orientations(_frames(clip, config).to(scene.normalize.mean.dtype))  # (B, C * bins, t', H / 8, W / 8)
    cut = patchify(cells, (config.target_frames, ph // HOG_CELL, pw // HOG_CELL))  # (frame, row, column, channel * bin)
    shape = (config.target_frames, ph // HOG_CELL, pw // HOG_CELL, cells.shape[1])
    return take(cut, scene.ids).unflatten(-1, shape).movedim(-1, -3).flatten(-4)


def orientations(frames: Tensor) -> Tensor:
    """HOG maps of frames (B, C, T, H, W) of floats: (B, C * 9, T, H / 8, W / 8), as MaskFeat has them.

    Sobel gradients of each channel, the border reflected; the magnitude of a pixel goes whole to one of 9 unsigned
    orientations; sums over cells of 8 x 8 pixels, divided by the L2 norm over the orientations of a cell and channel.
    """
    B, C, T, H, W = frames.shape
    padded = F.pad(frames.movedim(1, 2).reshape(-1, 1, H, W), (1, 1, 1, 1), mode="reflect")[:, 0]
    # Sobel's filters as sums, which autocast leaves in float32 (half precision would move pixels to other bins).
    columns = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    rows = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    across, down = columns[..., :-2] - columns[..., 2:], rows[..., :-2, :] - rows[..., 2:, :]
    magnitude = torch.hypot(across, down)
    bins = (torch.atan2(across, down) / torch.pi * HOG_BINS).floor().long() % HOG_BINS
    # One bin after the other: all at once would need nine times the clip's memory, and scattering is not deterministic.
    sums = [F.avg_pool2d(magnitude * (bins == k), HOG_CELL) for k in range(HOG_BINS)]
    histogram = F.normalize(torch.stack(sums, dim=1) * HOG_CELL**2, dim=1)  # (B * T * C, bins, H / 8, W / 8)
    return histogram.reshape(B, T, C * HOG_BINS, *histogram.shape[2:]).movedim(1, 2)


# From outside -------------------------------------------------------------------------------------------------------


def codes(scene: Scene) -> Tensor:
    """A tokenizer's codes of the tokens: (B, K) int64."""
    return _given(scene, (), "the codes of a tokenizer").gather(1, scene.ids)


def features(scene: Scene) -> Tensor:
    """A teacher's features of the tokens, each with mean 0 and variance 1 over its values, so that none outweighs."""
    return standardize(
        take(_given(scene, (scene.config.given_values,), "the features of a teacher"), scene.ids).float()
    )


def _given(scene: Scene, values: tuple[int, ...], what: str) -> Tensor:
    shape = (*scene.patches.shape[:2], *values)
    if scene.given is None or scene.given.shape != shape:
        found = "not given" if scene.given is None else f"of shape {tuple(scene.given.shape)}"
        raise UserError(f"the target needs {what} for all tokens, and these are {found}.", f"Give given= {shape}.")
    return scene.given


TARGETS: dict[TargetKind, Callable[[Scene], Tensor]] = {
    "pixels": pixels,
    "normalized_pixels": lambda scene: standardize(pixels(scene)),
    "normalized_pixels_per_channel": per_channel,
    "hog": hog,
    "tokens": codes,
    "teacher": features,
}
PAINTED = ("pixels", "normalized_pixels", "normalized_pixels_per_channel")  # what can be turned back into a picture
