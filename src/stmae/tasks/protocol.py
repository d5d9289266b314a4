"""What another person needs to know to get the same numbers: model, sizes, rates, views, decoder, versions."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stmae.data.clips import NOMINAL_FPS
from stmae.data.official import leak
from stmae.data.opening import paths_of
from stmae.errors import UserError
from stmae.model.config import ClipConfig
from stmae.runs import RunFolder, find_weights, read_config
from stmae.tasks.videos import stride_of


def protocol_of(
    options: Any, clip: ClipConfig, extras: Mapping[str, Any], precision: str, device: torch.device
) -> dict[str, Any]:
    """The protocol of a task that showed a model videos, as plain data.

    Args:
        options: with `model` and `videos`.
        clip, extras: the clips that the model takes, and what its weights say of how they are sampled.
    """
    import av

    import stmae

    sampling = extras.get("clip", {}).get("sampling", "dense")
    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    return {
        "model": str(options.model),
        "weights_sha256": _digest(options.model),
        "source": extras.get("source"),
        "videos": str(options.videos),
        "frames": clip.frames,
        "height": clip.height,
        "width": clip.width,
        "sampling": sampling,
        "stride": stride_of(extras) if sampling == "dense" else None,
        "fps": NOMINAL_FPS if sampling == "dense" else None,  # of the clock in which the stride is counted
        "resize": "bilinear with antialiasing, of the largest box of the clip's shape",
        "decoder": f"PyAV {av.__version__} (libavcodec {ffmpeg})",
        "precision": precision,
        "device": device.type,
        "stmae": stmae.__version__,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def leaks(model: Any, *judged: Any) -> str | None:
    """What to tell where a model learned from videos that it is judged on, as far as names tell it.

    Args:
        model: a run, a weights file or another name; a run's own `init` is followed.
        judged: what it is judged on; clips from Python have no name to go by.
    """
    learned, seen = "", set[str]()
    while model is not None and str(model) not in seen:
        seen.add(str(model))
        path = RunFolder(str(model)).config
        config = read_config(path) if path.is_file() else {}
        learned += f" {model} {config.get('videos', '')}"
        model = config.get("init")
    places = (place for videos in judged if videos is not None for place in paths_of(videos))
    return leak(learned, " ".join(map(str, places)))


def _digest(model: str) -> str | None:
    """Of the weights' file; None for what is no file of its own."""
    try:
        path = find_weights(model)
    except UserError:
        path = Path(model).expanduser()
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
