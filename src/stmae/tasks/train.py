"""What every task does that trains: from its options to the end of its run, resumed or begun, in one process or many.

A task brings a `Setup` (`setup.py`: what is settled before the first step) and a `Training` (`training.py`: what the
loop needs of it).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from stmae.data.loader import ClipLoader
from stmae.data.workers import Verdict, warm_up
from stmae.engine.blocks import checkpoint_blocks, compile_blocks
from stmae.engine.checkpoint import Checkpoints, Position
from stmae.engine.distributed import World, together
from stmae.engine.ema import Ema
from stmae.engine.launch import own_cores
from stmae.engine.log import Log, open_log
from stmae.engine.loop import train
from stmae.engine.meter import peak_flops
from stmae.engine.optim import build_adamw
from stmae.engine.parallel import share_state, wrap
from stmae.engine.precision import AUTOCAST, LossScale, float32_products
from stmae.engine.recovery import until_done
from stmae.errors import UserError
from stmae.mirror import Mirror
from stmae.runs import RunFolder, Verdicts, disk_errors
from stmae.tasks import build
from stmae.tasks.setup import Setup
from stmae.tasks.share import share
from stmae.tasks.training import Parts, Training
from stmae.tasks.training_options import TrainingOptions
from stmae.tasks.waiting import WaitingHint, waiting_cure
from stmae.weights import step_folders

O = TypeVar("O", bound=TrainingOptions)

# What a resumed run may have otherwise than it was begun with. The first changes nothing that is learnt; the second is
# for going on for longer, or more gently after steps that went wrong: from there on another run than the one begun.
UNSAID = {"videos", "root", "out", "preset", "derived"}
MAY_CHANGE = UNSAID | {
    "device", "workers", "accumulate", "parallel", "max_bad_share", "max_bad_steps", "save_every", "keep",
    "milestone_every", "log_every", "evaluate_every", "file_timeout", "loggers", "threads", "compile",
    "checkpoint_activations", "cache", "cache_size", "monitor", "val",
}  # fmt: skip
STEERING = {"epochs", "warmup", "schedule", "cooldown", "lr", "end_lr", "weight_decay", "clip_grad", "precision"}


def train_run(options: O, settle: Callable[[O], Setup], job: type[Training]) -> Path:
    """Trains to the end; returns the run's folder, which `stmae.load` takes.

    Args:
        options: as they were given.
        settle: looks at the machine, the videos and the run that may be there; called by rank 0 alone.
        job: what the loop needs of the task.

    Raises:
        UserError: a mistake in the options, the folder or the run that is there.
        Stopped: SIGINT or SIGTERM ended the run; it is saved and the same call goes on.
        Lost: another process of the run is gone.
    """
    device = build.pick_device(options.device, many=True)
    mirror = Mirror.of(options.out)
    with (
        contextlib.ExitStack() as opened,
        together(device, lambda: _begin(options, settle, opened, mirror)) as (world, begun),
    ):
        setup = share(begun, options, device, world)
        run = RunFolder(setup.options.out)
        with build.cpu_threads(setup.options.threads), float32_products(setup.options.precision):
            until_done(lambda: _train(setup, job, run, world, mirror if world.main else None))
    return run.path


def _begin(options: O, settle: Callable[[O], Setup], opened: contextlib.ExitStack, mirror: Mirror | None) -> Setup:
    """What rank 0 does before the others join it: looks at the videos, and opens the run's folder for itself alone."""
    if mirror is not None:
        mirror.pull()
    setup = settle(options)
    run = opened.enter_context(RunFolder.open(setup.options.out))
    if mirror is not None:
        opened.enter_context(mirror)
    altered = run.settle_config(setup.saved(), MAY_CHANGE | STEERING, UNSAID)
    with disk_errors(run.path):
        setup.freeze(run)
    return replace(setup, altered=tuple(altered))


def _train(setup: Setup, job: type[Training], run: RunFolder, world: World, mirror: Mirror | None) -> None:
    """Builds the parts and joins them in the engine's loop; only rank 0 has a log and writes into the run's folder."""
    options, plan, device, clock = setup.options, setup.plan, setup.device, setup.clock
    notes, warnings = [*setup.notes], list[str]()  # what there is to say before the log is open
    if setup.workers:
        warm_up()
    model, wrapped, strategy = _model(setup, run, world, notes)
    ema = Ema(model, options.ema) if options.ema else None
    loss_scale = LossScale(device) if options.precision == "fp16" else None
    more = {f"ema/{name}": tensor for name, tensor in ema.state.items()} if ema else {}
    more |= {f"loss_scale/{name}": tensor for name, tensor in loss_scale.state.items()} if loss_scale else {}
    optimizer = build_adamw(setup.groups(model), plan.lr, betas=options.betas)
    milestone_every = 0 if options.milestone_every is None else clock.interval(options.milestone_every)
    checkpoints = Checkpoints(
        run.checkpoints,
        model,
        optimizer,
        setup.header(),
        more=more,
        keep=options.keep,
        milestone_every=milestone_every,
        world=world,
        warn=warnings.append,
        published=mirror.push_soon if mirror else None,
    )
    start = checkpoints.resume()
    verdicts = Verdicts(run.verdicts)
    loader = _loader(setup, world, start, world.first(lambda: verdicts.found))
    autocast = AUTOCAST[options.precision]
    peak = peak_flops(device, autocast)
    with disk_errors(run.path):
        log = Log()
        if world.main:
            log = open_log(run, step=start.step, loggers=options.loggers, config=setup.saved())
    with log:
        checkpoints.warn = loader.warn = log.warning
        _describe(setup, log, world, strategy, start, run, mirror, notes, warnings)
        task = job(Parts(setup, model, wrapped, run, verdicts, log, world, ema, mirror, start.counters))
        try:
            train(
                task,
                task.watch(iter(loader)),
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
                flops_per_clip=setup.flops_per_clip() if peak else None,  # counting takes a while
                peak_flops=peak,
            )
        except torch.OutOfMemoryError as error:
            at_once = options.batch_size // (options.accumulate * world.size)
            raise UserError(
                f"the device's memory is too small for {at_once} clips at a time: {str(error).splitlines()[0]}",
                f"Raise --accumulate above {options.accumulate}, or lower --batch-size.",
            ) from None
        finally:
            loader.close()
            task.write_bad_files()
        log.message(task.farewell())


def _model(
    setup: Setup, run: RunFolder, world: World, notes: list[str]
) -> tuple[nn.Module, nn.Module, tuple[str, str]]:
    """The model, the model as all processes train it, and how they share it with the reason."""
    options = setup.options
    torch.manual_seed(options.seed)
    model = setup.build_model().to(setup.device)
    if setup.begins_with is not None and world.first(lambda: not step_folders(run.checkpoints)):
        notes.append(world.first(lambda: setup.init_weights(model)))
        share_state(model, world)
    if options.checkpoint_activations:
        checkpoint_blocks(model)
    if setup.compile[0]:
        compile_blocks(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    whole = getattr(options, "teacher", None) == "self"  # a teacher that is the average needs the model in one piece
    strategy = world.first(lambda: build.pick_parallel("ddp" if whole else options.parallel, world, parameters))
    return model, wrap(model, world, strategy[0]), strategy


def _loader(setup: Setup, world: World, start: Position, known: list[tuple[int, int, str]]) -> ClipLoader:
    """This process's share of every batch, from where the run stands."""
    options = setup.options
    return ClipLoader(
        setup.training_clips(),
        batch_size=options.batch_size // (options.accumulate * world.size),
        cursor=start.cursor,
        workers=setup.workers,
        device=setup.device.type,
        timeout=options.file_timeout or None,
        verdicts=[Verdict(*verdict) for verdict in known if verdict[0] >= 0],
        rank=world.rank,
        world_size=world.size,
    )


def _describe(
    setup: Setup,
    log: Log,
    world: World,
    strategy: tuple[str, str],
    start: Position,
    run: RunFolder,
    mirror: Mirror | None,
    notes: list[str],
    warnings: list[str],
) -> None:
    """Says what is trained and how, where a resumed run stands, and what came up before there was a log."""
    options, plan = setup.options, setup.plan
    beside = setup.device.type != "cpu"
    cure = waiting_cure(setup.source, workers=setup.workers, cores=own_cores(), repeats=options.repeats, beside=beside)
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
