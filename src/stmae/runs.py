"""The run folder: what lies in it, who may write to it, and whether a run may go on in it.

```
runs/first/
├── config.yaml              the resolved configuration
├── log.txt  metrics.jsonl  tensorboard/
├── reconstructions/         pictures of the same clips at every interval
├── trackers/                what W&B, MLflow or trackio keep here, where they are asked for
├── index.csv  val_index.csv  bad_files.csv  verdicts/
├── checkpoints/             step-000500/ ... whole or absent
└── encoder.safetensors      weights, with the configuration in the header (`weights.py`); of a fine-tuned model,
                             encoder and head: classifier.safetensors
```
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from stmae.errors import UserError
from stmae.weights import (
    CLASSIFIER,
    ENCODER,
    find_weights,
    load_weights,
    plain,
    save_weights,
    step_folders,
    write_atomic,
)

try:
    import fcntl
except ImportError:  # Windows has no flock: two runs in one folder are then not noticed
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "BadFiles",
    "RunFolder",
    "Verdicts",
    "compare",
    "disk_errors",
    "find_weights",
    "load_weights",
    "read_config",
    "save_weights",
    "write_config",
]

_CONFIG_HEAD = "# stmae run: the resolved configuration, which `--config` reads back\n"


# Configuration -----------------------------------------------------------------------------------------------------


class _Yaml(yaml.SafeLoader):
    """YAML as people expect it: 1e-4 is a number, 2024-05-01 a name, and a key given twice is a mistake."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f'"{name}" stands here twice', key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class _YamlOut(yaml.SafeDumper):
    """Quotes what `_Yaml` would otherwise read as a number."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _yaml in (_Yaml, _YamlOut):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def write_config(path: str | Path, config: Mapping[str, Any]) -> None:
    """Writes a configuration as YAML, atomically, in its own order."""
    write_atomic(path, _CONFIG_HEAD + yaml.dump(plain(config), Dumper=_YamlOut, sort_keys=False, allow_unicode=True))


def read_config(path: str | Path) -> dict[str, Any]:
    """Reads a YAML configuration.

    Raises:
        UserError: missing, not readable, not YAML, not a mapping, or with a key given twice.
    """
    try:
        config = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Yaml)
    except OSError as error:
        raise UserError(f'the configuration "{path}" cannot be read: {error.strerror}.', "") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f'the configuration "{path}" is no valid YAML: {error}.', "") from None
    if not isinstance(config, dict):
        raise UserError(f'the configuration "{path}" is not a list of "option: value" lines.', "")
    return config


def compare(old: Mapping[str, Any], new: Mapping[str, Any], may_change: Iterable[str] = ()) -> list[str]:
    """One line per option that differs between two configurations, save those that may change."""
    old, new, lines = plain(old), plain(new), []
    free = set(may_change)
    for name in [*new, *(name for name in old if name not in new)]:
        before, now = (json.dumps(config[name]) if name in config else "not set" for config in (old, new))
        if name not in free and before != now:
            lines.append(f"{name}: {before} in the run, {now} now")
    return lines


# The folder ----------------------------------------------------------------------------------------------------------


class RunFolder:
    """One run's folder. `RunFolder.open(out)` makes or re-opens it and keeps other processes out until `close()`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config = self.path / "config.yaml"
        self.log = self.path / "log.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.trackers = self.path / "trackers"
        self.reconstructions = self.path / "reconstructions"
        self.index = self.path / "index.csv"
        self.val_index = self.path / "val_index.csv"
        self.bad_files = self.path / "bad_files.csv"
        self.verdicts = self.path / "verdicts"
        self.checkpoints = self.path / "checkpoints"
        self.encoder = self.path / ENCODER
        self.classifier = self.path / CLASSIFIER
        self._lock: IO[bytes] | None = None

    @classmethod
    def open(cls, out: str | Path) -> RunFolder:
        """Makes the folder, or re-opens it where it holds a run of ours.

        Raises:
            UserError: not a folder, not writable, in use by another process, or holding something else than a run.
        """
        run = cls(out)
        other = "Choose another folder with --out."
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            ours = {entry.name for entry in vars(run).values() if isinstance(entry, Path)}
            names = {entry.name for entry in run.path.iterdir() if not entry.name.startswith(".")}
            foreign = not names <= ours or bool(step_folders(run.checkpoints))
            if not run.exists and (foreign or run.config.exists()):
                raise UserError(f'the output folder "{out}" is not empty and holds no stmae run.', other)
            run._take_lock()
            for leftover in run.path.glob(".*.tmp"):  # of a process killed while it wrote; no other one is here
                leftover.unlink()
        except (FileExistsError, NotADirectoryError):
            raise UserError(f'the output folder "{out}" cannot be made: a file is in the way.', other) from None
        except BlockingIOError:
            raise UserError(f'another process is at work in "{out}".', f"Wait for it, or end it. {other}") from None
        except OSError as error:
            raise UserError(f'the output folder "{out}" cannot be written: {error.strerror or error}.', other) from None
        return run

    @property
    def exists(self) -> bool:
        """Whether a run has already begun here, so that the same command resumes it."""
        try:
            return self.config.read_text(encoding="utf-8").startswith(_CONFIG_HEAD[:11])
        except (OSError, UnicodeDecodeError):
            return False

    def settle_config(
        self, config: Mapping[str, Any], may_change: Iterable[str] = (), unsaid: Iterable[str] = ()
    ) -> list[str]:
        """Writes the configuration of a new run; on resuming, checks it against the run's own first.

        Args:
            config: the resolved options, plain values by name.
            may_change: options that a resumed run may alter (workers, intervals, ...); the file is brought up to date.
            unsaid: those of them that are not worth a line.

        Returns:
            A line with the old and the new value for each option that was altered.

        Raises:
            UserError: an option differs that must not; lists all of them. Or the disk is full.
        """
        altered: list[str] = []
        if self.exists:
            begun = read_config(self.config)
            lines = compare(begun, config, may_change)
            if lines:
                raise UserError(
                    f'the run in "{self.path}" was started with other options:\n  ' + "\n  ".join(lines) + "\n",
                    "Use the run's own values to go on with it, or choose another --out for a new run.",
                )
            altered = [line.replace(" in the run, ", " before, ") for line in compare(begun, config, unsaid)]
        with disk_errors(self.path):
            write_config(self.config, config)
        return altered

    def _take_lock(self) -> None:
        """A lock of the operating system: it is gone with the process, however that ends."""
        self._lock = open(self.path / ".lock", "wb")  # noqa: SIM115 (held until close)
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise
            except OSError:
                pass  # a file system without locks

    def close(self) -> None:
        """Lets other processes in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """A full disk, a folder without permission and the like, while `where` is written, as the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f'"{where}" cannot be written: {error.strerror or error}.',
            "Make room or give permission, then repeat the command; or choose another folder with --out.",
        ) from None


class BadFiles:
    """bad_files.csv: path, reason, times met; what an earlier part of the run found stays in it.

    Raises:
        UserError: the file that is there is none of ours, or was changed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.found: dict[str, tuple[str, int]] = {}
        self._changed = False
        if self.path.exists():
            try:
                with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                    for row in csv.DictReader(file):
                        self.found[row["path"]] = (row["reason"], int(row["times_met"]))
            except (csv.Error, KeyError, ValueError, TypeError):
                raise UserError(
                    f'"{self.path}" does not have the columns path, reason and times_met.',
                    "Delete it: the run writes it anew.",
                ) from None

    def __len__(self) -> int:
        return len(self.found)

    def add(self, path: str, reason: str) -> bool:
        """Counts one meeting with an unreadable file; True where the file is met for the first time."""
        times = self.found[path][1] if path in self.found else 0
        self.found[path] = (" ".join(reason.split()), times + 1)
        self._changed = True
        return times == 0

    def flush(self) -> None:
        """Writes the file, atomically, where something changed; a run without bad files has none."""
        if not self._changed:
            return
        text = io.StringIO()
        # A name with a carriage return is quoted where that is part of the end of a line.
        odd = any("\r" in path for path in self.found)
        writer = csv.writer(text, lineterminator="\r\n" if odd else "\n")
        writer.writerow(["path", "reason", "times_met"])
        writer.writerows([path, reason, times] for path, (reason, times) in sorted(self.found.items()))
        write_atomic(self.path, text.getvalue().encode("utf-8", "surrogateescape"))
        self._changed = False


class Verdicts:
    """verdicts/: what was decided on files that ended or held up the processes that decoded them (slot, item, reason).

    A later part of the run has to decide alike, even where such a file would be quick now. So a verdict must be on disk
    before a checkpoint that lies behind its slot: `add` returns once it is. Every process writes a file of its own,
    and reads those of all.

    Args:
        folder: the run's `verdicts/`; made with the first verdict.
        rank: of this process among those that train together.

    Raises:
        UserError: a file that is there is none of ours, or was changed.
    """

    def __init__(self, folder: str | Path, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.path = self.folder / f"{rank}.csv"
        self.found: list[tuple[int, int, str]] = []
        self._own: list[tuple[int, int, str]] = []
        for path in sorted(self.folder.glob("*.csv")):
            rows = self._read(path)
            self.found += rows
            if path == self.path:
                self._own = rows

    def add(self, verdicts: Iterable[tuple[int, int, str]]) -> None:
        """Keeps verdicts, durably; those that are known already cost nothing."""
        new = [(slot, item, reason) for slot, item, reason in verdicts if (slot, item, reason) not in self.found]
        if not new:
            return
        self.found += new
        self._own += new
        self.folder.mkdir(exist_ok=True)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("slot", "item", "reason"), *self._own])
        write_atomic(self.path, text.getvalue())

    @staticmethod
    def _read(path: Path) -> list[tuple[int, int, str]]:
        try:
            with open(path, newline="", encoding="utf-8") as file:
                return [(int(row["slot"]), int(row["item"]), row["reason"]) for row in csv.DictReader(file)]
        except (OSError, csv.Error, KeyError, ValueError, TypeError) as error:
            raise UserError(
                f'"{path}" cannot be read, or does not have the columns slot, item and reason ({error}).',
                "Without it the run cannot go on exactly: bring it back, or delete it if some clips may differ.",
            ) from None
