"""The native weight format, and what makes files and checkpoints on disk whole.

Weights are one safetensors file each, with their configuration in its header; nothing in this package unpickles.
torch is imported only where tensors are touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stmae.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "1"
ENCODER = "encoder.safetensors"
CLASSIFIER = "classifier.safetensors"
MODEL = "model.safetensors"
MANIFEST = "manifest.json"
_STEP_FOLDER = re.compile(r"step-(\d{6,})")


# Files that are whole or absent ------------------------------------------------------------------------------------


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Writes a file so that a crash at any moment leaves the old content or the new, never a part."""
    path = Path(path)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temp, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """A rename survives a power cut only once the folder itself is on disk; not every file system can say so."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Writes one safetensors file atomically.

    Raises:
        OSError: the disk is full, the folder is read-only, ...
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    storages: set[int] = set()
    ready: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        # The format refuses tensors that share storage (tied weights, views of one table): each gets its own copy.
        tensor = tensor.detach().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        ready[name] = tensor.clone() if pointer in storages else tensor
        storages.add(pointer)
    try:
        temp.touch()
        mode = temp.stat().st_mode  # what the umask grants; safetensors would let nobody else read the file
        save_file(ready, str(temp), dict(header))
        temp.chmod(mode)
        with open(temp, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temp, path)
    except SafetensorError as error:
        temp.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from error
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def plain(value: Any) -> Any:
    """The value as JSON and YAML hold it: tuples become lists, paths strings; anything else unknown is our mistake."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    assert value is None or isinstance(value, (bool, int, float, str)), f"not a configuration value: {value!r}"
    return value


# Weights -----------------------------------------------------------------------------------------------------------


def save_weights(path: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes tensors and their configuration as one safetensors file: the native format.

    Args:
        path: the file to write, atomically.
        tensors: any shapes and dtypes, by name.
        config: JSON types only; it stands in the file's header under the key `config`.

    Raises:
        OSError: the disk is full, the folder is read-only, ...
    """
    write_tensors(path, tensors, {"stmae_format": FORMAT, "config": json.dumps(plain(config))})


def weights_name(model: Mapping[str, Any]) -> str:
    """What the file of a model's weights is called, given its configuration as plain data."""
    return CLASSIFIER if model["kind"] == "classifier" else ENCODER


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file that `save_weights` wrote: (tensors on the CPU by name, configuration). Never unpickles.

    Raises:
        UserError: the file is missing, a folder, not safetensors, truncated, corrupt, without a configuration in its
            header, or of a format this version does not know.
    """
    tensors, header = read_tensors(path)
    if "config" not in header or "stmae_format" not in header:
        raise UserError(
            f'"{path}" holds tensors but no stmae configuration in its header, so its model cannot be built.',
            "Give a run folder, its encoder.safetensors, or a checkpoint of a family that stmae imports.",
        )
    if header["stmae_format"] != FORMAT:
        raise UserError(
            f'"{path}" has format {header["stmae_format"]}; this stmae reads format {FORMAT}.', "Update stmae."
        )
    try:
        config = json.loads(header["config"])
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f'the configuration in the header of "{path}" is no JSON: {error}.', "") from None
    return tensors, config


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads any safetensors file: (tensors on the CPU by name, header). Errors as in `load_weights`."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.exists():
        raise UserError(f'"{path}" does not exist.', _nearest_run(path))
    if path.is_dir():
        raise UserError(f'"{path}" is a folder, not a file of weights.', "Give the .safetensors file in it.")
    try:
        with safe_open(str(path), framework="pt") as opened:
            header = opened.metadata() or {}
            return {name: opened.get_tensor(name) for name in opened.keys()}, header  # noqa: SIM118 (no iterator)
    except SafetensorError as error:
        with open(path, "rb") as file:
            start = file.read(2)
        if start[:2] == b"PK" or start[:1] == b"\x80":  # only now: a good file's length may begin with the same bytes
            problem, cure = "is a pickle (.pt, .pth), which can run code when read.", "Give a .safetensors file."
        else:
            size = path.stat().st_size
            problem, cure = f"({size} bytes) is truncated, corrupt or no safetensors file: {error}.", "Copy it again."
        raise UserError(f'"{path}" {problem}', cure) from None
    except OSError as error:
        raise UserError(f'"{path}" cannot be read: {error.strerror or error}.', "") from None


def find_weights(where: str | Path, warn: Callable[[str], None] | None = None) -> Path:
    """The file of weights that a person means by a run folder, a checkpoint folder or a file.

    Args:
        where: a run folder (its classifier.safetensors or encoder.safetensors, else the model of its newest whole
            checkpoint), a folder `step-...` of one, or a file, which is returned as it is.
        warn: told of each damaged checkpoint that was passed over.

    Raises:
        UserError: nothing there; names the nearest run next to it.
    """
    path = Path(where).expanduser()
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f'"{where}" does not exist.', _nearest_run(path))
    for name in (CLASSIFIER, ENCODER, MODEL):
        if (path / name).is_file():
            return path / name
    folders = path if path.name == "checkpoints" else path / "checkpoints"
    newest = newest_whole(folders, warn or (lambda text: None), only=MODEL)
    if newest is not None and int(newest.name[5:]) > 0:
        return newest / MODEL
    if newest is not None:
        raise UserError(
            f'"{where}" holds a run that has saved nothing since its start.', "Let it train to its first checkpoint."
        )
    if step_folders(folders):
        raise UserError(
            f'every checkpoint in "{folders}" is damaged.',
            f'"{step_folders(folders)[0]}": {damage(step_folders(folders)[0])}',
        )
    inside = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and _is_run(entry))
    cure = f"It holds the runs {', '.join(inside)}: give one of them." if inside else _nearest_run(path)
    raise UserError(f'"{where}" holds no weights: neither {ENCODER} nor checkpoints.', cure)


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.yaml", ENCODER, CLASSIFIER, "checkpoints"))


def _nearest_run(path: Path) -> str:
    try:
        near = sorted(entry.name for entry in path.absolute().parent.iterdir() if entry.is_dir() and _is_run(entry))
    except OSError:
        return f'The folder "{path.parent}" does not exist either.'
    if not near or near == [path.name]:
        return "Give a run folder or a .safetensors file."
    return f"{did_you_mean(path.name, near)} Runs there: {', '.join(near)}.".strip()


# Whole checkpoints: a manifest, written last, with the hash of every file ---------------------------------------------


def write_manifest(folder: Path) -> None:
    """Writes the size and SHA-256 of every file of a folder into manifest.json, which makes the folder whole."""
    entries = {}
    for file in sorted(folder.iterdir()):
        entries[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    write_atomic(folder / MANIFEST, json.dumps(entries, indent=1))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path, only: str | None = None) -> str | None:
    """What is wrong with a checkpoint folder, or None when it is whole; `only` looks at one file of it."""
    try:
        entries = json.loads((folder / MANIFEST).read_text())
        for name, entry in entries.items() if only is None else [(only, entries[only])]:
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
            if _sha256(file) != entry["sha256"]:
                return f"the content of {name} has changed"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    return None


def step_folders(folder: Path) -> list[Path]:
    """The folders `step-000500` in a folder, newest first."""
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if _STEP_FOLDER.fullmatch(entry.name)]
    return sorted(found, key=lambda entry: int(entry.name[5:]), reverse=True)


def newest_whole(folder: Path, warn: Callable[[str], None], only: str | None = None) -> Path | None:
    """The newest whole checkpoint in a folder, or None; `warn` hears which newer ones were passed over and why."""
    for candidate in step_folders(folder):
        reason = damage(candidate, only)
        if reason is None:
            return candidate
        warn(f'passing over the damaged checkpoint "{candidate}": {reason}.')
    return None


def remove_folder(folder: Path) -> None:
    """Deletes a folder by way of a hidden name, so that a kill half-way leaves nothing that looks like a checkpoint."""
    hidden = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rename(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def publish(temp: Path, final: Path) -> None:
    """Gives a finished folder its name. One that already has the name (a damaged one, written anew) makes way."""
    _sync_folder(temp)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(temp, final)
    _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)
