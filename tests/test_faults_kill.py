"""SIGKILL at every point of a save, a disk without room, and files that would run code when unpickled."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_points import POINTS
from safetensors import safe_open
from safetensors.torch import load_file
from test_faults import losses, scalars
from toy import Toy, ToyBatch, assert_same, toy_run, with_tests

import stmae
from stmae import weights
from stmae.engine.loop import StepResult
from stmae.errors import UserError

CLOCK = ("time", "clips_per_second", "data_wait", "memory_gb")


def lines(folder: Path) -> list[dict[str, float]]:
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in read]


@pytest.mark.slow
@pytest.mark.parametrize("demanded, points", [("demanded", POINTS), ("not demanded", ("within a file", "renamed"))])
def test_killed_at_every_point_of_a_save(tmp_path: Path, demanded: str, points: tuple[str, ...]) -> None:
    program = Path(__file__).with_name("kill_points.py")
    environment = {**os.environ, "PYTHONPATH": with_tests(), "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    ended = subprocess.run(
        [sys.executable, str(program), str(tmp_path), demanded, *points],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    whole = load_file(tmp_path / "straight/end.safetensors")
    assert scalars(tmp_path / "straight/tensorboard") == [*range(1, 13)]
    went_on_from = {}
    for point in points:
        folder = tmp_path / point
        assert_same(load_file(folder / "end.safetensors"), whole)
        assert lines(folder) == lines(tmp_path / "straight"), point
        assert scalars(folder / "tensorboard") == [*range(1, 13)], point
        with safe_open(str(folder / "end.safetensors"), "pt") as file:
            went_on_from[point] = int(file.metadata()["start"])
        assert not [name for name in os.listdir(folder / "checkpoints") if name.startswith(".")], point
    assert went_on_from.pop("logged, not saved", 3) in (0, 3), "the save before may still have been under way"
    saved = {"renamed": 6, "within deleting the old": 6}
    assert went_on_from == {point: saved.get(point, 3) for point in points if point in went_on_from}
    left = (tmp_path / "within a file.txt").read_text().split()
    assert ".step-000006.tmp" in left, "the kill came while the files were written"
    if "within deleting the old" in points:
        assert ".step-000000.old" in (tmp_path / "within deleting the old.txt").read_text()


# A disk without room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB, where this process may mount one; it grows by `grow`."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def grow(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_a_full_disk_warns_and_the_next_save_tries_again(tmp_path: Path, small_disk: Path) -> None:
    class Rescued(Toy):
        """Room comes after two saves have failed."""

        def step(self, batch: ToyBatch) -> StepResult:
            if self.calls.count("step") == 7:
                grow(small_disk, "100m")
            return super().step(batch)

    options: dict[str, Any] = {"steps": 12, "save_every": 3, "log_every": 1, "rows": 4}
    straight = toy_run(tmp_path / "straight", **options)
    trained = toy_run(small_disk, task=Rescued, **options)
    assert_same(trained.tensors(), straight.tensors())
    assert losses(small_disk) == losses(tmp_path / "straight")
    warnings = [text for text in trained.memory.warnings if "checkpoint could not be written" in text]
    assert len(warnings) == 3
    assert "No space left on device" in warnings[0]
    assert "none is on disk yet; the run goes on" in warnings[0]
    assert [path.name for path in weights.step_folders(small_disk / "checkpoints")] == ["step-000012", "step-000009"]


def test_a_run_whose_end_finds_no_room_says_how_to_go_on(small_disk: Path) -> None:
    options: dict[str, Any] = {"steps": 4, "save_every": 2, "log_every": 1, "rows": 4}
    with pytest.raises(UserError, match=r"trained to its end, step 4, but that could not be saved.*repeat the command"):
        toy_run(small_disk, **options)
    grow(small_disk, "100m")
    assert toy_run(small_disk, **options).end.step == 4


def test_no_room_for_the_first_file_is_an_error_without_traceback(videos: Path, small_disk: Path) -> None:
    with open(small_disk / "filler", "wb") as file:
        file.truncate(0)
        os.posix_fallocate(file.fileno(), 0, 64 << 10)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device\. Make room"):
        stmae.pretrain(videos, out=small_disk / "run", model="vit_tiny", workers=0)


# Files that would run code


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_file_of_weights_is_run(videos: Path, tmp_path: Path, ending: str, zipped: bool) -> None:
    mark, path = tmp_path / "mark", tmp_path / f"weights{ending}"
    if zipped:
        torch.save({"model": Hostile(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Hostile(mark)}))
    with pytest.raises(UserError):
        stmae.load(path)
    with pytest.raises(UserError):
        stmae.pretrain(videos, out=tmp_path / "run", init=str(path), model="vit_tiny", workers=0)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))
    assert mark.exists(), "it would have"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_no_code_in_a_checkpoint_is_run(tmp_path: Path, name: str) -> None:
    toy_run(tmp_path, steps=2, rows=4)
    folder, mark = tmp_path / "checkpoints/step-000002", tmp_path / "mark"
    (folder / name).write_bytes(pickle.dumps(Hostile(mark)))
    resumed = toy_run(tmp_path, steps=2, rows=4, train_it=False)
    assert resumed.start.step == 0, "it does not fit its manifest"
    (folder / weights.MANIFEST).unlink()
    weights.write_manifest(folder)  # one who can write the file can write the manifest too
    with pytest.raises((UserError, ValueError)):
        toy_run(tmp_path, steps=2, rows=4)
    assert not mark.exists()
