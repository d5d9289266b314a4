"""A sweep: pieces of work with results in files, that any number of processes do together and stop at any moment.

sweep/results/<name>.json    a piece's result; it is done when this is there
sweep/locks/<name>.<n>       who has it (`claims.py`)
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from stmae.engine.log import Log, duration
from stmae.engine.signals import SIGNALS, Stopped
from stmae.errors import UserError
from stmae.tasks.claims import claimed, newest
from stmae.weights import write_atomic

NAG = 5.0  # seconds between signals to a run that is to stop


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Attributes:
        name: that a file may have.
        run: does it and gives its result, as JSON holds it. Called again after a stop, it goes on or starts over.
        needs: names of pieces that must be done before.
    """

    name: str
    run: Callable[[], dict[str, Any]]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """Pieces of work in a good order, and where their results and claims lie.

    Attributes:
        results: folder of the results; `folder/results` where None.
    """

    folder: Path
    units: Sequence[Unit]
    results: Path | None = None

    def result(self, name: str) -> dict[str, Any] | None:
        """What a piece gave, or None while it is not done."""
        try:
            found: dict[str, Any] = json.loads(self._path(name).read_text())
            return found
        except FileNotFoundError:
            return None
        except ValueError:
            raise UserError(
                f'the result "{self._path(name)}" is no JSON.', "Delete it to have the work done anew."
            ) from None

    def state(self, unit: Unit) -> str:
        """ "done", "running: pid 411 on node7", "stopped: pid ...", or "to do"."""
        if self.result(unit.name) is not None:
            return "done"
        claim = newest(self.folder / "locks", unit.name)
        if claim is None:
            return "to do"
        return f"running: {claim.holder}" if claim.alive else f"stopped: was {claim.holder}"

    def run(self, log: Log, minutes: float | None = None) -> bool:
        """Does what is missing and nobody else has, until nothing is left or the time is over.

        A piece that a user's mistake stops is reported, and left out with those that need it.

        Returns:
            Whether everything is done.

        Raises:
            UserError: pieces that could not be done, when all others are.
            Stopped: a signal from outside ended it; what was under way goes on the next time.
        """
        ends = None if minutes is None else time.monotonic() + 60 * minutes
        failed: dict[str, UserError] = {}
        passed: set[str] = set()  # what somebody else had
        done = sum(self.result(unit.name) is not None for unit in self.units)
        began, before = time.monotonic(), done
        with _Signals() as signals:
            while unit := self._next({*failed, *passed}):
                if ends is not None and time.monotonic() >= ends:
                    break
                try:
                    with _deadline(ends) as late:
                        mine = self._do(unit, f"[{done + 1}/{len(self.units)}] {unit.name}", log)
                except UserError as error:
                    failed[unit.name] = error
                    log.warning(f"{unit.name}: {error}")
                    continue
                except Stopped as stopped:
                    if not late.is_set() or signals.received:
                        raise
                    log.message(f"out of time in {unit.name}, {stopped}.")
                    break
                except Exception as error:  # out of memory, or our mistake: the other pieces are not held up by it
                    failed[unit.name] = UserError(f"{type(error).__name__}: {error}", "Its traceback is in the log.")
                    log.warning(f"{unit.name}:\n{traceback.format_exc()}")
                    continue
                if signals.received:
                    raise Stopped(0, signals.received)
                passed = set() if mine else passed | {unit.name}  # looked at again once one of ours has ended
                done = sum(self.result(unit.name) is not None for unit in self.units)
                if mine and done < len(self.units):
                    left = (time.monotonic() - began) / (done - before) * (len(self.units) - done)
                    log.message(f"  {done} of {len(self.units)} done, about {duration(left)} left at this rate")
        self._farewell(log, failed)
        return done == len(self.units)

    def _next(self, without: set[str]) -> Unit | None:
        for unit in self.units:
            ready = unit.name not in without and self.result(unit.name) is None
            if ready and all(self.result(need) is not None for need in unit.needs):
                return unit
        return None

    def _do(self, unit: Unit, title: str, log: Log) -> bool:
        """Does a piece; False where another process has it."""
        with claimed(self.folder / "locks", unit.name) as mine:
            if not mine or self.result(unit.name) is not None:
                return False
            log.message(title)
            began = time.monotonic()
            result = unit.run()
            path = self._path(unit.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(result, indent=1) + "\n")
            log.message(f"  {duration(time.monotonic() - began)}: {result.get('told', 'done')}")
        return True

    def _farewell(self, log: Log, failed: dict[str, UserError]) -> None:
        left = [unit for unit in self.units if self.result(unit.name) is None]
        others = [unit.name for unit in left if self.state(unit).startswith("running")]
        if others:
            log.message(f"{len(others)} are with other processes: {', '.join(others[:5])}.")
        waiting = len(left) - len(others) - len(failed)
        if waiting:
            log.message(f"{waiting} of {len(self.units)} are left: the same command goes on with them.")
        if failed:
            error = UserError(*next(iter(failed.values())).problems[0])
            error.problems = [
                (f"{name}: {problem}", cure) for name, each in failed.items() for problem, cure in each.problems
            ]
            raise error

    def _path(self, name: str) -> Path:
        return (self.results or self.folder / "results") / f"{name}.json"


class _Signals:
    """Notes the signals that ask to stop while no run is under way that would; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signum != signal.SIGINT:
                    self._before[signum] = signal.signal(signum, self._note)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum != _LATE:
            self.received = self.received or signum

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)


_LATE = getattr(signal, "SIGUSR2", signal.SIGTERM)


@contextlib.contextmanager
def _deadline(ends: float | None) -> Iterator[threading.Event]:
    """Asks a run that is under way at that time to save and stop, as a signal from outside would.

    Yields:
        An event that is set from then on.
    """
    late, over = threading.Event(), threading.Event()

    def watch() -> None:
        assert ends is not None
        over.wait(max(0.0, ends - time.monotonic()))
        while not over.is_set():  # again and again: a run that is just beginning does not listen yet
            late.set()
            os.kill(os.getpid(), _LATE)
            over.wait(NAG)

    if ends is None or threading.current_thread() is not threading.main_thread():
        yield late
        return
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield late
    finally:
        over.set()
        thread.join()
