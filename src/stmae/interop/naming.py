"""Other projects' names and shapes to ours and back, bit for bit, driven by one table per family.

It goes in two steps, each of which has an inverse:

    their names ──rename──> our names, their shapes ──reshape──> our state dict

The second step is the same for all: q, k and v become one layer, a Conv3d's kernel the matrix that it is, a position
table's first row the class token's, and leading dimensions of 1 go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..model.config import ClassifierConfig, EncoderConfig, MaeConfig, PredictFrames, TargetKind
from ..model.patches import Positions

State = dict[str, Tensor]
Config = MaeConfig | ClassifierConfig | EncoderConfig


@dataclass(frozen=True)
class Family:
    """What there is to know about one project's checkpoints.

    Attributes:
        project: whose they are.
        prefix: of the names of the encoder, which they lack where it was saved alone.
        licence: of the published weights, in words.
        licence_id: as the hub names it; empty where nobody has said.
        names: ours to theirs, in a pre-training checkpoint; a name that ends in a dot is a prefix.
        classifier_names: those of a fine-tuned one.
        block: within a block, ours to theirs.
        qkv: three layers or a fused one; "qv_bias": without a bias for k, which a fused one has apart from the weight.
        decoder_norm: the list of decoder blocks whose last entry is the decoder's norm.
        positions: their encoder's and decoder's kind; "sincos" ones are not in the file.
        heads, decoder_heads: of the published models, by width.
        guessed_decoder_heads: whether these are what its code says, while other files are about as well.
        options: their name to the one that `config=` knows, where they differ.
        head_norm_eps: of the norm before a head (the decoder's, a classifier's), where it is not the blocks'.
        one_frame: which frame of a patch is predicted, where it is one.
        decoder_class_token: what the decoder does for one, where the encoder has one.
        image: its models are of stills.
    """

    project: str
    licence: str
    licence_id: str
    names: Mapping[str, str]
    classifier_names: Mapping[str, str]
    qkv: Literal["split", "split_qv_bias", "fused", "fused_qv_bias"]
    block: Mapping[str, str] = field(default_factory=dict)
    decoder_norm: str = ""
    positions: Literal["learned", "sincos"] = "learned"
    heads: Mapping[int, int] = field(default_factory=dict)
    decoder_heads: Mapping[int, int] = field(default_factory=dict)
    guessed_decoder_heads: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    mean: tuple[float, ...] = (0.45,)
    std: tuple[float, ...] = (0.225,)
    norm_eps: float = 1e-6
    head_norm_eps: float | None = None
    mask_ratio: float = 0.9
    target: TargetKind = "normalized_pixels"
    one_frame: PredictFrames = "strided"
    decoder_class_token: Literal["own", "encoder"] = "own"
    image: bool = False
    prefix: str = ""


# Step 1: names -------------------------------------------------------------------------------------------------------


def rename(state: Mapping[str, Tensor], family: Family) -> State:
    """Their state dict under our names ("encoder." before those of one alone); what is not known keeps its own."""
    bare = family.prefix and not any(name.startswith(family.prefix) for name in state)
    found = {}
    for name, value in state.items():
        whole = f"{family.prefix}{name}" if bare else name
        ours = _our_name(whole, family)
        found[name if ours == whole else ours] = value
    return found


def _our_name(name: str, family: Family) -> str:
    if family.decoder_norm and (found := re.fullmatch(rf"{re.escape(family.decoder_norm)}\.\d+\.(weight|bias)", name)):
        return f"decoder.norm.{found[1]}"
    for table in (family.names, family.classifier_names):
        for ours, theirs in table.items():
            if name == theirs or (theirs.endswith(".") and name.startswith(theirs)):
                return _in_block(ours + name[len(theirs) :], {theirs: ours for ours, theirs in family.block.items()})
    return name


def _their_name(name: str, config: Config, family: Family) -> str:
    """Empty where they have none."""
    if family.decoder_norm and name.startswith("decoder.norm."):
        assert isinstance(config, MaeConfig)
        return f"{family.decoder_norm}.{config.decoder.blocks.depth}.{name.removeprefix('decoder.norm.')}"
    table = family.classifier_names if isinstance(config, ClassifierConfig) else family.names
    for ours, theirs in table.items():
        if name == ours or (ours.endswith(".") and name.startswith(ours)):
            return theirs + _in_block(name, family.block)[len(ours) :]
    return ""


def _in_block(name: str, table: Mapping[str, str]) -> str:
    """Replaces the part of a block's name that stands after its number."""
    head, number, rest = re.fullmatch(r"((?:\w+\.)?blocks\.)(\d+\.)(.*)|.*", name, re.DOTALL).groups()  # type: ignore[union-attr]
    if head is None:
        return name
    for old, new in table.items():
        if rest.startswith(old):
            return head + number + new + rest[len(old) :]
    return name


# Step 2: shapes ------------------------------------------------------------------------------------------------------

_QKV = re.compile(r"^(.*\.attn\.)(?:([qkv])\.(weight|bias)|([qv])_bias)$")


def to_ours(renamed: Mapping[str, Tensor], config: Config, family: Family) -> State:
    """What `rename` gave, in our shapes; what does not fit keeps its own."""
    ours: State = {}
    for name, value in renamed.items():
        found = _QKV.match(name)
        if found:
            kind = found[3] or "bias"
            joined = _join_qkv(renamed, found[1], kind, family)
            ours |= {name: value} if joined is None else {f"{found[1]}qkv.{kind}": joined}
        elif name == "encoder.patch_embed.proj.weight" and value.ndim == 5:
            ours[name] = value.permute(0, 2, 3, 4, 1).flatten(1)  # (D, C, pt, ph, pw) to (D, pt*ph*pw*C)
        elif name == "encoder.patch_embed.proj.weight" and value.ndim == 4:
            ours[name] = inflate(value, _encoder(config).clip.patch[0])
        elif name.endswith(".positions.joint") and value.ndim == 3:
            ours |= _positions(name, value[0], config)
        else:
            ours[name] = value[0] if value.ndim == 3 and len(value) == 1 else value
    if family.positions == "sincos":
        ours |= _sincos(config)
    alone = "encoder." if isinstance(config, EncoderConfig) else ""
    return {name.removeprefix(alone): value.contiguous() for name, value in ours.items()}


def to_theirs(ours: Mapping[str, Tensor], config: Config, family: Family) -> State:
    """Our state dict under their names and in their shapes.

    Raises:
        UserError: they have no place for something of ours.
    """
    if isinstance(config, EncoderConfig):
        ours = {f"encoder.{name}": value for name, value in ours.items()}
    shaped: State = {}
    clip = _encoder(config).clip
    for name, value in ours.items():
        stem = name.rpartition(".")[0]
        if ".attn.qkv." in name:
            shaped |= _split_qkv(name, value, family)
        elif name == "encoder.patch_embed.proj.weight":
            kernel = value.unflatten(1, (*clip.patch, clip.channels)).permute(0, 4, 1, 2, 3)
            shaped[name] = kernel[:, :, 0] if family.image else kernel
        elif ".positions." in name and family.positions == "sincos":
            continue  # computed, not stored; whether ours are the same was looked at before
        elif name.endswith("positions.joint"):
            first = ours.get(f"{stem}.class_position")
            shaped[name] = (value if first is None else torch.cat([first, value]))[None]
        elif name.endswith("positions.class_position") and f"{stem}.joint" in ours:
            continue
        else:
            shaped[name] = value[None] if ".positions." in name or name.endswith("_token") else value
    names = {name: _their_name(name, config, family) for name in shaped}
    homeless = [name for name, theirs in names.items() if not theirs]
    if homeless:
        raise UserError(
            f"{family.project} has no place for {', '.join(homeless)}.", "Save the model in stmae's own format instead."
        )
    return {names[name]: value.contiguous() for name, value in shaped.items()}


def inflate(kernel: Tensor, frames: int) -> Tensor:
    """An image model's kernel (D, C, ph, pw) spread evenly over time, as (D, pt*ph*pw*C): a still gives its tokens."""
    return (kernel / frames)[:, None].expand(-1, frames, -1, -1, -1).permute(0, 1, 3, 4, 2).flatten(1)


def _join_qkv(state: Mapping[str, Tensor], stem: str, kind: str, family: Family) -> Tensor | None:
    """The parts of one layer, joined; None where they do not make one."""
    parts = [state.get(f"{stem}{letter}.{kind}", state.get(f"{stem}{letter}_{kind}")) for letter in "qkv"]
    q, k, v = parts
    if kind == "bias" and family.qkv.endswith("qv_bias") and q is not None:
        k = torch.zeros_like(q)
    if q is None or k is None or v is None or not q.shape == k.shape == v.shape:
        return None
    return torch.cat([q, k, v])


def _split_qkv(name: str, value: Tensor, family: Family) -> State:
    stem, _, kind = name.rpartition("qkv.")
    parts = dict(zip("qkv", value.chunk(3), strict=True))
    if kind == "bias" and family.qkv.endswith("qv_bias"):
        # A key's bias adds the same to all scores of a query, so that softmax takes it away: it may be left out.
        joint = "_" if family.qkv == "fused_qv_bias" else "."
        return {f"{stem}{letter}{joint}bias": parts[letter] for letter in "qv"}
    if family.qkv.startswith("fused"):
        return {name: value}
    return {f"{stem}{letter}.{kind}": part for letter, part in parts.items()}


def _positions(name: str, table: Tensor, config: Config) -> State:
    """A joint table, the class token's row first where there is one; an image's may become a spatial one."""
    side = name.split(".")[0]
    encoder = _encoder(config)
    part = encoder if side == "encoder" else config.decoder if isinstance(config, MaeConfig) else None
    if part is None:
        return {name: table}
    found: State = {}
    if part.class_token not in (False, "none"):
        found[f"{side}.positions.class_position"], table = table[:1], table[1:]
    if part.positions == "joint":
        return found | {name: table}
    # Frames of a still are alike: an image model has nothing to say about time.
    time = table.new_zeros(encoder.clip.grid[0], table.shape[1])
    return found | {f"{side}.positions.spatial": table, f"{side}.positions.temporal": time}


def _sincos(config: Config) -> State:
    encoder = _encoder(config)
    tables = {"encoder": encoder.blocks.width}
    if isinstance(config, MaeConfig):
        tables["decoder"] = config.decoder.blocks.width
    return {
        f"{side}.positions.joint": Positions(encoder.clip.grid, width, "joint", "sincos", False)().detach()
        for side, width in tables.items()
    }


def _encoder(config: Config) -> EncoderConfig:
    return config if isinstance(config, EncoderConfig) else config.encoder
