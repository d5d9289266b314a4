"""What `stmae finetune` settles before it trains: videos and their labels, the encoder to begin with, the recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stmae.data.augment import Strength
from stmae.data.dataset import FixedClips, VideoClips
from stmae.data.frozen import load_index, save_index
from stmae.data.labels import Labels
from stmae.data.sources import Source, TensorSource, names_of
from stmae.data.values import Values, values_of
from stmae.engine.launch import find
from stmae.engine.optim import Groups
from stmae.errors import UserError
from stmae.model.config import ClassifierConfig, EncoderConfig, as_dict
from stmae.model.heads import Classifier
from stmae.runs import RunFolder
from stmae.tasks import build
from stmae.tasks.checks import check
from stmae.tasks.finetune_data import by_class, labels_of, open_both, part_by_class
from stmae.tasks.finetune_model import begin_with, first_encoder
from stmae.tasks.finetune_options import SCRATCH, FinetuneOptions
from stmae.tasks.fit import Trial, settle_batch
from stmae.tasks.labelled import Part
from stmae.tasks.protocol import leaks
from stmae.tasks.setup import Setup, clip_extras, idle_notes, lent, part, settle, slots_of


@dataclass(frozen=True)
class FinetuneSetup(Setup):
    """Everything that is known before the first step of a fine-tuning.

    Attributes:
        labels: of `source`, item by item.
        val: the videos to validate on with their labels, of the same classes; None for none.
        own_val: whether these are a source of their own, and not `held_out`.
        origin: whose weights it begins with and their licence, where a checkpoint says so.
    """

    options: FinetuneOptions
    config: ClassifierConfig
    labels: Labels = field(kw_only=True)
    val: Part | None = None
    own_val: bool = False
    origin: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, options: FinetuneOptions) -> FinetuneSetup:
        """Looks at the machine, the videos, the weights and the run that may be there.

        Raises:
            UserError: the device is missing, there are no videos, labels disagree, options do not go together.
        """
        device = build.pick_device(options.device, many=True)
        given = options
        asked = set(given.given)  # by the caller: what a preset or an earlier run says is no request
        options = lent(options)
        notes = list[str]()
        found, val = open_both(options, given, notes.append)
        begun = RunFolder(options.out).exists
        options, why, chosen = settle(options, device, len(found.source))
        options = settle_problem(options, found.labels, asked)
        if val is not None:
            options = replace(options, holdout=0.0)
        source, held_out, changed = part(
            found.source, options, lambda whole: part_by_class(whole, found.labels, options.holdout)
        )
        own_val = val is not None
        if val is not None and begun:
            val = _frozen_val(options, val)
        if held_out is not None:
            val = Part(held_out, labels_of(held_out, found))
        labels = labels_of(source, found)
        values = Values() if isinstance(source, TensorSource) else values_of(source, options.value_range)
        encoder, options, origin = first_encoder(options, source, values, asked, chosen)
        values = replace(values, mean=encoder.clip.mean, std=encoder.clip.std)
        config = classifier_config(encoder, options, labels)
        options, fit = settle_batch(options, trial(options, config), device, find().size)
        if options.lr is None:
            options = replace(options, lr=options.base_lr * options.batch_size / 256)
        check(options)
        setup = cls(
            options, config, build.Plan(0, 0, 0.0, 0), source, None if own_val else held_out, values, device, why,
            tuple(notes), fit=fit, labels=labels, val=val, own_val=own_val, origin=origin,
        )  # fmt: skip
        plan = build.Plan.of(options, setup.epoch)
        notes += [*([changed] if changed else []), *idle_notes(options, asked), *setup.remarks()]
        return replace(setup, plan=plan, notes=tuple(notes))

    @cached_property
    def sampled(self) -> tuple[Source, np.ndarray]:
        """The source that clips are taken from, and the position in `source` of each of its items."""
        if self.options.balance == "sampling":
            return by_class(self.source, self.labels)
        return self.source, np.arange(len(self.source))

    @property
    def epoch(self) -> int:
        return slots_of(self.sampled[0])

    def training_clips(self) -> VideoClips:
        return self.clips_of(self.sampled[0])

    def freeze(self, run: RunFolder) -> None:
        super().freeze(run)
        if self.own_val and self.val is not None and not isinstance(self.val.source, TensorSource):
            save_index(run.val_index, self.val.source)

    @property
    def videos(self) -> int:
        own = self.val.source if self.own_val and self.val else ()  # videos that are no part of the labelled ones
        return super().videos + len(own)

    def validation_clips(self) -> FixedClips:
        """A clip from the middle of each validation video."""
        assert self.val is not None
        return self.fixed_clips(self.val.source)

    def saved(self) -> dict[str, Any]:
        values = super().saved()
        given = self.options.val
        values["val"] = None if given is None else str(given) if build.is_path(given) else type(given).__name__
        values["derived"] |= {
            "validation": len(self.val.source) if self.val else 0,
            "classes": list(self.config.class_names),
            "encoder": as_dict(self.config.encoder),
            "origin": dict(self.origin),
        }
        return values

    @property
    def strength(self) -> Strength:
        """Of the augmentation."""
        options, clip = self.options, self.config.encoder.clip
        return Strength(
            options.rand_augment, options.magnitude, options.magnitude_std, options.erase, clip.mean, clip.std
        )

    def remarks(self) -> list[str]:
        """What there is to say of the labels and the recipe."""
        lines = []
        counts = self.labels.counts
        if self.labels.problem != "regression":
            named = sorted(zip(counts.tolist(), self.config.class_names, strict=True))
            told = ", ".join(f"{name} {count}" for count, name in reversed(named[-8:]))
            more = f", ... {named[0][1]} {named[0][0]}" if len(named) > 8 else ""
            lines.append(f"{len(counts)} classes: {told}{more}.")
            if counts.max() > 4 * max(1, counts.min()) and self.options.balance == "none":
                lines.append(
                    "the classes are uneven: the validation's mean class accuracy counts them alike, and --balance"
                    " sampling or --balance loss makes training do so."
                )
        sided = [name for name in self.config.class_names if re.search("left|right", name, re.IGNORECASE)]
        if self.options.flip and sided:
            lines.append(
                f'flip mirrors half of the clips, and a class is called "{sided[0]}": --no-flip keeps sides apart.'
            )
        if leaked := leaks(self.options.init, self.options.videos, self.options.val):
            lines.append(leaked)
        if self.val is None:
            lines.append("there are no validation videos: nothing will tell how well it does.")
        else:
            few = "; what so few say is mostly luck" if len(self.val.source) < 20 else ""
            most = f", of which always saying the largest class gets {largest_share(self.val.labels):.0%} right"
            single = self.labels.problem == "single"
            lines.append(f"{len(self.val.source)} validation videos{most if single else ''}{few}.")
        videos = self.options.batch_size // (self.options.repeats * self.options.accumulate * find().size)
        if videos < 2 and (self.options.mixup or self.options.cutmix):
            lines.append("mixup and cutmix do nothing: they pair videos, and a part of the batch holds one.")
        return lines

    def build_model(self) -> Classifier:
        return Classifier(self.config)

    @property
    def begins_with(self) -> str | None:
        return None if self.options.init == SCRATCH else self.options.init

    def init_weights(self, model: nn.Module) -> str:
        return begin_with(cast(Classifier, model), self.options.init)

    def groups(self, model: nn.Module) -> Groups:
        return groups(cast(Classifier, model), self.options)

    def header(self) -> dict[str, Any]:
        return {"model": as_dict(self.config), "clip": clip_extras(self.options), **self.origin}

    def flops_per_clip(self) -> float:
        clip = self.config.encoder.clip
        with torch.device("meta"):
            model = Classifier(self.config).eval()
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, clip.channels, *clip.shape))
        return 3 * counter.get_total_flops()  # a backward pass costs two forward ones

    def about_model(self) -> list[tuple[str, str]]:
        clip = self.config.encoder.clip
        with torch.device("meta"):
            size = sum(p.numel() for p in Classifier(self.config).parameters()) / 1e6
        outputs = {"single": "classes", "multi": "classes, any of them", "regression": "numbers"}[self.config.problem]
        frames, height, width = clip.shape
        return [
            ("validation", f"{len(self.val.source)} videos" if self.val else "none"),
            ("outputs", f"{self.config.classes} {outputs}"),
            ("clips", f"{frames} frames of {height} x {width}, {clip.tokens} tokens"),
            ("parameters", f"{size:.1f} M"),
        ]


def largest_share(labels: Labels) -> float:
    """The share of the items that are of the largest class."""
    return float(labels.counts.max() / len(labels.targets))


def _frozen_val(options: FinetuneOptions, val: Part) -> Part:
    """The validation videos that the run was begun with."""
    run = RunFolder(options.out)
    if isinstance(val.source, TensorSource) or not run.val_index.exists():
        return val
    kept, _ = load_index(run.val_index, val.source)
    if not {*names_of(kept)} & {*names_of(val.source)}:
        raise UserError(
            f'"{options.val}" holds none of the validation videos that the run was begun with.',
            "Give those, wherever they lie now, or begin a new run with another --out.",
        )
    return Part(kept, labels_of(kept, val))


def settle_problem(options: FinetuneOptions, labels: Labels, asked: set[str]) -> FinetuneOptions:
    """The options without those parts of the recipe that the kind of label has no place for.

    Raises:
        UserError: such a part was asked for.
    """
    senseless: dict[str, Any] = {}
    if labels.problem == "regression":
        senseless = {"label_smoothing": 0.0, "cutmix": 0.0, "balance": "none"}
    elif labels.problem == "multi" and options.balance == "sampling":
        senseless = {"balance": "none"}
    named = [name for name in senseless if name in asked and getattr(options, name) != senseless[name]]
    if named:
        what = "numbers" if labels.problem == "regression" else "several labels for a video"
        raise UserError(f"{' and '.join(named)} cannot be done with {what}.", "Leave out what does not fit.")
    return replace(options, problem=labels.problem, **senseless)


def classifier_config(encoder: EncoderConfig, options: FinetuneOptions, labels: Labels) -> ClassifierConfig:
    """The model; a regression's outputs are measured in the spread of the training labels."""
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    if labels.problem == "regression":
        spread = labels.targets.std(axis=0, dtype=np.float64)
        shift = tuple(labels.targets.mean(axis=0, dtype=np.float64).tolist())
        scale = tuple(np.where(spread > 0, spread, 1.0).tolist())
    return ClassifierConfig(
        encoder=encoder,
        classes=len(labels.classes),
        dropout=options.dropout,
        drop_path=options.drop_path,
        class_names=labels.classes,
        problem=labels.problem,
        shift=shift,
        scale=scale,
    )


def groups(model: Classifier, options: FinetuneOptions) -> Groups:
    """The parameters with their learning-rate factors and weight decays: mae_st's, or PySlowFast's where positions and
    class token are decayed.

    Raises:
        UserError: `group_lr` or `group_decay` name parameters that there are not.
    """
    spared = () if options.decay_positions else ("encoder.class_token", "encoder.positions.")
    no_decay = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and name.startswith(spared)
    ]  # fmt: skip
    return build.decayed_groups(model, model.config.encoder.blocks.depth, options, no_decay=no_decay)


def trial(options: FinetuneOptions, config: ClassifierConfig) -> Trial:
    """The step that has to fit into memory."""

    def loss(model: nn.Module, clips: Tensor) -> Tensor:
        logits = model(clips, keys=torch.arange(len(clips), device=clips.device))
        return F.softplus(logits.float()).sum()

    return Trial(
        build=lambda: Classifier(config),
        loss=loss,
        groups=lambda model: groups(cast(Classifier, model), options),
        clip=config.encoder.clip,
    )
