"""Models and clips small enough to test in milliseconds."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from stmae.model.config import BlocksConfig, ClipConfig, DecoderConfig, EncoderConfig, MaeConfig
from stmae.model.mae import MaskedAutoencoder


def tiny_config(
    *,
    shape: tuple[int, int, int] = (8, 16, 24),
    patch: tuple[int, int, int] = (2, 8, 8),
    channels: int = 3,
    mean: tuple[float, ...] = (0.45,),
    std: tuple[float, ...] = (0.225,),
    width: int = 16,
    depth: int = 2,
    heads: int = 2,
    class_token: bool = True,
    decoder_class_token: str | None = None,
    positions: str = "separable",
    position_values: str = "learned",
    decoder: Any = "self_attention",
    **options: Any,
) -> MaeConfig:
    """24 tokens of 16 numbers unless told otherwise; the decoder has another width and other heads."""
    T, H, W = shape
    clip = ClipConfig(frames=T, height=H, width=W, channels=channels, patch=patch, mean=mean, std=std)
    shared: dict[str, Any] = {"positions": positions, "position_values": position_values}
    blocks = BlocksConfig(width=width, depth=depth, heads=heads, mlp_width=3 * width)
    own: Any = decoder_class_token or ("own" if class_token else "none")
    small = BlocksConfig(width=24, depth=2, heads=3, mlp_width=48)
    return MaeConfig(
        encoder=EncoderConfig(clip=clip, blocks=blocks, class_token=class_token, **shared),
        decoder=DecoderConfig(kind=decoder, blocks=small, class_token=own, **shared),
        **{"mask_ratio": 0.75, **options},
    )


def tiny(seed: int = 0, **options: Any) -> MaskedAutoencoder:
    """A fresh model in float64, every parameter moved off its initial value so that none is zero or one."""
    torch.manual_seed(seed)
    model = MaskedAutoencoder(tiny_config(**options)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def random_clip(config: MaeConfig, batch: int = 2, seed: int = 0) -> Tensor:
    """uint8 noise (B, C, T, H, W)."""
    clip, generator = config.encoder.clip, torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, clip.channels, *clip.shape), generator=generator, dtype=torch.uint8)


def changed(config: Any, **values: Any) -> Any:
    return dataclasses.replace(config, **values)
