"""What a run does about steps that go wrong: it looks out for spikes, goes back once, and gives up with a diagnosis.

An update whose loss or gradient is not finite is skipped on the device, and the run goes on. After many in a row:

    checkpoint            first left out      first bad            noticed
        |  replayed, as it was  |  led there       |  not finite      |  goes on with the data after these
        c - - - - - - - - - - - a - - - - - - - - -b - - - - - - - - -d - - - - ->

The same data would bring the same weights to the same place, so the bad steps and as many before them are left out:
their data is used up without an update. The run is resumed from the newest checkpoint at or before `a`, exactly as if
it had been killed, by whoever called `train`; so a kill during the recovery changes nothing. The second time it ends.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

import torch

from stmae.engine.checkpoint import Checkpoints, Position
from stmae.engine.log import Log, format_table
from stmae.engine.parallel import whole
from stmae.errors import UserError

R = TypeVar("R")
SHOWN = 12  # updates of the history, and clips, that a diagnosis lists
INTERVALS = 20  # whose median a spike is compared with
NORM_SPIKE, LOSS_SPIKE = 10.0, 3.0  # times the median


class RolledBack(Exception):
    """The run has to be resumed anew, from a checkpoint before the steps that went wrong; see `until_done`."""


def until_done(attempt: Callable[[], R]) -> R:
    """Calls `attempt`, which resumes a run and trains it, again after every roll-back; returns what it returns."""
    while True:
        try:
            return attempt()
        except RolledBack:
            continue


class Spikes:
    """Warns where an interval's largest gradient norm or loss stands out from the intervals before it."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=INTERVALS)
        self._losses: deque[float] = deque(maxlen=INTERVALS)

    def look(self, values: Mapping[str, float], log: Log) -> None:
        """Takes the numbers of a log line."""
        for name, times, before in (("grad_norm", NORM_SPIKE, self._norms), ("loss", LOSS_SPIKE, self._losses)):
            mean, largest = values.get(name, math.nan), values.get(f"{name}_max", math.nan)
            usual = statistics.median(before) if len(before) >= 5 else math.nan
            if usual > 0 and largest > times * usual:
                words = name.replace("grad_norm", "gradient norm")
                log.warning(f"a spike: the largest {words} since the last line is {largest:.3g}; {usual:.3g} is usual.")
            if math.isfinite(mean):
                before.append(mean)


def roll_back(
    position: Position,
    streak: int,
    margin: int,
    checkpoints: Checkpoints | None,
    log: Log,
    diagnosis: Callable[[range], str],
) -> NoReturn:
    """Leaves the last `streak` steps and `margin` before them out, or ends the run where that was tried before.

    Args:
        position: where the run stands, after the last of the bad steps.
        diagnosis: the bad steps -> what to tell of them.

    Raises:
        RolledBack: the run is to be resumed, which goes back to before these steps.
        UserError: it was rolled back before, or there is nothing to go back to.
    """
    bad = range(position.step - streak, position.step)
    left_out = range(max(0, bad.start - margin), bad.stop)
    what = f"{streak} updates in a row, steps {bad.start + 1} to {bad.stop}, had a loss or gradient that is not finite"
    story = diagnosis(bad)
    target = checkpoints and checkpoints.roll_back(position, left_out)
    where = f"{target}, leaving out steps {left_out.start + 1} to {left_out.stop}"
    if target and position.roll_backs == 0:
        log.warning(f"{what}; the run goes back to {where}.\n{story}")
        raise RolledBack
    log.warning(f"{what}.\n{story}")
    if not target:
        raise UserError(f"{what}, and there is no checkpoint from before them to go back to.", _cure(""))
    raise UserError(
        f"{what}, and the run was rolled back before; it ended at step {position.step}. Every checkpoint is still there"
        " and log.txt has the details.",
        _cure(f"The same command goes on from {where}. "),
    )


def _cure(how: str) -> str:
    return f"{how}Try a lower lr, a smaller clip_grad, or fp32; look at the clips that the log names."


def diagnose(
    bad: range,
    history: Sequence[tuple[float, float]],
    optimizer: torch.optim.Optimizer,
    clips: Sequence[str],
) -> str:
    """What a person needs to find the cause: losses and gradient norms, clips, the largest parameters.

    All processes call it at the same time.

    Args:
        bad: the steps that were not finite; the last of `history` belongs to the last of them.
        history: (loss, gradient norm) of the latest updates.
        clips: what the bad steps saw, in words.
    """
    first = bad.stop - len(history)
    shown = [step for step in range(max(first, bad.start - SHOWN), bad.stop) if step < bad.start + 3]
    rows = [(f"step {step + 1}", *(f"{value:.4g}" for value in history[step - first])) for step in shown]
    parts = [format_table("the updates before and into it (loss, gradient norm):", rows)] if rows else []
    if clips:
        more = [(f"and {len(clips) - SHOWN} more",)] if len(clips) > SHOWN else []
        parts.append(format_table("what the first of them saw:", [*((clip,) for clip in clips[:SHOWN]), *more]))
    sizes = [
        (float(whole(parameter.detach()).abs().max()), name)
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    ]
    largest = [(name, f"{size:.4g}") for size, name in sorted(sizes, reverse=True)[:5]]
    parts.append(format_table("the parameters with the largest values:", largest))
    return "\n".join(parts)
