"""What tasks share that look at videos with a trained model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stmae.data.cache import Cache, default_cache
from stmae.data.frozen import load_index
from stmae.data.opening import Say, open_source, paths_of
from stmae.data.sources import Source, TensorSource
from stmae.data.values import Values, values_of
from stmae.errors import UserError
from stmae.model.config import ClipConfig
from stmae.runs import RunFolder
from stmae.tasks.options import SourceOptions
from stmae.tasks.values import size_in_bytes

if TYPE_CHECKING:  # `stmae pack` has no need of torch
    from stmae.data.views import Places


def open_videos(options: SourceOptions, clip: ClipConfig, extras: Mapping[str, Any], say: Say) -> tuple[Source, Values]:
    """What the options name: files, lists, shards, a run's held-out videos (those it trained on, if it held none out),
    or clips from Python; and what their pixels are to a model.

    Args:
        options: with `videos`.
        clip: that the model takes.
        extras: what the model's weights say of its clips.
        say: is told what is left out.

    Raises:
        UserError: nothing to read there, or a model whose clips have other channels.
    """
    source = _source(options, say)
    if isinstance(source, TensorSource):
        return source, Values()
    return source, values_for(source, clip, extras)


def values_for(source: Source, clip: ClipConfig, extras: Mapping[str, Any]) -> Values:
    """What the pixels of a source are to a model.

    Args:
        source: of files or shards.
        clip, extras: as for `open_videos`.

    Raises:
        UserError: the model takes clips of other channels.
    """
    value_range = extras.get("clip", {}).get("value_range")
    values = values_of(source, tuple(value_range) if value_range else None, clip.mean, clip.std)
    if values.channels != clip.channels:
        raise UserError(
            f"the model takes clips of {clip.channels} channels; these have {values.channels}.",
            "Give clips like those that it was trained on.",
        )
    return values


def _source(options: SourceOptions, say: Say) -> Source:
    videos = options.videos  # type: ignore[attr-defined]
    if len(paths_of(videos)) == 1:
        run = RunFolder(Path(paths_of(videos)[0]).expanduser().absolute())
        if run.exists and run.index.exists():
            training, held_out = load_index(run.index)
            return held_out if len(held_out) else training
    return open_given(options, say)


def open_given(options: SourceOptions, say: Say) -> Source:
    """The source that the options of a task name, which has `videos` and may have `weights`."""
    return open_source(
        options.videos,  # type: ignore[attr-defined]
        weights=getattr(options, "weights", None),
        root=options.root,
        media=options.media,
        subset=options.subset,
        checked=options.checked,
        leave_out=options.leave_out,
        cache=cache_of(options),
        say=say,
    )


def cache_of(options: SourceOptions) -> Cache:
    """Where what comes from elsewhere is kept."""
    return Cache((options.cache or default_cache()).expanduser().absolute(), size_in_bytes(options.cache_size))


def places_of(extras: Mapping[str, Any], frames: int, count: int) -> Places:
    """`count` test clips, sampled as a run sampled its own."""
    from stmae.data.views import segments, spread

    if extras.get("clip", {}).get("sampling") == "segments":
        return segments(frames, count)
    return spread(frames, stride_of(extras), count)


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
