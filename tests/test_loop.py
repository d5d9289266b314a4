"""The training loop: what an update is, exact resume, stopping, steps that are not finite, and the order of things."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_config
from toy import ROWS, WIDTH, Toy, ToyBatch, assert_same, toy_batches, toy_model, toy_run, with_tests

from stmae.data.loader import Batch
from stmae.engine.blocks import checkpoint_blocks
from stmae.engine.distributed import World
from stmae.engine.ema import Ema
from stmae.engine.log import Log
from stmae.engine.loop import StepResult, Stopped, Task, peak_flops, train, update
from stmae.engine.meter import Meter
from stmae.engine.optim import CosineSchedule, build_adamw, parameter_groups
from stmae.engine.precision import LossScale
from stmae.engine.signals import SIGNALS
from stmae.model.mae import MaskedAutoencoder
from stmae.tasks.pretrain import Pretraining


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def determinism() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


# What an update is


@pytest.mark.parametrize("clip_grad", [None, 0.1])
def test_an_update_is_that_of_a_plain_loop(clip_grad: float | None) -> None:
    trained = toy_run(steps=5, clip_grad=clip_grad, dropout=0.0)
    model = toy_model(dropout=0.0)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    schedule, batches = CosineSchedule(1e-3, 2, 5), toy_batches()
    for step in range(5):
        for group in plain.param_groups:
            group["lr"] = schedule(step)
        rows = next(batches).rows
        plain.zero_grad()
        (model(rows) - rows.flip(1)).square().mean().backward()
        if clip_grad:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
        plain.step()
    start = toy_model().state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained.model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)
        assert not torch.equal(tensor, start[name])


def test_accumulation_changes_nothing_but_rounding() -> None:
    whole = toy_run(steps=4, dropout=0.0)

    class InParts(Toy):
        """The same rows, in parts of unequal weight."""

    model = toy_model(dropout=0.0)
    optimizer = build_adamw(parameter_groups(model, 0.05), 1e-3)

    def parts() -> Iterator[ToyBatch]:
        for batch in toy_batches():
            yield ToyBatch(batch.cursor, batch.rows[:10])
            yield ToyBatch(batch.cursor, batch.rows[10:])

    end = train(
        InParts(model), parts(), optimizer, CosineSchedule(1e-3, 2, 4), steps=4, log=Log(), accumulate=2, clip_grad=1.0
    )
    unclipped_norm_is_below_one = toy_run(steps=4, dropout=0.0, clip_grad=1.0)
    assert end.cursor == whole.end.cursor == 4 * ROWS
    assert end.counters["clips"] == whole.end.counters["clips"] == 4 * ROWS
    for name, tensor in unclipped_norm_is_below_one.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=2e-6, rtol=1e-4)


def test_each_group_gets_its_own_share_of_the_scheduled_rate() -> None:
    seen = []

    class Watch(Toy):
        def step(self, batch: ToyBatch) -> StepResult:
            seen.append([group["lr"] for group in optimizer.param_groups])
            return super().step(batch)

    model = toy_model()
    groups = parameter_groups(model, 0.0, lr_scale=lambda name: 0.5 if name.startswith("0.") else 1.0)
    optimizer = build_adamw(groups, 1.0)
    train(Watch(model), toy_batches(), optimizer, lambda step: step / 8, steps=3, log=Log())
    assert seen == [[0.0, 0.0], [0.0625, 0.125], [0.125, 0.25]]


def test_numbers_are_sums_over_weights_and_hooks_come_in_order() -> None:
    trained = toy_run(
        steps=5, log_every=2, save_every=4, evaluate_every=4, picture_every=4, clips_per_epoch=ROWS, dropout=0.0,
        flops_per_clip=1e9, peak_flops=1e15,
    )  # fmt: skip
    calls = [call for call in trained.task.calls if call != "step"]
    end = [("evaluate", 5, None), ("pictures", 5), ("save", 5)]
    middle = [("log", 2), ("log", 4), ("evaluate", 4, None), ("pictures", 4), ("save", 4), ("log", 5)]
    assert calls == [("evaluate", 0, 2), ("pictures", 0), *middle, *end]
    assert trained.task.calls.index("step") == 2, "evaluation and pictures are tried before the first step"
    assert trained.memory.shown == [("reconstructions", step) for step in (0, 4, 5)]
    lines = [(step, values) for step, values in trained.memory.lines if "loss" in values]
    assert [step for step, _ in lines] == [2, 4, 5]
    assert [values["epoch"] for _, values in lines] == [2.0, 4.0, 5.0]
    assert [values["cursor"] for _, values in lines] == [2 * ROWS, 4 * ROWS, 5 * ROWS]
    for _, values in lines:
        assert 0 < values["loss"] < values["largest"] < 10
        assert values["bad_files"] == 2
        assert values["mfu"] == pytest.approx(values["clips_per_second"] * 1e-6)
        assert values["grad_norm"] > 0
        assert values["memory_gb"] > 0.01
    model, rows = toy_model(dropout=0.0), [next(toy_batches(cursor)).rows for cursor in (0, ROWS)]
    # The first step's rate is 0, so the first two losses are those of the initial weights.
    expected = torch.stack([(model(row) - row.flip(1)).square().mean() for row in rows]).mean()
    assert lines[0][1]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert any(text.startswith("step 4/5  epoch 4.00  loss ") and "ETA" in text for text in trained.memory.messages)


def test_a_broken_evaluation_fails_before_the_first_step() -> None:
    class Broken(Toy):
        def evaluate(self, step: int, limit: int | None = None) -> dict[str, float]:
            raise KeyError("labels")

        def step(self, batch: ToyBatch) -> StepResult:
            raise AssertionError("a step was taken")

    with pytest.raises(KeyError, match="labels"):
        toy_run(task=Broken, evaluate_every=100)


def test_batches_must_not_end() -> None:
    model = toy_model()
    optimizer = build_adamw(parameter_groups(model, 0.05), 1e-3)
    few = iter([next(toy_batches())])
    with pytest.raises(RuntimeError, match="ended in step 1"):
        train(Toy(model), few, optimizer, lambda step: 1e-3, steps=3, log=Log())


class Fused(torch.optim.AdamW):
    """The kernel itself is missing on meta; the loop's part of skipping is not."""

    def step(self, closure: None = None) -> None:
        assert self.found_inf.device.type == "meta"
        del self.found_inf
        super().step()


def test_a_step_never_looks_at_a_number() -> None:
    """Meta tensors hold none: whatever asks for one raises."""
    with torch.device("meta"):
        model = toy_model()

    optimizer = Fused(parameter_groups(model, 0.05), 1e-3)
    optimizer.defaults["fused"] = True
    meter = Meter(torch.device("meta"), {})
    task = Toy(model)
    for _ in range(2):
        batch = ToyBatch(1, torch.empty(8, WIDTH, device="meta"))
        with torch.autocast("cpu", torch.bfloat16):
            result = task.step(batch)
        result.loss_sum.backward()
        meter.add(result, 0.0)
        update(optimizer, list(model.parameters()), meter, clip_grad=0.02)
    assert meter.sums.device.type == "meta"
    with pytest.raises((NotImplementedError, RuntimeError)):
        meter.read()


def test_a_real_step_never_looks_at_a_number_either() -> None:
    """The whole of it: uint8 clips to the device, masks from keys, loss scale, clipping, optimiser, averages."""
    with torch.device("meta"):
        model = MaskedAutoencoder(tiny_config()).float()
    checkpoint_blocks(model)
    setup = SimpleNamespace(device=torch.device("meta"), options=SimpleNamespace(monitor=None))
    job = Pretraining.__new__(Pretraining)
    job.setup, job.device, job.model, job.wrapped = setup, setup.device, model, model
    job.options, job.given = SimpleNamespace(color_jitter=0.4), None
    ema, scale = Ema(model, 0.999), LossScale(torch.device("meta"))
    optimizer = Fused(parameter_groups(model, 0.05), 1e-3)
    optimizer.defaults["fused"] = True
    meter = Meter(torch.device("meta"), {})
    shape = model.config.encoder.clip
    for step in range(2):
        clips = torch.zeros(4, 3, *shape.shape, dtype=torch.uint8)
        batch = Batch(clips, torch.arange(4), cursor=4)
        with torch.autocast("cpu", torch.bfloat16):
            result = job.step(batch)
        scale.scaled(result.loss_sum, result.weight).backward()
        meter.add(result, 0.0)
        update(optimizer, list(model.parameters()), meter, 0.02, loss_scale=scale)
        ema.update(step + 1)
    state = [
        *ema.state.values(),
        *scale.state.values(),
        meter.sums,
        *optimizer.state[model.decoder.head.weight].values(),
    ]
    assert {tensor.device.type for tensor in state if tensor.ndim} == {"meta"}
    with pytest.raises((NotImplementedError, RuntimeError)):
        result.loss_sum.item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_host_never_waits_for_the_gpu() -> None:
    model = toy_model().cuda()
    optimizer = build_adamw(parameter_groups(model, 0.05), 1e-3)
    meter, task = Meter(torch.device("cuda"), {}), Toy(model)
    batch = ToyBatch(1, next(toy_batches()).rows.cuda())
    try:
        for step in range(4):
            torch.cuda.set_sync_debug_mode("error" if step else "default")
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                result = task.step(batch)
            result.loss_sum.backward()
            meter.add(result, 0.0)
            update(optimizer, list(model.parameters()), meter, clip_grad=0.02)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert meter.read()["updates"] == 4


# Exact resume


class Killed(BaseException):
    """What a process that is killed does: no handler runs, nothing is saved."""


def dying_task(steps: int) -> type[Toy]:
    class Dying(Toy):
        def step(self, batch: ToyBatch) -> StepResult:
            if self.calls.count("step") == steps:
                raise Killed
            return super().step(batch)

    return Dying


def metric_lines(folder: Path) -> list[dict[str, float]]:
    clock = ("time", "clips_per_second", "data_wait", "memory_gb")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


@pytest.mark.usefixtures("two_threads", "determinism")
@pytest.mark.parametrize("accumulate, fused, demanded", [(1, True, False), (2, True, True), (1, False, False)])
def test_killed_and_resumed_is_bit_for_bit_the_uninterrupted_run(
    tmp_path: Path, accumulate: int, fused: bool, demanded: bool
) -> None:
    torch.use_deterministic_algorithms(demanded)
    # Saves and log lines do not fall together, so that an unfinished log interval is resumed too.
    options = {"accumulate": accumulate, "fused": fused, "save_every": 4, "log_every": 3, "evaluate_every": 5}
    options |= {"clip_grad": 0.5, "steps": 6}
    straight = toy_run(tmp_path / "straight", **options)
    with pytest.raises(Killed):
        toy_run(tmp_path / "killed", task=dying_task(5 * accumulate), **options)
    assert [line["step"] for line in metric_lines(tmp_path / "killed")] == [3, 5]
    resumed = toy_run(tmp_path / "killed", **options)
    assert resumed.start.step == 4
    assert resumed.start.cursor == 4 * ROWS * accumulate
    assert resumed.task.calls.count("step") == 2 * accumulate
    assert_same(resumed.tensors(), straight.tensors())
    assert resumed.end == straight.end
    assert metric_lines(tmp_path / "killed") == metric_lines(tmp_path / "straight")
    assert not resumed.memory.warnings


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    first = toy_run(tmp_path, steps=3)
    again = toy_run(tmp_path, steps=3)
    assert again.start == again.end == first.end
    assert "step" not in again.task.calls
    assert_same(again.tensors(), first.tensors())


# Steps that are not finite


def poisoned(at: int, until: int, what: str) -> type[Toy]:
    class Poisoned(Toy):
        def step(self, batch: ToyBatch) -> StepResult:
            result = super().step(batch)
            if at < self.calls.count("step") <= until:
                if what == "loss":
                    return StepResult(result.loss_sum * float("nan"), result.weight, result.clips, result.numbers)
                if what == "no weight":
                    return StepResult(result.loss_sum, result.weight * 0, result.clips, result.numbers)
                next(self.model.parameters()).register_hook(lambda grad: grad * float("inf"))
            return result

    return Poisoned


@pytest.mark.parametrize("what", ["loss", "gradient", "no weight"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_finite_is_skipped_and_counted(what: str, fused: bool) -> None:
    def end_after_hook(at: int, until: int) -> type[Toy]:
        return poisoned(at, until, what)

    steps = 3 if what == "gradient" else 5  # the hook stays on the parameter, so there the poison comes last
    bad = toy_run(task=end_after_hook(2, 3), steps=steps, fused=fused, log_every=steps, dropout=0.0)

    class Without(Toy):
        """The same batches and rates, where the third has no say."""

        def step(self, batch: ToyBatch) -> StepResult:
            result = super().step(batch)
            if self.calls.count("step") == 3:
                self.before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            return result

    good = toy_run(task=Without, steps=steps, fused=fused, log_every=steps, dropout=0.0)
    state = bad.optimizer.state_dict()["state"]
    assert all(entry["step"].item() == steps - 1 for entry in state.values()), "a skipped step does not count for Adam"
    assert all(tensor.isfinite().all() for tensor in bad.tensors().values())
    if what == "gradient":
        assert_same(bad.model.state_dict(), good.task.before)
    (line,) = [values for _, values in bad.memory.lines]
    assert line["skipped_steps"] == 1
    assert 0 < line["loss"] < 10
    assert len(bad.memory.warnings) == 1
    assert "1 of the last updates" in bad.memory.warnings[0]
    assert bad.end.counters["skipped"] == 1


def test_only_skips_in_a_row_end_a_run() -> None:
    meter = Meter(torch.device("cpu"), {"interval/streak": 5.0, "skipped": 1})
    one = torch.ones(())
    streaks = []
    for finite in (False, True, False, False):
        meter.add(StepResult(one * 3, one * 2, 2, {"extra": one}), 0.0)
        meter.close_update(one, torch.tensor(finite))
        streaks.append(meter.read()["streak"])
    assert streaks == [6, 0, 1, 2]
    values, skipped, streak = meter.close_interval()
    assert (skipped, streak, values["skipped_steps"]) == (3, 2, 4.0)
    assert (values["loss"], values["extra"], values["grad_norm"], values["clips"]) == (1.5, 0.5, 1.0, 8.0)
    assert (values["loss_max"], values["grad_norm_max"]) == (1.5, 1.0)
    emptied = dict.fromkeys((*Meter.FIXED, "extra"), 0.0) | dict.fromkeys(Meter.PEAKS, -math.inf)
    assert meter.read() == emptied | {"streak": 2.0}


# Stopping


class Interrupted(Toy):
    signum = signal.SIGTERM
    times = 1

    def step(self, batch: ToyBatch) -> StepResult:
        if self.calls.count("step") == 2:
            for _ in range(self.times):
                signal.raise_signal(self.signum)
        return super().step(batch)


@pytest.mark.parametrize("signum, status", [(s, 130 if s == signal.SIGINT else 75) for s in SIGNALS])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path: Path, signum: int, status: int) -> None:
    before = signal.getsignal(signum)

    class Asked(Interrupted):
        pass

    Asked.signum = signum
    with pytest.raises(Stopped) as stopped:
        toy_run(tmp_path, task=Asked)
    assert stopped.value.step == 3
    assert stopped.value.exit_status == status
    assert signal.getsignal(signum) is before
    resumed = toy_run(tmp_path)
    assert resumed.start.step == 3
    assert_same(resumed.tensors(), toy_run(tmp_path / "straight").tensors())


def test_all_processes_stop_for_the_signal_of_one(tmp_path: Path) -> None:
    """The world's answer is what counts: here another process hears of SIGUSR1 before its fourth step."""
    heard = iter([0, 0, 0, 0, signal.SIGUSR1])

    class Hearing(World):
        def ask(self, value: Callable[[], int]) -> Callable[[], int]:
            answer = next(heard)
            return lambda: answer

    with pytest.raises(Stopped) as stopped:
        toy_run(tmp_path, world=Hearing())
    assert (stopped.value.step, stopped.value.exit_status) == (4, 75)
    assert toy_run(tmp_path, train_it=False).start.step == 4


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(Interrupted):
        signum = signal.SIGINT
        times = 2

    with pytest.raises(Stopped):
        toy_run(tmp_path / "twice", task=Impatient)  # at the same time: the terminal's and the launcher's
    monkeypatch.setattr("stmae.engine.signals.SAME", -1.0)
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path / "again", task=Impatient)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_stopped_in_the_last_step_is_finished(tmp_path: Path) -> None:
    assert toy_run(tmp_path, task=Interrupted, steps=3).end.step == 3


PROGRAM = """
import sys, time
from pathlib import Path
import torch
from toy import Toy, toy_run
from stmae.engine.loop import Stopped
torch.set_num_threads(1)
class Slow(Toy):
    def step(self, batch):
        time.sleep(0.05)
        print("step", flush=True)
        return super().step(batch)
try:
    toy_run(Path(sys.argv[1]), task=Slow, steps=200, rows=4)
except Stopped as stopped:
    sys.exit(stopped.exit_status)
"""


@pytest.mark.slow
def test_ctrl_c_to_a_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": with_tests(), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for _ in range(3):
        assert process.stdout.readline() == "step\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert time.monotonic() - began < 30
    assert "finishing this step" in errors
    saved = toy_run(tmp_path, steps=200, rows=4, train_it=False)
    assert 3 <= saved.start.step < 200
    assert saved.start.cursor == 4 * saved.start.step


# The rest


def test_peaks_are_found_by_the_name_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops("cpu", torch.bfloat16) is None
    assert peak_flops("cuda", None) is None
    for name, peak in [
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12), ("NVIDIA GeForce GTX 1080", None),
    ]:  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops("cuda", torch.bfloat16) == peak


def test_a_task_needs_only_a_step() -> None:
    task = Task()
    assert task.evaluate(0) == task.pictures(0) == task.on_log(0) == {}
    assert task.on_save(0) is None
    with pytest.raises(NotImplementedError):
        task.step(None)
