"""The one training loop. It knows neither videos nor masks; a task plugs in like this:

```python
class Pretrain(Task):
    def step(self, batch):                                  # one micro-batch, without looking at a number of it
        output = self.model(batch.to(self.device).clips)
        return StepResult(output.loss_sum, output.weight, clips=len(batch.clips), numbers={"correct": correct_sum})

groups = parameter_groups(model, weight_decay=0.05)
optimizer = build_adamw(groups, lr=peak)
checkpoints = Checkpoints(run.checkpoints, model, optimizer, model_config, warn=log.warning)
start = checkpoints.resume()                                # the start, or where the newest whole checkpoint stands
loader = ClipLoader(dataset, batch_size=64, cursor=start.cursor)
train(Pretrain(), iter(loader), optimizer, CosineSchedule(peak, warmup_steps, steps),
      steps=steps, start=start, device="cuda", log=log, checkpoints=checkpoints)
```

An update sums `loss_sum` and `weight` over its micro-batches and divides the gradient by the summed weight, so that
accumulation changes nothing but rounding. Several processes (`distributed.World`) sum gradients and weights before
that, so that their number changes nothing either. The host never waits for the device inside a step: what is measured
gathers in one small tensor there (`Meter`), which is read when a line is logged or a checkpoint is saved. An update
whose loss or gradient is not finite is skipped on the device and counted; too many in a row go to `recovery.py`.
Generators are seeded from (seed, step, micro-batch), so that dropout and its like are as resumable as everything else.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stmae.engine.checkpoint import Checkpoints, Position
from stmae.engine.distributed import ALONE, World
from stmae.engine.ema import Ema
from stmae.engine.log import Log, step_line
from stmae.engine.meter import Meter, StepResult, peak_flops
from stmae.engine.parallel import gradient_sync, local, total_norm
from stmae.engine.precision import LossScale
from stmae.engine.recovery import RolledBack, Spikes, diagnose, roll_back
from stmae.engine.signals import Stopped, StopSignals

__all__ = ["Batch", "Meter", "RolledBack", "StepResult", "Stopped", "Task", "peak_flops", "train", "update"]

SMOKE_CLIPS = 2  # of evaluation before the first step
UNSHOWN = ("clips", "cursor", "weight_norm", *Meter.PEAKS)  # in metrics.jsonl, not in the line


class Batch(Protocol):
    """What the loop reads of a batch: where the data stands after it, and how long it was waited for."""

    @property
    def cursor(self) -> int: ...
    @property
    def wait_seconds(self) -> float: ...


class Task:
    """What is trained. `step` is required; the other methods are called where the intervals of `train` ask for them."""

    def step(self, batch: Any) -> StepResult:
        """Forward pass of one micro-batch; moves it to the device, reads nothing back."""
        raise NotImplementedError

    def evaluate(self, step: int, limit: int | None = None) -> Mapping[str, float]:
        """Numbers by name over the held-out set, at most `limit` clips of it. Leaves the model in training mode."""
        return {}

    def pictures(self, step: int) -> Mapping[str, np.ndarray | bytes]:
        """Pictures by name, uint8 (H, W, 3); by a name with the ending .gif the bytes of such a file."""
        return {}

    def summary(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """What is logged for an interval, from what was measured in it, `step`'s numbers among them as means."""
        return means

    def on_log(self, step: int) -> Mapping[str, float]:
        """Called before a line is logged; returns numbers of the host to go with it."""
        return {}

    def on_save(self, step: int) -> None:
        """Called before a checkpoint is saved: the place to write other files of the run."""

    def enough(self) -> bool:
        """Whether to end before all steps are done; asked before the first step and after each evaluation, and answered
        alike by all processes."""
        return False

    def counters(self) -> Mapping[str, float]:
        """Running totals by name that a resumed run begins with: `start.counters["task/<name>"]`."""
        return {}

    def name_clips(self, begin: int, end: int) -> Sequence[str]:
        """What lies between two cursors, in words, for a diagnosis."""
        return []


def train(
    task: Task,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    *,
    steps: int,
    log: Log,
    device: torch.device | str = "cpu",
    start: Position | None = None,
    checkpoints: Checkpoints | None = None,
    world: World = ALONE,
    model: nn.Module | None = None,
    accumulate: int = 1,
    clip_grad: float | None = None,
    autocast: torch.dtype | None = None,
    loss_scale: LossScale | None = None,
    ema: Ema | None = None,
    seed: int = 0,
    log_every: int = 50,
    save_every: int = 0,
    evaluate_every: int = 0,
    picture_every: int = 0,
    milestone_every: int = 0,
    max_bad_steps: int = 20,
    clips_per_epoch: int | None = None,
    flops_per_clip: float | None = None,
    peak_flops: float | None = None,
) -> Position:
    """Trains until `steps` updates are done; returns where the run stands then. Intervals of 0 mean never; whatever has
    an interval also happens after the last step, and a checkpoint is always saved there.

    Args:
        task: see `Task`.
        batches: endless, beginning at `start.cursor`.
        optimizer: its groups may carry `lr_scale`. The fused AdamW skips a non-finite update without the host looking.
        schedule: updates done -> learning rate.
        steps: updates in the whole run.
        start: of `Checkpoints.resume()`; the beginning by default.
        world: the processes that train together. All of them call this, with their own share of each micro-batch and,
            but for rank 0, a silent log.
        model: what `parallel.wrap` gave for them; not needed by a process alone.
        accumulate: micro-batches (items of `batches`) per update.
        clip_grad: greatest norm of an update's gradient.
        autocast: torch.bfloat16 or float16, or None for float32 throughout.
        loss_scale: for float16.
        ema: takes the weights after every update.
        seed: of what the model draws itself (dropout, drop path).
        milestone_every: of checkpoints too.
        max_bad_steps: updates in a row that may be not finite; then the run is rolled back. Looked at when a line is
            logged.
        clips_per_epoch: clips in an effective epoch, that is, the number of videos; for the log.
        flops_per_clip: of a clip's forward and backward pass, a multiply-add counted as two, as FlopCounterMode does;
            with the device's `peak_flops` per second it gives MFU.

    Raises:
        Stopped: a signal ended the run; everything is saved.
        RolledBack: the run is to be resumed and trained anew; see `recovery.until_done`.
        UserError: `max_bad_steps` updates in a row were not finite again, or the last checkpoint could not be written.
    """
    device = torch.device(device)
    position = start or Position()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    meter = Meter(device, position.counters, clips_per_epoch, flops_per_clip, peak_flops, world)
    spikes = Spikes()
    with StopSignals(many=world.size > 1) as stop, checkpoints or contextlib.nullcontext():
        _smoke_test(task, position.step, log, evaluate_every, picture_every)
        if checkpoints and checkpoints.saved_step is None:
            checkpoints.save(position)  # to go back to; and whether there is room for one shows in the first minute
        meter.start_clock()
        stopping = world.ask(lambda: stop.received)()  # before the first step: there is nothing to save
        enough = task.enough()
        for step in range(position.step, steps if not (stopping or enough) else 0):
            asked = world.ask(lambda: stop.received)
            for group in optimizer.param_groups:
                group["lr"] = schedule(step) * group.get("lr_scale", 1.0)
            optimizer.zero_grad(set_to_none=True)
            for micro in range(accumulate):
                batch = _next(batches, step)
                if step in position.left_out:
                    continue  # its data is used up
                # Micro-batches are counted as one process would: those of a rank stand between its neighbours'.
                torch.manual_seed(_step_seed(seed, step, micro * world.size + world.rank))
                with gradient_sync(model, last=micro == accumulate - 1):
                    with torch.autocast(device.type, autocast, enabled=autocast is not None):
                        result = task.step(batch)
                    loss = result.loss_sum
                    if loss_scale:
                        loss = loss_scale.scaled(loss, result.weight, world, accumulate)
                    loss.backward()
                meter.add(result, batch.wait_seconds)
            if step in position.left_out:
                meter.leave_out()
            else:
                update(optimizer, parameters, meter, clip_grad, loss_scale)
                if ema:
                    ema.update(step + 1)

            done = step + 1
            stopping = asked()
            slots, position = batch.cursor - position.cursor, replace(position, step=done, cursor=batch.cursor)
            log.progress(done, steps)
            if _due(done, log_every, steps):
                lr = schedule(step)
                streak = _log_interval(task, log, meter, spikes, parameters, done, steps, lr, position.cursor)
                if checkpoints:
                    checkpoints.poll()
                if streak >= max_bad_steps:
                    first = position.cursor - streak * slots
                    clips = task.name_clips(first, first + slots)
                    story = functools.partial(diagnose, history=meter.history(), optimizer=optimizer, clips=clips)
                    roll_back(position, streak, max_bad_steps, checkpoints, log, story)
            with meter.clock_stopped():
                if _due(done, evaluate_every, steps):
                    _log_evaluation(log, done, task.evaluate(done))
                    enough = task.enough()
                if _due(done, picture_every, steps):
                    _log_pictures(task, log, done)
                if (
                    any(_due(done, every, steps) for every in (save_every, milestone_every))
                    or done == steps
                    or stopping
                    or enough
                ):
                    position = replace(position, counters=meter.counters())
                    _save(task, log, checkpoints, position, max_bad_steps if done < steps and not enough else None)
            if stopping or enough:
                break
    if stopping and position.step < steps and not enough:
        _say_how_to_go_on(log, checkpoints, position.step)
        raise Stopped(position.step, stopping)
    if checkpoints:
        checkpoints.finish(position.step)
    return position


def update(
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    meter: Meter,
    clip_grad: float | None = None,
    loss_scale: LossScale | None = None,
) -> None:
    """One optimiser step from the gradients of summed losses; skipped on the device where something is not finite.

    Loss, weight and norm are those of all processes, so that all of them skip or none.
    """
    meter.sum_over_processes()
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    divisor = meter.weight * loss_scale.scale if loss_scale else meter.weight
    norm = total_norm(grads) / divisor
    finite = torch.isfinite(norm) & torch.isfinite(meter.loss_sum)
    scale = 1.0 / divisor
    if clip_grad is not None:
        scale = scale * (clip_grad / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(grad) for grad in grads], scale)
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # what torch's own GradScaler sets
        optimizer.step()
    elif finite.item():  # an optimiser that cannot skip by itself: here, and only here, the host waits
        optimizer.step()
    excused = None
    if loss_scale:
        excused = torch.isfinite(meter.loss_sum) & ~loss_scale.blameless
        loss_scale.update(finite)
    meter.close_update(norm, finite, excused)


# The parts of `train`, in the order in which it calls them ----------------------------------------------------------


def _due(done: int, every: int, steps: int) -> bool:
    return every > 0 and (done % every == 0 or done == steps)


def _smoke_test(task: Task, step: int, log: Log, evaluate_every: int, picture_every: int) -> None:
    """A broken evaluation or picture fails in the first minute, not after the first hours of training."""
    if evaluate_every:
        values = task.evaluate(step, SMOKE_CLIPS)
        if values:
            log.message("evaluation tried on a few clips: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))
    if picture_every and step == 0:
        _log_pictures(task, log, 0)


def _next(batches: Iterator[Batch], step: int) -> Batch:
    batch = next(batches, None)
    if batch is None:
        raise RuntimeError(f"the batches ended in step {step}; the loader of a training run is endless")
    return batch


def _step_seed(seed: int, step: int, micro: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}/{micro}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _log_interval(
    task: Task,
    log: Log,
    meter: Meter,
    spikes: Spikes,
    parameters: list[Tensor],
    done: int,
    steps: int,
    lr: float,
    cursor: int,
) -> int:
    """Logs a line; returns how many updates in a row, up to now, were not finite."""
    values, skipped, streak = meter.close_interval()
    with meter.clock_stopped():
        norm = float(total_norm([parameter.detach() for parameter in parameters]))
        values = dict(task.summary(values))
        values |= {"weight_norm": norm, "lr": lr, "cursor": float(cursor)} | dict(task.on_log(done))
        log.metrics(done, values)
        shown = {name: value for name, value in values.items() if name not in UNSHOWN}
        log.message(step_line(done, steps, shown, meter.seconds_per_update * (steps - done)))
        spikes.look(values, log)
        if skipped:
            log.warning(f"{skipped} of the last updates had a loss or gradient that is not finite and were skipped.")
    return streak


def _log_evaluation(log: Log, step: int, values: Mapping[str, float]) -> None:
    if not values:
        return
    log.metrics(step, values)
    log.message(f"step {step}  evaluation  " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))


def _log_pictures(task: Task, log: Log, step: int) -> None:
    for name, picture in task.pictures(step).items():
        log.picture(name, step, picture)


def _save(task: Task, log: Log, checkpoints: Checkpoints | None, position: Position, margin: int | None) -> None:
    try:
        task.on_save(position.step)
    except OSError as error:
        log.warning(
            f"what belongs to the save at step {position.step} could not be written ({error}); the run goes on."
        )
    log.flush()  # a resumed run keeps the lines up to its checkpoint: they must be there when it is
    if checkpoints:
        own = {f"task/{name}": value for name, value in task.counters().items()}
        position = replace(position, counters=position.counters | own)
        good = position.step - int(position.counters.get("interval/streak", 0))
        checkpoints.save(position, back_to=None if margin is None else good - margin)


def _say_how_to_go_on(log: Log, checkpoints: Checkpoints | None, step: int) -> None:
    if checkpoints is None:
        log.warning(f"stopped after step {step}; this run saves nothing.")
    elif checkpoints.saved_step == step:
        log.message(f"stopped after step {step}, which is saved; the same command goes on from there.")
    else:
        log.warning(
            f"stopped after step {step}, not saved; the same command goes on from step {checkpoints.saved_step or 0}."
        )
