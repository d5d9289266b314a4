"""The engine of sweeps: order, resuming, failures, time; several processes do each piece once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import Memory

from stmae.engine.log import Log
from stmae.engine.signals import Stopped, StopSignals
from stmae.errors import UserError
from stmae.tasks import sweep as module
from stmae.tasks.sweep import Sweep, Unit


def noting(done: list[str], name: str) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        done.append(name)
        return {"told": name}

    return work


def make(folder: Path, done: list[str], *named: tuple[str, tuple[str, ...]]) -> Sweep:
    return Sweep(folder, [Unit(name, noting(done, name), needs) for name, needs in named])


def test_each_piece_once_in_order_of_what_it_needs(tmp_path: Path) -> None:
    done: list[str] = []
    sweep = make(tmp_path, done, ("judge", ("train",)), ("train", ()), ("other", ()))
    assert [sweep.state(unit) for unit in sweep.units] == ["to do"] * 3
    assert sweep.run(Log([]))
    assert done == ["train", "judge", "other"]
    assert [sweep.state(unit) for unit in sweep.units] == ["done"] * 3
    assert json.loads((tmp_path / "results" / "judge.json").read_text()) == {"told": "judge"}
    assert sweep.run(Log([]))
    assert len(done) == 3


def test_a_mistake_of_the_user_ends_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    done: list[str] = []

    def fail() -> dict[str, Any]:
        raise UserError("no room.", "Make some.")

    units = [
        Unit("train", fail),
        Unit("judge", noting(done, "judge"), ("train",)),
        Unit("other", noting(done, "other")),
    ]
    memory = Memory()
    with pytest.raises(UserError, match=r"train: no room\. Make some\."):
        Sweep(tmp_path, units).run(Log([memory]))
    assert done == ["other"]
    assert any("no room" in text for text in memory.warnings)
    assert Sweep(tmp_path, units).state(units[0]).startswith("stopped: was pid")
    units[0] = Unit("train", noting(done, "train"))
    assert Sweep(tmp_path, units).run(Log([]))
    assert done == ["other", "train", "judge"]


def test_a_failure_of_one_piece_holds_up_no_other(tmp_path: Path) -> None:
    done: list[str] = []

    def fail() -> dict[str, Any]:
        raise torch.OutOfMemoryError("20 GiB")

    memory = Memory()
    units = [
        Unit("train", fail),
        Unit("judge", noting(done, "judge"), ("train",)),
        Unit("other", noting(done, "other")),
    ]
    with pytest.raises(UserError, match="train: OutOfMemoryError: 20 GiB"):
        Sweep(tmp_path, units).run(Log([memory]))
    assert done == ["other"]
    assert any("Traceback" in text for text in memory.warnings)


def test_what_another_process_has_is_left_to_it(tmp_path: Path) -> None:
    done: list[str] = []
    sweep = make(tmp_path, done, ("a", ()), ("b", ()))
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "a.1").write_text(json.dumps({"host": "node7", "place": "node7", "pid": 411}))
    memory = Memory()
    assert not sweep.run(Log([memory]))
    assert done == ["b"]
    assert sweep.state(sweep.units[0]) == "running: pid 411 on node7"
    assert "1 are with other processes: a." in memory.messages


def test_the_time_is_over_before_a_piece(tmp_path: Path) -> None:
    done: list[str] = []

    def slow() -> dict[str, Any]:
        time.sleep(0.05)
        return {}

    units = [Unit("a", slow), Unit("b", noting(done, "b"))]
    memory = Memory()
    assert not Sweep(tmp_path, units).run(Log([memory]), minutes=0.01 / 60)
    assert not done
    assert "1 of 2 are left" in memory.messages[-1]


def _runs_until_stopped() -> dict[str, Any]:
    """What the engine's loop does with signals."""
    with StopSignals() as signals:
        for step in range(1000):
            if signals.received:
                raise Stopped(step, signals.received)
            time.sleep(0.01)
    return {}


def test_the_time_is_over_in_the_middle_of_a_run(tmp_path: Path) -> None:
    memory = Memory()
    began = time.monotonic()
    assert not Sweep(tmp_path, [Unit("a", _runs_until_stopped)]).run(Log([memory]), minutes=0.2 / 60)
    assert time.monotonic() - began < 5
    assert any(text.startswith("out of time in a, stopped by") for text in memory.messages)


def test_a_signal_from_outside_ends_it_and_says_so(tmp_path: Path) -> None:
    done: list[str] = []

    def told_to_stop() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)  # while no run listens
        return {}

    units = [Unit("a", told_to_stop), Unit("b", noting(done, "b"))]
    with pytest.raises(Stopped) as stopped:
        Sweep(tmp_path, units).run(Log([]))
    assert stopped.value.exit_status == 75
    assert Sweep(tmp_path, units).result("a") == {}  # what was done is kept
    assert not done


def test_a_spoilt_result_is_named(tmp_path: Path) -> None:
    sweep = make(tmp_path, [], ("a", ()))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json.*Delete it"):
        sweep.run(Log([]))


def _takes_part(folder: Path, count: int) -> None:
    def work(number: int) -> Callable[[], dict[str, Any]]:
        def note() -> dict[str, Any]:
            with open(folder / "done", "a") as file:
                file.write(f"{number}\n")
            time.sleep(0.02)
            return {}

        return note

    Sweep(folder, [Unit(f"unit-{number}", work(number)) for number in range(count)]).run(Log([]))


@pytest.mark.slow
def test_several_processes_share_a_sweep(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    helpers = [context.Process(target=_takes_part, args=(tmp_path, 24)) for _ in range(3)]
    for helper in helpers:
        helper.start()
    for helper in helpers:
        helper.join()
        assert helper.exitcode == 0
    assert sorted(map(int, (tmp_path / "done").read_text().split())) == list(range(24))


def test_it_asks_again_until_a_run_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NAG", 0.02)

    def late() -> dict[str, Any]:
        time.sleep(0.2)  # still looking at its videos when the time is over
        return _runs_until_stopped()

    assert not Sweep(tmp_path, [Unit("a", late)]).run(Log([]), minutes=0.05 / 60)
