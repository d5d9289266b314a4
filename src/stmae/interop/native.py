"""`load`: the one door through which every `--model` and `--init` goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..model.config import from_dict
from ..model.encoder import VideoViT
from ..model.mae import MaskedAutoencoder
from ..runs import find_weights, load_weights
from .reference import Model, empty, load_strictly


def load(where: str | Path) -> VideoViT:
    """The encoder of a run or weights file, in eval mode on the CPU.

    >>> encoder = stmae.load("runs/first")
    >>> features = encoder(clip)  # uint8 (B, 3, 16, 224, 224) to (B, D)

    Raises:
        UserError: nothing there, a damaged file, or weights that do not fit their configuration.
    """
    model = load_model(where)
    return model if isinstance(model, VideoViT) else model.encoder


def with_decoder(model: Model, where: str | Path) -> MaskedAutoencoder:
    """The model, which must be a whole autoencoder; `where` it came from is for the error.

    Raises:
        UserError: it has no decoder.
    """
    if not isinstance(model, MaskedAutoencoder):
        raise UserError(f'"{where}" holds no decoder.', "Give a pre-training run.")
    return model


def load_model(where: str | Path) -> Model:
    """Whatever model a run or weights file holds, in eval mode on the CPU."""
    return load_with_extras(where)[0]


def load_with_extras(where: str | Path) -> tuple[Model, Mapping[str, Any]]:
    """The model, and what else the file's header says: under "clip" how the run sampled its clips."""
    tensors, stored = load_weights(find_weights(where))
    if not isinstance(stored, Mapping) or not isinstance(stored.get("model"), Mapping):
        raise UserError(f'the header of "{where}" describes no model.', "Give a file that stmae has written.")
    model = empty(from_dict(stored["model"]))
    load_strictly(model, tensors)
    return model.eval(), {name: value for name, value in stored.items() if name != "model"}
