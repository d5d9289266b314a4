"""How worker processes start: without the caller's script, and out of reach of Ctrl-C."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import types
from collections.abc import Iterator
from multiprocessing import forkserver as server
from multiprocessing import resource_tracker

from stmae.errors import UserError


@contextlib.contextmanager
def main_hidden() -> Iterator[None]:
    """While workers start: they need nothing of the caller's script, which multiprocessing would run again in each.

    So a script may train without an ``if __name__ == "__main__":``. (A data set of the caller's own does need it.)
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """While workers start: they inherit that SIGINT is blocked, so that Ctrl-C, which a terminal sends to all processes
    of a command, reaches this one alone, which may need them for the step that it is in. So with Slurm's notice.
    """
    notices = {getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, notices)
    try:
        resource_tracker.ensure_running()  # unblocks SIGINT when it starts, in Python 3.11
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def forkserver(preload: str) -> multiprocessing.context.BaseContext:
    """Workers branch off a clean process that has loaded the module `preload`, not off ours with its threads.

    Raises:
        UserError: this is a worker itself.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "a worker process has started the script again instead of decoding videos.",
            'Put the script\'s code under `if __name__ == "__main__":`.',
        )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    with ctrl_c_held_back():
        server.ensure_running()  # does not wait until it has loaded
    return context
