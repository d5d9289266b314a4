"""Checkpoints of facebookresearch/mae_st: their names and shapes to ours and back, bit for bit.

Facts of the format: q, k and v are three linear layers; the patch embedding is a Conv3d; position tables and tokens
carry leading dimensions of 1; the decoder has a class token of its own exactly when the encoder has one.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..model.config import (
    BlocksConfig,
    ClassifierConfig,
    ClipConfig,
    DecoderConfig,
    EncoderConfig,
    MaeConfig,
    PositionLayout,
    PredictFrames,
)

State = dict[str, Tensor]

HEADS = {768: 12, 1024: 16, 1280: 16}  # by width: vit_base, vit_large, vit_huge
DECODER_HEADS = {512: 16}  # what its code is run with


def read_config(state: Mapping[str, Tensor], given: Mapping[str, Any] | None) -> MaeConfig | ClassifierConfig:
    """The model that a state dict belongs to: from names and shapes, and from the reference's own options if given.

    Args:
        given: options by mae_st's names (``num_heads``, ``decoder_num_heads``, ``mask_ratio``, ``pred_t_dim``, ...).
            Without them the named sizes' heads, mae_st's own 16 heads for its decoder of 512 and the paper's ratio,
            0.9, are taken; the decoder's heads are warned of, because a wrong number gives nonsense in silence.

    Raises:
        UserError: names are missing, or heads cannot be told and are not given.
    """
    given = given or {}
    width, channels, *patch = _shape(state, "patch_embed.proj.weight", 5)
    separable = "pos_embed_spatial" in state
    class_token = "cls_token" in state
    clip = _clip(state, given, channels, (patch[0], patch[1], patch[2]), separable, class_token)
    encoder = EncoderConfig(
        clip=clip,
        blocks=_blocks(state, "blocks", given.get("num_heads"), HEADS, width, given),
        positions="separable" if separable else "joint",
        class_token=class_token,
    )
    if "head.weight" in state:
        return ClassifierConfig(encoder=encoder, classes=_shape(state, "head.weight", 2)[0])
    if "decoder_embed.weight" not in state:
        raise UserError(
            "the state dict has neither a decoder nor a classifier's head.", "Use a complete checkpoint of mae_st."
        )
    decoder_width, _ = _shape(state, "decoder_embed.weight", 2)
    if "decoder_num_heads" not in given and decoder_width in DECODER_HEADS:
        warnings.warn(
            f"the file does not tell the decoder's heads: taking mae_st's {DECODER_HEADS[decoder_width]}. If it was "
            'trained otherwise, give config={"decoder_num_heads": ...}.',
            stacklevel=3,
        )
    decoder_layout: PositionLayout = "separable" if "decoder_pos_embed_spatial" in state else "joint"
    decoder = DecoderConfig(
        blocks=_blocks(state, "decoder_blocks", given.get("decoder_num_heads"), DECODER_HEADS, decoder_width, given),
        positions=decoder_layout,
        class_token="own" if class_token else "none",
    )
    return MaeConfig(
        encoder=encoder,
        decoder=decoder,
        mask_ratio=given.get("mask_ratio", 0.9),
        visible_count="float",
        target="normalized_pixels" if given.get("norm_pix_loss", True) else "pixels",
        predict_frames=_predict_frames(state, clip),
    )


def _clip(
    state: Mapping[str, Tensor],
    given: Mapping[str, Any],
    channels: int,
    patch: tuple[int, int, int],
    separable: bool,
    class_token: bool,
) -> ClipConfig:
    if separable:
        side = math.isqrt(_shape(state, "pos_embed_spatial", 3)[1])
        steps = _shape(state, "pos_embed_temporal", 3)[1]
    else:
        tokens = _shape(state, "pos_embed", 3)[1] - int(class_token)
        steps = given.get("num_frames", 16) // patch[0]
        side = math.isqrt(tokens // steps)
        if steps * side * side != tokens:
            raise UserError(
                f"a joint position table of {tokens} tokens does not fit {steps} time steps of a square grid.",
                'Give the length as config={"num_frames": ...}.',
            )
    return ClipConfig(
        frames=steps * patch[0], height=side * patch[1], width=side * patch[2], channels=channels, patch=patch
    )


def _blocks(
    state: Mapping[str, Tensor],
    prefix: str,
    heads: int | None,
    published: Mapping[int, int],
    width: int,
    given: Mapping[str, Any],
) -> BlocksConfig:
    if heads is None and width not in published:
        option = "num_heads" if prefix == "blocks" else "decoder_num_heads"
        raise UserError(
            f"names and shapes do not tell how many heads a width of {width} is split over.",
            f'Give it as config={{"{option}": ...}}.',
        )
    mlp_width, _ = _shape(state, f"{prefix}.0.mlp.fc1.weight", 2)
    numbers = [name.split(".")[1] for name in state if name.startswith(prefix + ".")]
    depth = 1 + max(int(number) for number in numbers if number.isdecimal())
    return BlocksConfig(
        width=width,
        depth=depth,
        heads=heads or published[width],
        mlp_width=mlp_width,
        qkv_bias=f"{prefix}.0.attn.q.bias" in state,
        norm_eps=given.get("norm_eps", 1e-6),
    )


def _predict_frames(state: Mapping[str, Tensor], clip: ClipConfig) -> PredictFrames:
    pt, ph, pw = clip.patch
    frames = _shape(state, "decoder_pred.weight", 2)[0] / (ph * pw * clip.channels)
    if frames == pt:
        return "all"
    if frames == 1:
        return "linspace"
    raise UserError(
        f"the checkpoint predicts {frames:g} of the {pt} frames of a patch.", "1 or all of them are supported."
    )


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int) -> torch.Size:
    """The shape of a tensor that a checkpoint of mae_st must have.

    Raises:
        UserError: it is not there, or has another number of dimensions.
    """
    found = f"{state[name].ndim} dimensions" if name in state else "no such tensor"
    if name not in state or state[name].ndim != dimensions:
        raise UserError(
            f'"{name}" must have {dimensions} dimensions, and the state dict has {found}.',
            "It is no complete checkpoint of mae_st: check family= and the file.",
        )
    return state[name].shape


def to_ours(state: Mapping[str, Tensor], config: MaeConfig | ClassifierConfig) -> State:
    """Their state dict under our names and shapes; what is not known, or does not fit, keeps their name."""
    ours: State = {}
    for name, value in state.items():
        if re.search(_QKV, name):
            parts = _qkv(state, name)
            if not parts:
                ours[name] = value
            elif ".attn.q." in name:
                ours[_our_name(name.replace(".attn.q.", ".attn.qkv."))] = torch.cat(parts)
        elif name == "patch_embed.proj.weight":  # (D, C, pt, ph, pw) to (D, pt*ph*pw*C)
            ours["encoder.patch_embed.proj.weight"] = value.permute(0, 2, 3, 4, 1).flatten(1)
        elif name in ("pos_embed", "decoder_pos_embed") and value.ndim == 3:
            side, rows = _side(name), value[0]  # row 0 is the class token's, when there is one
            if config.encoder.class_token:
                ours[f"{side}.positions.class_position"], rows = rows[:1], rows[1:]
            ours[f"{side}.positions.joint"] = rows
        else:
            ours[_our_name(name)] = value[0] if value.ndim == 3 and len(value) == 1 else value
    return {name: value.contiguous() for name, value in ours.items()}


_QKV = r"\.attn\.[qkv]\."


def _qkv(state: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The three parts of the layer that `name` is one of; nothing where they do not make one matrix."""
    names = [re.sub(_QKV, f".attn.{letter}.", name) for letter in "qkv"]
    parts = [state[part] for part in names if part in state]
    return parts if len(parts) == 3 and len({part.shape for part in parts}) == 1 else []


def to_theirs(ours: Mapping[str, Tensor], config: MaeConfig | ClassifierConfig) -> State:
    """The inverse of `to_ours`."""
    theirs: State = {}
    clip = config.encoder.clip
    for name, value in ours.items():
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                theirs[_their_name(name.replace(".attn.qkv.", f".attn.{letter}."))] = part
        elif name == "encoder.patch_embed.proj.weight":
            cut = value.unflatten(1, (*clip.patch, clip.channels))
            theirs["patch_embed.proj.weight"] = cut.permute(0, 4, 1, 2, 3)
        elif name.endswith("positions.joint"):
            first = ours.get(name.replace("joint", "class_position"))
            theirs[_their_name(name)] = (value if first is None else torch.cat([first, value]))[None]
        elif name.endswith("positions.class_position") and name.replace("class_position", "joint") in ours:
            continue
        else:
            theirs[_their_name(name)] = value[None] if ".positions." in name or name.endswith("_token") else value
    return {name: value.contiguous() for name, value in theirs.items()}


# Ours: theirs, for everything that is only renamed. A name that ends in a dot is a prefix.
_NAMES = {
    "decoder.blocks.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.embed.": "decoder_embed.",
    "decoder.head.": "decoder_pred.",
    "decoder.mask_token": "mask_token",
    "decoder.class_token": "decoder_cls_token",
    "decoder.positions.spatial": "decoder_pos_embed_spatial",
    "decoder.positions.temporal": "decoder_pos_embed_temporal",
    "decoder.positions.class_position": "decoder_pos_embed_class",
    "decoder.positions.joint": "decoder_pos_embed",
    "encoder.positions.spatial": "pos_embed_spatial",
    "encoder.positions.temporal": "pos_embed_temporal",
    "encoder.positions.class_position": "pos_embed_class",
    "encoder.positions.joint": "pos_embed",
    "encoder.class_token": "cls_token",
    "encoder.patch_embed.": "patch_embed.",
    "encoder.blocks.": "blocks.",
    "encoder.norm.": "norm.",
    "head.": "head.",
}


def _side(name: str) -> str:
    return "decoder" if name.startswith("decoder") else "encoder"


def _our_name(name: str) -> str:
    for ours, theirs in _NAMES.items():
        if name == theirs or (theirs.endswith(".") and name.startswith(theirs)):
            return ours + name[len(theirs) :]
    return name


def _their_name(name: str) -> str:
    for ours, theirs in _NAMES.items():
        if name == ours or (ours.endswith(".") and name.startswith(ours)):
            return theirs + name[len(ours) :]
    raise UserError(f'mae_st has no place for "{name}".', "Save the model in stmae's own format instead.")
