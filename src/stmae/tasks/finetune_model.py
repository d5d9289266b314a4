"""The encoder that a fine-tuning begins with: its shape, and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from stmae.data.sources import Source, TensorSource
from stmae.data.values import Values
from stmae.engine.checkpoint import check_fit
from stmae.errors import UserError
from stmae.interop.native import load_with_extras
from stmae.model.config import ClipConfig, EncoderConfig, from_dict
from stmae.model.encoder import VideoViT
from stmae.model.heads import Classifier
from stmae.model.refit import refit
from stmae.model.sizes import encoder_config
from stmae.runs import RunFolder, read_config
from stmae.tasks.finetune_options import SCRATCH, SHAPE, FinetuneOptions
from stmae.tasks.setup import clip_shape


def first_encoder(
    options: FinetuneOptions, source: Source, values: Values, asked: set[str], chosen: set[str]
) -> tuple[EncoderConfig, FinetuneOptions, dict[str, Any]]:
    """The encoder's shape, the options with the clips that it takes, and whose weights it begins with, if it says so.

    Args:
        asked: options that the caller gave.
        chosen: those that the caller, a preset or the run that is there gave; the others are the model's to say.

    Raises:
        UserError: a shape besides a model that has one; clips that do not fit it.
    """
    if options.init == SCRATCH:
        channels, (frames, *size) = clip_shape(options, source, values, asked)
        encoder = encoder_config(
            options.model,
            frames=frames,
            image_size=(size[0], size[1]),
            channels=channels,
            patch=options.patch,
            positions=options.positions,
            position_values=options.position_values,
            class_token=options.class_token,
        )
        return encoder, options, {}
    named = [name for name in SHAPE if name in asked]
    if named:
        raise UserError(
            f'{" and ".join(named)} cannot be chosen: the encoder in "{options.init}" is what it is.',
            "Leave them out, or start from scratch with --init none.",
        )
    run = RunFolder(options.out)
    if run.exists:  # it says itself what it is, and what it began with may be gone
        derived = read_config(run.config)["derived"]
        return cast(EncoderConfig, from_dict(derived["encoder"])), options, derived["origin"]
    model, extras = load_with_extras(options.init)
    encoder = model.config if isinstance(model, VideoViT) else model.config.encoder
    clip = encoder.clip
    options = _clips_of(options, clip, extras.get("clip", {}), chosen)
    channels, (frames, height, width) = clip_shape(options, source, values, asked)
    if not isinstance(source, TensorSource) and "image_size" not in chosen:
        height, width = clip.height, clip.width
    stills = clip.frames == clip.patch[0] == 1 and frames > 1
    part = model if isinstance(model, VideoViT) else model.encoder
    refit(
        part,
        frames=frames,
        image_size=(height, width),
        channels=channels,
        patch_frames=options.patch[0] if stills else None,
    )
    origin = {name: extras[name] for name in ("source", "license") if name in extras}
    return replace(part.config, norm=True), options, origin


def _clips_of(
    options: FinetuneOptions, clip: ClipConfig, extras: Mapping[str, Any], chosen: set[str]
) -> FinetuneOptions:
    """The options with the clips that the encoder was trained on, where nothing else was chosen."""
    own: dict[str, Any] = {"frames": clip.frames, "value_range": tuple(extras.get("value_range", ())) or None}
    if clip.height == clip.width:
        own["image_size"] = clip.height
    if not {"stride", "sampling"} & chosen:  # one without the other would be neither
        own |= {"stride": extras.get("stride"), "sampling": extras.get("sampling")}
    own = {name: value for name, value in own.items() if value is not None and name not in chosen}
    if own.get("sampling") == "segments":
        own["stride"] = 4.0  # of no meaning
    return replace(options, **own)


def begin_with(model: Classifier, where: str) -> str:
    """Fills a fresh classifier with the weights of another run, made ones of its clips (`refit`).

    The head is taken over where it tells the same classes by the same names, else it starts afresh.

    Returns:
        What was taken over, as a line for the log.

    Raises:
        UserError: the encoder there is of another size.
    """
    source = load_with_extras(where)[0]
    encoder = source if isinstance(source, VideoViT) else source.encoder
    clip, grid = model.config.encoder.clip, encoder.config.clip.grid
    changed = refit(
        encoder,
        frames=clip.frames,
        image_size=(clip.height, clip.width),
        channels=clip.channels,
        patch_frames=clip.patch[0],
    )
    state = encoder.state_dict()
    if not any(name.startswith("norm.") for name in state):  # the last norm stands before the head, as VideoMAE has it
        state |= {name: value for name, value in model.encoder.state_dict().items() if name.startswith("norm.")}
    check_fit(state, model.encoder.state_dict(), f'the encoder in "{where}"')
    model.encoder.load_state_dict(state)
    told = f'weights from "{where}": the encoder' + (", its positions interpolated" if grid != clip.grid else "")
    told = "\n  ".join([*changed, told])
    if not isinstance(source, Classifier):
        return f"{told}; the head starts afresh."
    own, theirs = model.config, source.config
    if own.class_names and (own.class_names, own.problem) == (theirs.class_names, theirs.problem):
        model.head.load_state_dict(source.head.state_dict())
        return f"{told} and the head, which tells the same {own.classes} classes."
    which = f"of {theirs.classes} classes" if theirs.problem != "regression" else f"of {theirs.classes} numbers"
    return f"{told}; its head {which} is replaced by a fresh one of {own.classes}."
