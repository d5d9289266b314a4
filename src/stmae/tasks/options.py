"""Every option of every task, once: these fields are the Python keywords, the flags, the YAML keys and the help text.

Groups shared by tasks are frozen dataclasses; a task's options inherit from the groups it needs, which keeps
them flat everywhere. Nothing here imports torch, so that the command line can show help and check values at once.
Defaults are the paper's; presets (`stmae.presets`) replace them where the machine or the folder ask for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from tyro.conf import Positional, arg

from stmae import durations, mirror
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


class Options:
    """Base of all options: remembers which ones the caller gave, so that a preset fills in only the others."""

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


@dataclass(frozen=True, kw_only=True)
class SourceOptions(Options):
    """Where the videos are, and which of them are taken."""

    root: Annotated[AnyPath | None, default("the folder of the list")] = None
    """Folder that the entries of a list are relative to."""
    media: Annotated[
        tuple[Literal["videos", "images", "arrays"], ...], default("videos, else arrays, else images")
    ] = ()
    """What to take from folders; an image is a clip that stands still."""
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
class ModelOptions(Options):
    """The masked autoencoder."""

    model: str = "vit_base"
    """Size of the encoder: vit_tiny, vit_small, vit_base, vit_large, vit_huge or vit_giant."""
    patch: tuple[int, int, int] = (2, 16, 16)
    """Size of a spacetime patch: frames, rows, columns."""
    mask_ratio: float = 0.9
    """Share of the tokens that is hidden from the encoder, above 0 and below 1."""
    target: Literal["normalized_pixels", "normalized_pixels_per_channel", "pixels"] = "normalized_pixels"
    """What is predicted: pixels normalised within each patch (or each colour of it: VideoMAE), or as they are."""
    predict_frames: Literal["strided", "linspace", "all"] = "strided"
    """Which frames of a patch are predicted: its first, mae_st's choice of one, or all."""
    positions: Literal["separable", "joint"] = "separable"
    """Position embedding: a spatial plus a temporal table, or one table for all tokens."""
    position_values: Literal["learned", "learned_from_sincos", "sincos"] = "learned"
    """Position values: learned from random ones, learned from sine-cosine, or fixed sine-cosine."""
    class_token: bool = True
    """Give the encoder and decoder a class token."""
    mask_tokens_in_encoder: bool = False
    """Let the encoder see mask tokens in place of hidden patches (slow; the paper's baseline)."""
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


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(SourceOptions, ClipOptions, ModelOptions, OptimizerOptions, RunOptions):
    """Pre-train a video encoder on a folder of unlabelled videos.

    Takes any folder, of any depth, with any mix of video files. The same command again goes on where a stopped
    run stood.

    Examples:

        stmae pretrain videos/ --out runs/first
        stmae pretrain train.csv --root videos/ --out runs/listed
        stmae pretrain ours/ shards/ --weights 2 1 --out runs/both
        stmae pretrain videos/ --out runs/base --preset paper --model vit_base --batch-size 512
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """Folder, list, shards or their address; several too (from Python also a tensor of clips or a Dataset of them)."""
    out: RunPath
    """The run's folder: made if missing; holding this run, the run goes on. Or an address, such as s3://bucket/run."""
    preset: str = "auto"
    """Named settings for everything not given here; auto picks by device. `stmae presets` lists them."""
    config: Annotated[AnyPath | None, default("none")] = None
    """YAML file with options, such as another run's config.yaml; flags go before it."""
    init: Annotated[str | None, default("none: start from random weights")] = None
    """Run or file to take weights from (a new run; to go on with a run, repeat its command)."""
    weights: Annotated[tuple[float, ...] | None, default("1 each")] = None
    """How many times each of several folders or lists is gone through in a pass: 2 for twice, 0.5 for half of it."""
    order: Literal["global", "blocks"] = "global"
    """Order of a pass: everything mixed, or a few shards at a time (for shards that lie far away)."""
    seed: int = 0
    """Everything random follows from this number."""
    sampling: Literal["dense", "segments"] = "dense"
    """Frames a stride apart, or one from each of as many equal parts of the whole video."""
    value_range: Annotated[tuple[float, float] | None, default("all that the type holds; floats as they are")] = None
    """Values of arrays that stand for black and white."""
    repeats: int = 4
    """Clips taken from a video each time it is opened (repeated sampling)."""
    crop_area: tuple[float, float] = (0.5, 1.0)
    """Random crops: smallest and largest share of the frame's area."""
    crop_aspect: Annotated[tuple[float, float], default("0.75 1.333")] = (0.75, 4 / 3)
    """Random crops: narrowest and widest aspect ratio."""
    flip: bool = True
    """Mirror half of the clips left to right; switch it off where direction has a meaning."""
    holdout: float = 0.05
    """Share of the videos kept out of training, for the held-out loss and the pictures."""
    max_bad_share: float = 0.1
    """Stop with an error when more than this share of the videos is unreadable."""
    file_timeout: float = 60.0
    """Seconds of waiting after which a worker is taken to hang in a video, and the video for bad; 0 waits for ever."""
    save_every: Duration = 500
    """Steps between checkpoints; or "1 epoch", "1M clips", "5%" of the run."""
    monitor: Annotated[AnyPath | None, default("none")] = None
    """Folder of labelled videos in class folders: how well features tell them apart (kNN) is logged at evaluations."""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """Where numbers and pictures go besides the run's own files."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    milestone_every: Annotated[Duration | None, default("none")] = None
    """Steps between further checkpoints, which are kept for good; or another duration."""
    max_bad_steps: int = 20
    """Steps in a row whose loss may be not finite (each is skipped); then the run is rolled back, leaving them out."""
    log_every: Duration = 20
    """Steps between log lines; or another duration."""
    evaluate_every: Duration = 250
    """Steps between held-out losses and pictures; or another duration."""


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions(SourceOptions, RunOptions):
    """Show what a model paints back: original | masked | painted back, as GIF, MP4 and PNG.

    Beside the model's picture stand two baselines, predicting nothing (the visible patches' mean) and copying the
    nearest visible patch in time, and the share of the hidden pixels' variance that each explains.

    Example:

        stmae reconstruct clip.mp4 --model runs/first --mask-ratio 0.9 0.95 0.98
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """A video, a folder, a list or shards; or a run: its held-out videos."""
    model: str
    """Run folder or weights file."""
    out: AnyPath = Path("reconstructions")
    """Folder for the pictures."""
    mask_ratio: Annotated[tuple[float, ...], default("the model's own")] = ()
    """Share of the tokens to hide; several stand side by side."""
    statistics: Literal["visible", "true"] = "visible"
    """For normalised targets: un-normalise with visible neighbours' statistics, or the hidden patch's own (a leak)."""
    start: Annotated[float | None, default("such that the clip is the middle of the video")] = None
    """Where the clip starts, in seconds."""
    seed: int = 0
    """Which tokens are hidden follows from this number."""
    clips: int = 8
    """From a folder, pictures of at most so many videos; scores are over all of these."""


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(SourceOptions, RunOptions):
    """Write one row of features per video, or per window of it, as Parquet or NumPy file.

    Examples:

        stmae embed videos/ --model runs/first --out features.parquet
        stmae embed videos/ --model runs/first --out features.npz --window 2.0
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """Folder, list, shards or one video; or a run: its held-out videos."""
    model: str
    """Run folder or weights file."""
    out: AnyPath
    """File to write; its ending (.parquet or .npz) is the format."""
    window: Annotated[float | None, default("none: one row per video")] = None
    """Seconds between windows: a row per window, with its times."""
    views: int = 1
    """Clips spread over a video whose features are averaged, where there are no windows."""
    crops: int = 1
    """Parts of the picture whose features are averaged too: 1, its middle, or 3, both ends as well."""
    batch_size: int = 8
    """Clips per step."""
    workers: Annotated[int | None, default("from the machine's cores")] = None
    """Threads that decode videos."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Options):
    """Convert other projects' checkpoints to stmae's format, or models of that shape back to theirs.

    Reads mae_st, PySlowFast's MAE, VideoMAE (v1, v2), transformers' VideoMAE folders and image MAE; says what the file
    holds, what was assumed and which licence such weights come under.

    Examples:

        stmae convert VIT_L_16x4_MAE_PT.pyth --out models/large
        stmae convert mae_visualize_vit_base.pth --out models/from-image --sizes num_frames=16
        stmae convert runs/first --out first.pth --to mae_st
    """

    model: Positional[str] = field(kw_only=False)
    """Checkpoint to read: a file, a folder of transformers, or a run."""
    out: AnyPath
    """Folder to write; with --to another family's, the .pth or .safetensors file (a folder for videomae_hf)."""
    family: Annotated[Families | None, default("recognised by names and shapes")] = None
    """Whose checkpoint it is."""
    sizes: Annotated[tuple[str, ...], default("the published models'")] = ()
    """What names and shapes do not tell, by the reference's names: num_heads=12 decoder_num_heads=8 num_frames=16."""
    to: Literal["stmae", "mae_st", "slowfast", "videomae", "videomae_hf", "mae_image"] = "stmae"
    """Whose format to write."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ClipOptions):
    """Look at every video before training: what they are, what is wrong with them, and what to do about it.

    Finds unreadable and damaged files, videos without motion, hard cuts, copies (re-encoded, resized, cropped or in
    part) and what is also in another set, and measures how fast clips load. Nothing is changed.

    Examples:

        stmae check videos/
        stmae check videos/ --against test-videos/ --out check.csv
    """

    videos: Positional[Source] = field(kw_only=False)
    """Folder of videos, or what else `stmae pretrain` takes."""
    against: Annotated[Source | None, default("none")] = None
    """Another set, such as the test videos: what is in both is a leak."""
    out: AnyPath = Path("check.csv")
    """File to write: a row per video, with its facts and flags."""
    repeats: int = 4
    """Clips taken from a video each time it is opened, for the loading speed."""
    look: float = 60.0
    """Seconds of each video that are decoded; of longer ones, windows of about 10 s spread over them."""
    patience: float = 120.0
    """Seconds that one file may take before it counts as unreadable."""
    speed_seconds: float = 6.0
    """How long to measure the loading speed."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Write a model for other runtimes, as ONNX file or torch.export program, and check it against the model.

    What comes out takes uint8 clips (B, C, T, H, W) of the model's own size, any number of them, and normalises them
    itself. A classifier gives logits, an encoder features.

    Examples:

        stmae export runs/first --out encoder.onnx
        stmae export runs/first --out encoder.pt2 --features grid
    """

    model: Positional[str] = field(kw_only=False)
    """Run, weights file or another project's checkpoint."""
    out: AnyPath
    """File to write; its ending (.onnx or .pt2) is the format."""
    features: Literal["pooled", "grid", "tokens"] = "pooled"
    """What an encoder gives: a vector per clip (B, D), a map (B, t, h, w, D) or tokens (B, N, D)."""
    int8: bool = False
    """Hold the weights of an ONNX file in 8 bits: a quarter of the size, less exact."""


@dataclass(frozen=True, kw_only=True)
class PackOptions(SourceOptions):
    """Pack videos, images or arrays into tar shards: few large files in place of many, for sets of any size.

    The original bytes are stored, and training then takes the very clips that it takes from the files. With an option
    that writes videos anew (short_side, fps, gop, quality, segment) the shards are smaller and load faster. Given
    again after being stopped, the command goes on.

    Examples:

        stmae pack videos/ --out shards/
        stmae pack videos/ --out shards/ --short-side 256 --fps 30 --segment 10
    """

    videos: Positional[Source] = field(kw_only=False)
    """Folder, list or shards."""
    out: AnyPath
    """Folder for the shards; made if missing."""
    keep_original: Annotated[bool, default("True, unless an option below asks for videos written anew")] = True
    """Store the original bytes, or write videos anew."""
    short_side: Annotated[int | None, default("256 where videos are written anew")] = None
    """Pixels of the shorter side, at most; 0 keeps the size."""
    fps: Annotated[float | None, default("each video's own")] = None
    """Frames per second, at most."""
    gop: Annotated[int | None, default("16 where videos are written anew")] = None
    """Frames from one key frame to the next, at most: fewer load faster and take more bytes."""
    quality: Annotated[int | None, default("23 where videos are written anew")] = None
    """x264's constant rate factor: 0 is lossless, 18 looks the same as the original, 51 is the worst."""
    segment: Annotated[float | None, default("none: videos stay whole")] = None
    """Seconds after which a long video is cut, so that clips are taken from all of it."""
    shard_size: str = "256MB"
    """Bytes of a shard, such as 256MB or 1GB."""
    workers: Annotated[int | None, default("the machine's cores")] = None
    """Processes that look at videos and write them anew."""

    @property
    def asks_for_new(self) -> bool:
        """Whether an option has a value that means something only where videos are written anew."""
        return any(getattr(self, name) is not None for name in ("short_side", "fps", "gop", "quality", "segment"))


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Options):
    """Work out what a pre-training will take: bytes, shards, cores, hours, and whether loading or computing limits it.

    What is not given is measured here and now, on one core and the best device, in about a minute; each number says
    where it came from.

    Examples:

        stmae plan videos/ --gpus 8 --cores 16 --step-rate 400
        stmae plan 10M --seconds 10 --gpus 64 --cores 12 --step-rate 400 --load-rate 40
    """

    videos: Positional[str] = field(kw_only=False)
    """Folder of videos, or how many there are: 250000, 1e6, 10M."""
    gpus: int = 8
    """GPUs that train together."""
    cores: Annotated[int | None, default("this machine's")] = None
    """Cores that load for each GPU."""
    step_rate: Annotated[float | None, default("measured on the best device here")] = None
    """Clips per second that one GPU trains on."""
    load_rate: Annotated[float | None, default("measured on one core")] = None
    """Clips per second that one core loads, at the given repeats, as `stmae check` measures it."""
    seconds: Annotated[float | None, default("measured; 10 without a folder")] = None
    """Mean duration of a video."""
    packed_kilobytes: Annotated[float | None, default("measured on a few of the videos")] = None
    """Kilobytes (1000 bytes) that a second of packed video takes."""
    shard_gigabytes: float = 0.256
    """Size of a shard, in gigabytes (10^9 bytes); `stmae pack` makes them of 0.256."""
    epochs: float = 800.0
    """Effective epochs: how many clips are taken from each video in all."""
    repeats: int = 4
    """Clips taken from a video each time it is opened."""
    frames: int = 16
    """Frames in a clip."""
    stride: float = 4.0
    """Distance between frames of a clip, in frames of a nominal 30 fps clock."""
    image_size: int = 224
    """Height and width of a clip, in pixels."""
    model: str = "vit_large"
    """Size of the encoder, for measuring the step rate."""
    measure_seconds: float = 3.0
    """How long each measurement of loading takes."""


@dataclass(frozen=True, kw_only=True)
class PushOptions(Options):
    """Put a model on the Hugging Face Hub: weights, configuration, numbers, a picture and a model card.

    Example:

        stmae push runs/first user/name --license cc-by-4.0
    """

    model: Positional[str] = field(kw_only=False)
    """Run or weights file."""
    name: Positional[str] = field(kw_only=False)
    """Place on the hub: user/name."""
    license: str = "other"
    """Licence of the weights, as the hub names it (apache-2.0, cc-by-nc-4.0, ...)."""
    description: str = ""
    """A sentence on the model, for its card."""
    data: str = ""
    """A sentence on what it was trained on, for its card."""
    private: bool = False
    """Make a new repository private."""
    to: Annotated[AnyPath | None, default("the hub")] = None
    """Write the files into this folder instead, to look at them first."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """Make sample videos, pre-train a small model on them in a few minutes, and show what it paints back.

    Example:

        stmae demo --out demo
    """

    data: Annotated[AnyPath | None, default("sample videos made for the purpose")] = None
    """Folder of videos to use in place of the sample videos."""
    out: AnyPath = Path("demo")
    """Folder for the videos, the run and the pictures."""
    minutes: float = 4.5
    """How long the training part may take."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Options):
    """Say what this machine has: versions, devices, decoders, and what is missing and how to get it."""


@dataclass(frozen=True, kw_only=True)
class PresetsOptions(Options):
    """List the presets of a command and what each sets."""
