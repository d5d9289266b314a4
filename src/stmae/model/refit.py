"""A trained model for other clips: another length, resolution or number of channels; stills for videos and back.

Tokens stay what they were wherever that has a meaning: a still gives a video model made of an image model the image's
own tokens, a still gives an image model made of a video model its tokens but for their time, and a clip whose channels
are all alike gives the tokens of the grey RGB clip.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import UserError
from .config import ClassifierConfig, ClipConfig, EncoderConfig, MaeConfig, PositionLayout, PositionValues
from .decoder import Decoder
from .encoder import VideoViT
from .heads import Classifier
from .mae import MaskedAutoencoder
from .patches import Normalizer, Positions

PIXELS = ("normalized_pixels", "normalized_pixels_per_channel", "pixels")


def refit(
    model: MaskedAutoencoder | Classifier | VideoViT,
    *,
    frames: int | None = None,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    patch_frames: int | None = None,
) -> list[str]:
    """Changes a model, in place, to one of other clips; its configuration follows. What is None stays.

    * Length and resolution: positions are interpolated, linearly over time and bicubically over space.
    * `patch_frames` from 1 (a model of stills): the kernel is spread evenly over time, positions get a temporal part of
      zeros, to be learnt (paper, appendix A). To 1, with one frame: the kernel is summed over time and the temporal
      positions are dropped (paper, section 5.5).
    * `channels`: the kernel is summed over the old channels and spread evenly over the new ones, which are normalised
      by the average mean and deviation of the old; the decoder predicts for each of them the average of the old.

    Returns:
        A line for each change of the kernel, to be said to a person.

    Raises:
        UserError: clip sizes that the patch does not divide, or a change that has no meaning for these weights.
    """
    encoder = model if isinstance(model, VideoViT) else model.encoder
    old = encoder.config.clip
    height, width = image_size or (old.height, old.width)
    channels = channels or old.channels
    new = replace(
        old,
        frames=frames or old.frames,
        height=height,
        width=width,
        channels=channels,
        patch=(patch_frames or old.patch[0], *old.patch[1:]),
        mean=old.mean if channels == old.channels else (sum(old.mean) / len(old.mean),),
        std=old.std if channels == old.channels else (sum(old.std) / len(old.std),),
    )
    told = [*_refit_time(model, encoder, new), *_refit_channels(model, encoder, new)]
    for module in model.modules():
        if isinstance(module, Positions) and module.grid != new.grid:
            module.resize(new.grid)
    _set_clip(model, encoder, new)
    return told


def _refit_time(model: nn.Module, encoder: VideoViT, new: ClipConfig) -> list[str]:
    """The kernel and the kind of positions where the frames of a patch change."""
    old = encoder.config.clip
    before, after = old.patch[0], new.patch[0]
    if before == after:
        return []
    to_video, to_still = before == old.frames == 1, after == new.frames == 1
    if not (to_video or to_still):
        raise UserError(
            f"a patch of {before} frames cannot become one of {after}.",
            f"Keep {before}; only models of stills become models of videos and back.",
        )
    decoder = isinstance(model, MaskedAutoencoder)
    if decoder and to_still:
        raise UserError("a decoder of videos has no meaning for stills.", "Take the encoder alone.")
    proj = encoder.patch_embed.proj
    kernel = proj.weight.detach().unflatten(1, (*old.patch, old.channels))
    kernel = (kernel / after).expand(-1, after, -1, -1, -1) if to_video else kernel.sum(dim=1, keepdim=True)
    _put(proj, "weight", kernel.flatten(1))
    parts: list[VideoViT | Decoder] = [encoder]
    if isinstance(model, MaskedAutoencoder) and isinstance(model.decoder, Decoder):
        parts.append(model.decoder)
    for part in parts:
        part.positions = _separable(part.positions) if to_video else _joint(part.positions)
    layout: PositionLayout = "separable" if to_video else "joint"
    # A table that was fixed for stills has to learn about time.
    values: PositionValues = "learned" if to_video else encoder.config.position_values
    encoder.config = replace(encoder.config, positions=layout, position_values=values)
    if isinstance(model, MaskedAutoencoder):
        painter = replace(model.config.decoder, positions=layout, position_values=values)
        if isinstance(model.decoder, Decoder):
            model.decoder.config = painter
        model.config = replace(model.config, decoder=painter, predict_frames="strided")
    how = f"spread over the {after} frames of a patch" if to_video else f"summed over its {before} frames"
    return [f"the patch embedding's kernel is {how}."]


def _separable(stills: Positions) -> Positions:
    """Positions of stills as those of videos: the spatial table, and zeros for time, all to be learnt."""
    spatial = stills().detach()
    return _made(stills, (1, *stills.grid[1:]), "separable", spatial=spatial, temporal=torch.zeros_like(spatial[:1]))


def _joint(videos: Positions) -> Positions:
    """Positions of videos as those of stills: without their temporal part, or averaged over time."""
    t, h, w = videos.grid
    if videos.layout == "separable":
        table = videos.get_parameter("spatial").detach()
    else:
        table = videos.get_parameter("joint").detach().unflatten(0, (t, h * w)).mean(dim=0)
    return _made(videos, (1, h, w), "joint", joint=table)


def _made(old: Positions, grid: tuple[int, int, int], layout: str, **tables: Tensor) -> Positions:
    values = "learned" if layout == "separable" else old.values
    new = Positions(grid, old.width, layout, values, old.class_position is not None)  # type: ignore[arg-type]
    for name, table in tables.items():
        _put(new, name, table)
    if old.class_position is not None:
        new.class_position = old.class_position
    return new


def _refit_channels(model: nn.Module, encoder: VideoViT, new: ClipConfig) -> list[str]:
    """The kernel, its bias and the decoder's last layer where the channels change."""
    old = encoder.config.clip
    if old.channels == new.channels:
        return []
    if isinstance(model, MaskedAutoencoder) and model.config.target not in PIXELS:
        raise UserError(
            f"the decoder predicts {model.config.target}, which cannot be carried over to {new.channels} channels.",
            "Take the encoder alone.",
        )
    proj = encoder.patch_embed.proj
    kernel = proj.weight.detach().unflatten(1, (-1, old.channels))  # channel fastest
    # The channels' own means and deviations go into kernel and bias, so that all may share one of each.
    mean, std = torch.tensor(old.mean).expand(old.channels), torch.tensor(old.std).expand(old.channels)
    shift = (kernel * ((new.mean[0] - mean) / std).to(kernel)).sum(dim=(1, 2))
    kernel = (kernel * (new.std[0] / std).to(kernel)).sum(dim=2, keepdim=True) / new.channels
    _put(proj, "weight", kernel.expand(-1, -1, new.channels).flatten(1))
    _put(proj, "bias", proj.bias.detach() + shift)
    if isinstance(model, MaskedAutoencoder):
        head = model.decoder.head
        assert isinstance(head, nn.Linear)
        for name in ("weight", "bias"):
            rows = getattr(head, name).detach().unflatten(0, (-1, old.channels)).mean(dim=1, keepdim=True)
            _put(head, name, rows.expand(-1, new.channels, *rows.shape[2:]).flatten(0, 1))
        head.out_features = len(head.weight)
    proj.in_features = proj.weight.shape[1]
    return [
        f"the patch embedding's kernel is summed over {old.channels} channels and spread over {new.channels}; "
        f"clips are normalised with mean {new.mean[0]:.3g} and deviation {new.std[0]:.3g}."
    ]


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    known = module._parameters[name]
    trained = True if known is None else known.requires_grad
    setattr(module, name, nn.Parameter(value.contiguous().clone(), requires_grad=trained))


def _set_clip(model: MaskedAutoencoder | Classifier | VideoViT, encoder: VideoViT, clip: ClipConfig) -> None:
    encoder.patch_embed.proj.in_features = clip.patch_values
    config: EncoderConfig = replace(encoder.config, clip=clip)
    encoder.config = config
    encoder.normalize = Normalizer(clip).to(encoder.patch_embed.proj.weight)
    if isinstance(model, MaskedAutoencoder):
        whole: MaeConfig = replace(model.config, encoder=config)
        model.config = whole
    elif isinstance(model, Classifier):
        judged: ClassifierConfig = replace(model.config, encoder=config)
        model.config = judged
