"""`load`: the one door through which every `--model` and `--init` goes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import Note, UserError
from ..model.config import EncoderConfig, from_dict
from ..model.encoder import VideoViT
from ..model.heads import Classifier
from ..model.mae import MaskedAutoencoder
from ..runs import find_weights, load_weights
from ..weights import CLASSIFIER, ENCODER
from .files import PICKLES
from .hub import download, is_hub
from .reference import Model, empty, load_strictly, open_reference


def load(where: str | Path) -> VideoViT | Classifier:
    """The encoder of a run, a weights file, another project's checkpoint or a model on the hub (``hf://user/name``), in
    eval mode on the CPU; the classifier, its `encoder` within, where they hold one.

    >>> encoder = stmae.load("runs/first")
    >>> features = encoder(clip)  # uint8 (B, 3, 16, 224, 224) to (B, D)
    >>> classifier = stmae.load("runs/tuned")
    >>> logits = classifier(clip)  # (B, classes), called classifier.config.class_names

    Raises:
        UserError: nothing there, a damaged file, or weights that do not fit their configuration.
    """
    model = load_model(where)
    return model.encoder if isinstance(model, MaskedAutoencoder) else model


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
    """The model, and what else is known of it: under "clip" how its run sampled clips, under "source" whose weights it
    was made from and under "license" on which terms; these are also said, as a `Note`.
    """
    if is_hub(where):
        where = download(str(where))
    if is_reference(where):
        return open_reference(where)
    tensors, stored = load_weights(find_weights(where))
    if not isinstance(stored, Mapping) or not isinstance(stored.get("model"), Mapping):
        raise UserError(f'the header of "{where}" describes no model.', "Give a file that stmae has written.")
    model = _built(stored["model"], tensors, where)
    load_strictly(model, tensors)
    if "source" in stored:
        warnings.warn(f"made from weights in the format of {stored['source']}.", Note, stacklevel=2)
    return model.eval(), {name: value for name, value in stored.items() if name != "model"}


def _built(described: Mapping[str, Any], tensors: Mapping[str, Any], where: str | Path) -> Model:
    """The model that a header describes, on the meta device; the file's tensors bound how large it may be."""
    problem = f'the header of "{where}" describes no model that could be built'
    try:
        config = from_dict(described)
        parts = [config] if isinstance(config, EncoderConfig) else [config.encoder, getattr(config, "decoder", None)]
        depth = sum(part.blocks.depth for part in parts if part is not None)
        if depth > len(tensors):
            raise UserError(f"{problem}: {depth} blocks of {len(tensors)} tensors.", "The file is damaged.")
        return empty(config)
    except UserError:
        raise
    except (ArithmeticError, AttributeError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{problem}: {reason}.", "The file is damaged.") from None


def read_header(path: Path) -> Mapping[str, Any]:
    """What stands in the header of a weights file of ours: the model's configuration under "model", and more.

    Raises:
        UserError: it is not such a file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            stored = json.loads((file.metadata() or {}).get("config", "null"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f'"{path}" cannot be read: {error}.', "Copy it again.") from None
    if not isinstance(stored, Mapping) or not isinstance(stored.get("model"), Mapping):
        raise UserError(f'the header of "{path}" describes no model.', "Give a file that stmae has written.")
    return stored


def is_reference(where: str | Path) -> bool:
    """Whether this is another project's checkpoint: a file that is not ours, or a folder of transformers."""
    path = Path(where).expanduser()
    if path.is_dir():
        ours = any((path / name).exists() for name in (ENCODER, CLASSIFIER, "config.yaml", "checkpoints"))
        return not ours and (path / "config.json").is_file()
    if path.suffix in PICKLES:
        return path.is_file()
    try:
        with safe_open(str(path), framework="pt") as file:
            return "stmae_format" not in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False  # our own reader says what is wrong with it
