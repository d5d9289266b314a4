"""Gives jobs to worker processes one at a time, so that a crash or a hang is laid at the door of the job it was over.

The pools of the standard library break as a whole when a worker dies and do not say over what; video decoders do crash.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from stmae.data.starting import ctrl_c_held_back, main_hidden

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True)
class Lost:
    """What came of a job whose worker died or took too long.

    Attributes:
        reason: in words.
    """

    reason: str


def each(function: Callable[[J], R], jobs: Sequence[J], workers: int, limit: float) -> Iterator[tuple[int, R | Lost]]:
    """The results of `function` for all jobs, with their numbers, in the order in which they are ready.

    Args:
        function: of a module, so that a new process can import it; what it raises is a mistake of ours, raised here.
        jobs: its arguments.
        workers: how many processes; each has one job at a time and is replaced when it dies.
        limit: seconds of wall clock that a job may take.

    Yields:
        (number of the job, result), where the result is `Lost` if the worker died or was stopped over it.
    """
    crew: list[_Worker] = []
    following, done = 0, 0
    try:
        while done < len(jobs):
            while following < len(jobs) and len(crew) < min(workers, len(jobs) - done):
                crew.append(_Worker(function))
            for worker in crew:
                if worker.number is None and following < len(jobs):
                    worker.begin(following, jobs[following])
                    following += 1
            busy = [worker for worker in crew if worker.number is not None]
            soonest = min(worker.began for worker in busy) + limit - time.monotonic()
            wait([worker.link for worker in busy], timeout=max(0.0, soonest))
            for worker in busy:
                result = worker.result(limit)
                if result is None:
                    continue
                if isinstance(result[1], Lost):
                    crew.remove(worker)
                done += 1
                yield result
            # More workers than jobs left are let go.
            for worker in [worker for worker in crew if worker.number is None][: len(crew) - (len(jobs) - done)]:
                crew.remove(worker)
                worker.close()
    finally:
        for worker in crew:
            worker.close()


class _Worker(Generic[J, R]):
    def __init__(self, function: Callable[[J], R]) -> None:
        context = multiprocessing.get_context("spawn")
        self.link, theirs = context.Pipe()
        with main_hidden(), ctrl_c_held_back():
            self.process: BaseProcess = context.Process(target=_serve, args=(theirs, function), daemon=True)
            self.process.start()
        theirs.close()
        self.number: int | None = None
        self.began = 0.0

    def begin(self, number: int, job: J) -> None:
        self.number, self.began = number, time.monotonic()
        with contextlib.suppress(OSError):  # dead already: its end is found where results are looked for
            self.link.send(job)

    def result(self, limit: float) -> tuple[int, R | Lost] | None:
        """The finished job's number and result, if there is one; a worker that is lost is ended."""
        assert self.number is not None
        number = self.number
        if self.link.poll():
            try:
                fine, value = self.link.recv()
            except (EOFError, OSError):
                self.process.join(5)
                self.close()
                return number, Lost(f"a process that read it died ({_ending(self.process.exitcode)})")
            if not fine:
                raise value
            self.number = None
            return number, value
        if time.monotonic() - self.began >= limit:
            self.close()
            return number, Lost(f"reading it took more than {limit:g} s")
        return None

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.link.close()


def _serve(link: Connection, function: Callable[[Any], Any]) -> None:
    """A worker's life: jobs in, results out, until the other end is closed."""
    while True:
        try:
            job = link.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (True, function(job))
        except Exception as error:
            error.add_note(f"while working on {job}")
            answer = (False, error)
        try:
            link.send(answer)
        except OSError:
            return


def _ending(code: int | None) -> str:
    if code is None:
        return "it does not answer"
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit status {code}"
