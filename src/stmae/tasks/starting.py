"""`--init`: what a new run takes over from other weights, its own model's shape among it.

Weights say what model they are of. So a run that starts from some is of their size, patch, positions and decoder unless
its caller asks for others, and everything that no option could say (a family's epsilon, the class token that goes on to
the decoder) comes along. Length, resolution and channels are the run's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stmae.errors import Problems
from stmae.interop.native import Model, load_with_extras, read_header
from stmae.model.config import ClipConfig, MaeConfig, from_dict
from stmae.model.encoder import VideoViT
from stmae.model.mae import MaskedAutoencoder
from stmae.model.refit import PIXELS, refit
from stmae.model.sizes import SIZES
from stmae.runs import RunFolder
from stmae.tasks import build
from stmae.tasks.outside import given_values
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.weights import MODEL, newest_whole

CUSTOM = "custom"  # `model` in the configuration of a run whose size has no name
_OF_ENCODER = {"model", "patch", "positions", "class_token"}
_SHAPELESS = {"target", "predict_frames"}  # of the decoder, but for its last layer
FROM_OUTSIDE = ("tokens", "teacher")
_KEPT = ("source", "license")  # what is known of the weights and goes on with them


@dataclass(frozen=True)
class Start:
    """What is settled about a run's model: its options and configuration, and whose weights it starts from."""

    options: PretrainOptions
    config: MaeConfig
    origin: Mapping[str, Any]


def settle_model(
    options: PretrainOptions, asked: set[str], *, frames: int, image_size: tuple[int, int], channels: int
) -> Start:
    """The model of a run: as its options say, as the weights say that it starts from, or as its own checkpoint says.

    Args:
        options: settled but for the model's.
        asked: names of the options that the caller gave.

    Raises:
        UserError: the weights cannot be read, or are of another model than was asked for.
    """
    shape: dict[str, Any] = {"frames": frames, "image_size": image_size, "channels": channels}
    if options.init is None:
        return Start(options, build.model_config(options, **shape, given_values=given_values(options)), {})
    newest = newest_whole(RunFolder(options.out).checkpoints, lambda text: None, only=MODEL)
    if newest is not None:
        header = read_header(newest / MODEL)
        config = from_dict(header["model"])
        assert isinstance(config, MaeConfig)
        return Start(options, config, _origin(header))
    source, extras = load_with_extras(options.init)
    told = options_of(source, frames)
    differs = {name for name, value in told.items() if name in asked and getattr(options, name) != value}
    _refuse(options, told, differs & _OF_ENCODER)
    options = replace(options, **{name: value for name, value in told.items() if name not in asked})
    kept = _carries(source, options, channels) and not (differs - _OF_ENCODER - _SHAPELESS) | {
        name for name in asked if name.startswith("decoder_") and name not in told
    }
    part: Model = source if kept else _encoder(source)
    fit(part, options, **shape)
    # Where its size has no name, any will do: the encoder's configuration is the weights' own.
    named = options if options.model in SIZES else replace(options, model="vit_base")
    encoder = _encoder(part).config
    own_teacher = options.target == "teacher" and options.teacher == "self"
    given = encoder.blocks.width if own_teacher else given_values(options)
    config = build.model_config(named, **shape, given_values=given)
    if "position_values" in asked:
        encoder = replace(encoder, position_values=options.position_values)
    decoder = part.config.decoder if isinstance(part, MaskedAutoencoder) else config.decoder
    return Start(options, replace(config, encoder=encoder, decoder=decoder), _origin(extras))


def init_weights(model: MaskedAutoencoder, options: PretrainOptions) -> str:
    """Fills a fresh model, as `settle_model` has it, with the weights that `init` names.

    The decoder is taken over where it is of the same make, else it starts afresh.

    Returns:
        What was taken over, as lines for the log.
    """
    source, extras = load_with_extras(str(options.init))
    clip = model.config.encoder.clip
    part: Model = source if _carries(source, options, clip.channels) else _encoder(source)
    notes = fit(part, options, frames=clip.frames, image_size=(clip.height, clip.width), channels=clip.channels)
    wanted = model.state_dict()
    carried = (
        isinstance(part, MaskedAutoencoder)
        and part.config.decoder == model.config.decoder
        and {name: value.shape for name, value in part.state_dict().items()}
        == {name: value.shape for name, value in wanted.items()}
    )
    if carried:
        model.load_state_dict(part.state_dict())
    else:
        model.encoder.load_state_dict(_encoder(part).state_dict())
    what = "encoder and decoder" if carried else "the encoder; the decoder starts afresh"
    lines = [f'weights from "{options.init}": {what}.', *notes]
    if "source" in extras:
        lines.append(f"in the format of {extras['source']}. Mind it for what you train from them.")
    return "\n  ".join(lines)


def options_of(model: Model, frames: int) -> dict[str, Any]:
    """The options of `stmae pretrain` that describe a model once it is one of clips of so many frames, as far as
    options can.
    """
    encoder = _encoder(model).config
    blocks = encoder.blocks
    sizes = {name: size() for name, size in SIZES.items()}
    named = [
        name
        for name, size in sizes.items()
        if (size.width, size.depth, size.heads, size.mlp_width)
        == (blocks.width, blocks.depth, blocks.heads, blocks.mlp_width)
    ]
    found: dict[str, Any] = {
        "model": named[0] if named else CUSTOM,
        "positions": encoder.positions,
        "class_token": encoder.class_token,
        "position_values": encoder.position_values,
    }
    to_videos = _of_stills(encoder.clip) and frames > 1  # what `refit` makes of it
    found |= {"positions": "separable", "position_values": "learned"} if to_videos else {"patch": encoder.clip.patch}
    if isinstance(model, MaskedAutoencoder):
        decoder = model.config.decoder.blocks
        found |= {
            "decoder": model.config.decoder.kind,
            "decoder_width": decoder.width,
            "decoder_depth": decoder.depth,
            "decoder_heads": decoder.heads,
            "predict_frames": "strided" if to_videos else model.config.predict_frames,
            "mask_tokens_in_encoder": model.config.mask_tokens_in_encoder,
        }
        if model.config.target not in FROM_OUTSIDE:  # whose maker is not in the file
            found["target"] = model.config.target
    return found


def fit(
    model: Model, options: PretrainOptions, *, frames: int, image_size: tuple[int, int], channels: int
) -> list[str]:
    """Makes a model one of the run's clips, in place; what there is to say about it."""
    stills = _of_stills(_encoder(model).config.clip) and frames > 1
    return refit(
        model,
        frames=frames,
        image_size=image_size,
        channels=channels,
        patch_frames=options.patch[0] if stills else None,
    )


def _refuse(options: PretrainOptions, told: Mapping[str, Any], names: set[str]) -> None:
    problems = Problems()
    for name in sorted(names):
        problems.add(
            f'{name} {getattr(options, name)} does not fit "{options.init}", which has {told[name]}.',
            f"Leave {name} out: it comes with the weights.",
        )
    problems.raise_any()


def _carries(source: Model, options: PretrainOptions, channels: int) -> bool:
    """Whether a decoder's predictions mean to the run what they meant to it before."""
    if not isinstance(source, MaskedAutoencoder):
        return False
    theirs = source.config.target
    same = channels == source.config.encoder.clip.channels and theirs == options.target
    return same or (theirs in PIXELS and options.target in PIXELS)


def _of_stills(clip: ClipConfig) -> bool:
    return clip.frames == clip.patch[0] == 1


def _encoder(model: Model) -> VideoViT:
    return model if isinstance(model, VideoViT) else model.encoder


def _origin(extras: Mapping[str, Any]) -> dict[str, Any]:
    return {name: extras[name] for name in _KEPT if name in extras}
