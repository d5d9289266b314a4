"""Processes that decode. One that is killed or hangs is replaced: its slots are decoded again, none is lost or doubled.

    main process: slots 0 1 2 ...  --(slot, item, block)-->  worker 0, worker 1, ...    a pipe to each, shared with none
                  samples in order <-----what came of it---
    shared memory: a row per worker (what it is on)  |  block 0  |  block 1  |  ...     a block holds one slot's clips

PyTorch's DataLoader does not replace workers, and its queues are shared, so that a worker killed while it holds their
lock stops all others. Here nothing is shared but memory that only the main process hands out.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import pickle
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, NamedTuple

import torch

from stmae.data.blocks import Blocks
from stmae.data.dataset import FixedClips, Sample, VideoClips
from stmae.data.order import Place
from stmae.data.shared import nameless
from stmae.data.sources import TensorSource
from stmae.data.starting import ctrl_c_held_back, forkserver, main_hidden
from stmae.errors import UserError

FILE_TIMEOUT = 60.0  # seconds
MAX_STRIKES = 2  # workers that a file may cost, before it is a bad one; in later slots it costs one
MAX_AHEAD = 64  # slots that one worker is given at a time: what a pipe surely holds
LOOK_EVERY = 1.0  # seconds
TRIM_EVERY = 100  # slots
LIFE = 2000  # slots after which a worker makes room for a new one: what decoders keep for good goes with it
ORPHAN_FACTOR = 10  # a worker ends itself after so many timeouts in one file, should nobody be there to end it


class Verdict(NamedTuple):
    """In this slot this item is a bad file, because it killed or held up workers that read it. It has to be remembered:
    decoding it once more might go well, and would give the slot other clips.
    """

    slot: int
    item: int
    reason: str


def by_slot(verdicts: Iterable[Verdict]) -> dict[int, dict[int, str]]:
    """Slot -> item -> reason."""
    found: dict[int, dict[int, str]] = {}
    for slot, item, reason in verdicts:
        found.setdefault(slot, {})[item] = reason
    return found


def warm_up() -> None:
    """Has the process that workers branch off start and load, which takes seconds, beside what the caller does next."""
    forkserver(__name__)


class _Task(NamedTuple):
    place: Place
    block: int

    @property
    def slot(self) -> int:
        return self.place.slot


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    channel: connection.Connection
    tasks: deque[_Task]  # given to it and not answered
    left: int  # slots that it may still be given
    seen: tuple[int, int] | None = None  # the slot and item it was on when last looked at,
    seconds: float = 0.0  # and for how long that was waited for
    over_time: bool = False


class Workers:
    """The samples of `slots`, in order, decoded in `count` processes; an iterator.

    A sample's clips lie in shared memory and are valid until the next one is asked for. What cannot be delivered comes
    as the exception it is. Where `slots` come to an end, so do the samples.

    Args:
        dataset: where samples come from.
        slots: the numbers of the slots wanted; of fixed clips, of the items.
        count: processes.
        ahead: slots that are decoded before they are asked for, over all processes.
        timeout: seconds that a process may spend on one file while it is waited for; None for ever.
        verdicts: of an earlier part of the run.
        warn: is told at once of a worker that ended.

    Raises (by `next`):
        UserError: workers end faster than they decode.
    """

    def __init__(
        self,
        dataset: VideoClips | FixedClips,
        slots: Iterator[int],
        count: int,
        *,
        ahead: int,
        timeout: float | None = FILE_TIMEOUT,
        verdicts: Iterable[Verdict] = (),
        warn: Callable[[str], None] = print,
    ) -> None:
        self._dataset, self._slots, self._timeout, self._warn = dataset, slots, timeout, warn
        blocks = max(2 * count, min(ahead, MAX_AHEAD * count))
        self._memory = Blocks(nameless(), count, blocks, dataset.shape, dataset.dtype)
        self._free = list(range(blocks))
        self._order: deque[_Task] = deque()  # handed out, not yet delivered
        self._answers: dict[int, dict[str, Any] | Exception] = {}  # by slot; the fields of a sample
        self._verdicts = by_slot(verdicts)
        self._strikes: Counter[tuple[int, int]] = Counter()
        self._ends = 0  # of workers since the last answer
        self._delivered: _Task | None = None
        self._retired: list[multiprocessing.process.BaseProcess] = []
        self._context = forkserver(__name__)
        with self._starting():  # they do not all retire at once
            self._team = [self._start(number, LIFE * (number + 1) // count) for number in range(count)]
        self._hand_out()

    @property
    def pids(self) -> list[int]:
        """The processes' ids."""
        return [worker.process.pid or 0 for worker in self._team]

    def __iter__(self) -> Iterator[Sample | Exception]:
        return self

    def __next__(self) -> Sample | Exception:
        if self._delivered is not None:
            self._free.append(self._delivered.block)
            self._delivered = None
        self._hand_out()
        if not self._order:
            raise StopIteration
        task = self._delivered = self._order.popleft()
        while task.slot not in self._answers:
            self._wait()
        answer = self._answers.pop(task.slot)
        if isinstance(answer, Exception):
            return answer
        clips = self._memory.blocks[task.block][: len(answer["keys"])]
        return Sample(**{**answer, "clips": clips, "keys": torch.tensor(answer["keys"], dtype=torch.int64)})

    def close(self) -> None:
        """Ends the processes: idle ones at once, others after a moment by force, since they hold nothing of value."""
        for worker in self._team:
            worker.channel.close()  # which an idle worker takes for the end
        until = time.monotonic() + 1.0
        processes = [*self._retired, *(worker.process for worker in self._team)]
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        for process in processes:
            process.kill()
            process.join(1.0)
        self._team, self._retired = [], []
        self._memory.close()

    # Handing out and taking in ----------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        for number, worker in enumerate(self._team):
            if not worker.left and not worker.tasks:
                self._retire(number, worker)
        ready = [worker for worker in self._team if worker.left]
        while ready and self._free and (slot := next(self._slots, None)) is not None:
            task = _Task(self._dataset.place(slot), self._free.pop())
            self._order.append(task)
            worker = min(ready, key=lambda worker: len(worker.tasks))
            worker.tasks.append(task)
            worker.left -= 1
            self._send(worker, task)
            ready = [worker for worker in ready if worker.left]

    def _send(self, worker: _Worker, task: _Task) -> None:
        with contextlib.suppress(OSError):  # it has ended: whoever takes its place is given all of its tasks
            worker.channel.send((task, self._verdicts.get(task.slot, {})))

    def _wait(self) -> None:
        """Until something happens, or for a second."""
        began = time.monotonic()
        channels, ends = zip(*((worker.channel, worker.process.sentinel) for worker in self._team), strict=True)
        ready = connection.wait([*channels, *ends], LOOK_EVERY)
        waited = min(time.monotonic() - began, 2 * LOOK_EVERY)  # more, if this process was stopped in the meantime
        for number, worker in enumerate(self._team):
            alive = self._take_in(worker) if worker.channel in ready else True
            if not alive or worker.process.sentinel in ready or self._over_time(number, worker, waited):
                self._replace(number, worker)

    def _take_in(self, worker: _Worker) -> bool:
        """Takes the answers that are there; False if the worker has ended."""
        try:
            while worker.channel.poll():
                slot, self._answers[slot] = worker.channel.recv()
                assert worker.tasks[0].slot == slot
                worker.tasks.popleft()
                self._ends = 0
        except (OSError, EOFError):
            return False
        return True

    def _retire(self, number: int, worker: _Worker) -> None:
        """Puts a new process in the place of one that has done its share and has nothing left to do."""
        worker.channel.close()  # which it takes for the end
        self._retired = [process for process in [*self._retired, worker.process] if process.is_alive()]
        with self._starting():
            self._team[number] = self._start(number, LIFE)

    # Supervision ------------------------------------------------------------------------------------------------

    def _over_time(self, number: int, worker: _Worker, waited: float) -> bool:
        """Whether the worker has been on one file for too long. Only the time that it was waited for counts: a file
        must not go bad because the machine slept, or the main process was stopped.
        """
        now = self._memory.at_work(number)
        worker.seconds = worker.seconds + waited if now is not None and now == worker.seen else 0.0
        worker.seen = now
        worker.over_time = self._timeout is not None and worker.seconds > self._timeout
        return worker.over_time

    def _replace(self, number: int, worker: _Worker) -> None:
        """Puts a new process in the place of one that ended, or is to be ended."""
        worker.process.kill()
        worker.process.join(1.0)  # one that waits for a dead disk may take for ever: it is left alone
        self._take_in(worker)
        worker.channel.close()
        how, reason = self._how(worker)
        at_work = self._memory.at_work(number)
        if at_work is not None:
            self._strike(*at_work, reason)
        self._memory.rest(number)
        name = "" if at_work is None else f", at work on {self._dataset.source.name(at_work[1])}"
        self._ends += 1
        if self._ends > 2 * MAX_STRIKES * len(self._team):
            raise UserError(
                f"processes that decode videos end as fast as they are started; the last one {how}{name}.",
                "If memory ran out, use fewer workers, fewer clips or smaller ones; if this is a script, its code must "
                'stand under `if __name__ == "__main__":`.',
            )
        self._warn(
            f"a process that decodes videos {how}{name}. Another one does its work again, and nothing is lost."
            + (" If memory ran out, use fewer workers." if "SIGKILL" in how else "")
        )
        with self._starting():
            self._team[number] = self._start(number, worker.left, worker.tasks)

    def _how(self, worker: _Worker) -> tuple[str, str]:
        """How a worker ended, and what that says of the file it was on."""
        status = worker.process.exitcode
        if worker.over_time or status == -signal.SIGALRM:
            return "hung", f"decoding it took longer than {self._timeout:g} s"
        if status is not None and status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            return f"was ended by {name}", f"decoding it ended the process, by {name}"
        return f"ended with status {status}", "decoding it ended the process"

    def _strike(self, slot: int, item: int, reason: str) -> None:
        self._strikes[slot, item] += 1
        known = any(item in items for items in self._verdicts.values())
        if known or self._strikes[slot, item] >= MAX_STRIKES:
            self._verdicts.setdefault(slot, {})[item] = reason

    def _start(self, number: int, left: int, tasks: Iterable[_Task] = ()) -> _Worker:
        ours, theirs = self._context.Pipe()
        arguments = (number, self._dataset, theirs, self._memory, self._timeout)
        process = self._context.Process(target=_work, args=arguments, daemon=True)  # type: ignore[attr-defined]
        process.start()
        theirs.close()
        worker = _Worker(process, ours, deque(tasks), left)
        for task in worker.tasks:
            self._send(worker, task)
        return worker

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        own_code = isinstance(self._dataset.source, TensorSource)  # a data set of the caller's may need its script
        with contextlib.nullcontext() if own_code else main_hidden(), ctrl_c_held_back():
            yield


# In the worker ------------------------------------------------------------------------------------------------------


def _work(
    number: int, dataset: VideoClips | FixedClips, channel: connection.Connection, memory: Blocks, timeout: float | None
) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process whatever it hangs in
    alarm = 0.0 if timeout is None else ORPHAN_FACTOR * timeout
    for count in itertools.count(1):
        if count % TRIM_EVERY == 0:
            _give_back()
        try:
            task, verdicts = channel.recv()
        except (OSError, EOFError):
            return

        def begin(item: int, slot: int = task.slot) -> None:
            memory.work(number, slot, item)
            signal.setitimer(signal.ITIMER_REAL, alarm)

        answer: dict[str, Any] | Exception
        try:
            sample = dataset.sample(task.place, verdicts, begin)
            memory.blocks[task.block][: len(sample.clips)].copy_(sample.clips)  # none of an unreadable item
            answer = {**vars(sample), "clips": None, "keys": sample.keys.tolist()}  # tensors would be sent as files
        except Exception as error:
            answer = _portable(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        memory.rest(number)
        try:
            channel.send((task.slot, answer))
        except OSError:
            return


def _give_back() -> None:
    """Returns freed memory to the system. glibc keeps it in pieces: some MiB more every 10,000 videos."""
    with contextlib.suppress(AttributeError, OSError):  # other C libraries
        ctypes.CDLL(None).malloc_trim(0)


def _portable(error: Exception) -> Exception:
    """The error as it can be sent: a mistake of the user's as it is, others with the place where they were met."""
    if isinstance(error, UserError):
        return error
    where = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(str(error))
    error.add_note(f"In a process that decodes videos:\n{where}")
    return error
