"""What of a model's options may be an object of the user's own: a mask, a tokenizer. Without torch.

On the command line these are names of files and functions; from Python they may be the things themselves. What a run
keeps of them (config.yaml, and what processes tell each other) is their names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from stmae.errors import Problems, UserError, unknown
from stmae.tasks.options import ModelOptions, Options
from stmae.tasks.places import exists

if TYPE_CHECKING:
    from stmae.model.config import MaskKind

MASK_KINDS = ("agnostic", "space", "time", "block", "motion")
MASK_FILES = (".npy", ".png")
OBJECTS = ("mask", "tokenizer")
_FUNCTION = re.compile(r"[\w.]+:[\w.]+")
O = TypeVar("O", bound=Options)


def mask_kind(mask: Any) -> MaskKind:
    """The kind of mask that the model knows; all that is the user's own is "own"."""
    return cast("MaskKind", mask if isinstance(mask, str) and mask in MASK_KINDS else "own")


def check_choices(options: ModelOptions, problems: Problems) -> None:
    """Masks, targets and decoders: what there is not, and what does not go together."""
    _check_mask(options.mask, problems)
    for name, target, what in (
        ("tokenizer", "tokens", "`stmae tokenizer VIDEOS --out FILE` makes one"),
        ("teacher", "teacher", "Give a run, a weights file, or self"),
    ):
        value = getattr(options, name)
        if value is None:
            problems.check(options.target != target, f"target {target} needs a {name}.", f"{what}: --{name}.")
        elif options.target != target:
            problems.add(f"{name} has no meaning with target {options.target}.", f"Give target {target} too.")
        elif isinstance(value, str | Path) and str(value) != "self":
            exists(name, str(value), what, problems)
    if options.teacher == "self" and options.target == "teacher":
        problems.check(
            getattr(options, "ema", None) is not None,
            "teacher self is the running average of the model, and there is none.",
            "Give its decay too, such as --ema 0.999.",
        )
        problems.check(
            getattr(options, "parallel", "ddp") in ("auto", "ddp"),
            "teacher self needs the whole model on each device.",
            "Choose parallel ddp.",
        )
    if options.decode == "all":
        problems.check(
            options.decode_share is None,
            f"decode_share {options.decode_share} has no meaning with decode all.",
            "Give decode random or running_cell too.",
        )
    elif options.decode_share is not None:
        problems.check(
            0 < options.decode_share <= 1,
            f"decode_share {options.decode_share:g} is not above 0 and at most 1.",
            "Choose such as 0.5.",
        )
    if options.decoder == "linear":
        problems.check(
            options.mask_tokens_in_encoder,
            "decoder linear has nothing to predict from unless the encoder sees mask tokens.",
            "Give --mask-tokens-in-encoder too.",
        )
    if options.decoder == "cross_attention":
        problems.check(
            not options.mask_tokens_in_encoder,
            "decoder cross_attention looks at visible tokens alone, and mask_tokens_in_encoder adds others.",
            "Leave one of them out.",
        )
    sides = [side for side in options.patch[1:] if side % 8]
    problems.check(
        options.target != "hog" or not sides,
        f"target hog is taken over cells of 8 x 8 pixels, and the patch is {' x '.join(map(str, options.patch))}.",
        "Choose a patch whose rows and columns are multiples of 8.",
    )


def idle(options: ModelOptions, asked: Collection[str]) -> list[str]:
    """Options that were asked for and have no meaning beside the others."""
    sizes = ("decoder_width", "decoder_depth", "decoder_heads")
    no_pixels = options.target in ("tokens", "teacher")
    found = []
    for names, unused, what in (
        (("mask_ratio",), mask_kind(options.mask) == "own", "a mask of one's own, which says itself what is hidden"),
        (sizes, options.decoder == "linear", "decoder linear"),
        (("predict_frames",), no_pixels, f"target {options.target}, which is no pixels"),
    ):
        found += [f"{name} has no meaning with {what}." for name in names if unused and name in asked]
    return found


def _check_mask(mask: Any, problems: Problems) -> None:
    if not isinstance(mask, str | Path):
        problems.check(
            callable(mask) or hasattr(mask, "ndim"),
            f"mask is a {type(mask).__name__}.",
            f"Give {', '.join(MASK_KINDS)}, a function of keys and grid, or an array.",
        )
        return
    text = str(mask)
    if text in MASK_KINDS:
        return
    if text.startswith("own:"):
        problems.add(f'the mask "{text}" was given from Python, and no file holds it.', "Give it again.")
    elif text.endswith(MASK_FILES):
        exists("mask", text, "Give a file that is there", problems)
    elif not _FUNCTION.fullmatch(text):
        problems.extend(unknown("mask", text, MASK_KINDS))


def named(value: Any) -> Any:
    """How an option's value stands in config.yaml: an object of the user's own by a name that tells it from others."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "ndim"):
        import numpy as np

        array = np.asarray(value)
        return f"own:array-{hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()[:16]}"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    module = getattr(value, "__module__", "")
    plain = callable(value) and "<" not in name and module != "__main__" and hasattr(value, "__qualname__")
    return f"{module}:{name}" if plain else f"own:{name}"


def by_name(options: O) -> O:
    """The options with objects replaced by their names."""
    names = {name: named(getattr(options, name)) for name in _objects(options)}
    return cast(O, dataclasses.replace(cast(Any, options), **names))


def with_objects(options: O, own: O) -> O:
    """The options with the objects that `own` brought."""
    brought = {name: getattr(own, name) for name in _objects(own)}
    kept = {name: value for name, value in brought.items() if value is not None and not isinstance(value, str)}
    return cast(O, dataclasses.replace(cast(Any, options), **kept))


def _objects(options: Options) -> list[str]:
    return [name for name in OBJECTS if hasattr(options, name)]


def import_function(text: str) -> Callable[..., Any]:
    """The function that "package.module:name" stands for; modules of the working folder are found too.

    Raises:
        UserError: no such module or function.
    """
    import sys

    module, _, name = text.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UserError(f'mask "{text}" cannot be imported: {error}.', "Write it as package.module:function.") from None
    if not callable(found):
        raise UserError(f'mask "{text}" is a {type(found).__name__}.', "Give a function of keys and grid.")
    return cast(Callable[..., Any], found)
