"""`load_reference` and `save_reference`: other projects' checkpoints in and out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Note, UserError
from ..model.config import ClassifierConfig, MaeConfig
from ..model.encoder import VideoViT
from ..model.heads import Classifier
from ..model.mae import MaskedAutoencoder
from ..model.refit import refit
from .families import FAMILIES, FamilyName, recognise
from .files import licence_of, read, state_dict
from .hub import download, is_hub
from .naming import Config, Family, rename, to_ours, to_theirs
from .reading import not_kept, read_config

SHOWN = 12  # names of a kind in a list of what does not fit
Model = MaskedAutoencoder | Classifier | VideoViT


def load_reference(
    checkpoint: str | Path | Mapping[str, Any],
    *,
    family: FamilyName | None = None,
    config: Mapping[str, Any] | None = None,
) -> Model:
    """A reference implementation's checkpoint as one of our models, in eval mode: what the file holds, an autoencoder,
    a classifier or an encoder alone. It keeps the family's own mean and std for uint8 clips.

    Args:
        checkpoint: a state dict, or a path to a ``.pth``, ``.pyth``, ``.pt`` or ``.bin`` file (read with
            `weights_only`: nothing in it is run), a ``.safetensors`` one, a folder of transformers, or either on the
            hub (``hf://user/name``).
        family: whose checkpoint it is; None recognises it by its names and shapes.
        config: the reference's options by its own names, for what names and shapes do not tell (heads, mask ratio,
            frames); options that a safetensors file carries under "config" are used without it.

    Raises:
        UserError: an unreadable file, an unknown family, names that are missing, left over or of another shape.
    """
    return open_reference(checkpoint, family=family, config=config)[0]


def open_reference(
    checkpoint: str | Path | Mapping[str, Any],
    *,
    family: FamilyName | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[Model, dict[str, Any]]:
    """As `load_reference`; beside the model, under "source" whose weights these are and their licence, under "license"
    the hub's name of it, where it is known.
    """
    stored, licence = None, ""
    if isinstance(checkpoint, Mapping):
        content: Any = checkpoint
    else:
        path = download(str(checkpoint)) if is_hub(checkpoint) else Path(checkpoint).expanduser()
        content, stored = read(path)
        licence = licence_of(path) if path.is_dir() else ""
    state = state_dict(content)
    source = pick(family or recognise(state))
    renamed = rename(state, source)
    parsed = read_config(renamed, source, config if config is not None else stored)
    ours = to_ours(renamed, parsed, source)
    model = empty(parsed)
    load_strictly(model, ours)
    about = {"source": f"{source.project}; licence of its published weights: {licence or source.licence}"}
    if licence or source.licence_id:
        about["license"] = licence or source.licence_id
    warnings.warn(f"weights in the format of {about['source']}.", Note, stacklevel=3)
    return model.eval(), about


def save_reference(model: Model, *, family: FamilyName) -> dict[str, Tensor]:
    """The model's weights under a reference implementation's names and shapes. For an image model's, the encoder of a
    video model is made one of stills: its kernel summed over time, its temporal positions left out.

    Raises:
        UserError: an unknown family, or a model that the family's code would not compute as it is.
    """
    source = pick(family)
    if source.image and _encoder(model).config.clip.frames > 1:
        model = _as_stills(model)
    theirs = to_theirs(model.state_dict(), model.config, source)
    lost = not_kept(model.config, rename(theirs, source), source)
    if lost:
        raise UserError(
            f"{source.project} cannot hold this model:\n    " + "\n    ".join(lost),
            "\n  Save it in stmae's own format, or the encoder alone (--encoder-only) if only a decoder is in the way.",
        )
    return theirs


def _encoder(model: Model) -> VideoViT:
    return model if isinstance(model, VideoViT) else model.encoder


def _as_stills(model: Model) -> Model:
    if isinstance(model, MaskedAutoencoder):
        raise UserError(
            "an image model has no use for a decoder of videos.", "Take the encoder alone (--encoder-only)."
        )
    model = copy.deepcopy(model)
    refit(model, frames=1, patch_frames=1)
    return model


def empty(config: Config) -> Model:
    """A model on the meta device."""
    with torch.device("meta"):
        if isinstance(config, MaeConfig):
            return MaskedAutoencoder(config)
        return Classifier(config) if isinstance(config, ClassifierConfig) else VideoViT(config)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts weights into a model made on the meta device, every name and shape checked.

    Raises:
        UserError: all names that are missing, left over or of another shape.
    """
    expected = model.state_dict()
    lines = _listed(f"missing     {name} {tuple(expected[name].shape)}" for name in expected if name not in state)
    lines += _listed(f"left over   {name} {tuple(state[name].shape)}" for name in state if name not in expected)
    lines += _listed(
        f"misshaped   {name}: the file has {tuple(state[name].shape)}, the model {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    )
    lines += _listed(
        f"no floats   {name}: {value.dtype}" for name, value in state.items() if not value.dtype.is_floating_point
    )
    if lines:
        raise UserError(
            "the weights do not fit the model:\n    " + "\n    ".join(lines), "\n  Check which model the file is of."
        )
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.load_state_dict({name: value.detach().clone() for name, value in state.items()}, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
    fill_buffers(model)


def _listed(lines: Iterable[str]) -> list[str]:
    """The first lines, and how many more there are."""
    every = list(lines)
    more = len(every) - SHOWN
    return every if more <= 0 else [*every[:SHOWN], f"{every[0].split('  ')[0]:10}  ... and {more} more"]


def fill_buffers(model: nn.Module) -> None:
    """Gives the buffers that no checkpoint holds their values, after a model was made on the meta device."""
    for module in model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()  # type: ignore[operator]


def pick(family: str) -> Family:
    """A family by name.

    Raises:
        UserError: there is none of that name.
    """
    if family not in FAMILIES:
        raise UserError(f'unknown family "{family}".', f"Known: {', '.join(FAMILIES)}.")
    return FAMILIES[family]
