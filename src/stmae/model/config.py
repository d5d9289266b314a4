"""Sizes and switches of the models, and whether they fit together. Plain data: no torch in here.

Frozen dataclasses that turn into nested dicts (`as_dict`) and back (`from_dict`), so that a checkpoint can carry
its own configuration. What does not fit raises `UserError` with every mistake at once.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ..errors import Problems, UserError, unknown

PositionLayout = Literal["separable", "joint"]
PositionValues = Literal["learned", "learned_from_sincos", "sincos"]
PredictFrames = Literal["strided", "linspace", "all"]
TargetKind = Literal["normalized_pixels", "normalized_pixels_per_channel", "pixels", "hog", "tokens", "teacher"]
MaskKind = Literal["agnostic", "space", "time", "block", "motion", "own"]
DecodeKind = Literal["all", "random", "running_cell"]
DecoderKind = Literal["self_attention", "cross_attention", "linear"]
Problem = Literal["single", "multi", "regression"]
Grid = tuple[int, int, int]  # tokens over time, rows, columns

HOG_CELL, HOG_BINS = 8, 9  # pixels of a cell's side, orientations (MaskFeat)

# What a mask is drawn over: tokens, the cells of one frame, time steps. Each hides N / units tokens.
MASK_UNITS: dict[MaskKind, Callable[[Grid], int]] = {
    "agnostic": lambda grid: math.prod(grid),
    "space": lambda grid: grid[1] * grid[2],
    "time": lambda grid: grid[0],
    "block": lambda grid: math.prod(grid),
    "motion": lambda grid: math.prod(grid),
    "own": lambda grid: math.prod(grid),
}


def _check_choices(config: object, problems: Problems) -> None:
    """Refuses a misspelt choice of a `Literal` field, which would be taken for another choice in silence."""
    for name, hint in typing.get_type_hints(type(config)).items():
        choices, value = typing.get_args(hint), getattr(config, name)
        if typing.get_origin(hint) is Literal and value not in choices:
            problems.extend(unknown(name.replace("_", " "), value, choices))


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The clip a model takes and how it is cut into spacetime patches.

    `mean` and `std` (one value for all channels, or one per channel; of pixels in 0..1) normalise uint8 clips;
    the defaults are the reference's, which are not ImageNet's.
    """

    frames: int = 16
    height: int = 224
    width: int = 224
    channels: int = 3
    patch: tuple[int, int, int] = (2, 16, 16)
    mean: tuple[float, ...] = (0.45,)
    std: tuple[float, ...] = (0.225,)

    def __post_init__(self) -> None:
        problems = Problems()
        for name in ("frames", "height", "width", "channels"):
            problems.check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}.", "It must be at least 1.")
        for size, step, name in zip(self.shape, self.patch, ("frames", "height", "width"), strict=True):
            if step < 1:
                problems.add(f"a patch of {step} {name} is empty.", "Choose at least 1.")
            elif size % step:
                near = " or ".join(str(n) for n in (size // step * step, (size // step + 1) * step) if n)
                problems.add(f"{name} {size} is not a multiple of the patch's {step}.", f"Choose {near}.")
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            problems.check(
                count in (1, self.channels),
                f"{name} has {count} values for {self.channels} channels.",
                f"Give 1 or {self.channels}.",
            )
        problems.check(all(value > 0 for value in self.std), f"std is {self.std}.", "Every value must be above 0.")
        problems.raise_any()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        return self.frames, self.height, self.width

    @property
    def grid(self) -> Grid:
        """Tokens over time, rows and columns: (t, h, w)."""
        (T, H, W), (pt, ph, pw) = self.shape, self.patch
        return T // pt, H // ph, W // pw

    @property
    def tokens(self) -> int:
        """N = t * h * w."""
        return math.prod(self.grid)

    @property
    def patch_values(self) -> int:
        """Values in one patch: frames x rows x columns x channels."""
        return math.prod(self.patch) * self.channels


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """A stack of transformer blocks."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    qkv_bias: bool = True
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        problems = Problems()
        for name in ("width", "depth", "heads", "mlp_width"):
            problems.check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}.", "It must be at least 1.")
        if self.heads >= 1 and self.width % self.heads:
            divisors = [n for n in range(1, self.width + 1) if self.width % n == 0]
            near = min(divisors, key=lambda n: abs(n - self.heads))
            problems.add(f"width {self.width} cannot be split over {self.heads} heads.", f"{near} would do.")
        problems.raise_any()


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A vanilla ViT over spacetime patches (paper, section 3).

    `norm`: whether a layer norm follows the last block; Hugging Face's VideoMAE can be without. `norm_eps` is that
    norm's epsilon where it is not the blocks'.
    """

    clip: ClipConfig
    blocks: BlocksConfig
    positions: PositionLayout = "separable"
    position_values: PositionValues = "learned"
    class_token: bool = True
    norm: bool = True
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        problems = Problems()
        _check_choices(self, problems)
        problems.raise_any()


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The small ViT that paints back.

    `kind`: attention over all tokens (the paper), from hidden tokens to visible ones alone (CrossMAE), or no decoder
    but a linear layer on what the encoder makes of its mask tokens (MaskFeat), for which nothing else here counts.
    `class_token`: "own" is a token of the decoder's own (mae_st), "encoder" hands on the encoder's (PySlowFast).
    `embed_bias`: whether the layer from the encoder's width to the decoder's has a bias; VideoMAE's has none.
    `norm_eps`: of the norm after the last block, where it is not the blocks'.
    """

    blocks: BlocksConfig
    kind: DecoderKind = "self_attention"
    positions: PositionLayout = "separable"
    position_values: PositionValues = "learned"
    class_token: Literal["own", "encoder", "none"] = "own"
    embed_bias: bool = True
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        problems = Problems()
        _check_choices(self, problems)
        problems.raise_any()


@dataclass(frozen=True, kw_only=True)
class MaeConfig:
    """A masked autoencoder: encoder, decoder, how much is hidden, what is predicted.

    `mask`: the kinds of `model/masking.py`; "own" is a function of the user's.
    `visible_count`: "exact" keeps floor(N (1 - ratio)) tokens; "float" is the references' integer part of the
    floating-point product, which is one less where the product should be whole (15 of 160 at 0.9).
    `decode`, `decode_share`: which hidden tokens training predicts, and what share of them.
    `given_values`: for targets that come from outside, what there is of them: the tokenizer's codes, or the width of
    the teacher.
    """

    encoder: EncoderConfig
    decoder: DecoderConfig
    mask: MaskKind = "agnostic"
    mask_ratio: float = 0.9
    visible_count: Literal["exact", "float"] = "exact"
    decode: DecodeKind = "all"
    decode_share: float = 0.5
    target: TargetKind = "normalized_pixels"
    predict_frames: PredictFrames = "strided"
    given_values: int = 0
    mask_tokens_in_encoder: bool = False

    def __post_init__(self) -> None:
        problems = Problems()
        _check_choices(self, problems)
        problems.check(
            0 < self.mask_ratio < 1,
            f"mask ratio {self.mask_ratio} leaves nothing {'visible' if self.mask_ratio >= 1 else 'hidden'}.",
            "Choose one above 0 and below 1, such as 0.9.",
        )
        problems.check(self.encoder.clip.tokens > 1, "the clip has a single token.", "Choose a smaller patch.")
        problems.check(
            self.encoder.clip.tokens == 1 or self.mask not in MASK_UNITS or self.mask_units(self.encoder.clip.grid) > 1,
            f'mask "{self.mask}" has a single unit to draw in a grid of {self.encoder.clip.grid}.',
            "Choose another mask, or a smaller patch.",
        )
        problems.check(
            0 < self.decode_share <= 1,
            f"decode share {self.decode_share} is not above 0 and at most 1.",
            "Choose such as 0.5.",
        )
        problems.check(
            self.decoder.class_token != "encoder" or self.encoder.class_token,
            'the decoder takes the class token from an encoder that has none (decoder class_token "encoder").',
            'Give the encoder a class token, or the decoder "own" or "none".',
        )
        problems.check(
            self.decoder.kind != "linear" or self.mask_tokens_in_encoder,
            "a linear decoder has nothing to predict from unless the encoder sees mask tokens.",
            "Set mask_tokens_in_encoder too.",
        )
        problems.check(
            self.decoder.kind != "cross_attention" or not self.mask_tokens_in_encoder,
            "cross_attention goes from mask tokens of the decoder to visible tokens: the encoder is to see no others.",
            "Leave mask_tokens_in_encoder out, or choose another decoder.",
        )
        problems.check(
            self.target not in ("tokens", "teacher") or self.given_values >= 1,
            f'target "{self.target}" comes from outside, and how many values it has is not said (given_values).',
            "Give the tokenizer's number of codes, or the teacher's width.",
        )
        sides = [side for side in self.encoder.clip.patch[1:] if side % HOG_CELL]
        problems.check(
            self.target != "hog" or not sides,
            f"HOG is taken over cells of {HOG_CELL} x {HOG_CELL} pixels, which do not divide patches of {sides}.",
            f"Choose a patch whose sides are multiples of {HOG_CELL}.",
        )
        problems.raise_any()

    def mask_units(self, grid: Grid) -> int:
        """How many units there are to draw: tokens, cells of a frame, time steps."""
        return MASK_UNITS[self.mask](grid)

    @property
    def target_frames(self) -> int:
        """Frames of a patch that are predicted."""
        return self.encoder.clip.patch[0] if self.predict_frames == "all" else 1

    @property
    def target_values(self) -> int:
        """P: values predicted per token; for tokens, scores of that many codes."""
        clip = self.encoder.clip
        _, ph, pw = clip.patch
        if self.target in ("tokens", "teacher"):
            return self.given_values
        each = HOG_BINS * (ph // HOG_CELL) * (pw // HOG_CELL) if self.target == "hog" else ph * pw
        return self.target_frames * clip.channels * each


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """An encoder with a linear head on its averaged tokens (paper, section 4).

    Attributes:
        encoder: below the head.
        classes: numbers that come out: classes, or the values of a regression.
        dropout: of the averaged features, while training.
        drop_path: share of clips for which the last block's branches are left out while training; it rises in a
            straight line from 0 at the first block.
        class_names: what the outputs are called, in their order; empty where that is not known.
        problem: what they mean: one class of all ("single"), any of the classes ("multi"), or numbers ("regression").
        shift, scale: of a regression's outputs, one each: what the head gives is taken times `scale` plus `shift`.
    """

    encoder: EncoderConfig
    classes: int
    dropout: float = 0.0
    drop_path: float = 0.0
    class_names: tuple[str, ...] = ()
    problem: Problem = "single"
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        problems = Problems()
        _check_choices(self, problems)
        problems.check(self.classes >= 1, f"classes is {self.classes}.", "It must be at least 1.")
        for name in ("dropout", "drop_path"):
            rate = getattr(self, name)
            problems.check(0 <= rate < 1, f"{name} is {rate}.", "Choose one from 0 to below 1.")
        problems.check(
            len(self.class_names) in (0, self.classes),
            f"{len(self.class_names)} class names for {self.classes} outputs.",
            "Give one for each, or none.",
        )
        problems.check(
            len(self.shift) == len(self.scale) and len(self.shift) in (0, self.classes),
            f"{len(self.shift)} shifts and {len(self.scale)} scales for {self.classes} outputs.",
            "Give one of both for each, or none.",
        )
        problems.raise_any()


ModelConfig = EncoderConfig | MaeConfig | ClassifierConfig
C = TypeVar("C")

KINDS: dict[str, type] = {"encoder": EncoderConfig, "mae": MaeConfig, "classifier": ClassifierConfig}


def as_dict(config: ModelConfig) -> dict[str, Any]:
    """The configuration as plain nested data, with its kind under "kind"."""
    kind = next(name for name, made in KINDS.items() if type(config) is made)
    return {"kind": kind, **dataclasses.asdict(config)}


def from_dict(data: Mapping[str, Any]) -> ModelConfig:
    """The configuration from `as_dict`'s data (JSON's lists become tuples again).

    Raises:
        UserError: an unknown kind or key, a missing key, values that do not fit.
    """
    values = dict(data)
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f'model kind "{kind}" is unknown.', f"Known: {', '.join(KINDS)}.")
    return _build(KINDS[kind], values)


def _build(made: type[C], values: object) -> C:
    if not isinstance(values, Mapping):
        raise UserError(f"{made.__name__} cannot be made of {values!r}.", "The configuration is damaged.")
    hints = typing.get_type_hints(made)
    strange = sorted(set(values) - set(hints))
    if strange:
        raise UserError(
            f"{made.__name__} has no {', '.join(strange)}.", "The file comes from a newer version of stmae: update."
        )
    parsed = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _build(typing.cast(type, hints[name]), value)
        parsed[name] = tuple(value) if isinstance(value, list) else value
    try:
        return made(**parsed)
    except TypeError as error:
        raise UserError(f"{made.__name__}: {error}.", "The configuration is incomplete.") from None
