"""What can be wrong with options, found without torch and without reading a video, and reported all at once.

Here are the checks that options share; each takes the list that gathers the problems. What is wrong with a task's own
options, their method `check` says.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from stmae.durations import parts
from stmae.errors import Problems, UserError, unknown
from stmae.tasks.options import EncoderOptions, ModelOptions, OptimizerOptions, Options, RunOptions
from stmae.tasks.values import named_numbers

MODELS = ("vit_mini", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge", "vit_giant")
FEATURE_FILES = (".parquet", ".npz")


def check(options: Options) -> None:
    """Raises one `UserError` with everything wrong with a task's options; does nothing if that is nothing."""
    problems = Problems()
    options.check(problems)
    problems.raise_any()


def check_model(options: ModelOptions, frames: int, image_size: int, problems: Problems) -> None:
    """The masked autoencoder's options, for clips of `frames` frames of `image_size` pixels squared."""
    check_encoder(options, frames, image_size, problems)
    check_mask_ratio(options.mask_ratio, problems)
    at_least(options, ("decoder_width", "decoder_depth", "decoder_heads"), 1, problems)
    if options.decoder_heads >= 1 and options.decoder_width >= 1:
        problems.check(
            options.decoder_width % options.decoder_heads == 0,
            f"decoder_width {options.decoder_width} does not divide into {options.decoder_heads} heads.",
            f"Choose {nearest(options.decoder_width, options.decoder_heads)}, or another number of decoder_heads.",
        )


def check_encoder(options: EncoderOptions, frames: int, image_size: int, problems: Problems) -> None:
    """The encoder's options, for such clips."""
    # Else size and patch come with the weights, and are checked with them.
    own = getattr(options, "init", None) in (None, "none")
    if own or options.model != "custom":
        check_known("model", options.model, MODELS, problems)
    names = ("frames", "rows", "columns")
    for size, name in zip(options.patch, names, strict=True):
        problems.check(
            size >= 1, f"patch {options.patch} has {size} {name}.", "Give sizes of 1 or more, such as 2 16 16."
        )
    if own and min(options.patch) >= 1 and frames >= 1 and image_size >= 1:
        _divides("frames", frames, options.patch[0], "frames", problems)
        _divides("image_size", image_size, math.lcm(*options.patch[1:]), "pixels", problems)
        tokens = (frames // options.patch[0]) * (image_size // options.patch[1]) * (image_size // options.patch[2])
        problems.check(
            tokens != 1, "a clip of a single patch leaves nothing to hide.", "Choose smaller patches or larger clips."
        )


def check_optimizer(options: OptimizerOptions, problems: Problems) -> None:
    """The schedule's and the optimiser's options."""
    _durations(options, problems)
    at_least(options, ("batch_size", "accumulate"), 1, problems)
    problems.check(
        (options.batch_size, options.accumulate) != ("auto", "auto"),
        "batch_size and accumulate are both auto.",
        "Give one of them as a number: the batch to reach, or the parts to reach it in (1).",
    )
    if options.lr is not None:
        positive("lr", options.lr, "Leave it out to have it worked out from the batch size.", problems)
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
        "Usual are 0.9 0.95.",
    )
    if options.ema is not None:
        problems.check(
            0 < options.ema < 1, f"ema {options.ema:g} is not above 0 and below 1.", "Such as 0.9999, or leave it out."
        )
    if options.clip_grad is not None:
        positive("clip_grad", options.clip_grad, "Give none to leave gradients as long as they are.", problems)


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


def check_known(name: str, value: str, known: tuple[str, ...], problems: Problems) -> None:
    if value not in known:
        problems.extend(unknown(name, value, known))


def at_least(options: Any, names: tuple[str, ...], least: int, problems: Problems) -> None:
    for name in names:
        value = getattr(options, name)
        problems.check(value == "auto" or value >= least, f"{name} {value} is too small.", f"Choose {least} or more.")


def positive(name: str, value: float, cure: str, problems: Problems) -> None:
    problems.check(value > 0, f"{name} {value:g} is not above 0.", cure)


def check_workers(workers: int | None, problems: Problems) -> None:
    problems.check(
        workers is None or workers >= 0,
        f"workers {workers} is negative.",
        "Choose 0 (decode in the main process) or more, or leave it out.",
    )


def check_threads(options: RunOptions, problems: Problems) -> None:
    problems.check(
        options.threads is None or options.threads >= 1, f"threads {options.threads} is too small.", "Choose 1 or more."
    )


def check_seed(seed: int, problems: Problems) -> None:
    problems.check(0 <= seed < 2**63, f"seed {seed} is no 63-bit number.", "Choose one from 0 to 2^63 - 1.")


def check_mask_ratio(ratio: float, problems: Problems) -> None:
    reason = "hides every token" if ratio >= 1 else "hides none"
    problems.check(
        0 < ratio < 1, f"mask_ratio {ratio} {reason}.", "Choose one above 0 and below 1; the paper's is 0.9."
    )


def in_range(name: str, ends: tuple[float, float], example: str, problems: Problems, highest: float = math.inf) -> None:
    low, high = ends
    limit = f" and at most {highest:g}" if highest < math.inf else ""
    problems.check(
        0 < low <= high <= highest,
        f"{name} {low:g} {high:g} is not a range: smallest first, both above 0{limit}.",
        f"The paper's is {example}.",
    )


def nearest(value: int, divisor: int) -> str:
    """The multiples of `divisor` around `value`: "224 or 240"."""
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else f"{divisor}"


def _divides(name: str, value: int, patch: int, unit: str, problems: Problems) -> None:
    problems.check(
        value % patch == 0,
        f"{name} {value} does not divide into patches of {patch} {unit}.",
        f"Choose {nearest(value, patch)}, or another patch.",
    )


def check_writable(name: str, path: Path, problems: Problems, folder: bool) -> None:
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
