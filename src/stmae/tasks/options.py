"""Every option of every task, once: these fields are the Python keywords, the flags, the YAML keys and the help text.

Groups shared by tasks are frozen dataclasses; a task's own options, in `<task>_options.py`, inherit from the groups
they need, which keeps them flat everywhere, and say in `check` what can be wrong with them. None of these files imports
torch, so that the command line can show help and check values at once.
Defaults are the paper's; presets (`stmae.presets`) replace them where the machine or the folder ask for others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from tyro.conf import arg

from stmae import durations, mirror
from stmae.errors import Problems
from stmae.presets import Facts, Preset
from stmae.tasks.values import AutoInt

# From Python a source may also be a tensor of clips or a torch Dataset; on the command line it is a folder.
Source = Annotated[Any, arg(constructor=str, metavar="VIDEOS")]


Families = Literal["mae_st", "slowfast", "videomae", "videomae_hf", "mae_image"]

SEVERAL = {"several": True}  # marks a positional option that takes one word or more

if TYPE_CHECKING:
    AnyPath = Any  # text may be given and a Path is read, which a type checker has no way to be told
else:
    AnyPath = Path


def default(text: str) -> object:
    """What the help shows as the default of an option whose None stands for something worked out later."""
    return arg(help_behavior_hint=f"(default: {text})")


# The hint is given what the default is for a single word, in a list.
Duration = Annotated[
    durations.Duration,
    arg(
        constructor=str, metavar="DURATION", help_behavior_hint=lambda word: f"(default: {word.strip(chr(39) + '[]')})"
    ),
]

RunPath = Annotated[mirror.Place, arg(constructor=str, metavar="PATH")]

Parallel = Literal["auto", "ddp", "fsdp", "hybrid"]


AutoCount = Annotated[
    AutoInt,
    arg(
        constructor=str, metavar="INT|auto", help_behavior_hint=lambda word: f"(default: {word.strip(chr(39) + '[]')})"
    ),
]


# From Python a mask may also be a function or an array.
Mask = Annotated[Any, arg(constructor=str, metavar="KIND|FILE|FUNCTION", help_behavior_hint="(default: agnostic)")]


class Options:
    """Base of all options: remembers which ones the caller gave, so that a preset fills in only the others."""

    presets: ClassVar[Mapping[str, Preset]] = {}  # by name, where there is an option `preset`
    _given: frozenset[str]

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        self = super().__new__(cls)
        positional = [f.name for f in fields(cls) if not f.kw_only]  # type: ignore[arg-type]
        object.__setattr__(self, "_given", frozenset([*positional[: len(args)], *keywords]))
        return self

    @property
    def given(self) -> Mapping[str, Any]:
        """The options that were given, by name; all others hold their defaults."""
        return {name: getattr(self, name) for name in sorted(self._given)}

    def facts(self, videos: int, device: str) -> Facts:
        """What presets may depend on."""
        return Facts(videos=videos, device=device)

    def check(self, problems: Problems) -> None:
        """Adds everything that can be refused before anything is read."""

    def idle(self, asked: Collection[str]) -> list[str]:
        """What to tell of options that were asked for by name and that have no meaning beside the others: nothing is
        ignored in silence. They are no mistakes: one of a sweep's cells may have no use for what all are given.
        """
        return []


@dataclass(frozen=True, kw_only=True)
class SourceOptions(Options):
    """Where the videos are, and which of them are taken."""

    root: Annotated[AnyPath | None, default("the folder of the list")] = None
    """Folder that the entries of a list are relative to."""
    media: Annotated[
        tuple[Literal["videos", "images", "arrays", "frames"], ...], default("videos, else arrays, else images")
    ] = ()
    """What to take from folders; an image is a clip that stands still, frames are folders with a video's pictures."""
    subset: str = "train"
    """Rows to take from lists that tell them apart: train, val, test, or all."""
    checked: Annotated[AnyPath | None, default("none")] = None
    """Report of `stmae check` on these videos, for leave_out."""
    leave_out: Annotated[tuple[str, ...], default("none")] = ()
    """Reasons in that report to leave videos out, such as unreadable static duplicate; missing: entries of lists."""
    cache: Annotated[AnyPath | None, default("~/.cache/stmae")] = None
    """Folder that keeps what is fetched from addresses."""
    cache_size: str = "20GB"
    """Bytes that this folder may take, such as 500GB: what was not used for longest makes room."""


@dataclass(frozen=True, kw_only=True)
class ClipOptions(Options):
    """How clips are taken from videos."""

    frames: int = 16
    """Frames in a clip."""
    stride: float = 4.0
    """Distance between frames of a clip, in frames of a nominal 30 fps clock (4 is 0.133 s)."""
    image_size: int = 224
    """Height and width of a clip, in pixels."""
    workers: Annotated[int | None, default("from the machine's cores")] = None
    """Processes that decode videos."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """Where and how a task runs."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes an accelerator if there is one."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Arithmetic of matrix multiplications; auto takes bf16 where the device has it in hardware."""
    threads: Annotated[int | None, default("PyTorch's choice, the machine's cores")] = None
    """Threads over which an operation on the CPU is split."""


@dataclass(frozen=True, kw_only=True)
class EncoderOptions(Options):
    """The encoder."""

    model: str = "vit_base"
    """Size of the encoder: vit_mini, vit_tiny, vit_small, vit_base, vit_large, vit_huge or vit_giant."""
    patch: tuple[int, int, int] = (2, 16, 16)
    """Size of a spacetime patch: frames, rows, columns."""
    positions: Literal["separable", "joint"] = "separable"
    """Position embedding: a spatial plus a temporal table, or one table for all tokens."""
    position_values: Literal["learned", "learned_from_sincos", "sincos"] = "learned"
    """Position values: learned from random ones, learned from sine-cosine, or fixed sine-cosine."""
    class_token: bool = True
    """Give the encoder (and a decoder) a class token."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(EncoderOptions, Options):
    """The masked autoencoder."""

    mask: Mask = "agnostic"
    """What is hidden: agnostic (single tokens), space (tubes), time (whole time steps), block (boxes) or motion (what
    moves); a .npy or .png whose nonzero places are hidden; or module:function, from keys and grid to a mask."""
    mask_ratio: float = 0.9
    """Share of the tokens that is hidden from the encoder, above 0 and below 1."""
    target: Literal["normalized_pixels", "normalized_pixels_per_channel", "pixels", "hog", "tokens", "teacher"] = (
        "normalized_pixels"
    )
    """What is predicted: pixels normalised within each patch (or each colour of it: VideoMAE), or as they are; HOG; the
    codes of a tokenizer; the features of a teacher."""
    tokenizer: Annotated[Any, arg(constructor=str, metavar="FILE"), default("none")] = None
    """For target tokens: file that `stmae tokenizer` wrote."""
    teacher: Annotated[str | None, default("none")] = None
    """For target teacher: run or file with the encoder that is imitated; self for the model's own average (see ema)."""
    predict_frames: Literal["strided", "linspace", "all"] = "strided"
    """Which frames of a patch are predicted: its first, mae_st's choice of one, or all."""
    mask_tokens_in_encoder: bool = False
    """Let the encoder see mask tokens in place of hidden patches (slow; the paper's baseline)."""
    decoder: Literal["self_attention", "cross_attention", "linear"] = "self_attention"
    """How hidden tokens are predicted: attention over all tokens, from hidden ones to visible ones alone (CrossMAE), or
    a linear layer on the encoder's mask tokens (MaskFeat; without width, depth or heads)."""
    decode: Literal["all", "random", "running_cell"] = "all"
    """Which hidden tokens a step predicts: all, a random share, or a share that moves through cells of 2 x 2 tokens
    (VideoMAE v2)."""
    decode_share: Annotated[float | None, default("0.5, unless decode is all")] = None
    """Share of the hidden tokens that a step predicts."""
    decoder_width: int = 512
    """Width of the decoder."""
    decoder_depth: int = 4
    """Blocks in the decoder."""
    decoder_heads: int = 8
    """Attention heads of the decoder."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options):
    """The schedule and the optimiser (AdamW)."""

    epochs: Duration = 800
    """Effective epochs: how many clips are taken from each video in all. Or "50000 steps", "10M clips"."""
    warmup: Duration = "15%"
    """How long the learning rate rises from 0: epochs, or "500 steps", "5%" of the run (the paper's: 120 of 800)."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """The learning rate after the warm-up: down to end_lr as half a cosine, in a straight line, or at the end only."""
    cooldown: Duration = "20%"
    """With schedule constant, how long the learning rate falls at the end: epochs, or "2000 steps", "20%"."""
    batch_size: AutoCount = 64
    """Clips per step, over all processes; auto takes as many as fit into memory (times accumulate)."""
    accumulate: AutoCount = 1
    """Parts in which the batch is computed one after the other, to save memory; auto takes as few as fit."""
    parallel: Parallel = "auto"
    """With several processes (torchrun, srun): ddp puts the whole model on each device, fsdp parts of it, hybrid parts
    of it within a host and copies over the hosts; auto takes ddp where the model fits."""
    lr: Annotated[float | None, default("1.6e-3 x clips per step / 2048")] = None
    """Peak learning rate."""
    end_lr: float = 0.0
    """Learning rate at the end."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block of the encoder to the one below; below 1 to keep what it learnt."""
    group_lr: Annotated[tuple[str, ...], default("none")] = ()
    """Factors of the learning rate by the beginning of parameters' names, such as decoder=0.5 encoder.positions=0."""
    weight_decay: float = 0.05
    """Weight decay, of parameters with more than one dimension."""
    group_decay: Annotated[tuple[str, ...], default("none")] = ()
    """Weight decays of their own by the beginning of parameters' names, such as decoder=0 encoder.norm=0.05."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's momentum terms."""
    clip_grad: float | None = 0.02
    """Longest gradient norm; longer ones are scaled down to it. None leaves them as they are."""
    ema: Annotated[float | None, default("none")] = None
    """Decay of a running average of the weights, such as 0.9999, which is then what is judged and exported."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model's blocks, which takes a minute and makes steps faster; auto does on a GPU."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass: less memory, a third more time, the same result."""
