"""Checkpoints: whole or absent, damage noticed, the newest kept, resumed strictly."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from toy import assert_same, toy_run, with_tests

from stmae import weights
from stmae.engine.checkpoint import Checkpoints, Position, check_fit
from stmae.engine.optim import build_adamw, parameter_groups
from stmae.errors import UserError
from stmae.runs import find_weights, load_weights


class Kit:
    """A model with an optimiser that has taken a step, and checkpoints of both."""

    def __init__(self, folder: Path, *, keep: int = 3, width: int = 8, fused: bool = True) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))
        self.optimizer = build_adamw(parameter_groups(self.model, 0.05), 1e-2, fused=fused)
        self.warnings: list[str] = []
        self.checkpoints = Checkpoints(
            folder / "checkpoints", self.model, self.optimizer, {"width": width}, keep=keep, warn=self.warnings.append
        )

    def learn(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(3, 4)).sum().backward()
        self.optimizer.step()

    def save(self, step: int, back_to: int | None = None) -> None:
        self.learn()
        self.checkpoints.save(Position(step, 10 * step, {"clips": step + 0.1}), back_to)
        self.checkpoints.wait()

    def tensors(self) -> dict[str, torch.Tensor]:
        state = self.optimizer.state_dict()["state"]
        moments = {f"{place}/{key}": value for place, entry in state.items() for key, value in entry.items()}
        return {name: tensor.clone() for name, tensor in {**self.model.state_dict(), **moments}.items()}

    @property
    def names(self) -> list[str]:
        return sorted(os.listdir(self.checkpoints.folder))


def test_what_is_saved_is_what_is_resumed(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    assert kit.checkpoints.resume() == Position(0, 0, {})
    kit.save(7)
    before = kit.tensors()
    other = Kit(tmp_path)
    assert other.checkpoints.resume() == Position(7, 70, {"clips": 7.1})
    assert_same(other.tensors(), before)
    kit.learn()
    other.learn()
    assert_same(other.tensors(), kit.tensors())
    assert not other.warnings
    folder = tmp_path / "checkpoints/step-000007"
    assert sorted(os.listdir(folder)) == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    state = json.loads((folder / "state.json").read_text())
    here = {"torch": torch.__version__, "device": "cpu", "threads": torch.get_num_threads(), "world_size": 1}
    assert state == {"step": 7, "cursor": 70, "counters": {"clips": 7.1}, "left_out": [], "roll_backs": 0, **here}


def test_a_checkpoint_is_read_like_any_weights(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.save(7)
    tensors, config = load_weights(find_weights(tmp_path))
    assert config == {"width": 8}
    assert_same(tensors, kit.model.state_dict())


def test_training_goes_on_while_a_copy_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = Kit(tmp_path)
    kit.learn()
    before = kit.tensors()
    trained_on = threading.Event()
    real = weights.save_weights

    def late(*args: object) -> None:
        assert trained_on.wait(30)
        real(*args)

    monkeypatch.setattr(weights, "save_weights", late)
    kit.checkpoints.save(Position(1))
    kit.checkpoints.poll()
    for _ in range(3):
        kit.learn()
    assert kit.checkpoints.saved_step is None
    trained_on.set()
    kit.checkpoints.wait()
    assert kit.checkpoints.saved_step == 1
    other = Kit(tmp_path)
    other.checkpoints.resume()
    assert_same(other.tensors(), before)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    kit = Kit(tmp_path, keep=2)
    for step in (5, 100, 20_000_000, 20_000_001):
        kit.save(step)
    assert kit.names == ["step-20000000", "step-20000001"]
    assert kit.checkpoints.latest_whole().name == "step-20000001"


def test_milestones_stay_and_one_to_go_back_to(tmp_path: Path) -> None:
    kit = Kit(tmp_path, keep=1)
    kit.checkpoints.milestone_every = 10
    for step in (0, 5, 10, 15, 20, 25):
        kit.save(step)
    assert kit.names == ["step-000010", "step-000020", "step-000025"]
    kit.checkpoints.milestone_every = 0
    for step in (30, 35, 40):
        kit.save(step, back_to=24)
    assert kit.names == ["step-000020", "step-000040"]


def test_a_checkpoint_that_learnt_from_steps_left_out_is_passed_over_and_stays(tmp_path: Path) -> None:
    kit = Kit(tmp_path, keep=2)
    for step in (10, 20, 30):
        kit.save(step, back_to=10)
    assert kit.checkpoints.roll_back(Position(30), range(15, 25)) == "step-000010"
    other = Kit(tmp_path, keep=2)
    position = other.checkpoints.resume()
    assert (position.step, position.left_out, position.roll_backs) == (10, frozenset(range(15, 25)), 1)
    assert not other.warnings
    other.checkpoints.save(Position(18, 180, {}, position.left_out, 1))
    other.checkpoints.wait()
    assert other.names == ["left_out.json", "step-000010", "step-000018", "step-000020", "step-000030"]
    assert Kit(tmp_path).checkpoints.resume().step == 18, "what was saved since has left them out"
    (tmp_path / "checkpoints/left_out.json").write_text("[")
    with pytest.raises(UserError, match=r"left_out\.json.* cannot be read"):
        Kit(tmp_path).checkpoints.resume()


def flip_a_byte(folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte": (flip_a_byte, "content of optimizer.safetensors has changed"),
    "cut": (cut, "model.safetensors has 100 bytes instead of"),
    "a file": (lambda folder: (folder / "state.json").unlink(), "state.json is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "manifest cut": (lambda folder: os.truncate(folder / "manifest.json", 30), "manifest.json cannot be read"),
    "manifest empty": (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    "empty folder": (lambda folder: [file.unlink() for file in folder.iterdir()], "manifest.json is missing"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, how: str) -> None:
    kit = Kit(tmp_path)
    kit.save(1)
    kit.save(2)
    damage, reason = DAMAGES[how]
    damage(tmp_path / "checkpoints/step-000002")
    other = Kit(tmp_path)
    assert other.checkpoints.resume().step == 1
    (warning,) = other.warnings
    assert "step-000002" in warning
    assert reason in warning


def test_a_damaged_checkpoint_is_no_reason_to_delete_a_good_one(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.save(10)
    kit.save(20)
    cut(tmp_path / "checkpoints/step-000020")
    other = Kit(tmp_path, keep=1)
    other.checkpoints.resume()
    other.save(15)
    assert other.names == ["step-000015", "step-000020"]
    other.save(20)  # written anew
    assert other.names == ["step-000020"]
    last = Kit(tmp_path)
    assert last.checkpoints.resume().step == 20
    assert not last.warnings


def test_only_whole_ones_count_among_the_kept(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.save(10)
    kit.save(20)
    cut(tmp_path / "checkpoints/step-000020")
    other = Kit(tmp_path, keep=2)
    other.checkpoints.resume()
    other.save(25)
    assert other.names == ["step-000010", "step-000020", "step-000025"]


def test_going_back_to_an_older_one_deletes_no_newer_one(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    for step in (1, 2, 3):
        kit.save(step)
    other = Kit(tmp_path, keep=1)
    assert other.checkpoints.load(tmp_path / "checkpoints/step-000001").step == 1
    other.save(2)
    assert other.names == ["step-000002", "step-000003"]


def test_where_all_are_damaged_the_run_does_not_begin_anew(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.save(1)
    cut(tmp_path / "checkpoints/step-000001")
    with pytest.raises(UserError, match=r"all 1 checkpoints .* are damaged"):
        Kit(tmp_path).checkpoints.resume()
    with pytest.raises(UserError, match=r"model\.safetensors has 100 bytes"):
        find_weights(tmp_path)


@pytest.mark.parametrize("where", ["save_weights", "write_tensors", "write_atomic", "write_manifest", "publish"])
def test_a_full_disk_is_a_warning_and_the_last_good_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    kit = Kit(tmp_path)
    kit.save(1)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(weights, where, full)
        kit.save(2)
    (warning,) = kit.warnings
    assert "No space left on device" in warning
    assert "the last whole one is step 1" in warning
    assert kit.names == ["step-000001"]
    kit.save(3)
    assert kit.names == ["step-000001", "step-000003"]
    assert len(kit.warnings) == 1


@pytest.mark.slow
def test_safetensors_own_error_is_one_of_the_disk(tmp_path: Path) -> None:
    limited = """
import resource, signal, sys, torch
from stmae.weights import write_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_tensors(sys.argv[1], {"a": torch.zeros(9999)}, {})
except OSError as error:
    print("told:", error)
"""
    ended = subprocess.run([sys.executable, "-c", limited, str(tmp_path / "x")], capture_output=True, text=True)
    assert ended.stdout.startswith("told:"), ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_mistake_of_ours_while_saving_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = Kit(tmp_path)
    monkeypatch.setattr(weights, "write_manifest", lambda folder: {}["nothing"])
    with pytest.raises(KeyError):
        kit.save(1)


KILLED = """
import os, signal, sys
from pathlib import Path
from stmae import weights
from toy import toy_run
folder = Path(sys.argv[1])
toy_run(folder, steps=2, rows=4)
def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)
weights.write_manifest = kill
toy_run(folder, steps=3, rows=4)
"""


@pytest.mark.slow
def test_killed_while_saving_leaves_the_last_whole(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": with_tests(), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    folder = tmp_path / "checkpoints"
    assert sorted(os.listdir(folder)) == [".step-000003.tmp", "step-000000", "step-000002"]
    again = toy_run(tmp_path, steps=3, rows=4, train_it=False)
    assert again.start.step == 2
    assert not any("damaged" in warning for warning in again.memory.warnings)
    assert sorted(os.listdir(folder)) == ["step-000000", "step-000002"], "what the killed save left is gone"


def test_a_checkpoint_that_does_not_fit_says_what_differs(tmp_path: Path) -> None:
    Kit(tmp_path).save(1)
    with pytest.raises(UserError) as error:
        Kit(tmp_path, width=16).checkpoints.resume()
    assert "0.weight (8, 4) instead of (16, 4)" in str(error.value)
    tensors = {"a": torch.zeros(2), "b": torch.zeros(3)} | {f"x{i}": torch.zeros(1) for i in range(20)}
    with pytest.raises(UserError) as error:
        check_fit(tensors, {"a": torch.zeros(2, 1), "b": torch.zeros(3), "c": torch.zeros(1)}, "the model")
    text = str(error.value)
    assert "missing (1): c" in text
    assert "unknown (20): x0, x1," in text
    assert "and 12 more" in text
    assert "shape (1): a (2,) instead of (2, 1)" in text
    check_fit(tensors, tensors, "the model")


def test_an_optimizer_that_does_not_fit(tmp_path: Path) -> None:
    Kit(tmp_path).save(1)
    kit = Kit(tmp_path)
    kit.optimizer.param_groups[0]["param_names"][0] = "renamed"
    with pytest.raises(UserError, match=r"optimiser .* does not fit"):
        kit.checkpoints.resume()


def test_other_surroundings_are_one_warning(tmp_path: Path) -> None:
    Kit(tmp_path).save(1)
    state = tmp_path / "checkpoints/step-000001/state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"torch": "1.0", "threads": 999}))
    (state.parent / "manifest.json").unlink()
    weights.write_manifest(state.parent)
    kit = Kit(tmp_path)
    assert kit.checkpoints.resume().step == 1
    (warning,) = kit.warnings
    assert "torch 1.0, now" in warning
    assert "threads 999, now" in warning
    assert "not bit for bit" in warning


def test_fused_and_plain_adamw_read_each_other(tmp_path: Path) -> None:
    Kit(tmp_path, fused=True).save(1)
    kit = Kit(tmp_path, fused=False)
    kit.checkpoints.resume()
    kit.learn()
    assert all(entry["step"].item() == 2 for entry in kit.optimizer.state_dict()["state"].values())


def test_tied_and_strided_tensors_can_be_saved(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    views = {"a": table, "b": table, "c": table[1:], "d": table.T}
    weights.save_weights(tmp_path / "w.safetensors", views, {})
    tensors, _ = load_weights(tmp_path / "w.safetensors")
    assert_same(tensors, views)


def test_foreign_entries_are_left_alone(tmp_path: Path) -> None:
    kit = Kit(tmp_path, keep=1)
    kit.checkpoints.folder.mkdir()
    (kit.checkpoints.folder / "step-notes").mkdir()
    (kit.checkpoints.folder / "notes.txt").write_text("mine")
    kit.save(1)
    kit.save(2)
    assert kit.names == ["notes.txt", "step-000002", "step-notes"]
    shutil.rmtree(kit.checkpoints.folder)
    assert kit.checkpoints.latest_whole() is None
