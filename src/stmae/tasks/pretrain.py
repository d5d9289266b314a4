"""`stmae pretrain`: a folder of unlabelled videos in, a video encoder out."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stmae import pictures
from stmae.data.clips import NOMINAL_FPS, clip_key
from stmae.data.dataset import BadFile, Sample
from stmae.data.frozen import save_index
from stmae.data.loader import Batch, ClipLoader
from stmae.data.opening import paths_of
from stmae.data.sources import TensorSource
from stmae.data.workers import Verdict
from stmae.engine.blocks import checkpoint_blocks, compile_blocks
from stmae.engine.checkpoint import Checkpoints
from stmae.engine.distributed import World, together
from stmae.engine.ema import Ema
from stmae.engine.log import Log, open_log
from stmae.engine.loop import StepResult, Task, train
from stmae.engine.meter import peak_flops
from stmae.engine.optim import build_adamw
from stmae.engine.parallel import full_copies, share_state, wrap
from stmae.engine.precision import AUTOCAST, LossScale, computing, float32_products
from stmae.engine.recovery import until_done
from stmae.errors import UserError
from stmae.mirror import Mirror
from stmae.model.config import as_dict
from stmae.model.mae import MaeOutput, MaskedAutoencoder
from stmae.model.paint import paint
from stmae.runs import BadFiles, RunFolder, Verdicts, disk_errors, save_weights
from stmae.tasks import build
from stmae.tasks.monitor import Monitor
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.setup import Setup
from stmae.tasks.share import share
from stmae.tasks.task import task
from stmae.tasks.waiting import WaitingHint, own_cores, waiting_cure
from stmae.weights import step_folders

# What a resumed run may have otherwise than it was begun with. The first changes nothing that is learnt; the second is
# for going on for longer, or more gently after steps that went wrong: from there on another run than the one begun.
UNSAID = {"videos", "root", "out", "preset", "derived"}
MAY_CHANGE = UNSAID | {
    "device", "workers", "accumulate", "parallel", "max_bad_share", "max_bad_steps", "save_every", "keep",
    "milestone_every", "log_every", "evaluate_every", "file_timeout", "loggers", "threads", "compile",
    "checkpoint_activations", "cache", "cache_size", "monitor",
}  # fmt: skip
STEERING = {"epochs", "warmup", "schedule", "cooldown", "lr", "end_lr", "weight_decay", "clip_grad", "precision"}
HELD_OUT_CLIPS = 64  # at most: an evaluation should take seconds
PICTURE_CLIPS = 4


@task(PretrainOptions)
def pretrain(options: PretrainOptions) -> Path:
    """Returns:
        The run's folder, which `stmae.load` takes.

    Raises:
        UserError: a mistake in the options, the folder or the run that is there.
        Stopped: SIGINT or SIGTERM ended the run; it is saved and the same call goes on.
        Lost: another process of the run is gone.
    """
    device = build.pick_device(options.device, many=True)
    mirror = Mirror.of(options.out)
    with contextlib.ExitStack() as opened, together(device, lambda: _begin(options, opened, mirror)) as (world, begun):
        setup = share(begun, options, device, world)
        run = RunFolder(setup.options.out)
        with build.cpu_threads(setup.options.threads), float32_products(setup.options.precision):
            until_done(lambda: _train(setup, run, world, mirror if world.main else None))
    return run.path


def _begin(options: PretrainOptions, opened: contextlib.ExitStack, mirror: Mirror | None) -> Setup:
    """What rank 0 does before the others join it: looks at the videos, and opens the run's folder for itself alone."""
    if mirror is not None:
        mirror.pull()
    setup = Setup.of(options)
    run = opened.enter_context(RunFolder.open(setup.options.out))
    if mirror is not None:
        opened.enter_context(mirror)
    altered = run.settle_config(setup.saved(), MAY_CHANGE | STEERING, UNSAID)
    if not isinstance(setup.source, TensorSource):
        with disk_errors(run.path):
            save_index(run.index, setup.source, setup.held_out)
    return replace(setup, altered=tuple(altered))


def _train(setup: Setup, run: RunFolder, world: World, mirror: Mirror | None) -> None:
    """Builds the parts and joins them in the engine's loop; only rank 0 has a log and writes into the run's folder."""
    options, config, plan, device = setup.options, setup.config, setup.plan, setup.device
    clock = setup.clock
    torch.manual_seed(options.seed)
    model = MaskedAutoencoder(config)
    notes, warnings = [*setup.notes], list[str]()  # what there is to say before the log is open
    extras = {"model": as_dict(config), "clip": clip_extras(options)}
    model.to(device)
    if options.init is not None and world.first(lambda: not step_folders(run.checkpoints)):
        notes.append(world.first(lambda: build.init_weights(model, str(options.init))))
        share_state(model, world)
    if options.checkpoint_activations:
        checkpoint_blocks(model)
    if setup.compile[0]:
        compile_blocks(model)
    strategy = world.first(lambda: build.pick_parallel(options.parallel, world, count_parameters(model)))
    wrapped = wrap(model, world, strategy[0])
    ema = Ema(model, options.ema) if options.ema else None
    loss_scale = LossScale(device) if options.precision == "fp16" else None
    more = {f"ema/{name}": tensor for name, tensor in ema.state.items()} if ema else {}
    more |= {f"loss_scale/{name}": tensor for name, tensor in loss_scale.state.items()} if loss_scale else {}
    optimizer = build_adamw(build.groups(model, options), plan.lr, betas=options.betas)
    milestone_every = 0 if options.milestone_every is None else clock.interval(options.milestone_every)
    checkpoints = Checkpoints(
        run.checkpoints,
        model,
        optimizer,
        extras,
        more=more,
        keep=options.keep,
        milestone_every=milestone_every,
        world=world,
        warn=warnings.append,
        published=mirror.push_soon if mirror else None,
    )
    start = checkpoints.resume()
    verdicts = Verdicts(run.verdicts)
    known = world.first(lambda: verdicts.found)
    loader = ClipLoader(
        setup.training_clips(),
        batch_size=options.batch_size // (options.accumulate * world.size),
        cursor=start.cursor,
        workers=setup.workers,
        device=device.type,
        timeout=options.file_timeout or None,
        verdicts=[Verdict(*verdict) for verdict in known],
        rank=world.rank,
        world_size=world.size,
    )
    autocast = AUTOCAST[options.precision]
    with disk_errors(run.path):
        log = Log()
        if world.main:
            log = open_log(run, step=start.step, loggers=options.loggers, config=setup.saved())
    with log:
        checkpoints.warn = loader.warn = log.warning
        beside = device.type != "cpu"
        cure = waiting_cure(
            setup.source, workers=setup.workers, cores=own_cores(), repeats=options.repeats, beside=beside
        )
        log.sinks.append(WaitingHint(log, cure))
        setup.describe(log, world, strategy)
        if start.step:
            notes.append(f"going on from step {start.step} of {plan.steps}, in {run.path}.")
        if mirror:
            notes.append(f"the run is staged in {run.path} and copied to {mirror.url} after every save.")
        if setup.altered:
            notes.append("altered since the run was last started:\n  " + "\n  ".join(setup.altered))
        if start.step and any(line.split(":")[0] in STEERING for line in setup.altered):
            lr = plan.schedule(options)(start.step)
            notes.append(f"from step {start.step} on it learns otherwise than it was begun; lr is {lr:.3g} there.")
        for text in filter(None, notes):
            log.message(text)
        for text in warnings:
            log.warning(text)
        job = Pretraining(setup, model, wrapped, run, verdicts, extras, log, world, ema)
        job.mirror = mirror
        job.shrunk, job.repeated = (int(start.counters.get(f"task/{name}", 0)) for name in ("shrunk", "repeated"))
        try:
            train(
                job,
                job.watch(iter(loader)),
                optimizer,
                plan.schedule(options),
                steps=plan.steps,
                log=log,
                device=device,
                start=start,
                checkpoints=checkpoints,
                world=world,
                model=wrapped,
                accumulate=options.accumulate,
                clip_grad=options.clip_grad,
                autocast=autocast,
                loss_scale=loss_scale,
                ema=ema,
                seed=options.seed,
                log_every=clock.interval(options.log_every),
                save_every=clock.interval(options.save_every),
                evaluate_every=clock.interval(options.evaluate_every),
                picture_every=clock.interval(options.evaluate_every),
                milestone_every=milestone_every,
                max_bad_steps=options.max_bad_steps,
                clips_per_epoch=setup.epoch,
                flops_per_clip=build.training_flops(config),
                peak_flops=peak_flops(device, autocast),
            )
        except torch.OutOfMemoryError as error:
            at_once = options.batch_size // (options.accumulate * world.size)
            raise UserError(
                f"the device's memory is too small for {at_once} clips at a time: {str(error).splitlines()[0]}",
                f"Raise --accumulate above {options.accumulate}, or lower --batch-size.",
            ) from None
        finally:
            loader.close()
            try:
                if world.main:
                    job.bad.flush()
            except OSError as error:
                log.warning(f"{run.bad_files} could not be written ({error}).")
        log.message(farewell(run, options))


@dataclass
class News:
    """What one process has to tell of its videos since it last did."""

    bad: list[BadFile] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    shrunk: int = 0
    repeated: int = 0


def clip_extras(options: PretrainOptions) -> dict[str, Any]:
    """What other tasks need to know of a run's clips."""
    clip: dict[str, Any] = {"stride": options.stride}
    if options.sampling != "dense":
        clip["sampling"] = options.sampling
    if options.value_range is not None:
        clip["value_range"] = list(options.value_range)
    return clip


class Pretraining(Task):
    """What the loop needs of pre-training: the loss, the held-out loss, pictures, and who was unreadable.

    `wrapped` is `model` as all processes train it. All of them call every method at the same time.
    """

    def __init__(
        self,
        setup: Setup,
        model: MaskedAutoencoder,
        wrapped: nn.Module,
        run: RunFolder,
        verdicts: Verdicts,
        extras: Mapping[str, Any],
        log: Log,
        world: World,
        ema: Ema | None = None,
    ) -> None:
        self.setup, self.model, self.wrapped, self.world = setup, model, wrapped, world
        self.run, self.verdicts, self.extras, self.log, self.ema = run, verdicts, extras, log, ema
        self.news = News()
        self.device, self.options = setup.device, setup.options
        self.judged = setup.judged_clips()
        self.fixed: tuple[Tensor, Tensor] | None = None  # read when first needed
        self.monitor: Monitor | None = None
        if self.options.monitor is not None:
            self.monitor = Monitor(self.options.monitor, setup.fixed_clips, world, log.warning)
            log.message(f"monitor: {self.monitor.about}")
        self.bad = BadFiles(run.bad_files)
        self.unreadable: set[str] = set()
        self.shrunk = self.repeated = 0
        self.said: set[str] = set()
        self.mirror: Mirror | None = None

    def step(self, batch: Batch) -> StepResult:
        batch = batch.to(self.device)
        output = self.wrapped(batch.clips, keys=batch.keys)
        weight = torch.full((), output.hidden_ids.numel(), dtype=torch.float32, device=self.device)
        numbers = {"explained": explained_variance(output) * weight}
        return StepResult(output.loss * weight, weight, clips=len(batch.clips), numbers=numbers)

    @torch.no_grad()
    def evaluate(self, step: int, limit: int | None = None) -> dict[str, float]:
        """Scores on the held-out videos and on the labelled ones of `monitor`."""
        return self._score_held_out(limit) | self._score_labelled(limit)

    def _score_labelled(self, limit: int | None) -> dict[str, float]:
        """kNN on frozen features; with a limit only whether that can be done."""
        if self.monitor is None:
            return {}
        with self._judged_weights(), computing(self.device, self.options.precision):
            return self.monitor.score(self.model.encoder, self.device, limit)

    def _score_held_out(self, limit: int | None) -> dict[str, float]:
        """Loss and explained variance on the held-out videos: the same clips and the same masks every time."""
        if self.setup.held_out is None:
            return {}
        clips, keys = self._fixed_clips()
        count = len(clips) if limit is None else min(limit, len(clips))
        sums = torch.zeros(2, device=self.device)
        with self._judged_weights():
            for start in range(0, count, 8 * self.world.size):  # as often in each process: a model in parts needs all
                at = start + 8 * self.world.rank
                mine = slice(at, min(at + 8, count)) if at < count else slice(0, 1)
                output = self._forward(clips[mine], keys[mine])
                if at < count:
                    sums += torch.stack([output.loss, explained_variance(output)]) * len(output.hidden)
        loss, explained = (self.world.sum_(sums) / count).tolist()
        return {"held_out_loss": loss, "held_out_explained": explained}

    @torch.no_grad()
    def pictures(self, step: int) -> dict[str, np.ndarray | bytes]:
        """The same clips at every interval: original, masked, painted back; still and moving."""
        every, all_keys = self._fixed_clips()
        spread = torch.linspace(0, len(every) - 1, min(PICTURE_CLIPS, len(every))).long()
        clips, keys = every[spread], all_keys[spread]
        with self._judged_weights():
            output = self._forward(clips, keys)
        if not self.world.main:
            return {}
        painting = paint(self.model, clips.to(self.device), output)
        which = "training" if self.setup.held_out is None else "held-out"
        title = f"step {step}: {which} clips"
        still = pictures.clips_picture({self.options.mask_ratio: painting}, title=title)
        fps = NOMINAL_FPS / self.options.stride * len(painting.frames) / clips.shape[2]
        return {"reconstructions": still, "reconstructions.gif": pictures.clips_gif(painting, fps)}

    def _judged_weights(self) -> contextlib.AbstractContextManager[None]:
        """The average of the weights, where there is one."""
        return self.ema.applied() if self.ema else contextlib.nullcontext()

    def _forward(self, clips: Tensor, keys: Tensor) -> MaeOutput:
        with computing(self.device, self.options.precision):
            return self.model(clips.to(self.device), keys=keys.to(self.device))

    def _fixed_clips(self) -> tuple[Tensor, Tensor]:
        """Clips and keys of the first readable held-out videos (of the training videos, where none are held out)."""
        if self.fixed is None:
            self.fixed = self.world.first(self._read_fixed_clips)
        return self.fixed

    def _read_fixed_clips(self) -> tuple[Tensor, Tensor]:
        found: list[Sample] = []
        for item in range(len(self.judged)):
            sample = self.judged[item]
            self._note_bad(sample.bad)
            if len(sample.clips):
                found.append(sample)
            if len(found) == (PICTURE_CLIPS if self.setup.held_out is None else HELD_OUT_CLIPS):
                break
        if not found:
            kept = self.setup.held_out is not None
            which = "videos kept out of training" if kept else "videos"
            raise UserError(
                f"none of the {which} can be read; {self.run.bad_files} has the reasons.",
                "Mend or remove them, or begin a new run with --holdout 0." if kept else "Mend or remove them.",
            )
        return torch.cat([s.clips for s in found]), torch.cat([s.keys for s in found])

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes batches on, and notes what they say of their videos."""
        for batch in batches:
            self.news.bad += batch.bad
            self.news.verdicts += batch.verdicts
            self.news.shrunk += batch.shrunk
            self.news.repeated += batch.repeated
            if self.world.size == 1:
                self._hear()
            yield batch

    def _hear(self) -> None:
        """Notes the news of all processes; several call it together, at log lines and saves."""
        every = self.world.gather(self.news)
        self.news = News()
        self.shrunk += sum(news.shrunk for news in every)
        self.repeated += sum(news.repeated for news in every)
        self.world.first(lambda: self._note(every))

    def _note(self, every: list[News]) -> None:
        try:
            self.verdicts.add([verdict for news in every for verdict in news.verdicts])
        except OSError as error:
            raise UserError(
                f'what the run has to know of its videos could not be written into "{self.verdicts.folder}" ({error}).',
                "Make room on the disk, then repeat the command: it goes on from the last checkpoint.",
            ) from None
        self._note_bad([file for news in every for file in news.bad])

    def _note_bad(self, files: Sequence[BadFile]) -> None:
        for file in files:
            reason = f"used up to the damage: {file.reason}" if file.used else file.reason
            if self.bad.add(file.path, reason):
                self.log.warning(f"{'damaged' if file.used else 'unreadable'}: {file.path}: {reason}")
            if not file.used:
                self.unreadable.add(file.path)
        share = len(self.unreadable) / self.setup.videos
        if share > self.options.max_bad_share:
            self.bad.flush()
            raise UserError(
                f"{len(self.unreadable)} of {self.setup.videos} videos ({share:.0%}) are unreadable, more than"
                f" max_bad_share {self.options.max_bad_share:g}; {self.run.bad_files} names them with their reasons.",
                "Mend or remove them, or raise --max-bad-share.",
            )

    def on_log(self, step: int) -> dict[str, float]:
        self._hear()
        if self.mirror is not None:
            self.mirror.report(self.log.warning)
        self._say_once(self.shrunk, "in {} clips the stride was shrunk: their videos are shorter than a clip.")
        self._say_once(self.repeated, "in {} clips a frame stands twice: their videos have too few frames for a clip.")
        counts = {"shrunk_clips": self.shrunk, "repeated_clips": self.repeated, "bad_files": len(self.bad)}
        return {name: count for name, count in counts.items() if count}

    def _say_once(self, count: int, text: str) -> None:
        """Says it when it first happens; the numbers go on in every line of metrics.jsonl."""
        if count and text not in self.said:
            self.said.add(text)
            self.log.message(text.format(count) + " Counted in metrics.jsonl.")

    def name_clips(self, begin: int, end: int) -> list[str]:
        """The videos of some slots, with the keys from which everything random about their clips follows."""
        clips = self.setup.training_clips()
        lines = []
        for slot in range(begin, end):
            _, item, pass_ = clips.place(slot)
            keys = (clip_key(clips.seed, pass_, item, repeat) for repeat in range(clips.repeats))
            lines.append(f"{clips.source.name(item)}, slot {slot}, keys {' '.join(f'{key:x}' for key in keys)}")
        return lines

    def counters(self) -> dict[str, float]:
        return {"shrunk": self.shrunk, "repeated": self.repeated}

    def on_save(self, step: int) -> None:
        self._hear()  # verdicts are to be on disk before a checkpoint that lies behind them
        weights = self.model.state_dict()
        if self.ema:
            weights = self.ema.weights(weights)
        weights = full_copies(weights, self.world)
        if self.world.main:
            save_weights(self.run.encoder, weights, self.extras)
            self.bad.flush()


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def explained_variance(output: MaeOutput) -> Tensor:
    """1 - loss / variance of the targets about their mean: 0 for predicting that mean, 1 for the truth."""
    return 1 - output.loss / output.target.var(correction=0).clamp(min=1e-12)


def farewell(run: RunFolder, options: PretrainOptions) -> str:
    """What was made, and the next commands, to be copied."""
    folder = shlex.quote(str(run.path))
    lines = [f"done: the encoder is {run.encoder}, the pictures are in {run.reconstructions}. Next:"]
    if paths_of(options.videos):
        videos = " ".join(shlex.quote(str(path)) for path in paths_of(options.videos))
        videos += "" if options.root is None else f" --root {shlex.quote(str(options.root))}"
        lines += [
            f"  stmae reconstruct {folder} --model {folder} --out {folder}-pictures",
            f"  stmae embed {videos} --model {folder} --out features.parquet",
        ]
    return "\n".join([*lines, f"  python -c 'import stmae; print(stmae.load(\"{run.path}\"))'"])
