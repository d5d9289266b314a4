"""What a model is given from outside: the user's own mask, a tokenizer's codes, a teacher's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from stmae.engine.ema import Ema
from stmae.errors import UserError
from stmae.interop.native import load
from stmae.model.config import MaeConfig
from stmae.model.encoder import VideoViT
from stmae.model.mae import MaskedAutoencoder
from stmae.model.masking import OwnMask, fixed_mask
from stmae.model.sizes import SIZES
from stmae.model.tokenizer import PatchTokenizer, falls_short
from stmae.tasks.choices import MASK_FILES, import_function, mask_kind
from stmae.tasks.options import ModelOptions
from stmae.weights import find_weights, load_weights


@dataclass(frozen=True)
class Given:
    """Targets from outside: calls from clips (B, C, T, H, W) to codes (B, N) or features (B, N, P).

    training: with the model's weights as they are trained; judging: with their average in the model's place.
    """

    training: Callable[[Tensor], Tensor]
    judging: Callable[[Tensor], Tensor]


def open_mask(mask: Any) -> OwnMask | None:
    """What the model calls for a mask of the user's own; None for the kinds it knows.

    Raises:
        UserError: a file that holds no mask, or a function that cannot be imported.
    """
    if mask_kind(mask) != "own":
        return None
    if not isinstance(mask, str | Path):
        return fixed_mask(torch.as_tensor(np.asarray(mask))) if hasattr(mask, "ndim") else mask
    if not str(mask).endswith(MASK_FILES):
        return import_function(str(mask))
    try:
        array = np.load(mask) if str(mask).endswith(".npy") else np.array(Image.open(mask).convert("L"))
    except (OSError, ValueError) as error:
        raise UserError(f'mask "{mask}" cannot be read: {error}.', "Give an array or a picture.") from None
    return fixed_mask(torch.as_tensor(array))


def given_values(options: ModelOptions) -> int:
    """How many values targets from outside have: codes of the tokenizer, width of the teacher; 0 for other targets.

    Raises:
        UserError: neither tokenizer nor encoder there, or one of another patch.
    """
    if options.target == "tokens":
        tokenizer = open_tokenizer(options.tokenizer)
        _same_patch(getattr(tokenizer, "patch", options.patch), options, f'tokenizer "{options.tokenizer}"')
        return int(tokenizer.codes)
    if options.target != "teacher":
        return 0
    if options.teacher == "self":
        return SIZES[options.model]().width
    teacher = open_teacher(str(options.teacher))
    _same_patch(teacher.config.clip.patch, options, f'teacher "{options.teacher}"')
    return teacher.config.blocks.width


def _same_patch(patch: Sequence[int], options: ModelOptions, whose: str) -> None:
    if tuple(patch) != tuple(options.patch):
        raise UserError(
            f"the {whose} has patches of {tuple(patch)}, not {tuple(options.patch)}.",
            "Choose the same patch: a token's target is that of its place.",
        )


def remarks(options: ModelOptions) -> list[str]:
    """What a person should know of targets from outside that are experiments."""
    if options.target == "teacher" and options.teacher == "self":
        return [
            "teacher self is an experiment: nothing but the normalisation of its features keeps it from collapsing."
        ]
    if options.target == "tokens" and isinstance(options.tokenizer, str | Path):
        scores = load_weights(find_weights(options.tokenizer))[1].get("scores", {})
        used, gain = scores.get("used", 1.0), scores.get("psnr", 99.0) - scores.get("mean_psnr", 0.0)
        if falls_short(used, gain):
            return [f"the tokenizer is an experiment: {used:.0%} of its codes used, {gain:.1f} dB over the mean patch."]
    return []


def open_given(
    options: ModelOptions, config: MaeConfig, model: MaskedAutoencoder, ema: Ema | None, device: torch.device
) -> Given | None:
    """What makes the targets from outside, on the device; None where the model makes its own."""
    if options.target == "tokens":
        tokenizer = open_tokenizer(options.tokenizer)
        if tokenizer.codes != config.given_values:
            raise UserError(
                f"the tokenizer has {tokenizer.codes} codes, and the run was begun with {config.given_values}.",
                "Give the one it was begun with.",
            )
        tokenizer = tokenizer.to(device) if isinstance(tokenizer, nn.Module) else tokenizer
        return Given(tokenizer, tokenizer)
    if options.target != "teacher":
        return None
    if options.teacher == "self":
        assert ema is not None
        prefix = "encoder."  # these share the average's memory, so they follow it
        average: dict[str, Tensor] = {
            name[len(prefix) :]: nn.Parameter(tensor, requires_grad=False)
            for name, tensor in ema.state.items()
            if name.startswith(prefix)
        }
        return Given(partial(teach, model.encoder, average), partial(teach, model.encoder, {}))
    teacher = open_teacher(str(options.teacher)).to(device)
    return Given(partial(teach, teacher, {}), partial(teach, teacher, {}))


def open_teacher(where: str) -> VideoViT:
    """The encoder of a run, a file or another project's checkpoint, in eval mode."""
    model = load(where)
    return model if isinstance(model, VideoViT) else model.encoder


def open_tokenizer(tokenizer: Any) -> Any:
    """A tokenizer: `codes`, how many there are, and a call from clips (B, C, T, H, W) to codes (B, N) int64.

    Raises:
        UserError: a file of something else, or an object that is none.
    """
    if not isinstance(tokenizer, str | Path):
        if not (callable(tokenizer) and isinstance(getattr(tokenizer, "codes", None), int)):
            raise UserError(
                f"the tokenizer is a {type(tokenizer).__name__}.",
                "It needs a number `codes` and a call from clips (B, C, T, H, W) to codes (B, N) int64.",
            )
        return tokenizer
    tensors, stored = load_weights(find_weights(tokenizer))
    if "tokenizer" not in stored:
        raise UserError(f'"{tokenizer}" holds no tokenizer.', "`stmae tokenizer VIDEOS --out FILE` makes one.")
    made = PatchTokenizer(patch=tuple(stored["tokenizer"]["patch"]), channels=stored["tokenizer"]["channels"],
                          codes=stored["tokenizer"]["codes"])  # fmt: skip
    made.load_state_dict(tensors)
    return made.eval()


@torch.no_grad()
def teach(encoder: VideoViT, weights: dict[str, Tensor], clips: Tensor) -> Tensor:
    """Features (B, N, D) of all tokens, after the encoder's last norm, with `weights` in place of its own."""
    features: Tensor = functional_call(encoder, weights, (clips,), {"features": "tokens"})
    return features
