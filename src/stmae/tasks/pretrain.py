"""`stmae pretrain`: a folder of unlabelled videos in, a video encoder out."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stmae import pictures
from stmae.data.clips import NOMINAL_FPS
from stmae.data.dataset import BadFile, Sample
from stmae.data.loader import Batch, ClipLoader
from stmae.data.names import Names
from stmae.data.sources import Index, save_index
from stmae.data.workers import Verdict
from stmae.engine.blocks import checkpoint_blocks, compile_blocks
from stmae.engine.checkpoint import Checkpoints
from stmae.engine.ema import Ema
from stmae.engine.log import Log, open_log
from stmae.engine.loop import StepResult, Task, train
from stmae.engine.meter import peak_flops
from stmae.engine.optim import build_adamw
from stmae.engine.precision import AUTOCAST, LossScale, computing, float32_products
from stmae.engine.recovery import until_done
from stmae.errors import UserError
from stmae.model.config import as_dict
from stmae.model.mae import MaeOutput, MaskedAutoencoder
from stmae.model.paint import paint
from stmae.runs import BadFiles, RunFolder, Verdicts, disk_errors, save_weights
from stmae.tasks import build
from stmae.tasks.options import PretrainOptions
from stmae.tasks.setup import Setup
from stmae.tasks.task import task
from stmae.tasks.waiting import WaitingHint, own_cores, waiting_cure

# What a resumed run may have otherwise than it was begun with. The first changes nothing that is learnt; the second is
# for going on for longer, or more gently after steps that went wrong: from there on another run than the one begun.
UNSAID = {"videos", "out", "preset", "derived"}
MAY_CHANGE = UNSAID | {
    "device", "workers", "accumulate", "max_bad_share", "max_bad_steps", "save_every", "keep", "milestone_every",
    "log_every", "evaluate_every", "file_timeout", "loggers", "threads", "compile", "checkpoint_activations",
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
    """
    setup = Setup.of(options)
    with RunFolder.open(setup.options.out) as run:
        altered = run.settle_config(setup.saved(), MAY_CHANGE | STEERING, UNSAID)
        if isinstance(setup.source, Index):
            kept_out = setup.held_out or Index(setup.source.root, Names.of(()))
            assert isinstance(kept_out, Index)
            with disk_errors(run.path):
                save_index(run.index, setup.source, kept_out)
        with build.cpu_threads(setup.options.threads), float32_products(setup.options.precision):
            until_done(lambda: _train(setup, run, altered))
    return run.path


def _train(setup: Setup, run: RunFolder, altered: Sequence[str]) -> None:
    """Builds the parts and joins them in the engine's loop."""
    options, config, plan, device = setup.options, setup.config, setup.plan, setup.device
    clock = setup.clock
    torch.manual_seed(options.seed)
    model = MaskedAutoencoder(config)
    notes, warnings = [setup.changed], list[str]()  # what there is to say before the log is open
    extras = {"model": as_dict(config), "clip": {"stride": options.stride}}
    model.to(device)
    if options.checkpoint_activations:
        checkpoint_blocks(model)
    if setup.compile[0]:
        compile_blocks(model)
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
        warn=warnings.append,
    )
    start = checkpoints.resume()
    if options.init is not None and checkpoints.saved_step is None:
        notes.append(build.init_weights(model, options.init))
        if ema:
            ema.restart()
    verdicts = Verdicts(run.verdicts)
    loader = ClipLoader(
        setup.training_clips(),
        batch_size=options.batch_size // options.accumulate,
        cursor=start.cursor,
        workers=setup.workers,
        device=device.type,
        timeout=options.file_timeout or None,
        verdicts=[Verdict(*known) for known in verdicts.found],
    )
    autocast = AUTOCAST[options.precision]
    with disk_errors(run.path):
        log = open_log(run, step=start.step, loggers=options.loggers, config=setup.saved())
    with log:
        checkpoints.warn = loader.warn = log.warning
        beside = device.type != "cpu"
        cure = waiting_cure(
            setup.source, workers=setup.workers, cores=own_cores(), repeats=options.repeats, beside=beside
        )
        log.sinks.append(WaitingHint(log, cure))
        setup.describe(log)
        if start.step:
            notes.append(f"going on from step {start.step} of {plan.steps}, in {run.path}.")
        if altered:
            notes.append("altered since the run was last started:\n  " + "\n  ".join(altered))
        if start.step and any(line.split(":")[0] in STEERING for line in altered):
            lr = plan.schedule(options)(start.step)
            notes.append(f"from step {start.step} on it learns otherwise than it was begun; lr is {lr:.3g} there.")
        for text in filter(None, notes):
            log.message(text)
        for text in warnings:
            log.warning(text)
        job = Pretraining(setup, model, run, verdicts, extras, log, ema)
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
                clips_per_epoch=len(setup.source),
                flops_per_clip=build.training_flops(config),
                peak_flops=peak_flops(device, autocast),
            )
        except torch.OutOfMemoryError as error:
            at_once = options.batch_size // options.accumulate
            raise UserError(
                f"the device's memory is too small for {at_once} clips at a time: {str(error).splitlines()[0]}",
                f"Raise --accumulate above {options.accumulate}, or lower --batch-size.",
            ) from None
        finally:
            loader.close()
            try:
                job.bad.flush()
            except OSError as error:
                log.warning(f"{run.bad_files} could not be written ({error}).")
        log.message(farewell(run, options))


class Pretraining(Task):
    """What the loop needs of pre-training: the loss, the held-out loss, pictures, and who was unreadable."""

    def __init__(
        self,
        setup: Setup,
        model: MaskedAutoencoder,
        run: RunFolder,
        verdicts: Verdicts,
        extras: Mapping[str, Any],
        log: Log,
        ema: Ema | None = None,
    ) -> None:
        self.setup, self.model, self.run, self.extras = setup, model, run, extras
        self.verdicts, self.log, self.ema = verdicts, log, ema
        self.device, self.options = setup.device, setup.options
        self.judged = setup.judged_clips()
        self.fixed: tuple[Tensor, Tensor] | None = None  # read when first needed
        self.bad = BadFiles(run.bad_files)
        self.unreadable: set[str] = set()
        self.shrunk = self.repeated = 0
        self.said: set[str] = set()

    def step(self, batch: Batch) -> StepResult:
        batch = batch.to(self.device)
        output = self.model(batch.clips, keys=batch.keys)
        weight = torch.full((), output.hidden_ids.numel(), dtype=torch.float32, device=self.device)
        numbers = {"explained": explained_variance(output) * weight}
        return StepResult(output.loss * weight, weight, clips=len(batch.clips), numbers=numbers)

    @torch.no_grad()
    def evaluate(self, step: int, limit: int | None = None) -> dict[str, float]:
        """Loss and explained variance on the held-out videos: the same clips and the same masks every time."""
        if self.setup.held_out is None:
            return {}
        clips, keys = self._fixed_clips()
        count = len(clips) if limit is None else min(limit, len(clips))
        sums = torch.zeros(2, device=self.device)
        with self._judged_weights():
            for at in range(0, count, 8):
                output = self._forward(clips[at : min(at + 8, count)], keys[at : min(at + 8, count)])
                sums += torch.stack([output.loss, explained_variance(output)]) * len(output.hidden)
        loss, explained = (sums / count).tolist()
        return {"held_out_loss": loss, "held_out_explained": explained}

    @torch.no_grad()
    def pictures(self, step: int) -> dict[str, np.ndarray | bytes]:
        """The same clips at every interval: original, masked, painted back; still and moving."""
        every, all_keys = self._fixed_clips()
        spread = torch.linspace(0, len(every) - 1, min(PICTURE_CLIPS, len(every))).long()
        clips, keys = every[spread], all_keys[spread]
        with self._judged_weights():
            painting = paint(self.model, clips.to(self.device), self._forward(clips, keys))
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
            self.fixed = torch.cat([s.clips for s in found]), torch.cat([s.keys for s in found])
        return self.fixed

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes batches on, and notes what they say of their videos."""
        for batch in batches:
            self.verdicts.add(batch.verdicts)  # before anything is saved that lies behind them
            self._note_bad(batch.bad)
            self.shrunk += batch.shrunk
            self.repeated += batch.repeated
            yield batch

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
        self._say_once(self.shrunk, "in {} clips the stride was shrunk: their videos are shorter than a clip.")
        self._say_once(self.repeated, "in {} clips a frame stands twice: their videos have too few frames for a clip.")
        counts = {"shrunk_clips": self.shrunk, "repeated_clips": self.repeated, "bad_files": len(self.bad)}
        return {name: count for name, count in counts.items() if count}

    def _say_once(self, count: int, text: str) -> None:
        """Says it when it first happens; the numbers go on in every line of metrics.jsonl."""
        if count and text not in self.said:
            self.said.add(text)
            self.log.message(text.format(count) + " Counted in metrics.jsonl.")

    def on_save(self, step: int) -> None:
        weights = self.model.state_dict()
        if self.ema:
            weights = self.ema.weights(weights)
        weights = {name: tensor.detach().cpu() for name, tensor in weights.items()}
        save_weights(self.run.encoder, weights, self.extras)
        self.bad.flush()


def explained_variance(output: MaeOutput) -> Tensor:
    """1 - loss / variance of the targets about their mean: 0 for predicting that mean, 1 for the truth."""
    return 1 - output.loss / output.target.var(correction=0).clamp(min=1e-12)


def farewell(run: RunFolder, options: PretrainOptions) -> str:
    """What was made, and the next commands, to be copied."""
    folder = shlex.quote(str(run.path))
    lines = [f"done: the encoder is {run.encoder}, the pictures are in {run.reconstructions}. Next:"]
    if build.is_path(options.videos):
        videos = shlex.quote(str(options.videos))
        lines += [
            f"  stmae reconstruct {folder} --model {folder} --out {folder}-pictures",
            f"  stmae embed {videos} --model {folder} --out features.parquet",
        ]
    return "\n".join([*lines, f"  python -c 'import stmae; print(stmae.load(\"{run.path}\"))'"])
