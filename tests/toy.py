"""A small regression for the tests of the engine: data from the cursor alone, dropout, work for several threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stmae.engine.checkpoint import Checkpoints, Position
from stmae.engine.ema import Ema
from stmae.engine.log import Log, MetricsFile, Sink, TensorBoard
from stmae.engine.loop import StepResult, Task, train
from stmae.engine.optim import CosineSchedule, build_adamw, parameter_groups
from stmae.engine.precision import LossScale
from stmae.engine.recovery import until_done

WIDTH = 192  # times 4, times ROWS: more than the 32768 elements from which torch splits a pointwise operation
ROWS = 64


@dataclass(frozen=True)
class ToyBatch:
    cursor: int
    rows: Tensor
    wait_seconds: float = 0.0


def with_tests() -> str:
    """PYTHONPATH of a process that imports this file too."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


def toy_batches(cursor: int = 0, rows: int = ROWS) -> Iterator[ToyBatch]:
    while True:
        generator = torch.Generator().manual_seed(cursor)
        cursor += rows
        yield ToyBatch(cursor, torch.randn(rows, WIDTH, generator=generator))


def toy_model(dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * WIDTH, WIDTH), nn.LayerNorm(WIDTH)
    )


class Toy(Task):
    """Predicts each row reversed. `calls` notes what the loop asks for, in order."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: list[Any] = []

    def step(self, batch: Any) -> StepResult:
        self.calls.append("step")
        error = (self.model(batch.rows) - batch.rows.flip(1)).square().mean(1)
        weight = torch.full((), float(len(error)), device=error.device)
        return StepResult(error.sum(), weight, len(error), {"largest": error.detach().amax() * weight})

    def evaluate(self, step: int, limit: int | None = None) -> Mapping[str, float]:
        self.calls.append(("evaluate", step, limit))
        return {"heldout/loss": 1.0}

    def pictures(self, step: int) -> Mapping[str, np.ndarray]:
        self.calls.append(("pictures", step))
        return {"reconstructions": np.zeros((4, 6, 3), np.uint8)}

    def on_log(self, step: int) -> Mapping[str, float]:
        self.calls.append(("log", step))
        return {"bad_files": 2.0}

    def on_save(self, step: int) -> None:
        self.calls.append(("save", step))


class Memory(Sink):
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.shown: list[tuple[str, int]] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append((step, dict(values)))

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        self.shown.append((name, step))


@dataclass
class Trained:
    task: Toy
    optimizer: torch.optim.Optimizer
    memory: Memory
    checkpoints: Checkpoints | None
    start: Position
    more: dict[str, Tensor]
    end: Position | None = None

    @property
    def model(self) -> nn.Module:
        return self.task.model

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name."""
        state = self.optimizer.state_dict()["state"]
        moments = {f"{place}/{key}": value for place, entry in state.items() for key, value in entry.items()}
        return {**self.model.state_dict(), **moments}


def toy_run(
    folder: Path | None = None,
    *,
    task: type[Toy] = Toy,
    steps: int = 8,
    fused: bool | None = None,
    rows: int = ROWS,
    train_it: bool = True,
    warmup: int = 2,
    dropout: float = 0.1,
    keep: int = 3,
    tensorboard: bool = False,
    published: Callable[[], None] | None = None,
    ema: float | None = None,
    fp16: bool = False,
    end: int | None = None,
    **options: Any,
) -> Trained:
    """Builds everything anew, resumes from `folder` where it holds checkpoints, trains until `steps`.

    The schedule is that of a run of `end` steps, if that is not `steps`.
    """
    memory = Memory()
    log = Log([memory])

    def attempt() -> Trained:
        model = toy_model(dropout)
        optimizer = build_adamw(parameter_groups(model, 0.05), 1e-3, fused=fused)
        average = Ema(model, ema) if ema else None
        scale = LossScale(torch.device("cpu")) if fp16 else None
        more = {f"ema/{name}": tensor for name, tensor in average.state.items()} if average else {}
        more |= {f"loss_scale/{name}": tensor for name, tensor in scale.state.items()} if scale else {}
        checkpoints, start = None, Position()
        if folder is not None:
            checkpoints = Checkpoints(
                folder / "checkpoints", model, optimizer, {"name": "toy"}, more=more, keep=keep, warn=log.warning,
                published=published,
            )  # fmt: skip
            start = checkpoints.resume()
            folder.mkdir(exist_ok=True)
            log.sinks[1:] = [MetricsFile(folder / "metrics.jsonl", start.step)]
            if tensorboard:
                log.sinks.append(TensorBoard(folder / "tensorboard", start.step))
        trained = Trained(task(model), optimizer, memory, checkpoints, start, more)
        if train_it:
            trained.end = train(
                trained.task,
                toy_batches(start.cursor, rows),
                optimizer,
                CosineSchedule(1e-3, warmup, end or steps),
                autocast=torch.float16 if fp16 else None,
                loss_scale=scale,
                ema=average,
                steps=steps,
                log=log,
                start=start,
                checkpoints=checkpoints,
                **options,
            )
        return trained

    return until_done(attempt)


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
