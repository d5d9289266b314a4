"""Strong augmentation of whole batches, on the device: RandAugment and random erasing.

One setting holds for all frames of a clip, and follows from the clip's key alone: operations, magnitudes and boxes are
drawn on the host, in NumPy, and the device computes each operation for all clips that drew it. So nothing depends on
the batch a clip stands in, and the host never waits for the device.

RandAugment (Cubuk et al. 2020) as the paper's fine-tuning has it, `rand-m7-mstd0.5-inc1` by timm's names: each of two
operations, drawn from fifteen whose strength grows with the magnitude, is applied to half of the clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stmae.data.clips import AUGMENT, ERASE, Box, noise, uniforms
from stmae.errors import UserError

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow has it
ERASE_AREA, ERASE_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # Zhong et al. 2020


@dataclass(frozen=True)
class Strength:
    """How strongly clips are changed.

    Attributes:
        operations: of RandAugment on each clip; 0 for none.
        magnitude: of these, from 0 to 10.
        magnitude_std: by which it varies from clip to clip.
        erase: share of the clips of which a box is erased.
        mean, std: of pixels in 0..1, for what fills a box or comes in at the edges: one value, or one per channel.
    """

    operations: int = 2
    magnitude: float = 7.0
    magnitude_std: float = 0.5
    erase: float = 0.25
    mean: tuple[float, ...] = (0.45,)
    std: tuple[float, ...] = (0.225,)


@torch.no_grad()
def augment(clips: Tensor, keys: Tensor, strength: Strength) -> Tensor:
    """Clips (B, C, T, H, W), changed as their keys say; of the same type.

    Args:
        clips: uint8; float clips (normalised already) can be erased only.
        keys: int64 (B,), on the host.
        strength: how much.

    Raises:
        UserError: RandAugment of clips that are not uint8.
    """
    if strength.operations and clips.dtype != torch.uint8:
        raise UserError(
            f"RandAugment changes pixels of 0 to 255, and the clips are {clips.dtype}.",
            "Switch it off: rand_augment 0.",
        )
    words = keys.numpy()
    clips = clips.clone()
    for layer in range(strength.operations):
        _one_operation(clips, words, layer, strength)
    if strength.erase:
        _erase(clips, words, strength)
    return clips


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy there, for which the host does not wait: it would for memory that is not pinned."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


# RandAugment ---------------------------------------------------------------------------------------------------------


def _one_operation(clips: Tensor, keys: np.ndarray, layer: int, strength: Strength) -> None:
    """Draws an operation for each clip and applies it to those that it is to be applied to."""
    drawn = uniforms(keys, [AUGMENT + 4 * layer + i for i in range(4)])
    which = (drawn[:, 0] * len(OPERATIONS)).astype(int)
    spread = np.array([NormalDist().inv_cdf(min(max(u, 1e-12), 1 - 1e-12)) for u in drawn[:, 2]])
    levels = np.clip(strength.magnitude + strength.magnitude_std * spread, 0, 10) / 10
    signs = np.where(drawn[:, 3] < 0.5, -1.0, 1.0)
    chosen = drawn[:, 1] < 0.5
    fill = on_device(255 * np.array(strength.mean, np.float32), clips.device)[:, None, None, None]
    for number, operation in enumerate(OPERATIONS.values()):
        rows = np.flatnonzero(chosen & (which == number))
        if not len(rows):
            continue
        index = on_device(rows, clips.device)
        own = on_device(np.stack([levels[rows], signs[rows]]).astype(np.float32), clips.device)
        level, sign = own[:, :, None, None, None, None].unbind()
        changed = operation(clips[index].float(), level, sign, fill)
        clips[index] = changed.round().clamp(0, 255).to(torch.uint8)


def _grey(x: Tensor) -> Tensor:
    """(n, 1, T, H, W); the mean of the channels where they are not three."""
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    return sum(share * x[:, i : i + 1] for i, share in enumerate(GREY))  # type: ignore[return-value]


def _blend(base: Tensor, x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """From `base` (factor 0) through the clip (1) and beyond it; the strongest factors are 0.1 and 1.9."""
    return base + (1 + 0.9 * level * sign) * (x - base)


def _auto_contrast(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    low, high = x.amin(dim=(2, 3, 4), keepdim=True), x.amax(dim=(2, 3, 4), keepdim=True)
    return torch.where(high > low, (x - low) * 255 / (high - low).clamp(min=1), x)


def _equalize(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    """Each channel's values spread evenly, over all frames of a clip; by the table that Pillow makes."""
    values = x.flatten(2)
    count = values.shape[2]
    steps = torch.arange(256, device=x.device, dtype=x.dtype).expand(*values.shape[:2], 256).contiguous()
    # Sorted, so that counting needs no scatter, which adds in no fixed order on a GPU.
    up_to = torch.searchsorted(values.sort(dim=2).values.contiguous(), steps, right=True)
    largest = torch.diff(up_to, dim=2, prepend=torch.zeros_like(up_to[:, :, :1]))
    brightest = largest.gather(2, values.amax(dim=2, keepdim=True).long())
    step = (count - brightest) // 255
    before = up_to - largest
    table = ((before + step // 2) // step.clamp(min=1)).clamp(0, 255)
    table = torch.where(step > 0, table, steps.long())
    return table.gather(2, values.long()).view_as(x).to(x.dtype)


def _invert(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    return 255 - x


def _posterize(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    """Keeps four bits of each value down to one."""
    kept = (4 - (4 * level).floor()).clamp(min=1)
    step = 2 ** (8 - kept)
    return (x / step).floor() * step


def _solarize(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    return torch.where(x >= 256 - (256 * level).floor(), 255 - x, x)


def _solarize_add(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    return torch.where(x < 128, x + (110 * level).floor(), x)


def _color(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    return _blend(_grey(x), x, level, sign)


def _contrast(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    return _blend(_grey(x).mean(dim=(2, 3, 4), keepdim=True), x, level, sign)


def _brightness(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    return _blend(torch.zeros_like(x), x, level, sign)


def _sharpness(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    """Between a blurred clip and a sharpened one; pixels at the edge stay."""
    if min(x.shape[3:]) < 3:
        return x
    kernel = torch.ones(1, 1, 3, 3, device=x.device, dtype=x.dtype)
    kernel[:, :, 1, 1] = 5
    blurred = x.clone()
    inner = F.conv2d(x.flatten(0, 2)[:, None], kernel / 13)
    blurred[:, :, :, 1:-1, 1:-1] = inner[:, 0].view(*x.shape[:3], *inner.shape[2:])
    return _blend(blurred, x, level, sign)


def _rotate(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    angle = (level * sign).flatten() * math.radians(30)
    ratio = x.shape[3] / x.shape[4]
    sin, cos, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    return _moved(x, [[cos, sin * ratio, zero], [-sin / ratio, cos, zero]], fill)


def _shear_x(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    by = 0.3 * (level * sign).flatten() * x.shape[3] / x.shape[4]
    zero, one = torch.zeros_like(by), torch.ones_like(by)
    return _moved(x, [[one, by, by], [zero, one, zero]], fill)  # the upper edge stays, as Pillow has it


def _shear_y(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    by = 0.3 * (level * sign).flatten() * x.shape[4] / x.shape[3]
    zero, one = torch.zeros_like(by), torch.ones_like(by)
    return _moved(x, [[one, zero, zero], [by, one, by]], fill)


def _translate_x(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    by = 0.9 * (level * sign).flatten()  # of half the width
    zero, one = torch.zeros_like(by), torch.ones_like(by)
    return _moved(x, [[one, zero, by], [zero, one, zero]], fill)


def _translate_y(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    by = 0.9 * (level * sign).flatten()
    zero, one = torch.zeros_like(by), torch.ones_like(by)
    return _moved(x, [[one, zero, zero], [zero, one, by]], fill)


def _moved(x: Tensor, theta: list[list[Tensor]], fill: Tensor) -> Tensor:
    """All frames taken from elsewhere: theta (2, 3) of each clip, in coordinates from -1 to 1; bicubic."""
    matrix = torch.stack([torch.stack(row, dim=-1) for row in theta], dim=-2)
    grid = F.affine_grid(matrix, [len(x), 1, *x.shape[3:]], align_corners=False)
    frames = (x - fill).flatten(1, 2)  # what lies outside is 0 to grid_sample
    return F.grid_sample(frames, grid, mode="bicubic", align_corners=False).view_as(x) + fill


Operation = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# Of clips (n, C, T, H, W) in 0..255, levels from 0 to 1 and signs (n, 1, 1, 1, 1), and a colour (C or 1, 1, 1, 1).
OPERATIONS: Mapping[str, Operation] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}


# Random erasing ------------------------------------------------------------------------------------------------------


def _erase(clips: Tensor, keys: np.ndarray, strength: Strength) -> None:
    """Fills a box of some clips with noise, the same in all frames (Zhong et al. 2020)."""
    _, channels, _, height, width = clips.shape
    for row, key in enumerate(keys.tolist()):
        box = erase_box(key, height, width, strength.erase)
        if box is None:
            continue
        fill = noise(key, ERASE, channels * box.height * box.width).reshape(channels, 1, box.height, box.width)
        if clips.dtype == torch.uint8:
            mean, std = (np.reshape(values, (-1, 1, 1, 1)) for values in (strength.mean, strength.std))
            fill = (255 * (fill * std + mean)).round().clip(0, 255)
        part = clips[row, :, :, box.top : box.top + box.height, box.left : box.left + box.width]
        part.copy_(on_device(fill.astype(np.float32), clips.device))


def erase_box(key: int, height: int, width: int, share: float) -> Box | None:
    """The box to erase of a clip; None for those that stay whole. The first of ten that fits is taken."""
    drawn = uniforms(np.array([key]), range(ERASE + 1, ERASE + 42))[0]
    if drawn[0] >= share:
        return None
    low, high = (math.log(ratio) for ratio in ERASE_ASPECT)
    for u, v, x, y in drawn[1:].reshape(10, 4):
        area = (ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * u) * height * width
        ratio = math.exp(low + (high - low) * v)
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            return Box(int(x * (height - h + 1)), int(y * (width - w + 1)), h, w)
    return None
