"""What `stmae pretrain` settles before it trains: videos, options, model, schedule; and how it says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from stmae.data.dataset import FixedClips, VideoClips
from stmae.data.frozen import index_changes, load_index
from stmae.data.opening import paths_of
from stmae.data.sources import Mixture, Source, TensorSource, is_shards, parts_of, split
from stmae.data.values import Values, values_of
from stmae.durations import Clock
from stmae.engine.blocks import pick_compile
from stmae.engine.distributed import World
from stmae.engine.launch import find
from stmae.engine.log import Log
from stmae.errors import UserError
from stmae.model.config import MaeConfig
from stmae.model.mae import MaskedAutoencoder
from stmae.model.masking import visible_count
from stmae.presets import Facts
from stmae.runs import RunFolder, read_config
from stmae.tasks import build
from stmae.tasks.checks import check
from stmae.tasks.fit import settle_batch
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.task import bind, resolve
from stmae.tasks.videos import open_given


@dataclass(frozen=True)
class Setup:
    """Everything that is known before the first step.

    Attributes:
        options: with every value settled.
        source, held_out: the videos to train on and those kept out (maybe none).
        values: what their pixels are.
        why: the reason for the precision.
        notes: what there is to say about the source, such as what changed since the run began.
        fit: where a batch size or accumulation of "auto" came from.
        altered: a line for each option that the run had otherwise when it was last started.
    """

    options: PretrainOptions
    config: MaeConfig
    plan: build.Plan
    source: Source
    held_out: Source | None
    values: Values
    device: torch.device
    why: str
    notes: tuple[str, ...]
    altered: tuple[str, ...] = ()
    fit: str = ""

    @classmethod
    def of(cls, options: PretrainOptions) -> Setup:
        """Looks at the machine, the folder and the run that may be there.

        Raises:
            UserError: the device is missing, there are no videos, options do not go together.
        """
        device = build.pick_device(options.device, many=True)
        asked = set(options.given)  # by the caller: what a preset or an earlier run says is no request
        options = lent(options)
        notes = list[str]()
        found = open_given(options, notes.append)
        options, why = settle(options, device, len(found))
        source, held_out, changed = part(found, options)
        values = Values() if isinstance(source, TensorSource) else values_of(source, options.value_range)
        channels, (frames, *size) = clip_shape(options, source, values, asked)
        config = build.model_config(options, frames=frames, image_size=(size[0], size[1]), channels=channels)
        values = replace(values, mean=config.encoder.clip.mean, std=config.encoder.clip.std)
        options, fit = settle_batch(options, config, device, find().size)
        check(options)
        plan = build.Plan.of(options, slots_of(source))
        notes += [changed] if changed else []
        return cls(options, config, plan, source, held_out, values, device, why, tuple(notes), fit=fit)

    @property
    def videos(self) -> int:
        """Videos in all."""
        return len(self.source) + self.kept_out

    @property
    def epoch(self) -> int:
        """Videos in a pass: all of them once, or as often as their weights say."""
        return slots_of(self.source)

    @property
    def kept_out(self) -> int:
        return 0 if self.held_out is None else len(self.held_out)

    @property
    def workers(self) -> int:
        """Processes that decode."""
        asked = self.options.workers
        return build.default_workers(self.device, self.source) if asked is None else asked

    def saved(self) -> dict[str, Any]:
        """What config.yaml holds: the options, and under "derived" what follows from them."""
        values = asdict(replace(self.options, videos=None))
        del values["config"]  # what it brought stands in the values
        videos = self.options.videos
        names = [str(path) for path in paths_of(videos)]
        values["videos"] = type(videos).__name__ if not names else names[0] if len(names) == 1 else names
        return values | {"derived": asdict(self.plan) | {"videos": len(self.source), "held_out": self.kept_out}}

    def describe(self, log: Log, world: World, parallel: tuple[str, str]) -> None:
        """Prints the resolved configuration and the numbers that follow from it, once."""
        values = self.saved()
        del values["derived"]
        log.table("configuration", [(name, _shown(value)) for name, value in values.items() if value is not None])
        options, clip = self.options, self.config.encoder.clip
        visible = visible_count(clip.tokens, self.config.mask_ratio, self.config.visible_count)
        with torch.device("meta"):
            model = MaskedAutoencoder(self.config)
        sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.encoder, model.decoder)]
        cooldown = f", {self.plan.cooldown_steps} cool-down" if options.schedule == "constant" else ""
        parts = f" in {options.accumulate} parts" if options.accumulate > 1 else ""
        fit = parts + (f" ({self.fit})" if self.fit else "")
        rows = [
            ("device", f"{self.device.type}, {options.precision} ({self.why})"),
            ("compile", "{} ({})".format("on" if self.compile[0] else "off", self.compile[1])),
            ("processes", f"{world.size}, {parallel[0]} ({parallel[1]})" if world.size > 1 else "1"),
            ("videos", f"{len(self.source)} to train on, {self.kept_out} held out"),
            ("tokens", f"{clip.tokens} per clip, {visible} visible"),
            ("parameters", f"encoder {sizes[0]:.1f} M, decoder {sizes[1]:.1f} M"),
            ("step", f"{options.batch_size} clips of {options.batch_size // options.repeats} videos{fit}"),
            ("steps", f"{self.plan.steps}, {self.plan.warmup_steps} of them warm-up{cooldown}"),
            ("workers", str(self.workers)),
            ("peak lr", f"{self.plan.lr:.3g}"),
        ]
        log.table("derived", rows)

    @property
    def compile(self) -> tuple[bool, str]:
        """Whether to compile, and why."""
        return pick_compile(self.options.compile, self.device)

    @property
    def clock(self) -> Clock:
        """What turns durations into steps."""
        return Clock(self.options.batch_size, self.epoch, self.plan.steps)

    def training_clips(self) -> VideoClips:
        clip, options = self.config.encoder.clip, self.options
        for source in filter(is_shards, parts_of(self.source)):
            # A pass that goes through shards one by one needs all of each; one that jumps about needs single videos.
            source.fetch_whole = options.order == "blocks"  # type: ignore[attr-defined]
        return VideoClips(
            self.source,
            frames=clip.frames,
            stride=options.stride,
            image_size=(clip.height, clip.width),
            repeats=options.repeats,
            seed=options.seed,
            crop_area=options.crop_area,
            crop_aspect=options.crop_aspect,
            flip=options.flip,
            order=options.order,
            sampling=options.sampling,
            values=self.values,
        )

    def judged_clips(self) -> FixedClips:
        """Of the held-out videos; of the training videos, where none are held out."""
        return self.fixed_clips(self.held_out or self.source)

    def fixed_clips(self, source: Source) -> FixedClips:
        """A clip from the middle of each item, as this run reads clips."""
        clip, options = self.config.encoder.clip, self.options
        return FixedClips(
            source,
            frames=clip.frames,
            stride=options.stride,
            image_size=(clip.height, clip.width),
            seed=options.seed,
            sampling=options.sampling,
            values=self.values,
        )


def part(found: Source, options: PretrainOptions) -> tuple[Source, Source | None, str]:
    """The training videos, those kept out, and a line on what changed since the run began.

    A run that is there keeps the index it was begun with.

    Raises:
        UserError: the run that is there was begun with other videos or clips.
    """
    run = RunFolder(options.out)
    other = "Give what it was begun with, or choose another --out for a new run."
    if isinstance(found, TensorSource):
        begun = read_config(run.config).get("derived", {}) if run.exists else {}
        count = begun.get("videos", len(found)) + begun.get("held_out", 0)
        if count != len(found):
            raise UserError(f'the run in "{run.path}" was begun with {count} clips, and {len(found)} are given.', other)
    if isinstance(found, TensorSource) or not (run.exists and run.index.exists()):
        return *_split(found, options.holdout), ""
    training, kept_out = load_index(run.index, found, options.weights)
    added, removed = index_changes((training, kept_out), found)
    begun_with = len(training) + len(kept_out)
    if removed and len(removed) == begun_with:
        raise UserError(
            f'the run in "{run.path}" was begun with other videos: none of its {begun_with} is in "{found.root}".',
            other,
        )
    return training, kept_out if len(kept_out) else None, _changes(added, removed)


def _split(source: Source, holdout: float) -> tuple[Source, Source | None]:
    training, kept_out = split(source, holdout)
    return training, kept_out if len(kept_out) else None


def slots_of(source: Source) -> int:
    """Slots in a pass."""
    return sum(source.slots) if isinstance(source, Mixture) else len(source)


def _changes(added: list[str], removed: list[str]) -> str:
    parts = [
        f"{len(paths)} {what} ({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''})"
        for paths, what in ((added, "new"), (removed, "gone"))
        if paths
    ]
    return f"the folder changed since the run began: {'; '.join(parts)}. The run keeps its own index." if parts else ""


def lent(options: PretrainOptions) -> PretrainOptions:
    """The options; a run that is there lends its own values where none are given.

    Raises:
        UserError: the run was begun with another preset.
    """
    run = RunFolder(options.out)
    if not run.exists:
        return options
    saved = {name: value for name, value in read_config(run.config).items() if name != "derived"}
    if "preset" in options.given and options.preset != saved.get("preset", options.preset):
        raise UserError(
            f'the run in "{run.path}" was begun with preset "{saved["preset"]}", not "{options.preset}".',
            "Leave it out to go on with the run, or choose another --out for a new run.",
        )
    given = dict(options.given)
    for name in ("precision", "batch_size", "accumulate"):
        if getattr(options, name) == "auto":  # found when the run began; it may come out otherwise now
            given.pop(name, None)
    if given.get("epochs", saved.get("epochs")) != saved.get("epochs"):  # a longer run is not warmed up anew
        saved["warmup"] = f"{read_config(run.config)['derived']['warmup_steps']} steps"
    return bind(PretrainOptions, (), {**saved, **given})


def settle(options: PretrainOptions, device: torch.device, videos: int) -> tuple[PretrainOptions, str]:
    """All values, and why the precision is what it is; a new run takes those that are not given from its preset."""
    if not RunFolder(options.out).exists:
        options = resolve(options, Facts(videos=videos, device=device.type))
    check(options)
    precision, why = build.pick_precision(options.precision, device)
    return replace(options, precision=precision), why


def clip_shape(
    options: PretrainOptions, source: Source, values: Values, asked: set[str]
) -> tuple[int, tuple[int, int, int]]:
    """Channels, and (frames, height, width) of the clips: a tensor source brings its own.

    Raises:
        UserError: a size that was asked for and that the tensors do not have.
    """
    wanted = (options.frames, options.image_size, options.image_size)
    if not isinstance(source, TensorSource):
        return values.channels, wanted
    channels, *shape = source.shape
    differs = [name for name, place in (("frames", 0), ("image_size", 1)) if wanted[place] != shape[place]]
    named = " and ".join(name for name in differs if name in asked)
    if named:
        raise UserError(
            f"the clips are {shape[0]}x{shape[1]}x{shape[2]} (frames x height x width), not as {named} says.",
            f"Leave {named} out: tensors are used as they are.",
        )
    return channels, (shape[0], shape[1], shape[2])


def _shown(value: Any) -> str:
    """A value as one would type it."""
    return (
        " ".join(each if isinstance(each, str) else f"{each:g}" for each in value)
        if isinstance(value, Sequence) and not isinstance(value, str)
        else str(value)
    )
