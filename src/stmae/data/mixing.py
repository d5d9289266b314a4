"""Mixup and cutmix: clips of two videos in one, with the targets of both.

Neighbouring videos of a batch are paired, and each clip is mixed with the clip of the same number of the other video:

    videos         0   1   2   3   4        a last one without a partner takes from its neighbour
    partners       1   0   3   2   3

Who is paired follows from the order of the pass and how strongly from the clips' keys. So a part of a batch that holds
an even number of videos comes out the same however many parts there are.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from stmae.data.augment import on_device
from stmae.data.clips import MIX, uniform, uniforms


@torch.no_grad()
def mix(
    clips: Tensor, targets: Tensor, keys: Tensor, *, repeats: int, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Mixed clips and targets; of a single video nothing is mixed.

    Args:
        clips: (B, C, T, H, W), `repeats` of one video after the other.
        targets: (B, K) float, on the same device.
        keys: int64 (B,), on the host.
        mixup: alpha of the Beta distribution from which a clip's share is drawn (Zhang et al. 2018); 0 for none.
        cutmix: the same for the area of a box that is replaced in all frames (Yun et al. 2019). With both, half of the
            pairs are mixed in either way.
    """
    videos = len(clips) // repeats
    if videos < 2 or not (mixup or cutmix):
        return clips, targets
    number = np.arange(len(clips))
    video, repeat = number // repeats, number % repeats
    other = np.where((video ^ 1) < videos, video ^ 1, video - 1) * repeats + repeat
    deciding = np.where((video ^ 1) < videos, np.minimum(number, other), number)  # one key for a pair
    words = keys.numpy()[deciding]
    cut = uniforms(words, [MIX])[:, 0] < 0.5 if mixup and cutmix else np.full(len(clips), bool(cutmix))
    shares = np.array([_beta(int(key), cutmix if c else mixup) for key, c in zip(words, cut, strict=True)])
    boxes = _boxes(words, np.where(cut, shares, 1.0), clips.shape[3], clips.shape[4])
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (clips.shape[3] * clips.shape[4])
    shares = np.where(cut, 1 - area, shares)  # a box at the edge is smaller than was drawn

    device = clips.device
    partners = clips[on_device(other, device)]
    mixed = _replaced(clips, partners, on_device(boxes, device))
    faded = np.flatnonzero(~cut)
    if len(faded):
        rows = on_device(faded, device)
        own = on_device(shares[faded].astype(np.float32), device)[:, None, None, None, None]
        values = own * clips[rows] + (1 - own) * partners[rows]
        mixed[rows] = values.round().to(torch.uint8) if clips.dtype == torch.uint8 else values.to(clips.dtype)
    weight = on_device(shares, device).to(targets.dtype)[:, None]
    return mixed, weight * targets + (1 - weight) * targets[on_device(other, device)]


def _replaced(clips: Tensor, partners: Tensor, boxes: Tensor) -> Tensor:
    """Clips with a box (top, bottom, left, right) of each from its partner, in all frames."""
    top, bottom, left, right = boxes[:, :, None, None].unbind(1)
    rows = torch.arange(clips.shape[3], device=clips.device)[:, None]
    columns = torch.arange(clips.shape[4], device=clips.device)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return torch.where(inside[:, None, None], partners, clips)


def _boxes(keys: np.ndarray, shares: np.ndarray, height: int, width: int) -> np.ndarray:
    """(B, 4) int64, top, bottom, left, right: boxes of the area 1 - share, cut off at the edges of the picture."""
    side = np.sqrt(1 - shares)
    centre = uniforms(keys, [MIX + 1, MIX + 2])
    edges = []
    for size, middle in ((height, centre[:, 0]), (width, centre[:, 1])):
        half, at = (size * side).astype(np.int64) // 2, (middle * size).astype(np.int64)
        edges += [np.clip(at - half, 0, size), np.clip(at + half, 0, size)]
    return np.stack(edges, axis=1)


def _beta(key: int, alpha: float) -> float:
    """A number of the distribution Beta(alpha, alpha), drawn from a key (Jöhnk 1964)."""
    for attempt in range(200):
        u, v = (uniform(key, MIX + 10 + 2 * attempt + i) for i in (0, 1))
        x, y = math.exp(math.log(u or 1e-300) / alpha), math.exp(math.log(v or 1e-300) / alpha)
        if 0 < x + y <= 1:
            return x / (x + y)
    return 0.5
