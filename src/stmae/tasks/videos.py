"""What tasks share that look at videos with a trained model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stmae.data.names import Names
from stmae.data.sources import Index, TensorSource, load_index, scan
from stmae.errors import UserError
from stmae.model.config import ClipConfig
from stmae.runs import RunFolder
from stmae.tasks.build import is_path


def open_videos(videos: Any, clip: ClipConfig) -> Index | TensorSource:
    """A folder, a video, a run's held-out videos (those it trained on, if it held none out), or clips from Python.

    Raises:
        UserError: nothing to read there, or a model whose clips have not the 3 channels of videos.
    """
    if not is_path(videos):
        return TensorSource(videos)
    if clip.channels != 3:
        raise UserError(
            f"the model takes clips of {clip.channels} channels; video files have 3.", "Give the clips from Python."
        )
    path = Path(videos).expanduser().absolute()
    run = RunFolder(path)
    if run.exists and run.index.exists():
        training, held_out = load_index(run.index)
        return held_out if len(held_out) else training
    return scan(path) if path.is_dir() else Index(path.parent, Names.of([path.name]))


def stride_of(extras: Mapping[str, Any]) -> float:
    """The stride that a run sampled its clips with, the paper's where the weights do not say."""
    return float(extras.get("clip", {}).get("stride", 4.0))


def printable(path: str) -> str:
    """A path as text: bytes of a name that are not UTF-8 are shown as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def none_readable(bad: Mapping[str, str]) -> UserError:
    """The error for videos of which not one can be read."""
    lines = [f"{printable(path)}: {reason}" for path, reason in list(bad.items())[:3]]
    if len(bad) == 1:
        return UserError(f"the video cannot be read: {lines[0]}.", "Give one that plays, or convert it.")
    more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
    return UserError(f"none of the {len(bad)} videos can be read: {'; '.join(lines)}{more}.", "Check the files.")
