"""Stopping in order: the signals that ask a run to save and end, and the statuses it ends with.

| signal | sent by | the run |
|---|---|---|
| SIGINT | Ctrl-C | finishes the step, saves, ends with 130; a second one leaves at once, unsaved |
| SIGTERM | a cluster that wants the machine back, `kill` | finishes the step, saves, ends with 75 |
| SIGUSR1, SIGUSR2 | Slurm's notice before the end (`#SBATCH --signal=USR1@120`) | the same, 75 |

75 is EX_TEMPFAIL of sysexits.h, "try again later": a job script requeues on it, and on nothing else.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

TRY_AGAIN = 75
INTERRUPTED = 130
SAME = 1.0  # seconds: a terminal's Ctrl-C reaches torchrun's processes twice, from the terminal and from torchrun
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class Stopped(Exception):
    """A signal ended the run after `step`, which is saved. `exit_status`: 130 for SIGINT, 75 (try again) else."""

    def __init__(self, step: int, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.step = step
        self.exit_status = INTERRUPTED if signum == signal.SIGINT else TRY_AGAIN


class StopSignals:
    """While open, the first of `SIGNALS` is noted, for the loop to end in order; a second SIGINT, more than `SAME`
    seconds later, interrupts.

    `received` may change at any moment: the loop looks at it once in a step, and asks the other processes too.

    Args:
        many: whether this is one of several processes. Then, once an error of the connection ends the loop, signals do
            nothing more: a launcher sends SIGTERM to those that are left, which have yet to say what happened.
    """

    def __init__(self, many: bool = False) -> None:
        self.received, self.many, self.over = 0, many, False
        self.first = 0.0  # when it came
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.over:
            return
        if self.received and signum == signal.SIGINT:
            if time.monotonic() - self.first > SAME:
                raise KeyboardInterrupt
            return
        if not self.received:
            self.received, self.first = signum, time.monotonic()
        # Not through the log: its locks may be held by the very code that this handler interrupted.
        os.write(2, b"\nfinishing this step, then saving; Ctrl-C once more leaves at once, unsaved\n")

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.over = self.many and kind is not None and issubclass(kind, RuntimeError)
        if self.over:
            return
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
