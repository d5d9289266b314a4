"""`load_reference` and `save_reference`: other projects' checkpoints in and out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import UserError
from ..model.config import ClassifierConfig, MaeConfig
from ..model.encoder import VideoViT
from ..model.heads import Classifier
from ..model.mae import MaskedAutoencoder
from .families import FAMILIES, FamilyName, recognise
from .naming import Config, Family, rename, to_ours, to_theirs
from .reading import not_kept, read_config

PICKLES = (".pth", ".pyth", ".pt", ".bin", ".ckpt")
HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
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
            `weights_only`: nothing in it is run), a ``.safetensors`` one, or a folder of transformers.
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
    """As `load_reference`; beside the model, under "source" whose weights these are and their licence."""
    content, stored = (checkpoint, None) if isinstance(checkpoint, Mapping) else read(Path(checkpoint).expanduser())
    state = _state_dict(content)
    source = pick(family or recognise(state))
    renamed = rename(state, source)
    parsed = read_config(renamed, source, config if config is not None else stored)
    ours = to_ours(renamed, parsed, source)
    model = empty(parsed)
    load_strictly(model, ours)
    about = f"{source.project}; licence of its published weights: {source.licence}"
    return model.eval(), {"source": about}


def save_reference(model: Model, *, family: FamilyName) -> dict[str, Tensor]:
    """The model's weights under a reference implementation's names and shapes.

    Raises:
        UserError: an unknown family, or a model that the family's code would not compute as it is.
    """
    source = pick(family)
    theirs = to_theirs(model.state_dict(), model.config, source)
    lost = not_kept(model.config, rename(theirs, source), source)
    if lost:
        raise UserError(
            f"{source.project} cannot hold this model:\n    " + "\n    ".join(lost),
            "\n  Save it in stmae's own format.",
        )
    return theirs


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
    lines = [f"missing     {name} {tuple(expected[name].shape)}" for name in expected if name not in state]
    lines += [f"left over   {name} {tuple(state[name].shape)}" for name in state if name not in expected]
    lines += [
        f"misshaped   {name}: the file has {tuple(state[name].shape)}, the model {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    if lines:
        raise UserError(
            "the weights do not fit the model:\n    " + "\n    ".join(lines), "\n  Check which model the file is of."
        )
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.load_state_dict({name: value.detach().clone() for name, value in state.items()}, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
    fill_buffers(model)


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


def read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """What a checkpoint's file holds, and the options beside it, if any.

    Raises:
        UserError: nothing there, or nothing that can be read without running what is in it.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f'there is no file "{path}".', "Give a .pth or .safetensors file.")
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), framework="pt") as file:
                stored = json.loads((file.metadata() or {}).get("config", "null"))
                return {name: file.get_tensor(name) for name in file.keys()}, stored  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f'"{path}" is no readable safetensors file: {error}.', "Copy or download it again."
            ) from None
    try:
        # The official files hold their command line as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True), None
    except Exception as error:  # torch raises many kinds for a damaged or hostile file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f'"{path}" cannot be read safely: {reason}', "It is damaged, or holds more than weights, which is not run."
        ) from None


def _read_folder(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A folder of transformers: config.json and weights."""
    found = [folder / name for name in HF_WEIGHTS if (folder / name).is_file()]
    try:
        options = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        options = None
    if not found or not isinstance(options, dict):
        raise UserError(
            f'"{folder}" is no model folder of transformers.', f"It needs config.json and {' or '.join(HF_WEIGHTS)}."
        )
    if options.get("model_type") != "videomae":
        raise UserError(
            f'"{folder}" holds a model of type "{options.get("model_type")}".', "stmae reads videomae folders."
        )
    return read(found[0])[0], options


def _state_dict(checkpoint: Any) -> dict[str, Tensor]:
    """The state dict within what a training script saved."""
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"the file holds a {type(checkpoint).__name__}, not a state dict.", "Check which file it is.")
    for key in ("model", "model_state", "module"):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    prefix = "weights."  # a file that holds weights beside other tensors
    if any(name.startswith(prefix) for name in checkpoint):
        checkpoint = {name[len(prefix) :]: value for name, value in checkpoint.items() if name.startswith(prefix)}
    return {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
