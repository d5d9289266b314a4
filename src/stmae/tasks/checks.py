"""What can be wrong with options, found without torch and without reading a video, and reported all at once.

Each check takes the options of one task and the list that gathers their problems.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stmae.durations import parts
from stmae.engine.launch import find
from stmae.errors import Problems, UserError, unknown
from stmae.presets import PRESETS
from stmae.tasks.options import (
    CheckOptions,
    ConvertOptions,
    DemoOptions,
    EmbedOptions,
    ExportOptions,
    ModelOptions,
    OptimizerOptions,
    Options,
    PackOptions,
    PlanOptions,
    PretrainOptions,
    PushOptions,
    ReconstructOptions,
    RunOptions,
)
from stmae.tasks.places import check_places, check_source, check_source_weights, exists
from stmae.tasks.values import named_numbers, size_in_bytes
from stmae.weights import step_folders

MODELS = ("vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge", "vit_giant")
FEATURE_FILES = (".parquet", ".npz")


def check(options: Options) -> None:
    """Raises one `UserError` with everything wrong with a task's options; does nothing if that is nothing."""
    problems = Problems()
    if type(options) in CHECKS:
        CHECKS[type(options)](options, problems)
    problems.raise_any()


def check_pretrain(options: PretrainOptions, problems: Problems) -> None:
    """Everything `stmae pretrain` can refuse before it looks into the folder."""
    _known("preset", options.preset, tuple(PRESETS), problems)
    check_source(options, problems)
    check_source_weights(options, problems)
    _writable("out", options.out, problems, folder=True)
    if options.init is not None and not step_folders(options.out / "checkpoints"):  # else it has served
        exists("init", options.init, "Give a run's folder or a weights file", problems)
    _at_least(options, ("frames", "image_size", "repeats", "keep", "max_bad_steps"), 1, problems)
    for name in ("save_every", "milestone_every", "log_every", "evaluate_every"):
        every = getattr(options, name)
        problems.check(every is None or parts(every, "")[0] > 0, f"{name} {every} is too small.", "Choose 1 or more.")
    _seed(options.seed, problems)
    _workers(options.workers, problems)
    _threads(options, problems)
    _positive("stride", options.stride, "Its unit is frames of a 30 fps clock; 4 is the paper's.", problems)
    problems.check(
        options.sampling == "dense" or options.stride == 4.0,
        f"stride {options.stride:g} has no meaning with sampling segments: they are spread over the whole video.",
        "Leave one of them out.",
    )
    if options.value_range is not None:
        low, high = options.value_range
        problems.check(
            low < high, f"value_range {low:g} {high:g} is not a range.", "Give the value of black, then that of white."
        )
    check_model(options, options.frames, options.image_size, problems)
    check_optimizer(options, problems)
    _batch(options, problems)
    if options.monitor is not None:
        there = exists("monitor", options.monitor, "Give a folder of class folders with videos", problems)
        problems.check(
            not there or Path(options.monitor).is_dir(),
            f'monitor "{options.monitor}" is a file.',
            "Give a folder of class folders with videos.",
        )
    for logger in options.loggers:
        package = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}.get(logger)
        problems.check(
            package is None or importlib.util.find_spec(logger) is not None,
            f"loggers: {logger} is not installed.",
            f"pip install {package}",
        )
    _range("crop_area", options.crop_area, "0.5 1.0", problems, highest=1.0)
    _range("crop_aspect", options.crop_aspect, "0.75 1.333", problems)
    problems.check(
        0 <= options.holdout < 1,
        f"holdout {options.holdout:g} is not a share that leaves videos to train on.",
        "Choose one from 0 (none kept out) to below 1, such as 0.05.",
    )
    problems.check(
        0 <= options.max_bad_share <= 1,
        f"max_bad_share {options.max_bad_share:g} is not a share.",
        "Choose one from 0 to 1.",
    )
    problems.check(
        0 <= options.file_timeout < float("inf"),
        f"file_timeout {options.file_timeout:g} is no number of seconds.",
        "Choose one from 1, or 0 to wait for ever.",
    )


def check_model(options: ModelOptions, frames: int, image_size: int, problems: Problems) -> None:
    """The masked autoencoder's options, for clips of `frames` frames of `image_size` pixels squared."""
    _known("model", options.model, MODELS, problems)
    _mask_ratio(options.mask_ratio, problems)
    names = ("frames", "rows", "columns")
    for size, name in zip(options.patch, names, strict=True):
        problems.check(
            size >= 1, f"patch {options.patch} has {size} {name}.", "Give sizes of 1 or more, such as 2 16 16."
        )
    if min(options.patch) >= 1 and frames >= 1 and image_size >= 1:
        _divides("frames", frames, options.patch[0], "frames", problems)
        _divides("image_size", image_size, math.lcm(*options.patch[1:]), "pixels", problems)
        tokens = (frames // options.patch[0]) * (image_size // options.patch[1]) * (image_size // options.patch[2])
        problems.check(
            tokens != 1, "a clip of a single patch leaves nothing to hide.", "Choose smaller patches or larger clips."
        )
    _at_least(options, ("decoder_width", "decoder_depth", "decoder_heads"), 1, problems)
    if options.decoder_heads >= 1 and options.decoder_width >= 1:
        problems.check(
            options.decoder_width % options.decoder_heads == 0,
            f"decoder_width {options.decoder_width} does not divide into {options.decoder_heads} heads.",
            f"Choose {_nearest(options.decoder_width, options.decoder_heads)}, or another number of decoder_heads.",
        )


def check_optimizer(options: OptimizerOptions, problems: Problems) -> None:
    """The schedule's and the optimiser's options."""
    _durations(options, problems)
    _at_least(options, ("batch_size", "accumulate"), 1, problems)
    problems.check(
        (options.batch_size, options.accumulate) != ("auto", "auto"),
        "batch_size and accumulate are both auto.",
        "Give one of them as a number: the batch to reach, or the parts to reach it in (1).",
    )
    if options.lr is not None:
        _positive("lr", options.lr, "Leave it out to have it worked out from the batch size.", problems)
    for name in ("end_lr", "layer_decay"):
        problems.check(
            getattr(options, name) >= 0, f"{name} {getattr(options, name):g} is negative.", "Choose 0 or more."
        )
    for name in ("group_lr", "group_decay"):
        try:
            named_numbers(name, getattr(options, name))
        except UserError as error:
            problems.extend(error)
    problems.check(
        options.weight_decay >= 0,
        f"weight_decay {options.weight_decay:g} is negative.",
        "Choose 0 or more, such as 0.05.",
    )
    problems.check(
        all(0 <= beta < 1 for beta in options.betas),
        f"betas {options.betas} are not both from 0 to below 1.",
        "The paper's are 0.9 0.95.",
    )
    if options.ema is not None:
        problems.check(
            0 < options.ema < 1, f"ema {options.ema:g} is not above 0 and below 1.", "Such as 0.9999, or leave it out."
        )
    if options.clip_grad is not None:
        _positive("clip_grad", options.clip_grad, "Give none to leave gradients as long as they are.", problems)


def _durations(options: OptimizerOptions, problems: Problems) -> None:
    """A run must be longer than nothing, and its warm-up shorter than it, where the same unit lets that be seen."""
    epochs, warmup = options.epochs, options.warmup
    problems.check(
        parts(epochs, "")[0] > 0,
        f"epochs {epochs} is not above 0.",
        "An epoch takes one clip from each video; the paper's number is 800.",
    )
    problems.check(not str(epochs).endswith("%"), f'epochs "{epochs}" is a share of itself.', "Give epochs or steps.")
    (length, unit), (rise, other) = parts(epochs, "epochs"), parts(warmup, "epochs")
    length = 100.0 if other == "%" else length
    problems.check(
        rise < length or length == 0 or other not in ("%", unit),
        f"warmup {warmup} is not from 0 to below epochs {epochs}: the learning rate would never reach its peak.",
        "Choose less, such as 15%, or more epochs.",
    )
    problems.check(
        options.schedule == "constant" or options.cooldown == "20%",
        f"cooldown {options.cooldown} has no meaning with schedule {options.schedule}, which falls all the way.",
        "Leave it out, or give schedule constant.",
    )


def check_reconstruct(options: ReconstructOptions, problems: Problems) -> None:
    """Everything `stmae reconstruct` can refuse before it looks into a file."""
    check_source(options, problems)
    exists("model", options.model, "Give a run's folder or a weights file", problems)
    _writable("out", options.out, problems, folder=True)
    _threads(options, problems)
    for ratio in options.mask_ratio:
        _mask_ratio(ratio, problems)
    if options.start is not None:
        problems.check(options.start >= 0, f"start {options.start:g} is before the video.", "Choose 0 or more seconds.")
    _seed(options.seed, problems)
    _at_least(options, ("clips",), 1, problems)


def check_embed(options: EmbedOptions, problems: Problems) -> None:
    """Everything `stmae embed` can refuse before it looks into a file."""
    check_source(options, problems)
    exists("model", options.model, "Give a run's folder or a weights file", problems)
    ending = options.out.suffix.lower()
    if ending not in FEATURE_FILES:
        said = f"ends in {ending}" if ending else "has no ending"
        nearest = options.out.with_suffix(FEATURE_FILES[0])
        problems.add(
            f'out "{options.out}" {said}, which names no format.', f"Give .parquet or .npz, such as {nearest}."
        )
    _writable("out", options.out, problems, folder=False)
    if options.window is not None:
        _positive("window", options.window, "Its unit is seconds.", problems)
        problems.check(
            options.views == 1,
            f"views {options.views} and window {options.window:g} exclude each other: a window is one view.",
            "Leave one of them out.",
        )
        problems.check(
            options.crops == 1,
            f"crops {options.crops} and window {options.window:g} exclude each other: a window is one view.",
            "Leave one of them out.",
        )
    _threads(options, problems)
    _at_least(options, ("views", "batch_size"), 1, problems)
    problems.check(
        options.crops in (1, 3),
        f"crops {options.crops} is neither 1 nor 3.",
        "Choose 1 (the middle) or 3 (both ends too).",
    )
    _workers(options.workers, problems)


def check_convert(options: ConvertOptions, problems: Problems) -> None:
    """Everything `stmae convert` can refuse before it looks into the checkpoint."""
    exists("model", options.model, "Give a checkpoint's file, a folder of transformers or a run", problems)
    folder = options.to in ("stmae", "videomae_hf")
    if not folder and options.out.suffix not in (".pth", ".safetensors"):
        problems.add(
            f'out "{options.out}" is neither a .pth nor a .safetensors file, which --to {options.to} writes.',
            f"Name it {options.out.with_suffix('.pth')}.",
        )
    _writable("out", options.out, problems, folder=folder)


def check_check(options: CheckOptions, problems: Problems) -> None:
    """Everything `stmae check` can refuse before it looks into the folder."""
    check_places(options.videos, problems)
    if options.against is not None:
        check_places(options.against, problems, name="against")
    _writable("out", options.out, problems, folder=False)
    _at_least(options, ("frames", "image_size", "repeats"), 1, problems)
    _positive("stride", options.stride, "Its unit is frames of a 30 fps clock; 4 is the paper's.", problems)
    for name in ("look", "patience", "speed_seconds"):
        _positive(name, getattr(options, name), "Its unit is seconds.", problems)
    problems.check(
        options.workers is None or options.workers >= 1,
        f"workers {options.workers} is too small: files are looked at in processes of their own.",
        "Choose 1 or more, or leave it out.",
    )


def check_export(options: ExportOptions, problems: Problems) -> None:
    """Everything `stmae export` can refuse before it looks into the model."""
    exists("model", options.model, "Give a run's folder or a weights file", problems)
    if options.out.suffix not in (".onnx", ".pt2"):
        problems.add(
            f'out "{options.out}" is neither a .onnx nor a .pt2 file.', f"Name it {options.out.with_suffix('.onnx')}."
        )
    elif options.int8 and options.out.suffix != ".onnx":
        problems.add(f'int8 goes with ONNX, and out is "{options.out}".', "Leave it out, or write an .onnx file.")
    _writable("out", options.out, problems, folder=False)


def check_pack(options: PackOptions, problems: Problems) -> None:
    """Everything `stmae pack` can refuse before it looks into the folder."""
    from stmae.data.opening import paths_of  # brings NumPy, which --help has no need of

    check_source(options, problems)
    if not paths_of(options.videos):
        problems.add("clips from Python have no files to pack.", "Write them as .npy files into a folder, and pack it.")
    _writable("out", options.out, problems, folder=True)
    _workers(options.workers, problems)
    if options.given.get("keep_original") and options.asks_for_new:
        problems.add(
            "keep_original excludes short_side, fps, gop, quality and segment: these write videos anew.",
            "Leave it out, or leave these out.",
        )
    for name in ("fps", "segment"):
        if getattr(options, name) is not None:
            _positive(name, getattr(options, name), "Leave it out to keep what the videos have.", problems)
    side, gop, quality = options.short_side, options.gop, options.quality
    problems.check(
        side is None or side == 0 or (side >= 16 and side % 2 == 0),
        f"short_side {side} is not an even number of pixels from 16 on.",
        "Choose such as 256, or 0 to keep the size.",
    )
    problems.check(gop is None or gop >= 1, f"gop {gop} is too small.", "Choose 1 (key frames only) or more.")
    problems.check(
        quality is None or 0 <= quality <= 51,
        f"quality {quality} is not from 0 to 51.",
        "Choose 18 to 28; smaller is better and larger in bytes.",
    )
    try:
        size_in_bytes(options.shard_size)
    except UserError as error:
        problems.extend(error)


def check_plan(options: PlanOptions, problems: Problems) -> None:
    """Everything `stmae plan` can refuse before it measures."""
    try:
        if count_of(options.videos) is None:
            check_places(options.videos, problems)
    except UserError as error:
        problems.extend(error)
    _at_least(options, ("gpus", "repeats", "frames", "image_size"), 1, problems)
    if options.cores is not None:
        _at_least(options, ("cores",), 1, problems)
    _known("model", options.model, MODELS, problems)
    units = {
        "step_rate": "clips per second",
        "load_rate": "clips per second",
        "seconds": "seconds",
        "packed_kilobytes": "kilobytes for a second of video",
        "shard_gigabytes": "10^9 bytes",
        "epochs": "clips from each video",
        "stride": "frames of a 30 fps clock",
        "measure_seconds": "seconds",
    }
    for name, unit in units.items():
        if getattr(options, name) is not None:
            _positive(name, getattr(options, name), f"Its unit is {unit}.", problems)


def count_of(text: str) -> int | None:
    """A number of videos as people write it (250000, 1e6, 10M, 1_000_000); None for what is a path.

    Raises:
        UserError: a number that is none of videos.
    """
    digits = text.strip().replace("_", "").replace(",", "")
    factor = {"k": 1e3, "m": 1e6, "b": 1e9}.get(digits[-1:].lower(), 1.0)
    try:
        number = float(digits[:-1] if factor > 1 else digits) * factor
    except ValueError:
        return None
    if Path(text).expanduser().exists():
        return None
    if not (1 <= number < 1e12 and number == int(number)):
        raise UserError(f"videos {text} is no number of videos.", "Give one from 1, such as 250000, 1e6 or 10M.")
    return int(number)


def check_push(options: PushOptions, problems: Problems) -> None:
    """Everything `stmae push` can refuse before it looks into the model."""
    exists("model", options.model, "Give a run's folder or a weights file", problems)
    problems.check(
        options.name.count("/") == 1 and all(options.name.split("/")),
        f'name "{options.name}" is no place on the hub.',
        "Write it as user/name.",
    )


def check_demo(options: DemoOptions, problems: Problems) -> None:
    """Everything `stmae demo` can refuse at once."""
    if options.data is not None:
        check_places(options.data, problems, name="data")
    _writable("out", options.out, problems, folder=True)
    _positive("minutes", options.minutes, "Give it some time, such as 4.", problems)


CHECKS: dict[type[Options], Callable[[Any, Problems], None]] = {
    PretrainOptions: check_pretrain,
    ReconstructOptions: check_reconstruct,
    EmbedOptions: check_embed,
    ConvertOptions: check_convert,
    CheckOptions: check_check,
    PackOptions: check_pack,
    PlanOptions: check_plan,
    DemoOptions: check_demo,
    ExportOptions: check_export,
    PushOptions: check_push,
}


def _known(name: str, value: str, known: tuple[str, ...], problems: Problems) -> None:
    if value not in known:
        problems.extend(unknown(name, value, known))


def _at_least(options: Any, names: tuple[str, ...], least: int, problems: Problems) -> None:
    for name in names:
        value = getattr(options, name)
        problems.check(value == "auto" or value >= least, f"{name} {value} is too small.", f"Choose {least} or more.")


def _positive(name: str, value: float, cure: str, problems: Problems) -> None:
    problems.check(value > 0, f"{name} {value:g} is not above 0.", cure)


def _workers(workers: int | None, problems: Problems) -> None:
    problems.check(
        workers is None or workers >= 0,
        f"workers {workers} is negative.",
        "Choose 0 (decode in the main process) or more, or leave it out.",
    )


def _threads(options: RunOptions, problems: Problems) -> None:
    problems.check(
        options.threads is None or options.threads >= 1, f"threads {options.threads} is too small.", "Choose 1 or more."
    )


def _seed(seed: int, problems: Problems) -> None:
    problems.check(0 <= seed < 2**63, f"seed {seed} is no 63-bit number.", "Choose one from 0 to 2^63 - 1.")


def _mask_ratio(ratio: float, problems: Problems) -> None:
    reason = "hides every token" if ratio >= 1 else "hides none"
    problems.check(
        0 < ratio < 1, f"mask_ratio {ratio} {reason}.", "Choose one above 0 and below 1; the paper's is 0.9."
    )


def _range(name: str, ends: tuple[float, float], example: str, problems: Problems, highest: float = math.inf) -> None:
    low, high = ends
    limit = f" and at most {highest:g}" if highest < math.inf else ""
    problems.check(
        0 < low <= high <= highest,
        f"{name} {low:g} {high:g} is not a range: smallest first, both above 0{limit}.",
        f"The paper's is {example}.",
    )


def _nearest(value: int, divisor: int) -> str:
    """The multiples of `divisor` around `value`: "224 or 240"."""
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else f"{divisor}"


def _divides(name: str, value: int, patch: int, unit: str, problems: Problems) -> None:
    problems.check(
        value % patch == 0,
        f"{name} {value} does not divide into patches of {patch} {unit}.",
        f"Choose {_nearest(value, patch)}, or another patch.",
    )


def _batch(options: PretrainOptions, problems: Problems) -> None:
    """A step is computed in equal parts, by processes with equal shares, and each takes all repeats of its videos."""
    if "auto" in (options.batch_size, options.accumulate):
        return  # settled once the device is known
    if min(options.batch_size, options.repeats, options.accumulate) < 1:
        return
    processes = find().size
    divisor = options.repeats * options.accumulate * processes
    factors = [f"{name} {getattr(options, name)}" for name in ("repeats", "accumulate") if getattr(options, name) > 1]
    factors += [f"{processes} processes"] if processes > 1 else []
    problems.check(
        options.batch_size % divisor == 0,
        f"batch_size {options.batch_size} is not a multiple of {' x '.join(factors)}.",
        f"Choose {_nearest(options.batch_size, divisor)}{_other_processes(options, processes)}.",
    )


def _other_processes(options: PretrainOptions, processes: int) -> str:
    """For a run that goes on, and keeps its batch size: the nearest numbers of processes that share it evenly."""
    parts, rest = divmod(options.batch_size, options.repeats * options.accumulate)
    if processes == 1 or rest or not parts:
        return ""
    fewer = max(count for count in range(1, min(processes, parts) + 1) if parts % count == 0)
    more = min((count for count in range(processes, parts + 1) if parts % count == 0), default=fewer)
    return f", or start {fewer} processes" if fewer == more else f", or start {fewer} or {more} processes"


def _writable(name: str, path: Path, problems: Problems, folder: bool) -> None:
    """Whether `path` can be made or written into: it or the nearest folder above it that exists."""
    if folder and path.is_file():
        problems.add(f'{name} "{path}" is a file.', "Give a folder; it is made if missing.")
    elif not folder and path.is_dir():
        problems.add(f'{name} "{path}" is a folder.', "Give a file.")
    else:
        above = next(p for p in (path, *path.absolute().parents) if p.exists())
        if above != path and not above.is_dir():
            problems.add(f'{name} "{path}" cannot be made: "{above}" is a file.', "Choose another place.")
        elif not os.access(above, os.W_OK):
            problems.add(f'{name} "{path}" cannot be written: no permission in "{above}".', "Choose another place.")
