"""Lengths of training: as they are written, in steps, and what is refused."""

from __future__ import annotations

import pytest

from stmae.durations import Clock, read
from stmae.errors import UserError
from stmae.tasks.build import Plan
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.task import bind


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (800, 800), (0.5, 0.5), (800.0, 800), ("800", 800), ("1e5", 100_000), ("50000 steps", "50000 steps"),
        ("50_000steps", "50000 steps"), ("1 epoch", "1 epochs"), ("10M clips", "10000000 clips"),
        ("2.5k Steps", "2500 steps"), ("5%", "5%"), ("12.5 %", "12.5%"),
    ],
)  # fmt: skip
def test_plain_forms(written: object, plain: object) -> None:
    assert read("warmup", written) == plain
    assert read("warmup", plain) == plain
    assert type(read("warmup", written)) is type(plain)


@pytest.mark.parametrize("wrong", ["", "long", "5 parsecs", "-1 steps", -1, True, None, "steps 5", float("nan"), "5%%"])
def test_what_is_no_length_is_refused(wrong: object) -> None:
    with pytest.raises(UserError, match="warmup"):
        read("warmup", wrong)


def test_a_misspelt_unit_gets_a_hint() -> None:
    with pytest.raises(UserError, match='Did you mean "epochs"'):
        read("warmup", "5 epohcs")


def test_steps_of_each_unit() -> None:
    clock = Clock(batch_size=8, videos=100, total=1000)
    values = {4: "epochs", "4 epochs": "steps", "400 clips": "steps", "5%": "steps", 50: "steps", "50 steps": "epochs"}
    assert [clock.steps(value, unit) for value, unit in values.items()] == [50] * 6
    assert [clock.interval(value) for value in (20, "1 epoch", "0.01%")] == [20, 12, 1]


def plan(**options: object) -> Plan:
    settled = bind(PretrainOptions, ("videos",), {"out": "x", "batch_size": 8, "preset": "none"} | options)
    return Plan.of(settled, videos=100)


def test_one_run_written_in_four_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stmae.tasks.task.check", lambda options: None)
    plans = [plan(epochs=length, warmup="10%") for length in (80, "80 epochs", "1000 steps", "8k clips")]
    assert plans == [plans[0]] * 4
    assert (plans[0].steps, plans[0].warmup_steps, plans[0].cooldown_steps) == (1000, 100, 0)
    stable = plan(epochs=80, schedule="constant", warmup="50 steps", cooldown="25%")
    assert (stable.warmup_steps, stable.cooldown_steps) == (50, 250)
    assert plan(epochs=800).warmup_steps == 1500, "the paper's 120 of 800"
    with pytest.raises(UserError, match=r"warmup 60% .* cooldown 50% .* do not fit into a run of 1000 steps"):
        plan(epochs=80, schedule="constant", warmup="60%", cooldown="50%")
