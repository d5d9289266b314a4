"""Processes that are forked from one that has imported PyTorch: importing it takes longer than most of what they do.

Nothing may be computed before the forks: threads do not survive them. torch._inductor is imported here, because
`use_deterministic_algorithms` and optimisers would import it in each of them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch._inductor  # noqa: F401


def forked(work: Callable[[], object], log: Path | None = None) -> int:
    """Starts `work()` in a fork, which says to `log` what it says; returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if log is not None:
                file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, 1)
                os.dup2(file, 2)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pid


def status_of(pid: int) -> int:
    """Waits for a fork; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def all_of(work: Callable[[int], object], wanted: list[int], folder: Path, seconds: float) -> None:
    """Runs `work(rank)` in as many forks as there are statuses in `wanted`, in which they have to end.

    The first that ends otherwise, or the end of the time, ends the others; what each said is in FOLDER/rank-<rank>.txt.
    """
    logs = [folder / f"rank-{rank}.txt" for rank in range(len(wanted))]
    pids = [forked(lambda rank=rank: work(rank), logs[rank]) for rank in range(len(wanted))]
    ended: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(ended) < len(pids) and time.monotonic() < deadline:
        for rank, pid in enumerate(pids):
            if rank not in ended:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    ended[rank] = os.waitstatus_to_exitcode(status)
        if any(status != wanted[rank] for rank, status in ended.items()):
            break
        time.sleep(0.02)
    for rank, pid in enumerate(pids):
        if rank not in ended:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    wrong = [rank for rank in range(len(pids)) if ended.get(rank) != wanted[rank]]
    for rank in sorted(wrong, key=lambda rank: rank not in ended):  # first those that failed by themselves
        print(f"rank {rank} ended with {ended.get(rank)}:\n{logs[rank].read_text()[-3000:]}", file=sys.stderr)
    if wrong:
        sys.exit(1)
