"""Many processes that train one model: how they meet, agree and part. `parallel.py` puts them around the model.

```python
with together(device, scan) as (world, found):   # rank 0 scans; then all meet
    found = world.broadcast(found)
    model = wrap(model, world, "ddp")            # gradients are summed over the processes
    train(..., world=world, model=model)
```

A process on its own is a `World` of size 1: nothing here imports torch.distributed for it, and every method is the
identity. Objects travel over gloo (host memory), tensors over the backend of their device.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from stmae.engine.launch import Launch, find
from stmae.errors import UserError

T = TypeVar("T")

PATIENCE = 24 * 3600.0  # seconds in which rank 0 may scan; that it died is noticed at once
TIMEOUT = 600.0  # seconds for which the processes wait for each other in a step
LAST_WORDS = 3.0  # seconds in which those that are left find out who is not

LOST = re.compile(r"gloo/|NCCL|TCPStore|Connection (closed|reset|refused)|[Tt]imed? ?out|Broken pipe|recvValue|socket")


class Lost(Exception):
    """Another process of the run is gone, so this one ends too. `exit_status` 75: to be started again."""

    exit_status = 75


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them.

    Attributes:
        rank, size, local_rank, local_size: see `Launch`.
        device: of this process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this is the process that scans, writes and speaks for all."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """The tensor's sum over all processes, in its place; on a GPU the host does not wait."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            torch.distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's value."""
        box = [value if self.main else None]
        if self.size > 1:
            torch.distributed.broadcast_object_list(box, 0)
        return box[0]  # type: ignore[return-value]

    def first(self, work: Callable[[], T]) -> T:
        """What `work()` gives to rank 0, which alone does it; all raise its `UserError` or `OSError`."""
        if self.size == 1:
            return work()
        outcome: Any = None
        if self.main:
            try:
                outcome = work(), None
            except (UserError, OSError) as error:
                outcome = None, error
        value, failure = self.broadcast(outcome)
        if failure is not None:
            raise failure
        return value

    def ask(self, value: Callable[[], int]) -> Callable[[], int]:
        """Starts asking all processes for `value()`; calling what is returned gives the greatest answer to all.

        The answers travel between the hosts while the step is computed. A lost process is noticed here too.
        """
        if self.size == 1:
            return value
        answer = torch.tensor(value())
        work = torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MAX, async_op=True)

        def result() -> int:
            work.wait()
            return int(answer)

        return result

    def barrier(self) -> None:
        """Returns once all processes are here."""
        self.gather(None)


ALONE = World()


# Meeting and parting ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def together(
    device: torch.device, begin: Callable[[], T], *, launch: Launch | None = None, timeout: float = TIMEOUT
) -> Iterator[tuple[World, T | None]]:
    """The world that torchrun or Slurm started, and what `begin()` gave: to rank 0, which alone calls it.

    `begin` may take hours (scanning a folder): the others wait for it outside the process group, whose collectives
    have `timeout` seconds. A process alone calls `begin` and has nothing to wait for.

    Raises:
        UserError: `begin` failed (on every process), or the processes cannot meet.
        Lost: another process is gone; says which, and why where that one could say it.
    """
    launch = launch or find()
    if launch.size == 1:
        yield World(device=device), begin()
        return
    store = _open_store(launch)
    begun, store = _begin_first(launch, store, begin)
    world = join(launch, device, store, timeout)
    try:
        yield world, begun
        leave()
    except BaseException as error:
        _never_destroy_groups()
        lost = _is_lost(error)
        _set(store, f"end/{world.rank}", "" if lost else (str(error) or type(error).__name__))
        if lost:
            raise Lost(_who_is_lost(store, world, error)) from error
        raise
    finally:
        # A group with a lost member cannot be left in order; it ends with the process.
        with contextlib.suppress(Exception):
            if device.type != "cuda":
                leave()


def join(launch: Launch, device: torch.device, store: Any, timeout: float = TIMEOUT) -> World:
    """Makes the process group, with gloo for the host and NCCL for GPUs.

    Raises:
        UserError: the processes did not meet in time.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    bound = timedelta(seconds=timeout)
    global _one_of_several
    _one_of_several = True
    try:
        torch.distributed.init_process_group(
            backend, store=store, rank=launch.rank, world_size=launch.size, timeout=bound
        )
        world = World(launch.rank, launch.size, launch.local_rank, launch.local_size, device)
        world.barrier()
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise UserError(
            f"rank {launch.rank} could not meet the other {launch.size - 1} processes: {_first_line(error)}.",
            "See whether all were started, whether the hosts reach each other, and whether GLOO_SOCKET_IFNAME and"
            " NCCL_SOCKET_IFNAME should name the network interface (`ip link` lists them).",
        ) from error
    return world


def leave() -> None:
    """Ends the process group, where there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _never_destroy_groups()
        torch.distributed.destroy_process_group()


_one_of_several = False  # whether this process has been


def end(status: int) -> None:
    """Ends a process that has been one of several: what is registered for its end is done, but the interpreter is not
    taken apart. Others return from here.

    A group's threads live as long as the process. One that wants Python's lock while the interpreter comes to its end
    is stopped by force, which aborts the process ("terminate called without an active exception", SIGABRT), and
    torchrun would count a run that is done as failed.
    """
    if not _one_of_several:
        return
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _never_destroy_groups() -> None:
    """Gives the process groups one reference more than will ever be dropped.

    The destructor of gloo's group waits for its threads while it holds Python's lock, and a thread that still has
    something of an operation to drop waits for that lock: the process would hang in place of ending. It would run when
    the last one goes who holds the group, and that may be the model that an error leaves behind, or the interpreter's
    end. The others hear of the end when the process ends, or when their operations have waited for long enough.
    """
    with contextlib.suppress(AttributeError):  # torch's own table of groups, which has no public name
        for group in torch.distributed.distributed_c10d._world.pg_map:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def _open_store(launch: Launch) -> Any:
    """A small table on the host of rank 0, over which the processes find each other."""
    from torch.distributed import PrefixStore, TCPStore

    serves = launch.main and not launch.agent
    bound = timedelta(seconds=TIMEOUT)
    try:
        store = TCPStore(launch.address, launch.port, None, serves, timeout=bound, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"rank {launch.rank} cannot reach the place where the processes meet: {_first_line(error)}.",
            "See whether rank 0 runs, and whether MASTER_ADDR and MASTER_PORT are right and open.",
        ) from error
    return PrefixStore("stmae", store)


def _begin_first(launch: Launch, store: Any, begin: Callable[[], T]) -> tuple[T | None, Any]:
    """Rank 0 begins; the others hear that it has, or why not. Also the part of the table that is this attempt's own.

    torchrun keeps the table when it starts the processes again, so what is read there may be left over. Hence all meet
    by names that are made up anew each time:

        rank r:  hello/r = its name         rank 0:  welcome/<its name> = the attempt's name, or why there is none
                 here/<attempt>/r                     goes on when all are here
    """
    if launch.main:
        attempt = secrets.token_hex(8)
        try:
            begun = begin()
        except BaseException as error:
            _greet(launch, store, attempt, str(error) or type(error).__name__, LAST_WORDS)
            raise
        missing = _greet(launch, store, attempt, "", TIMEOUT)
        if missing:
            ranks = ", ".join(map(str, missing))
            raise UserError(
                f"rank {ranks} of {launch.size} did not come within {TIMEOUT:.0f} s.", "See whether all were started."
            )
        return begun, _own(store, attempt)
    name = secrets.token_hex(8)
    try:
        store.set(f"hello/{launch.rank}", name)
        store.wait([f"welcome/{name}"], timedelta(seconds=PATIENCE))
        attempt, _, reason = store.get(f"welcome/{name}").decode().partition(" ")
        store.set(f"here/{attempt}/{launch.rank}", "")
    except RuntimeError as error:
        raise Lost(f"rank 0 was lost before training began ({_first_line(error)}).") from error
    if reason:
        raise Lost(f"rank 0 ended before training began: {reason}")
    return None, _own(store, attempt)


def _greet(launch: Launch, store: Any, attempt: str, reason: str, seconds: float) -> list[int]:
    """Welcomes the other ranks; returns those that have not come."""
    missing = list(range(1, launch.size))
    greeted = set()

    def all_here() -> bool:
        for rank in list(missing):
            if store.check([f"hello/{rank}"]):
                name = store.get(f"hello/{rank}").decode()
                if name not in greeted:
                    store.set(f"welcome/{name}", f"{attempt} {reason}")
                    greeted.add(name)
            if store.check([f"here/{attempt}/{rank}"]):
                missing.remove(rank)
        return not missing

    with contextlib.suppress(RuntimeError):  # the table is gone with its host: nobody comes
        _wait_until(all_here, seconds)
    return missing


def _own(store: Any, attempt: str) -> Any:
    return torch.distributed.PrefixStore(attempt, store)


def _is_lost(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and (
        isinstance(error, torch.distributed.DistError) or LOST.search(str(error)) is not None
    )


def _who_is_lost(store: Any, world: World, error: BaseException) -> str:
    """Those that are left leave a word in the table; who leaves none, or another word, is the reason."""
    others = [rank for rank in range(world.size) if rank != world.rank]
    words: dict[int, str] = {}

    def look() -> bool:
        for rank in others:
            if rank not in words and store.check([f"end/{rank}"]):
                words[rank] = store.get(f"end/{rank}").decode()
        return len(words) == len(others)

    try:
        store.set_timeout(timedelta(seconds=LAST_WORDS))
        _wait_until(look, LAST_WORDS)
    except RuntimeError:
        return f"the process that all meet at (rank 0, or its host) is gone ({_first_line(error)})."
    said = [f"rank {rank} ended: {text}" for rank, text in words.items() if text]
    silent = [str(rank) for rank in others if rank not in words]
    if silent:
        said.append(f"rank {', '.join(silent)} is gone or hangs without a word: killed, out of memory, or cut off")
    return f"rank {world.rank} cannot go on: {'; '.join(said) or 'the connection was lost'} ({_first_line(error)})."


def _wait_until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)


def _set(store: Any, key: str, text: str) -> None:
    with contextlib.suppress(RuntimeError):  # the table is gone with its host: there is nobody to tell
        store.set(key, text)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
