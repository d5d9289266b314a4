"""What a task settles before it trains: videos, options, model, schedule; and how it says so."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from stmae.data.dataset import FixedClips, VideoClips
from stmae.data.frozen import index_changes, load_index, save_index
from stmae.data.opening import paths_of
from stmae.data.sources import Mixture, Source, TensorSource, is_shards, parts_of, split
from stmae.data.values import Values
from stmae.durations import Clock
from stmae.engine.blocks import pick_compile
from stmae.engine.distributed import World
from stmae.engine.log import Log
from stmae.engine.optim import Groups
from stmae.errors import UserError
from stmae.runs import RunFolder, read_config
from stmae.tasks import build
from stmae.tasks.checks import check
from stmae.tasks.choices import by_name
from stmae.tasks.task import bind, resolve
from stmae.tasks.training_options import TrainingOptions

O = TypeVar("O", bound=TrainingOptions)


@dataclass(frozen=True)
class Setup:
    """Everything that is known before the first step. What follows from the model is its task's to say.

    Attributes:
        options: with every value settled.
        config: the model's, whose `encoder.clip` says what clips it takes.
        source, held_out: the videos to train on and those kept out (maybe none).
        values: what their pixels are.
        why: the reason for the precision.
        notes: what there is to say about the source, such as what changed since the run began.
        fit: where a batch size or accumulation of "auto" came from.
        altered: a line for each option that the run had otherwise when it was last started.
    """

    options: TrainingOptions
    config: Any
    plan: build.Plan
    source: Source
    held_out: Source | None
    values: Values
    device: torch.device
    why: str
    notes: tuple[str, ...]
    altered: tuple[str, ...] = ()
    fit: str = ""

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
        values = asdict(replace(by_name(self.options), videos=None))
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
        options = self.options
        cooldown = f", {self.plan.cooldown_steps} cool-down" if options.schedule == "constant" else ""
        parts = f" in {options.accumulate} parts" if options.accumulate > 1 else ""
        fit = parts + (f" ({self.fit})" if self.fit else "")
        rows = [
            ("device", f"{self.device.type}, {options.precision} ({self.why})"),
            ("compile", "{} ({})".format("on" if self.compile[0] else "off", self.compile[1])),
            ("processes", f"{world.size}, {parallel[0]} ({parallel[1]})" if world.size > 1 else "1"),
            ("videos", f"{len(self.source)} to train on, {self.kept_out} held out"),
            *self.about_model(),
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

    def freeze(self, run: RunFolder) -> None:
        """Writes the list of the run's videos into its folder."""
        if not isinstance(self.source, TensorSource):
            save_index(run.index, self.source, self.held_out)

    def training_clips(self) -> VideoClips:
        """Those that the run trains on, in its order."""
        return self.clips_of(self.source)

    def clips_of(self, source: Source) -> VideoClips:
        """Random clips of the items of a source, as this run takes them."""
        clip, options = self.config.encoder.clip, self.options
        for shards in filter(is_shards, parts_of(source)):
            # A pass that goes through shards one by one needs all of each; one that jumps about needs single videos.
            shards.fetch_whole = options.order == "blocks"  # type: ignore[attr-defined]
        return VideoClips(
            source,
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

    # What a task says of its model

    def build_model(self) -> nn.Module:
        """On the CPU, with random weights."""
        raise NotImplementedError

    @property
    def begins_with(self) -> str | None:
        """The run or file whose weights a new run begins with."""
        return None

    def init_weights(self, model: nn.Module) -> str:
        """Takes over the weights of `begins_with`; returns what was taken, as a line for the log."""
        raise NotImplementedError

    def groups(self, model: nn.Module) -> Groups:
        """The model's parameters for the optimiser."""
        raise NotImplementedError

    def header(self) -> dict[str, Any]:
        """What the files with its weights say: "model", its configuration, and "clip", how clips were taken."""
        raise NotImplementedError

    def flops_per_clip(self) -> float:
        """Floating-point operations of one clip's forward and backward pass."""
        raise NotImplementedError

    def about_model(self) -> list[tuple[str, str]]:
        """Lines of the table of what follows from the options."""
        return []


Parting = Callable[[Source], tuple[Source, Source | None]]


def part(found: Source, options: TrainingOptions, parting: Parting | None = None) -> tuple[Source, Source | None, str]:
    """The training videos, those kept out, and a line on what changed since the run began.

    A run that is there keeps the index it was begun with.

    Args:
        parting: which videos a new run keeps out; the share `holdout` by a hash of their names where None.

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
        return *(parting(found) if parting else _split(found, options.holdout)), ""
    training, kept_out = load_index(run.index, found, getattr(options, "weights", None))
    added, removed = index_changes((training, kept_out), found)
    begun_with = len(training) + len(kept_out)
    if removed and len(removed) == begun_with:
        raise UserError(
            f'the run in "{run.path}" was begun with other videos: none of its {begun_with} is in "{found.root}".',
            other,
        )
    return training, kept_out if len(kept_out) else None, _changes(added, removed)


def _split(source: Source, holdout: float) -> tuple[Source, Source | None]:
    if isinstance(source, TensorSource) and (holdout == 0 or len(source) < 2):
        return source, None  # of tensors there is no empty part
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


def lent(options: O) -> O:
    """The options; a run that is there lends its own values where none are given.

    Raises:
        UserError: the run was begun with another preset.
    """
    run = RunFolder(options.out)
    if not run.exists:
        return options
    saved = {name: value for name, value in read_config(run.config).items() if name != "derived"}
    preset = options.given.get("preset")
    if preset is not None and preset != saved.get("preset", preset):
        raise UserError(
            f'the run in "{run.path}" was begun with preset "{saved["preset"]}", not "{preset}".',
            "Leave it out to go on with the run, or choose another --out for a new run.",
        )
    given = dict(options.given)
    for name in ("precision", "batch_size", "accumulate"):
        if getattr(options, name) == "auto":  # found when the run began; it may come out otherwise now
            given.pop(name, None)
    if given.get("epochs", saved.get("epochs")) != saved.get("epochs"):  # a longer run is not warmed up anew
        saved["warmup"] = f"{read_config(run.config)['derived']['warmup_steps']} steps"
    return bind(type(options), (), {**saved, **given})


def idle_notes(options: TrainingOptions, asked: Collection[str]) -> list[str]:
    """What to tell of options that a new run was asked for in vain; a file of options says all, in vain or not."""
    new = not RunFolder(options.out).exists and options.config is None
    return options.idle(asked) if new else []


def settle(options: O, device: torch.device, videos: int) -> tuple[O, str, set[str]]:
    """All values, why the precision is what it is, and which were given, if not by the caller by a preset or the run.

    A new run takes those that are not given from its preset.
    """
    if not RunFolder(options.out).exists and hasattr(options, "preset"):
        options = resolve(options, options.facts(videos, device.type))
    check(options)
    precision, why = build.pick_precision(options.precision, device)
    return replace(options, precision=precision), why, set(options.given)


def clip_shape(
    options: TrainingOptions, source: Source, values: Values, asked: set[str]
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


def clip_extras(options: TrainingOptions) -> dict[str, Any]:
    """What other tasks need to know of a run's clips."""
    clip: dict[str, Any] = {"stride": options.stride}
    if options.sampling != "dense":
        clip["sampling"] = options.sampling
    if options.value_range is not None:
        clip["value_range"] = list(options.value_range)
    return clip


def _shown(value: Any) -> str:
    """A value as one would type it."""
    return (
        " ".join(each if isinstance(each, str) else f"{each:g}" for each in value)
        if isinstance(value, Sequence) and not isinstance(value, str)
        else str(value)
    )
