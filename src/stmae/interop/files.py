"""Other projects' files, read without running anything that is in them, and within bounds.

A file may come from anywhere. Pickles are read with torch's `weights_only`; what a file claims to be large is held
against what lies on the disk before memory is taken for it.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError

PICKLES = (".pth", ".pyth", ".pt", ".bin", ".ckpt")
HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SPARE = 1 << 20  # bytes that a file's own bookkeeping may add
LONGEST_TEXT = 1 << 20  # of a config.json or a model card


def read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """What a checkpoint's file holds, and the options beside it, if any.

    Raises:
        UserError: nothing there, or nothing that can be read without running what is in it.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f'there is no file "{path}".', "Give a .pth or .safetensors file, or hf://user/name.")
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), framework="pt") as file:
                stored = json.loads((file.metadata() or {}).get("config", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return tensors, stored if isinstance(stored, dict) else None
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise UserError(
                f'"{path}" is no readable safetensors file: {error}.', "Copy or download it again."
            ) from None
    _refuse_bomb(path)
    try:
        # The official files hold their command line as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True), None
    except Exception as error:  # torch raises many kinds for a damaged or hostile file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f'"{path}" cannot be read safely: {reason}', "It is damaged, or holds more than weights, which is not run."
        ) from None


def state_dict(checkpoint: Any) -> dict[str, Tensor]:
    """The state dict within what a training script saved.

    Raises:
        UserError: there is none, or tensors in it that are no plain numbers.
    """
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"the file holds a {type(checkpoint).__name__}, not a state dict.", "Check which file it is.")
    for key in ("model", "model_state", "module"):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    found = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor) and isinstance(name, str)}
    prefix = "weights."  # a file that holds weights beside other tensors
    if any(name.startswith(prefix) for name in found):
        found = {name[len(prefix) :]: value for name, value in found.items() if name.startswith(prefix)}
    for wrapper in ("module.", "model."):  # of DistributedDataParallel; of a class around the model
        if found and all(name.startswith(wrapper) for name in found):
            found = {name[len(wrapper) :]: value for name, value in found.items()}
    _refuse_strange(found)
    return found


def licence_of(folder: Path) -> str:
    """The licence that the card of a folder from the hub names; empty where there is none."""
    try:
        head = (folder / "README.md").read_bytes()[:LONGEST_TEXT].decode(errors="replace")
    except OSError:
        return ""
    front = re.match(r"---\s*\n(.*?)\n---", head, re.DOTALL)
    found = re.search(r"^license:\s*[\"']?([\w.+-]+)[\"']?\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found else ""


def _refuse_bomb(path: Path) -> None:
    """torch stores tensors in its archives as they are, so an archive that unpacks to much more is none of torch's."""
    if not zipfile.is_zipfile(path):
        return
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return  # torch says what is wrong with it
    if unpacked > size + SPARE:
        raise UserError(
            f'"{path}" cannot be read safely: its {size} bytes unpack to {unpacked}.', "No training writes such a file."
        )


def _refuse_strange(state: Mapping[str, Tensor]) -> None:
    """A tensor may claim to be larger than the numbers it stands on, by strides of 0, and many may share the same."""
    stored: dict[int, int] = {}
    claimed = 0
    for name, value in state.items():
        if value.layout != torch.strided or not value.dtype.is_floating_point:
            raise UserError(f'"{name}" is no plain tensor of floats ({value.dtype}).', "stmae reads dense floats only.")
        if value.is_meta:
            continue
        storage = value.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        claimed += value.numel() * value.element_size()
    if claimed > 2 * sum(stored.values()) + SPARE:  # twice: weights may be tied
        raise UserError(
            f"the file's tensors claim {claimed} bytes and stand on {sum(stored.values())}.",
            "No training writes such a file.",
        )


def _read_folder(folder: Path) -> tuple[Any, dict[str, Any] | None]:
    """A folder of transformers: config.json and weights."""
    found = [folder / name for name in HF_WEIGHTS if (folder / name).is_file()]
    try:
        with open(folder / "config.json", "rb") as file:
            options = json.loads(file.read(LONGEST_TEXT))
    except (OSError, ValueError, RecursionError):
        options = None
    if not found or not isinstance(options, dict):
        raise UserError(
            f'"{folder}" is no model folder of transformers.', f"It needs config.json and {' or '.join(HF_WEIGHTS)}."
        )
    inner = options.get("model_config")
    if str(options.get("model_type")).startswith("VideoMAEv2") and isinstance(inner, dict):
        theirs = {"t_patch_size": inner.get("tubelet_size", 2), "norm_eps": inner.get("layer_norm_eps", 1e-6)}
        return read(found[0])[0], {**inner, **theirs}  # VideoMAE v2's own folders
    if options.get("model_type") != "videomae":
        raise UserError(
            f'"{folder}" holds a model of type "{options.get("model_type")}".', "stmae reads those of VideoMAE."
        )
    return read(found[0])[0], options
