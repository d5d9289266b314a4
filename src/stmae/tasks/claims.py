"""Claims: which of several processes, on one host or many, has a piece of work. Files in a shared folder, no server.

    locks/base-s0.1    {"host": "node7", "pid": 411, ...}    given back, or left by a process that died
    locks/base-s0.2    {"host": "node3", "pid": 97, ...}     the claim that counts: the highest number

Making a file that must not be there yet is atomic, also on network file systems; replacing a dead process's file by
one's own is not, so a claim is never replaced: the next one has the next number, and only one process can make it.
A claim is dead when its process is (on the same host), or when nobody touched the file for `STALE` seconds (elsewhere).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEAT, STALE = 30.0, 300.0  # seconds between touches, and without any after which a claim is dead
RELEASED = ".done"  # ending of the file that gives a claim back


@dataclass(frozen=True)
class Claim:
    """A claim as its file tells it.

    Attributes:
        number: 1 for the first on a piece of work.
        holder: "pid 411 on node7", for people.
        alive: whether its process is still at work.
    """

    number: int
    holder: str
    alive: bool


def newest(folder: Path, name: str) -> Claim | None:
    """The claim that counts, or None where the piece of work was never claimed."""
    number = _highest(folder, name)
    if number == 0:
        return None
    path = folder / f"{name}.{number}"
    try:
        said = json.loads(path.read_text())
        age = _now(folder) - path.stat().st_mtime
    except (OSError, ValueError):  # just being made
        said, age = {}, 0.0
        with contextlib.suppress(OSError):
            age = _now(folder) - path.stat().st_mtime
    holder = f"pid {said.get('pid', '?')} on {said.get('host', 'another host')}"
    return Claim(number, holder, not _given_back(path) and _alive(said, age))


@contextlib.contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """While open, the piece of work is this process's: True. False where another process has it.

    A claim whose process died is taken over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = newest(folder, name)
    path = folder / f"{name}.{before.number + 1 if before else 1}"
    if (before is not None and before.alive) or not _make(path):
        yield False
        return
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, over), daemon=True)
    thread.start()
    try:
        yield True
    finally:
        over.set()
        path.with_name(path.name + RELEASED).touch()


def _highest(folder: Path, name: str) -> int:
    """The number of the newest claim; 0 where there is none."""
    numbers = [path.name[len(name) + 1 :] for path in folder.glob(f"{_escaped(name)}.*")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _make(path: Path) -> bool:
    """Makes the file of a claim; False where somebody else was quicker."""
    try:
        with open(path, "x") as file:
            json.dump(_self(), file)
        return True
    except FileExistsError:
        return False


def _given_back(path: Path) -> bool:
    return path.with_name(path.name + RELEASED).exists()


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with contextlib.suppress(OSError):  # a network file system that is away for a moment
            os.utime(path)


def _self() -> dict[str, Any]:
    """Who holds a claim. Two processes with the same `place` see each other's process numbers."""
    return {"host": socket.gethostname(), "place": _place(), "pid": os.getpid(), "born": _born(os.getpid())}


def _place() -> str:
    """The host as it runs now, and the set of processes that this one can see (containers have their own)."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(pid: int) -> str:
    """When a process began, in the system's ticks, or "": a number is given to another process in time."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _alive(said: dict[str, Any], age: float) -> bool:
    if said.get("place") != _place():
        return age < STALE
    try:
        os.kill(said["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's: it is there
        pass
    return _born(said["pid"]) == said.get("born", "")


def _now(folder: Path) -> float:
    """The time by the clock that dates the files of a folder, which may be another host's."""
    probe = folder / f".clock.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        probe.unlink(missing_ok=True)
