"""What `stmae pretrain` settles before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from stmae.data.sources import TensorSource
from stmae.data.values import Values, values_of
from stmae.engine.launch import find
from stmae.engine.optim import Groups
from stmae.model.config import MaeConfig, as_dict
from stmae.model.mae import MaskedAutoencoder
from stmae.model.masking import visible_tokens
from stmae.tasks import build
from stmae.tasks.checks import check
from stmae.tasks.fit import Trial, settle_batch
from stmae.tasks.outside import open_mask, remarks
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.setup import Setup, clip_extras, clip_shape, idle_notes, lent, part, settle, slots_of
from stmae.tasks.starting import init_weights, settle_model
from stmae.tasks.videos import open_given


@dataclass(frozen=True)
class PretrainSetup(Setup):
    """Everything that is known before the first step of a pre-training."""

    options: PretrainOptions
    config: MaeConfig
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the weights that the run started from, which goes on with its own."""

    @classmethod
    def of(cls, options: PretrainOptions) -> PretrainSetup:
        """Looks at the machine, the folder and the run that may be there.

        Raises:
            UserError: the device is missing, there are no videos, options do not go together.
        """
        device = build.pick_device(options.device, many=True)
        asked = set(options.given)  # by the caller: what a preset or an earlier run says is no request
        options = lent(options)
        notes = list[str]()
        found = open_given(options, notes.append)
        options, why, _ = settle(options, device, len(found))
        source, held_out, changed = part(found, options)
        values = Values() if isinstance(source, TensorSource) else values_of(source, options.value_range)
        channels, (frames, *size) = clip_shape(options, source, values, asked)
        start = settle_model(options, asked, frames=frames, image_size=(size[0], size[1]), channels=channels)
        options, config = start.options, start.config
        values = replace(values, mean=config.encoder.clip.mean, std=config.encoder.clip.std)
        options, fit = settle_batch(options, trial(options, config), device, find().size)
        check(options)
        plan = build.Plan.of(options, slots_of(source))
        notes += [*([changed] if changed else []), *idle_notes(options, asked), *remarks(options)]
        return cls(
            options, config, plan, source, held_out, values, device, why, tuple(notes), fit=fit, origin=start.origin
        )

    def build_model(self) -> MaskedAutoencoder:
        return MaskedAutoencoder(self.config, own_mask=open_mask(self.options.mask))

    @property
    def begins_with(self) -> str | None:
        return self.options.init

    def init_weights(self, model: nn.Module) -> str:
        return init_weights(cast(MaskedAutoencoder, model), self.options)

    def groups(self, model: nn.Module) -> Groups:
        return build.groups(cast(MaskedAutoencoder, model), self.options)

    def header(self) -> dict[str, Any]:
        return {"model": as_dict(self.config), "clip": clip_extras(self.options), **self.origin}

    def flops_per_clip(self) -> float:
        return build.training_flops(self.config)

    def about_model(self) -> list[tuple[str, str]]:
        with torch.device("meta"):
            model = MaskedAutoencoder(self.config)
        sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.encoder, model.decoder)]
        return [
            ("tokens", _tokens(self.config)),
            ("parameters", f"encoder {sizes[0]:.1f} M, decoder {sizes[1]:.1f} M"),
        ]


def _tokens(config: MaeConfig) -> str:
    clip = config.encoder.clip
    if config.mask == "own":
        return f"{clip.tokens} per clip; a mask of your own says how many are visible"
    visible = visible_tokens(config, clip.grid)
    share = "" if config.decode == "all" else f", {config.decode_share:g} of the hidden ones decoded ({config.decode})"
    return f"{clip.tokens} per clip, {visible} visible ({visible / clip.tokens:.1%}){share}"


def trial(options: PretrainOptions, config: MaeConfig) -> Trial:
    """The step that has to fit into memory."""

    def loss(model: nn.Module, clips: Tensor) -> Tensor:
        with clips.device:
            return cast(Tensor, model(clips, **build.stand_ins(config, len(clips))).loss)

    return Trial(
        build=lambda: MaskedAutoencoder(config),
        loss=loss,
        groups=lambda model: build.groups(cast(MaskedAutoencoder, model), options),
        clip=config.encoder.clip,
    )
