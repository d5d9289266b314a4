"""A program: small runs killed at each named point of a save, then resumed; `test_faults_kill.py` compares their ends.

    python kill_points.py FOLDER DEMANDED POINT ...

Every part is a fork of this process, so that PyTorch is imported once; nothing is computed before the forks.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard  # here, not in every fork
from forks import forked, status_of
from safetensors.torch import save_file
from toy import toy_run

from stmae import weights
from stmae.engine.checkpoint import Checkpoints

OPTIONS: dict[str, Any] = {
    "steps": 12, "save_every": 3, "log_every": 1, "keep": 1, "max_bad_steps": 1, "clip_grad": 0.5, "tensorboard": True,
}  # fmt: skip
POINTS = (
    "logged, not saved", "first byte", "within a file", "between the files", "before the manifest", "before the rename",
    "renamed", "within deleting the old",
)  # fmt: skip


def kill(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(owner: Any, name: str, count: int, instead: Callable[..., object]) -> None:
    """Calls `instead` at the count-th call of a function."""
    real, calls = getattr(owner, name), []

    def wrapper(*args: Any, **keywords: Any) -> Any:
        calls.append(None)
        return (instead if len(calls) == count else real)(*args, **keywords)

    setattr(owner, name, wrapper)


def within_a_file(path: Path, tensors: Any, header: Any) -> None:
    """Half of a file under the name that the writer gives it."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temp, header)
    os.truncate(temp, temp.stat().st_size // 2)
    kill()


def within_deleting(folder: Path, **_: object) -> None:
    next(iter(folder.iterdir())).unlink()
    kill()


def arm(point: str) -> None:
    """Saves are those of steps 0, 3, 6, 9; the third one is hit, by which time there is an old one to delete."""
    real_publish = weights.publish
    if point == "logged, not saved":
        on_call(Checkpoints, "save", 3, kill)
    elif point == "first byte":
        on_call(weights, "save_weights", 3, kill)
    elif point == "within a file":
        on_call(weights, "write_tensors", 5, within_a_file)  # two calls for each save
    elif point == "between the files":
        on_call(weights, "write_tensors", 6, kill)
    elif point == "before the manifest":
        on_call(weights, "write_manifest", 3, kill)
    elif point == "before the rename":
        on_call(weights, "publish", 3, kill)
    elif point == "renamed":
        on_call(weights, "publish", 3, lambda *args: (real_publish(*args), kill()))
    else:
        real_remove, real_rmtree = weights.remove_folder, shutil.rmtree

        def remove(folder: Path) -> None:
            shutil.rmtree = lambda path, **keywords: (  # type: ignore[assignment]
                within_deleting(Path(path)) if Path(path).is_dir() else real_rmtree(path, **keywords)
            )
            real_remove(folder)

        weights.remove_folder = remove


def train(folder: Path, demanded: bool, point: str | None = None) -> None:
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(demanded)
    if point:
        arm(point)
    trained = toy_run(folder, **OPTIONS)
    save_file(trained.tensors(), folder / "end.safetensors", {"start": str(trained.start.step)})


def main() -> None:
    top, demanded = Path(sys.argv[1]), sys.argv[2] == "demanded"
    assert status_of(forked(lambda: train(top / "straight", demanded))) == 0
    for point in sys.argv[3:]:
        assert status_of(forked(lambda point=point: train(top / point, demanded, point))) == -signal.SIGKILL, point
        left = sorted(os.listdir(top / point / "checkpoints"))
        (top / f"{point}.txt").write_text("\n".join(left))
        assert status_of(forked(lambda point=point: train(top / point, demanded))) == 0, point


if __name__ == "__main__":
    main()
