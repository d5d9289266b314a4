"""Model sizes: a size is a three-line function. `create_model("vit_large")` makes a fresh autoencoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from ..errors import Problems, unknown
from .config import (
    BlocksConfig,
    ClipConfig,
    DecodeKind,
    DecoderConfig,
    DecoderKind,
    EncoderConfig,
    MaeConfig,
    MaskKind,
    PositionLayout,
    PositionValues,
    PredictFrames,
    TargetKind,
)
from .mae import MaskedAutoencoder


def _vit(width: int, depth: int, heads: int, mlp_width: int | None = None) -> BlocksConfig:
    return BlocksConfig(width=width, depth=depth, heads=heads, mlp_width=mlp_width or 4 * width)


def vit_mini() -> BlocksConfig:
    """2.8 M parameters: for first looks and experiments on a CPU."""
    return _vit(192, 6, 3)


def vit_tiny() -> BlocksConfig:
    """5.7 M parameters."""
    return _vit(192, 12, 3)


def vit_small() -> BlocksConfig:
    """22 M parameters."""
    return _vit(384, 12, 6)


def vit_base() -> BlocksConfig:
    """86 M parameters."""
    return _vit(768, 12, 12)


def vit_large() -> BlocksConfig:
    """304 M parameters: the paper's default."""
    return _vit(1024, 24, 16)


def vit_huge() -> BlocksConfig:
    """632 M parameters; patch 16 as in the paper, not the official code's 14."""
    return _vit(1280, 32, 16)


def vit_giant() -> BlocksConfig:
    """1.01 G parameters: VideoMAE v2's, with an MLP of 48/11 times the width."""
    return _vit(1408, 40, 16, mlp_width=1408 * 48 // 11)


SIZES: dict[str, Callable[[], BlocksConfig]] = {
    size.__name__: size for size in (vit_mini, vit_tiny, vit_small, vit_base, vit_large, vit_huge, vit_giant)
}


def encoder_config(
    name: str,
    *,
    frames: int = 16,
    image_size: int | tuple[int, int] = 224,
    channels: int = 3,
    patch: tuple[int, int, int] = (2, 16, 16),
    mean: tuple[float, ...] = (0.45,),
    std: tuple[float, ...] = (0.225,),
    positions: PositionLayout = "separable",
    position_values: PositionValues = "learned",
    class_token: bool = True,
) -> EncoderConfig:
    """The encoder of a named size; `image_size` is one number or (height, width).

    Raises:
        UserError: an unknown name; sizes that do not fit together.
    """
    if name not in SIZES:
        raise unknown("model", name, list(SIZES))
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    clip = ClipConfig(frames=frames, height=height, width=width, channels=channels, patch=patch, mean=mean, std=std)
    return EncoderConfig(
        clip=clip,
        blocks=SIZES[name](),
        positions=positions,
        position_values=position_values,
        class_token=class_token,
    )


def mae_config(
    name: str,
    *,
    frames: int = 16,
    image_size: int | tuple[int, int] = 224,
    channels: int = 3,
    patch: tuple[int, int, int] = (2, 16, 16),
    mean: tuple[float, ...] = (0.45,),
    std: tuple[float, ...] = (0.225,),
    mask: MaskKind = "agnostic",
    mask_ratio: float = 0.9,
    target: TargetKind = "normalized_pixels",
    given_values: int = 0,
    predict_frames: PredictFrames = "strided",
    positions: PositionLayout = "separable",
    position_values: PositionValues = "learned",
    decoder_positions: PositionLayout | None = None,
    decoder_position_values: PositionValues | None = None,
    class_token: bool = True,
    mask_tokens_in_encoder: bool = False,
    decoder: DecoderKind = "self_attention",
    decode: DecodeKind = "all",
    decode_share: float = 0.5,
    decoder_width: int = 512,
    decoder_depth: int = 4,
    decoder_heads: int = 8,
) -> MaeConfig:
    """The configuration of a named size with the paper's settings, or with those given.

    `image_size` is one number or (height, width). The decoder's positions follow the encoder's unless given.

    Raises:
        UserError: an unknown name; sizes that do not fit together.
    """
    encoder = encoder_config(
        name,
        frames=frames,
        image_size=image_size,
        channels=channels,
        patch=patch,
        mean=mean,
        std=std,
        positions=positions,
        position_values=position_values,
        class_token=class_token,
    )
    painter = DecoderConfig(
        kind=decoder,
        blocks=_vit(decoder_width, decoder_depth, decoder_heads),
        positions=decoder_positions or positions,
        position_values=decoder_position_values or position_values,
        class_token="own" if class_token else "none",
    )
    return MaeConfig(
        encoder=encoder,
        decoder=painter,
        mask=mask,
        mask_ratio=mask_ratio,
        decode=decode,
        decode_share=decode_share,
        target=target,
        given_values=given_values,
        predict_frames=predict_frames,
        mask_tokens_in_encoder=mask_tokens_in_encoder,
    )


def create_model(name: str, **options: object) -> MaskedAutoencoder:
    """A fresh masked autoencoder of a named size; the options are `mae_config`'s.

    >>> model = create_model("vit_large", frames=16, image_size=224, mask_ratio=0.9)

    Raises:
        UserError: an unknown name or option; sizes that do not fit together.
    """
    known = list(inspect.signature(mae_config).parameters)[1:]
    problems = Problems()
    for option in options:
        if option not in known:
            problems.extend(unknown("option", option, known))
    problems.raise_any()
    return MaskedAutoencoder(mae_config(name, **options))  # type: ignore[arg-type]
