"""Colour jitter of whole batches, on the device: brightness, contrast and saturation, one setting for a clip."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stmae.data.augment import on_device
from stmae.data.clips import uniform
from stmae.errors import UserError

COLOUR = 9000  # of the streams that are drawn from a clip's key
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


@torch.no_grad()
def colour_jitter(clips: Tensor, keys: Tensor, strength: float) -> Tensor:
    """Clips with brightness, contrast and saturation (of three channels) multiplied by factors of their own.

    Args:
        clips: (B, C, T, H, W) uint8, on any device.
        keys: int64 (B,), on the host: the factors follow from them, and the host does not wait for the device.
        strength: factors are uniform from 1 - strength (at least 0) to 1 + strength.

    Raises:
        UserError: clips that are not uint8.
    """
    if clips.dtype != torch.uint8:
        raise UserError(
            f"colour jitter changes pixels of 0 to 255, and the clips are {clips.dtype}.", "Leave color_jitter out."
        )
    low = max(0.0, 1 - strength)
    drawn = [[low + (1 + strength - low) * uniform(key, COLOUR + i) for i in range(3)] for key in keys.tolist()]
    factors = on_device(np.array(drawn, np.float32), clips.device)[:, :, None, None, None, None]
    brightness, contrast, saturation = factors.unbind(1)
    C, T, H, W = clips.shape[1:]
    shares = on_device(np.array(GREY if C == 3 else [1 / C] * C, np.float32), clips.device)
    # Whole numbers are summed exactly, in whatever batch and order.
    mean = (clips.sum(dim=(2, 3, 4)) / (T * H * W) * shares).sum(dim=1)[:, None, None, None, None]
    x = brightness * (mean + contrast * (clips - mean))
    if C == 3:
        grey = (x * shares[:, None, None, None]).sum(dim=1, keepdim=True)
        x = grey + saturation * (x - grey)
    return x.round_().clamp_(0, 255).to(torch.uint8)
