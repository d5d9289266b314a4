"""A run whose `--out` is an address (s3://bucket/runs/first): staged in a local folder, copied there after every save.

    stage = staged("s3://bucket/runs/first")     # ~/.cache/stmae/runs/s3%3A%2F%2Fbucket%2Fruns%2Ffirst
    with Mirror.of(stage) as mirror:             # None for a folder that is no stage
        mirror.pull()                            # on another machine: the newest whole checkpoint, logs, configuration
        ... mirror.push_soon()                   # after each save; a thread copies what changed
                                                 # at the end: the rest, with patience

What lies there has the layout of a run folder. A checkpoint's manifest is copied last and deleted first, so that a
checkpoint there is whole or none, as on a disk; logs are copied before the checkpoint that they belong to.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from stmae.errors import UserError
from stmae.weights import CLASSIFIER, ENCODER, MANIFEST, damage, newest_whole, step_folders

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WEIGHTS = (ENCODER, CLASSIFIER)
_CHECKPOINT = re.compile(r"checkpoints/(step-\d{6,})/(.+)")
PATIENCE = (0.5, 2.0, 5.0, 15.0)  # seconds before each new try at the end
LONGEST = 240  # characters of a folder's name

if TYPE_CHECKING:
    Place = Any
else:

    class Place:
        """What an option's annotation says to have its value read by `place`: a local folder or an address."""


def is_url(text: object) -> bool:
    return isinstance(text, str) and _URL.match(text) is not None


def place(name: str, value: Any) -> Path:
    """The local folder of a run: the one given, or the stage of an address.

    Raises:
        UserError: neither text nor a path, or an address that is too long.
    """
    if not isinstance(value, str | os.PathLike) or value == "":
        raise UserError(f'{name} "{value}" is not a path.', "Give a folder, or an address such as s3://bucket/run.")
    return staged(value) if isinstance(value, str) and is_url(value) else Path(os.path.expanduser(value))


def staged(url: str) -> Path:
    """The folder in which the run at an address is staged.

    Raises:
        UserError: the address is too long.
    """
    name = quote(url.rstrip("/"), safe="")
    if len(name) > LONGEST:
        raise UserError(f'the address "{url}" is too long.', f"Choose one of less than {LONGEST} characters.")
    return _stages() / name


def address_of(local: Path) -> str | None:
    """The address whose stage a folder is; None for any other folder."""
    url = unquote(local.name)
    return url if local.parent == _stages() and is_url(url) else None


def _stages() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stmae" / "runs"


class Mirror:
    """Copies a run folder to and from an address. Trouble with the network is told by `report`, and tried again.

    Args:
        local: the run's folder.
        url: where it is kept.
    """

    def __init__(self, local: Path, url: str) -> None:
        self.local, self.url = local, url
        self._files, self._root = _open(url)
        self._copied: dict[str, tuple[int, int]] = {}  # what is there as it is here, by size and time of change
        self._trouble: str | None = None
        self._told = False
        self._wanted = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, local: Path) -> Mirror | None:
        """The mirror of a stage; None for any other folder."""
        url = address_of(local)
        return None if url is None else cls(local, url)

    # From there

    def pull(self) -> None:
        """Brings the stage up to date, where the run went on elsewhere; what is newer here stays.

        Raises:
            UserError: the address cannot be read, or what was there is gone.
        """
        try:
            there = self._listed()
            if "config.yaml" not in there:
                self._begin_anew()
                return
            here = newest_whole(self.local / "checkpoints", lambda text: None)
            steps = sorted(
                {match[1] for name in there if (match := _CHECKPOINT.fullmatch(name)) and match[2] == MANIFEST},
                key=lambda name: int(name[5:]),
                reverse=True,
            )
            if here is not None and (not steps or int(steps[0][5:]) <= int(here.name[5:])):
                self._know_again(steps)
                return
            for entry in self.local.iterdir() if self.local.is_dir() else ():  # behind what is there
                if not entry.name.startswith("."):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            for name in there:
                if not _CHECKPOINT.fullmatch(name):
                    self._fetch(name)
            for step in steps:
                for name in there:
                    if name.startswith(f"checkpoints/{step}/"):
                        self._fetch(name)
                if damage(self.local / "checkpoints" / step) is None:
                    break
        except UserError:
            raise
        except Exception as error:  # each file system has its own
            raise UserError(
                f'"{self.url}" cannot be read ({_in_words(error)}).', "See whether it is right and can be reached."
            ) from None

    def _know_again(self, steps: list[str]) -> None:
        """Checkpoints with the same manifest here and there need not be copied again."""
        for folder in step_folders(self.local / "checkpoints"):
            manifest = folder / MANIFEST
            there = f"{self._root}/checkpoints/{folder.name}/{MANIFEST}"
            if folder.name in steps and manifest.exists() and self._files.cat_file(there) == manifest.read_bytes():
                self._copied |= {f"checkpoints/{folder.name}/{path.name}": _mark(path) for path in folder.iterdir()}

    def _begin_anew(self) -> None:
        if (self.local / ".mirrored").exists():
            raise UserError(
                f'"{self.url}" holds no run any more, but a copy of one is staged in "{self.local}".',
                "Delete that folder to begin anew, or choose another --out.",
            )

    def _fetch(self, name: str) -> None:
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_name(f".{path.name}.tmp")
        self._files.get_file(f"{self._root}/{name}", str(temp))
        os.replace(temp, path)
        self._copied[name] = _mark(path)

    # To there

    def push_soon(self) -> None:
        """Has what changed copied, in the background."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
            self._thread.start()
        self._wanted.set()

    def report(self, warn: Callable[[str], None]) -> None:
        """Tells of trouble, once until it is over."""
        trouble = self._trouble
        if trouble and not self._told:
            warn(f"the run could not be copied to {self.url} ({trouble}); it goes on, and the next save tries again.")
        self._told = trouble is not None

    def _work(self) -> None:
        while not self._ending:
            self._wanted.wait()
            self._wanted.clear()
            self._try()

    def _try(self) -> bool:
        try:
            self._push()
        except FileNotFoundError as error:
            if Path(str(error.filename or "")).is_relative_to(self.local):
                self._wanted.set()  # a checkpoint made way for newer ones meanwhile: look again
            else:
                self._trouble = _in_words(error)
        except Exception as error:  # each file system has its own
            self._trouble = _in_words(error)
        else:
            self._trouble = None
        return self._trouble is None

    def _push(self) -> None:
        here = {name: _mark(self.local / name) for name in self._names()}
        for name, mark in here.items():
            if self._copied.get(name) == mark:
                continue
            match = _CHECKPOINT.fullmatch(name)
            if match and match[2] != MANIFEST:  # written anew: it is not whole from here on
                self._remove(f"checkpoints/{match[1]}/{MANIFEST}")
            self._files.makedirs(os.path.dirname(f"{self._root}/{name}"), exist_ok=True)
            self._files.put_file(str(self.local / name), f"{self._root}/{name}")
            self._copied[name] = mark
        gone = [name for name in self._copied if name not in here and _CHECKPOINT.fullmatch(name)]
        for name in sorted(gone, key=lambda name: not name.endswith(MANIFEST)):
            self._remove(name)
        (self.local / ".mirrored").touch()

    def _remove(self, name: str) -> None:
        if name in self._copied:
            if self._files.exists(f"{self._root}/{name}"):
                self._files.rm_file(f"{self._root}/{name}")
            del self._copied[name]  # not before it is gone: the next attempt tries again

    def _names(self) -> Iterator[str]:
        """The run's files in the order in which they are copied: those of others after what they rest on."""
        for path in sorted(self.local.rglob("*")):
            name = path.relative_to(self.local).as_posix()
            hidden = any(part.startswith(".") for part in path.relative_to(self.local).parts)
            if path.is_file() and not hidden and not _CHECKPOINT.fullmatch(name) and name not in _WEIGHTS:
                yield name
        for folder in reversed(step_folders(self.local / "checkpoints")):
            names = sorted((entry.name for entry in folder.iterdir()), key=lambda name: name == MANIFEST)
            yield from (f"checkpoints/{folder.name}/{name}" for name in names if not name.startswith("."))
        yield from (name for name in _WEIGHTS if (self.local / name).is_file())

    def _listed(self) -> list[str]:
        if not self._files.exists(self._root):
            return []
        names = self._files.find(self._root)
        return [name[name.index(self._root) + len(self._root) :].lstrip("/") for name in names]

    # The end

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Copies the rest. Raises UserError where that fails and the run itself did not."""
        self._ending = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
        if not self.local.is_dir() or not (self.local / "config.yaml").exists():
            return
        for pause in (0.0, *PATIENCE):
            time.sleep(pause)
            if self._try():
                return
        problem = f'the run is whole in "{self.local}", but could not be copied to {self.url} ({self._trouble}).'
        cure = "Repeat the command when that can be written: it copies what is missing."
        if kind is None:
            raise UserError(problem, cure)
        print(f"{problem} {cure}", file=sys.stderr)


def _mark(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".:")


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f'"{url}" needs a package that is not installed: {error}.', "Install it with pip.") from None
    except (ValueError, OSError) as error:
        raise UserError(f'"{url}" is no address that fsspec knows ({error}).', "Give s3://bucket/run, ...") from None
    return files, root.rstrip("/")
