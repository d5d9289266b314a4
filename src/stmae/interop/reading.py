"""Which model a reference checkpoint is of: told by names and shapes, and by the reference's own options if given."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import Note, Problems, UserError
from ..model.config import (
    BlocksConfig,
    ClassifierConfig,
    ClipConfig,
    DecoderConfig,
    EncoderConfig,
    MaeConfig,
    PositionLayout,
    PredictFrames,
    as_dict,
)
from .naming import Config, Family

PUBLISHED_FRAMES, PUBLISHED_SIZE = 16, 224
MOST_TOKENS = 1 << 20  # of a clip: positions that are computed take memory before a file's tensors bound them
_COUNTS = ("num_heads", "decoder_num_heads", "num_frames", "t_patch_size")


def read_config(state: Mapping[str, Tensor], family: Family, options: Mapping[str, Any] | None) -> Config:
    """The configuration of an autoencoder, of a classifier, or of an encoder alone, whichever is in the file.

    Args:
        state: their tensors under our names (`naming.rename`).
        options: by the reference's names (``num_heads``, ``decoder_num_heads``, ``mask_ratio``, ``num_frames``, ...),
            for what names and shapes do not tell; without them the published models' are taken.

    Raises:
        UserError: names are missing, or heads cannot be told and are not given.
    """
    given = {family.options.get(name, name): value for name, value in (options or {}).items()}
    _refuse_strange(given)
    clip = _clip(state, family, given)
    encoder = EncoderConfig(
        clip=clip,
        blocks=_blocks(state, "encoder", family, given),
        positions=_layout(state, "encoder", family, clip),
        position_values="sincos" if family.positions == "sincos" or _frozen(family, clip) else "learned",
        class_token="encoder.class_token" in state,
        norm="encoder.norm.weight" in state,
        norm_eps=family.head_norm_eps if "head.weight" in state else None,
    )
    if "head.weight" in state:
        classes = _shape(state, "head.weight", 2)[0]
        return ClassifierConfig(encoder=encoder, classes=classes, class_names=_class_names(given, classes))
    if not any(name.startswith("decoder.") for name in state):
        return encoder
    return MaeConfig(
        encoder=encoder,
        decoder=DecoderConfig(
            blocks=_blocks(state, "decoder", family, given),
            positions=_layout(state, "decoder", family, clip),
            position_values=encoder.position_values,
            class_token=family.decoder_class_token if encoder.class_token else "none",
            embed_bias="decoder.embed.bias" in state,
            norm_eps=family.head_norm_eps,
        ),
        mask_ratio=given.get("mask_ratio", family.mask_ratio),
        visible_count="float",
        target=family.target if given.get("norm_pix_loss", True) else _pixels(family),
        predict_frames=_predict_frames(state, clip, family),
    )


def _refuse_strange(given: Mapping[str, Any]) -> None:
    """Options come from files, too: what is no number where one is wanted is refused."""
    problems = Problems()
    for name in _COUNTS:
        value = given.get(name, 1)
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_TOKENS
        problems.check(whole, f"{name} is {value!r}.", "It must be a whole number from 1.")
    for name in ("mask_ratio", "norm_eps"):
        value = given.get(name, 0.5)
        problems.check(isinstance(value, float) and 0 < value < 1, f"{name} is {value!r}.", "It lies between 0 and 1.")
    size = given.get("img_size", 1)
    sides = size if isinstance(size, list | tuple) else [size, size]
    problems.check(
        len(sides) == 2 and all(type(side) is int and 1 <= side <= MOST_TOKENS for side in sides),
        f"img_size is {size!r}.",
        "It must be a whole number of pixels, or height and width.",
    )
    problems.check(not given.get("cos_attn"), "cos_attn is on: attention by cosines.", "stmae's is the usual one.")
    problems.raise_any()


def not_kept(config: Config, state: Mapping[str, Tensor], family: Family) -> list[str]:
    """What a family would take a model for otherwise than it is, given `state`, its tensors under our names: one line
    for each value. What its own options say (ratio, mean, which frames are predicted) is left out.
    """
    encoder = config if isinstance(config, EncoderConfig) else config.encoder
    options: dict[str, Any] = {
        "num_heads": encoder.blocks.heads,
        "norm_eps": encoder.blocks.norm_eps,
        "num_frames": encoder.clip.frames,
        "t_patch_size": encoder.clip.patch[0],
        "img_size": (encoder.clip.height, encoder.clip.width),
    }
    if isinstance(config, MaeConfig):
        options |= {"decoder_num_heads": config.decoder.blocks.heads, "norm_pix_loss": config.target != "pixels"}
    if family.image and not encoder.class_token:
        return ["encoder.class_token: False here, its code always has one"]
    theirs = dict(_flat(as_dict(read_config(state, dataclasses.replace(family, options={}), options))))
    own = (
        "mask",
        "mask_ratio",
        "decode",
        "decode_share",
        "visible_count",
        "predict_frames",
        "encoder.clip.mean",
        "encoder.clip.std",
    )
    return [
        f"{name}: {value} here, {theirs.get(name)} there"
        for name, value in _flat(as_dict(config))
        if theirs.get(name) != value
        and not name.endswith(own)
        and name not in ("clip.mean", "clip.std", "dropout", "drop_path", "class_names")
        and not (name.endswith("position_values") and family.positions == "learned")  # the tables go along
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _class_names(given: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """What transformers calls the classes, where that is more than a number for each."""
    labels = given.get("id2label")
    if not isinstance(labels, Mapping):
        return ()
    names = [str(labels.get(str(number), labels.get(number, ""))) for number in range(classes)]
    numbered = all(name in (f"LABEL_{number}", str(number)) for number, name in enumerate(names))
    return () if numbered or not all(names) else tuple(names)


def _frozen(family: Family, clip: ClipConfig) -> bool:
    """An image model's tables are fixed; where time is added to them, that part has to be learnt."""
    return family.image and clip.grid[0] == 1


def _layout(state: Mapping[str, Tensor], side: str, family: Family, clip: ClipConfig) -> PositionLayout:
    if f"{side}.positions.spatial" in state:
        return "separable"
    return "separable" if family.image and not _frozen(family, clip) else "joint"


def _pixels(family: Family) -> Any:
    if family.target == "normalized_pixels_per_channel":
        raise UserError(
            f"{family.project} without normalised targets predicts pixels from 0 to 1; stmae's are normalised ones.",
            "Use the encoder, or a checkpoint with norm_pix_loss.",
        )
    return "pixels"


def _clip(state: Mapping[str, Tensor], family: Family, given: Mapping[str, Any]) -> ClipConfig:
    if family.image:
        _, channels, *sizes = _shape(state, "encoder.patch_embed.proj.weight", 4)
        frames = given.get("num_frames", 1)
        patch = (given.get("t_patch_size", min(2, frames)), sizes[0], sizes[1])
    else:
        _, channels, *sizes = _shape(state, "encoder.patch_embed.proj.weight", 5)
        frames = given.get("num_frames", PUBLISHED_FRAMES)
        patch = (sizes[0], sizes[1], sizes[2])
    if family.positions == "sincos":  # the file has no table that would show the grid
        size = given.get("img_size", PUBLISHED_SIZE)
        height, width = (size, size) if isinstance(size, int) else size
    else:
        steps, side = _grid(state, family, frames // patch[0])
        frames, height, width = steps * patch[0], side * patch[1], side * patch[2]
    if frames * height * width > MOST_TOKENS * math.prod(patch):
        raise UserError(
            f"clips of {frames}x{height}x{width} in patches of {'x'.join(map(str, patch))} are too many tokens.",
            f"At most {MOST_TOKENS} can be.",
        )
    mean, std = (values if len(values) in (1, channels) else (sum(values) / 3,) for values in (family.mean, family.std))
    return ClipConfig(frames=frames, height=height, width=width, channels=channels, patch=patch, mean=mean, std=std)


def _grid(state: Mapping[str, Tensor], family: Family, steps: int) -> tuple[int, int]:
    """Tokens over time, and rows (which equal columns)."""
    if "encoder.positions.spatial" in state:
        side = math.isqrt(_shape(state, "encoder.positions.spatial", 3)[1])
        return _shape(state, "encoder.positions.temporal", 3)[1], side
    tokens = _shape(state, "encoder.positions.joint", 3)[1] - int("encoder.class_token" in state)
    if family.image:
        return steps, math.isqrt(tokens)
    side = math.isqrt(tokens // max(steps, 1))
    if steps * side * side != tokens:
        raise UserError(
            f"a joint position table of {tokens} tokens does not fit {steps} time steps of a square grid.",
            'Give the length: `stmae convert FILE --out FOLDER --sizes num_frames=...`, or config={"num_frames": ...}.',
        )
    return steps, side


def _blocks(state: Mapping[str, Tensor], side: str, family: Family, given: Mapping[str, Any]) -> BlocksConfig:
    prefix = f"{side}.blocks"
    first = "encoder.patch_embed.proj.weight" if side == "encoder" else "decoder.embed.weight"
    width = _shape(state, first)[0]
    option = "num_heads" if side == "encoder" else "decoder_num_heads"
    published = family.heads if side == "encoder" else family.decoder_heads
    if option not in given and width not in published:
        raise UserError(
            f"names and shapes do not tell how many heads a width of {width} is split over.",
            f"Say it: `stmae convert FILE --out FOLDER --sizes {option}=...`, whose folder serves everywhere;"
            f' from Python config={{"{option}": ...}}.',
        )
    if option not in given and side == "decoder" and family.guessed_decoder_heads:
        warnings.warn(
            f"the file does not tell the decoder's heads: taking {published[width]}, as the code of {family.project}"
            " has it. If it was trained otherwise (PySlowFast's published models have 8), what it paints is wrong:"
            " convert it with --sizes decoder_num_heads=8.",
            Note,
            stacklevel=4,
        )
    numbers = {name.split(".")[2] for name in state if name.startswith(prefix + ".")}
    depth = 1 + max((int(number) for number in numbers if number.isdecimal() and len(number) < 9), default=0)
    if depth > max(len(numbers), 1):
        raise UserError(
            f"blocks are numbered up to {depth - 1}, and there are {len(numbers)} of them ({side}).",
            "Some are missing: copy or download the file again.",
        )
    biases = ("q.bias", "q_bias", "qkv.bias")
    return BlocksConfig(
        width=width,
        depth=depth,
        heads=given.get(option) or published[width],
        mlp_width=_shape(state, f"{prefix}.0.mlp.fc1.weight", 2)[0],
        qkv_bias=any(f"{prefix}.0.attn.{name}" in state for name in biases),
        norm_eps=given.get("norm_eps", family.norm_eps),
    )


def _predict_frames(state: Mapping[str, Tensor], clip: ClipConfig, family: Family) -> PredictFrames:
    pt, ph, pw = clip.patch
    frames = _shape(state, "decoder.head.weight", 2)[0] / (ph * pw * clip.channels)
    if frames == pt:
        return "all"
    if frames == 1:
        return family.one_frame
    raise UserError(
        f"the checkpoint predicts {frames:g} of the {pt} frames of a patch.", "1 or all of them are supported."
    )


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int | None = None) -> torch.Size:
    """The shape of a tensor that a checkpoint must have.

    Raises:
        UserError: it is not there, or has another number of dimensions.
    """
    found = f"{state[name].ndim} dimensions" if name in state else "no such tensor"
    if name not in state or dimensions not in (None, state[name].ndim):
        wanted = f"must have {dimensions} dimensions" if dimensions else "must be there"
        raise UserError(
            f'"{name}" {wanted}, and the state dict has {found}.',
            "It is no complete checkpoint of that family: check family= and the file.",
        )
    return state[name].shape
