"""The one training loop. It knows neither videos nor masks; a task plugs in like this:

```python
class Pretrain(Task):
    def step(self, batch):                                  # one micro-batch, without looking at a number of it
        output = self.model(batch.to(self.device).clips)
        return StepResult(output.loss_sum, output.weight, clips=len(batch.clips), numbers={"variance": explained_sum})

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
whose loss or gradient is not finite is skipped on the device and counted. Generators are seeded from (seed, step,
micro-batch), so that dropout and its like are as resumable as everything else.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stmae.engine.checkpoint import Checkpoints, Position
from stmae.engine.distributed import ALONE, World
from stmae.engine.log import Log, step_line
from stmae.engine.meter import Meter, StepResult, peak_flops
from stmae.engine.parallel import gradient_sync, local, total_norm
from stmae.engine.signals import Stopped, StopSignals
from stmae.errors import UserError

__all__ = ["Batch", "Meter", "StepResult", "Stopped", "Task", "peak_flops", "train", "update"]

MAX_STREAK = 100  # updates skipped in a row after which a run is given up
SMOKE_CLIPS = 2  # of evaluation before the first step


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

    def pictures(self, step: int) -> Mapping[str, np.ndarray]:
        """Pictures by name, uint8 (H, W, 3)."""
        return {}

    def on_log(self, step: int) -> Mapping[str, float]:
        """Called before a line is logged; returns numbers of the host to go with it."""
        return {}

    def on_save(self, step: int) -> None:
        """Called once a checkpoint is on its way: the place to write other files of the run."""


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
    seed: int = 0,
    log_every: int = 50,
    save_every: int = 0,
    evaluate_every: int = 0,
    picture_every: int = 0,
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
        autocast: torch.bfloat16, or None for float32 throughout.
        seed: of what the model draws itself (dropout, drop path).
        clips_per_epoch: clips in an effective epoch, that is, the number of videos; for the log.
        flops_per_clip: of a clip's forward and backward pass, a multiply-add counted as two, as FlopCounterMode does;
            with the device's `peak_flops` per second it gives MFU.

    Raises:
        Stopped: a signal ended the run; everything is saved.
        UserError: `MAX_STREAK` updates in a row were not finite.
    """
    device = torch.device(device)
    position = start or Position()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    meter = Meter(device, position.counters, clips_per_epoch, flops_per_clip, peak_flops)
    with StopSignals() as stop, checkpoints or contextlib.nullcontext():
        _smoke_test(task, position.step, log, evaluate_every, picture_every)
        meter.start_clock()
        stopping = world.ask(lambda: stop.received)()  # before the first step: there is nothing to save
        for step in range(position.step, steps if not stopping else 0):
            asked = world.ask(lambda: stop.received)
            for group in optimizer.param_groups:
                group["lr"] = schedule(step) * group.get("lr_scale", 1.0)
            optimizer.zero_grad(set_to_none=True)
            for micro in range(accumulate):
                batch = _next(batches, step)
                # Micro-batches are counted as one process would: those of a rank stand between its neighbours'.
                torch.manual_seed(_step_seed(seed, step, micro * world.size + world.rank))
                with gradient_sync(model, last=micro == accumulate - 1):
                    with torch.autocast(device.type, autocast, enabled=autocast is not None):
                        result = task.step(batch)
                    result.loss_sum.backward()
                meter.add(result, batch.wait_seconds)
            update(optimizer, parameters, meter, clip_grad, world)

            done = step + 1
            stopping = asked()
            position = Position(done, batch.cursor)
            log.progress(done, steps)
            if _due(done, log_every, steps):
                _log_interval(task, log, meter, done, steps, schedule(step), position.cursor)
                if checkpoints:
                    checkpoints.poll()
            with meter.clock_stopped():
                if _due(done, evaluate_every, steps):
                    _log_evaluation(log, done, task.evaluate(done))
                if _due(done, picture_every, steps):
                    _log_pictures(task, log, done)
                if _due(done, save_every, steps) or done == steps or stopping:
                    position = Position(done, batch.cursor, meter.counters())
                    _save(task, log, checkpoints, position)
            if stopping:
                break
    if stopping and position.step < steps:
        _say_how_to_go_on(log, checkpoints, position.step)
        raise Stopped(position.step, stopping)
    return position


def update(
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    meter: Meter,
    clip_grad: float | None = None,
    world: World = ALONE,
) -> None:
    """One optimiser step from the gradients of summed losses; skipped on the device where something is not finite.

    Loss, weight and norm are those of all processes, so that all of them skip or none.
    """
    meter.sum_over(world)
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = total_norm(grads) / meter.weight
    finite = torch.isfinite(norm) & torch.isfinite(meter.loss_sum)
    scale = 1.0 / meter.weight
    if clip_grad is not None:
        scale = scale * (clip_grad / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(grad) for grad in grads], scale)
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # what torch's own GradScaler sets
        optimizer.step()
    elif finite.item():  # an optimiser that cannot skip by itself: here, and only here, the host waits
        optimizer.step()
    meter.close_update(norm, finite)


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


def _log_interval(task: Task, log: Log, meter: Meter, done: int, steps: int, lr: float, cursor: int) -> None:
    values, skipped, streak = meter.close_interval()
    with meter.clock_stopped():
        values |= {"lr": lr, "cursor": float(cursor)} | dict(task.on_log(done))
        log.metrics(done, values)
        shown = {name: value for name, value in values.items() if name not in ("clips", "cursor")}
        log.message(step_line(done, steps, shown, meter.seconds_per_update * (steps - done)))
        if skipped:
            log.warning(f"{skipped} of the last updates had a loss or gradient that is not finite and were skipped.")
    if streak >= MAX_STREAK:
        raise UserError(
            f"the last {streak} updates had a loss or gradient that is not finite; the run was ended at step {done}.",
            "Its weights are those of the last finite update. Try a lower lr, a longer warm-up, clip_grad or float32.",
        )


def _log_evaluation(log: Log, step: int, values: Mapping[str, float]) -> None:
    if not values:
        return
    log.metrics(step, values)
    log.message(f"step {step}  evaluation  " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))


def _log_pictures(task: Task, log: Log, step: int) -> None:
    for name, pixels in task.pictures(step).items():
        log.picture(name, step, pixels)


def _save(task: Task, log: Log, checkpoints: Checkpoints | None, position: Position) -> None:
    if checkpoints:
        checkpoints.save(position)
    try:
        task.on_save(position.step)
    except OSError as error:
        log.warning(
            f"what belongs to the save at step {position.step} could not be written ({error}); the run goes on."
        )


def _say_how_to_go_on(log: Log, checkpoints: Checkpoints | None, step: int) -> None:
    if checkpoints is None:
        log.warning(f"stopped after step {step}; this run saves nothing.")
    elif checkpoints.saved_step == step:
        log.message(f"stopped after step {step}, which is saved; the same command goes on from there.")
    else:
        log.warning(
            f"stopped after step {step}, not saved; the same command goes on from step {checkpoints.saved_step or 0}."
        )
