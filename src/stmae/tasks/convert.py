"""`stmae convert`: other projects' checkpoints in, and models of their shape out again."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from stmae.errors import UserError
from stmae.interop.families import FamilyName
from stmae.interop.hub import download, is_hub
from stmae.interop.huggingface import write_folder
from stmae.interop.native import is_reference, load_with_extras
from stmae.interop.reference import Model, open_reference, pick, save_reference
from stmae.model.config import ClassifierConfig, EncoderConfig, as_dict
from stmae.model.encoder import VideoViT
from stmae.tasks.convert_options import ConvertOptions
from stmae.tasks.task import task
from stmae.weights import save_weights, weights_name, write_tensors


@task(ConvertOptions)
def convert(options: ConvertOptions) -> Path:
    """Returns:
        What was written: a folder that `stmae.load` takes, or another family's file.

    Raises:
        UserError: a checkpoint that is nobody's, or does not fit; a model that the other family cannot hold.
    """
    with warnings.catch_warnings(record=True) as assumed:
        warnings.simplefilter("always")
        model, extras = _open(options)
    if options.encoder_only:
        model = model if isinstance(model, VideoViT) else model.encoder
    console = Console(highlight=False, soft_wrap=True)
    console.print(describe(model))
    said = dict.fromkeys(str(warning.message) for warning in assumed)
    if options.to != "stmae":
        said |= dict.fromkeys(not_in_the_file(model, options.to))
    for text in said:
        console.print(f"  {text}")
    if options.to == "stmae":
        out = _write_native(options.out, model, extras)
    elif options.to == "videomae_hf":
        out = write_folder(options.out, model)
    else:
        out = _write_file(options.out, save_reference(model, family=options.to))
    console.print(f"written: {out}")
    return out


def _open(options: ConvertOptions) -> tuple[Model, Mapping[str, Any]]:
    where = download(options.model) if is_hub(options.model) else options.model
    if is_reference(where):
        sizes = parse_sizes(options.sizes) or None
        return open_reference(where, family=options.family, config=sizes)
    if options.family or options.sizes:
        raise UserError(
            f'"{options.model}" is stmae\'s own, which says itself what it is.', "Leave family and sizes out."
        )
    return load_with_extras(where)


def not_in_the_file(model: Model, family: FamilyName) -> list[str]:
    """What whoever uses a family's file has to know beside it: the normalisation, where it is not the family's."""
    clip = (model.config if isinstance(model.config, EncoderConfig) else model.config.encoder).clip
    usual = pick(family)
    differ = [
        name
        for name, ours, theirs in (("mean", clip.mean, usual.mean), ("std", clip.std, usual.std))
        if {*ours} != {*theirs} and ours != theirs
    ]
    if not differ or family == "videomae_hf":  # whose folder says it
        return []
    told = "mean " + " ".join(f"{v:g}" for v in clip.mean) + ", std " + " ".join(f"{v:g}" for v in clip.std)
    return [f"the file does not say it, and {usual.project} normalises otherwise: give the model clips of {told}."]


def parse_sizes(words: Sequence[str]) -> dict[str, Any]:
    """``["num_heads=12", "norm_pix_loss=false"]`` as a dict of numbers, booleans and lists.

    Raises:
        UserError: a word without "=".
    """
    values = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not (name and sign and text):
            raise UserError(f'"{word}" is no size.', "Write name=value, such as num_heads=12.")
        values[name] = yaml.safe_load(text)
    return values


def describe(model: Model) -> str:
    """One line: what it is, and of which size."""
    config = model.config
    encoder = config if isinstance(config, EncoderConfig) else config.encoder
    clip, blocks = encoder.clip, encoder.blocks
    kind = "encoder alone"
    if isinstance(config, ClassifierConfig):
        kind = f"classifier of {config.classes} classes"
    elif not isinstance(config, EncoderConfig):
        decoder = config.decoder.blocks
        kind = f"encoder and decoder ({decoder.depth} blocks of {decoder.width}, {decoder.heads} heads)"
    return (
        f"{kind}: {blocks.depth} blocks of {blocks.width}, {blocks.heads} heads; clips of "
        f"{clip.frames}x{clip.height}x{clip.width}, patch {'x'.join(map(str, clip.patch))}, {clip.channels} channels; "
        f"mean {' '.join(f'{v:g}' for v in clip.mean)}, std {' '.join(f'{v:g}' for v in clip.std)}"
    )


def _write_native(out: Path, model: Model, extras: Mapping[str, Any]) -> Path:
    with _reasons(out):
        out.mkdir(parents=True, exist_ok=True)
        config = as_dict(model.config)
        save_weights(out / weights_name(config), model.state_dict(), {**extras, "model": config})
    return out


def _write_file(out: Path, state: dict[str, torch.Tensor]) -> Path:
    temporary = out.with_name(f".{out.name}.tmp")
    with _reasons(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".pth":
            torch.save({"model": state}, temporary)
            temporary.replace(out)
        else:
            write_tensors(out, state, {})
    return out


@contextlib.contextmanager
def _reasons(out: Path) -> Iterator[None]:
    """Turns what the system says of a place that cannot be written into words."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save raises the latter
        reason = getattr(error, "strerror", None) or error
        raise UserError(f'"{out}" cannot be written: {reason}.', "Choose another --out.") from None
