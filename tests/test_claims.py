"""Claims: one process has a piece of work, a dead one's is taken over, another host's is waited for."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stmae.tasks import claims
from stmae.tasks.claims import claimed, newest


def test_one_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path, "work") as mine:
        assert mine
        with claimed(tmp_path, "work") as again:
            assert not again
        with claimed(tmp_path, "other") as other:
            assert other
        held = newest(tmp_path, "work")
        assert held is not None
        assert held.alive
        assert f"pid {os.getpid()}" in held.holder
    given_back = newest(tmp_path, "work")
    assert given_back is not None
    assert not given_back.alive
    with claimed(tmp_path, "work") as mine:
        assert mine
    last = newest(tmp_path, "work")
    assert last is not None
    assert last.number == 2


def test_names_that_look_like_patterns_or_begin_alike(tmp_path: Path) -> None:
    for name in ("a[1]*?", "a", "a.b", "a+x=0.5-s0"):
        with claimed(tmp_path, name) as mine:
            assert mine, name
    assert newest(tmp_path, "b") is None


def test_it_is_given_back_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), claimed(tmp_path, "work"):
        raise RuntimeError
    with claimed(tmp_path, "work") as mine:
        assert mine


def test_a_dead_process_is_noticed_at_once(tmp_path: Path) -> None:
    code = "import os, pathlib, sys; from stmae.tasks.claims import claimed;"
    code += "claim = claimed(pathlib.Path(sys.argv[1]), 'work'); assert claim.__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    left = newest(tmp_path, "work")
    assert left is not None
    assert not left.alive
    with claimed(tmp_path, "work") as mine:
        assert mine


def test_a_process_number_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    (tmp_path / "work.1").write_text(json.dumps(claims._self() | {"born": "1"}))
    held = newest(tmp_path, "work")
    assert held is not None
    assert held.alive == (claims._born(os.getpid()) == "")  # only where a process's birth can be known


@pytest.mark.parametrize("age, alive", [(0.0, True), (claims.STALE - 60, True), (claims.STALE + 60, False)])
def test_another_host_is_judged_by_its_signs_of_life(tmp_path: Path, age: float, alive: bool) -> None:
    path = tmp_path / "work.1"
    path.write_text(json.dumps({"host": "elsewhere", "place": "elsewhere boot", "pid": os.getpid(), "born": ""}))
    os.utime(path, (time.time() - age,) * 2)
    held = newest(tmp_path, "work")
    assert held is not None
    assert held.alive == alive
    assert "elsewhere" in held.holder
    with claimed(tmp_path, "work") as mine:
        assert mine != alive


def test_a_claim_that_is_just_being_made_counts(tmp_path: Path) -> None:
    (tmp_path / "work.1").touch()
    with claimed(tmp_path, "work") as mine:
        assert not mine


def test_it_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with claimed(tmp_path, "work"):
        path = tmp_path / "work.1"
        os.utime(path, (0, 0))
        for _ in range(200):
            if path.stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def _race(folder: Path, barrier: object, won: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    with claimed(folder, "work") as mine:
        if mine:
            won.put(os.getpid())  # type: ignore[attr-defined]
            time.sleep(0.3)  # longer than the others need to find it taken


@pytest.mark.slow
def test_one_of_many_takes_over_a_dead_claim(tmp_path: Path) -> None:
    (tmp_path / "work.1").write_text(json.dumps({"host": "gone", "place": "gone", "pid": 1, "born": ""}))
    os.utime(tmp_path / "work.1", (0, 0))
    context = multiprocessing.get_context("fork")
    barrier, won = context.Barrier(6), context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, barrier, won)) for _ in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert won.get(timeout=1)
    assert won.empty()
