"""Steps that go wrong: skipped, rolled back, given up with a diagnosis; what is logged goes on without a gap."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from toy import Memory, Toy, ToyBatch, assert_same, toy_run

from stmae.engine.log import Log, MetricsFile, TensorBoard
from stmae.engine.loop import StepResult
from stmae.engine.recovery import Spikes
from stmae.errors import UserError

OPTIONS: dict[str, Any] = {"steps": 30, "save_every": 4, "log_every": 2, "max_bad_steps": 3, "rows": 4, "keep": 2}


def poisoned(*bad: int, kill_at: int | None = None) -> type[Toy]:
    """The loss is NaN wherever the data of these steps is seen, as often as that may be."""

    class Poisoned(Toy):
        def step(self, batch: ToyBatch) -> StepResult:
            result = super().step(batch)
            step = batch.cursor // len(batch.rows) - 1
            if step == kill_at:
                raise Killed
            factor = math.nan if step in bad else 1.0
            return StepResult(result.loss_sum * factor, result.weight, result.clips, result.numbers)

        def name_clips(self, begin: int, end: int) -> list[str]:
            return [f"row {place}" for place in range(begin, end)]

    return Poisoned


class Killed(BaseException):
    """What a process that is killed does: no handler runs, nothing is saved."""


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "checkpoints"))


def test_many_bad_steps_in_a_row_are_left_out_with_those_that_led_there(tmp_path: Path) -> None:
    trained = toy_run(tmp_path, task=poisoned(15, 16, 17, 18), **OPTIONS)
    assert trained.end.step == 30
    assert trained.end.cursor == 30 * 4
    # Noticed at step 18, when steps 15 to 17 were bad; 12 to 14 led there.
    assert trained.start.step == 12
    assert trained.end.left_out == frozenset(range(12, 18))
    assert (trained.end.roll_backs, trained.end.counters["skipped"]) == (1, 1)  # and step 18 was skipped on its own
    assert json.loads((tmp_path / "checkpoints/left_out.json").read_text()) == {
        "roll_backs": 1, "steps": [*range(12, 18)],
    }  # fmt: skip
    text = "\n".join(trained.memory.warnings)
    assert "3 updates in a row, steps 16 to 18," in text
    assert "goes back to step-000012, leaving out steps 13 to 18" in text
    assert "step 15  0." in text or "step 15  1." in text
    assert "step 16  nan" in text
    assert "row 60\n  row 61\n  row 62\n  row 63\n" in text
    assert "0.weight" in text
    assert [step for step, _ in losses(tmp_path)] == [*range(2, 31, 2)]
    assert dict(losses(tmp_path))[14] is None
    state = trained.optimizer.state_dict()["state"]
    assert {entry["step"].item() for entry in state.values()} == {30 - 6 - 1}


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [13, 17, 21, 29])
def test_a_kill_around_a_roll_back_changes_nothing(tmp_path: Path, kill_at: int) -> None:
    straight = toy_run(tmp_path / "straight", task=poisoned(15, 16, 17), **OPTIONS)
    with pytest.raises(Killed):
        toy_run(tmp_path / "killed", task=poisoned(15, 16, 17, kill_at=kill_at), **OPTIONS)
    resumed = toy_run(tmp_path / "killed", task=poisoned(15, 16, 17), **OPTIONS)
    assert_same(resumed.tensors(), straight.tensors())
    assert resumed.end == straight.end
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")


def test_bad_from_the_start_goes_back_to_the_start(tmp_path: Path) -> None:
    trained = toy_run(tmp_path, task=poisoned(0, 1, 2, 3), **OPTIONS)
    assert trained.start.step == 0
    assert trained.end.left_out == frozenset(range(4))


def test_a_second_time_ends_with_a_diagnosis_and_deletes_nothing(tmp_path: Path) -> None:
    task = poisoned(9, 10, 11, *range(20, 30))
    with pytest.raises(UserError) as error:
        toy_run(tmp_path, task=task, **OPTIONS)
    text = str(error.value)
    assert "4 updates in a row, steps 21 to 24," in text
    assert "rolled back before" in text
    assert "The same command goes on from step-000016, leaving out steps 18 to 24." in text
    assert "lower lr" in text
    assert {"step-000016", "step-000020"} <= set(names(tmp_path))
    before = names(tmp_path)
    again = toy_run(tmp_path, train_it=False, **OPTIONS)
    assert names(tmp_path) == before
    assert again.start.step == 16
    assert again.start.left_out == frozenset([*range(6, 12), *range(17, 24)])
    assert all(tensor.isfinite().all() for tensor in again.tensors().values())


def test_without_checkpoints_there_is_nothing_to_go_back_to() -> None:
    with pytest.raises(UserError, match="no checkpoint from before them"):
        toy_run(task=poisoned(*range(2, 30)), **OPTIONS)


def test_single_bad_steps_roll_nothing_back(tmp_path: Path) -> None:
    trained = toy_run(tmp_path, task=poisoned(3, 4, 6, 7, 9, 20), **OPTIONS)
    assert trained.end.roll_backs == 0
    assert trained.end.counters["skipped"] == 6


def test_the_one_to_go_back_to_is_kept_however_long_it_goes_wrong(tmp_path: Path) -> None:
    options = {**OPTIONS, "log_every": 100, "keep": 1, "steps": 40}  # looked at when the last step is logged
    trained = toy_run(tmp_path, task=poisoned(*range(9, 40)), **options)
    assert (trained.start.step, trained.end.left_out) == (4, frozenset(range(6, 40)))


# The log


def test_spikes_are_told() -> None:
    memory, spikes = Memory(), Spikes()
    for norm in (9.0, 1.0, 1.1, 0.9, 1.0, 1.0):
        spikes.look({"grad_norm": norm, "grad_norm_max": 1.5 * norm, "loss": 0.5, "loss_max": 0.6}, Log([memory]))
    assert not memory.warnings
    spikes.look({"grad_norm": 2.0, "grad_norm_max": 40.0, "loss": 0.5, "loss_max": 1.6}, Log([memory]))
    assert memory.warnings == [
        "a spike: the largest gradient norm since the last line is 40; 1 is usual.",
        "a spike: the largest loss since the last line is 1.6; 0.5 is usual.",
    ]


def test_lines_that_found_no_room_are_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    log = Log([memory, MetricsFile(tmp_path / "metrics.jsonl", 0)])
    log.metrics(1, {"loss": 1.0})

    real = open

    class Full:
        """Takes half of what it is given."""

        def __init__(self, *args: Any, **keywords: Any) -> None:
            self.file = real(*args, **keywords)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *exc: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", Full)
        log.metrics(2, {"loss": 2.0})
        log.metrics(3, {"loss": 3.0})
    assert len(memory.warnings) == 1
    log.metrics(4, {"loss": 4.0})
    assert losses(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def scalars(folder: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return [event.step for event in reader.Scalars("loss")]


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 2])
def test_tensorboard_goes_on_without_double_or_missing_steps(tmp_path: Path, step: int) -> None:
    first = TensorBoard(tmp_path, 0)
    for at in (1, 2, 3, 4):
        first.metrics(at, {"loss": 1.0 / at})
    first.flush()  # as before a checkpoint; then the process is killed, and its file stays open
    second = TensorBoard(tmp_path, step)
    for at in range(step + 1, 7):
        second.metrics(at, {"loss": 1.0 / at})
    second.close()
    assert scalars(tmp_path) == [1, 2, 3, 4, 5, 6]
    first.close()


def test_a_tasks_own_totals_go_on_too(tmp_path: Path) -> None:
    class Counting(Toy):
        def counters(self) -> dict[str, float]:
            return {"steps": float(self.calls.count("step"))}

    toy_run(tmp_path, task=Counting, steps=4, end=8, rows=4)
    assert toy_run(tmp_path, steps=8, rows=4, train_it=False).start.counters["task/steps"] == 4
