"""What the tests of several processes run in each: `python many.py FOLDER PORT...`, a port for each scenario.

A scenario is a function of a `World`; what it returns is kept in FOLDER/<name>-<rank>.pt. The processes are
started once for all scenarios, and are forks of one, since importing torch takes longer than any of them.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from forks import all_of
from tiny import tiny, tiny_config
from torch import Tensor, nn
from toy import Memory

from stmae.data.dataset import VideoClips
from stmae.data.loader import Batch, ClipLoader
from stmae.data.sources import TensorSource
from stmae.engine import distributed
from stmae.engine.checkpoint import Checkpoints, Position
from stmae.engine.distributed import ALONE, Lost, World, together
from stmae.engine.launch import Launch
from stmae.engine.log import Log
from stmae.engine.loop import StepResult, Stopped, Task, train
from stmae.engine.optim import build_adamw, parameter_groups
from stmae.engine.parallel import full_copies, whole, wrap
from stmae.engine.recovery import until_done
from stmae.errors import UserError
from stmae.model.config import ClassifierConfig
from stmae.model.heads import Classifier
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.share import share

BATCH, REPEATS, CLASSES = 16, 2, 5
CPU = torch.device("cpu")
SECONDS = {"hangs": 2, "fails": 5}  # that an operation may take


class Learner(Task):
    """Pre-training or classification in float64; notes the keys and masks it is given."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        self.model, self.kind = model, kind
        self.keys: list[Tensor] = []
        self.hidden: list[Tensor] = []

    def step(self, batch: Batch) -> StepResult:
        self.keys.append(batch.keys)
        if self.kind == "classifier":
            logits = self.model(batch.clips)
            loss = F.cross_entropy(logits, batch.keys.remainder(CLASSES), reduction="sum")
            return StepResult(loss, torch.tensor(float(len(batch.keys))), len(batch.keys))
        output = self.model(batch.clips, keys=batch.keys)
        self.hidden.append(output.hidden)
        weight = torch.tensor(float(output.hidden_ids.numel()))
        return StepResult(output.loss * weight, weight, len(batch.keys))


def build(kind: str, dropout: float = 0.0) -> nn.Module:
    if kind == "mae":
        return tiny(width=32, depth=2)
    torch.manual_seed(1)
    config = ClassifierConfig(encoder=tiny_config(width=32, depth=2).encoder, classes=CLASSES, dropout=dropout)
    return Classifier(config).double()


def loader(world: World, accumulate: int, cursor: int = 0) -> ClipLoader:
    """Clips in float64, which the model takes for normalised."""
    generator = torch.Generator().manual_seed(3)
    clips = torch.randn(20, 3, 8, 16, 24, generator=generator, dtype=torch.float64)
    dataset = VideoClips(
        TensorSource(clips), frames=8, stride=1, image_size=(16, 24), repeats=REPEATS, seed=5
    )  # fmt: skip
    size = BATCH // (accumulate * world.size)
    return ClipLoader(dataset, batch_size=size, cursor=cursor, rank=world.rank, world_size=world.size)


def learn(
    world: World,
    *,
    kind: str = "mae",
    strategy: str = "ddp",
    accumulate: int = 1,
    steps: int = 1,
    folder: Path | None = None,
    clip_grad: float | None = None,
    dropout: float = 0.0,
    wrapper: Callable[[Iterator[Batch]], Iterator[Batch]] = lambda batches: batches,
    learner: type[Learner] = Learner,
    save_every: int = 0,
    max_bad_steps: int = 20,
) -> dict[str, Any]:
    """Trains up to step `steps`, going on from `folder`; all that may depend on the world, whole, on rank 0."""
    model = build(kind, dropout)
    wrapped = wrap(model, world, strategy)
    optimizer = build_adamw(parameter_groups(model, 0.05), 1e-2)
    memory, checkpoints, start = Memory(), None, Position()
    if folder is not None:
        checkpoints = Checkpoints(folder, model, optimizer, {"name": "many"}, world=world, warn=memory.warning)
        start = checkpoints.resume()
    task = learner(wrapped, kind)
    end = train(
        task,
        wrapper(iter(loader(world, accumulate, start.cursor))),
        optimizer,
        lambda step: 1e-2 * (1 - step / 8),
        steps=steps,
        start=start,
        log=Log([memory]),
        checkpoints=checkpoints,
        world=world,
        model=wrapped,
        accumulate=accumulate,
        clip_grad=clip_grad,
        log_every=1,
        save_every=save_every,
        max_bad_steps=max_bad_steps,
    )
    gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    keys, hidden = (in_order(world, parts, accumulate) for parts in (task.keys, task.hidden))
    return {
        "gradients": gradients,
        "weights": full_copies(model.state_dict(), world),
        "keys": keys,
        "hidden": hidden,
        "losses": [values["loss"] for _, values in memory.lines],
        "norms": [values["grad_norm"] for _, values in memory.lines],
        "clips": [values["clips"] for _, values in memory.lines],
        "skipped": [values["skipped_steps"] for _, values in memory.lines],
        "start": start.step,
        "cursor": end.cursor,
    }


def in_order(world: World, parts: list[Tensor], accumulate: int) -> list[Tensor]:
    """The global batches: of each step all micro-batches, of each of these the ranks' shares."""
    ranks = world.gather(parts)
    steps = [list(range(at, at + accumulate)) for at in range(0, len(parts), accumulate)]
    return [torch.cat([ranks[rank][micro] for micro in step for rank in range(world.size)]) for step in steps]


# Scenarios: (name, processes, what each does) -----------------------------------------------------------------------


def one_rank_is_told_to_stop(world: World, folder: Path) -> dict[str, Any]:
    class Told(Learner):
        def step(self, batch: Batch) -> StepResult:
            if world.rank == 1 and len(self.keys) == 1:
                signal.raise_signal(signal.SIGTERM)
            return super().step(batch)

    try:
        learn(world, steps=6, folder=folder / "told", learner=Told)
    except Stopped as stopped:
        return {"step": stopped.step, "status": stopped.exit_status}
    raise AssertionError("not stopped")


def one_rank_is_not_finite(world: World, folder: Path) -> dict[str, Any]:
    class Poisoned(Learner):
        def step(self, batch: Batch) -> StepResult:
            result = super().step(batch)
            poison = float("nan") if world.rank == 1 and len(self.keys) == 2 else 1.0
            return StepResult(result.loss_sum * poison, result.weight, result.clips)

    made = learn(world, steps=3, learner=Poisoned)
    return {"skipped": made["skipped"], "weights": made["weights"]}


def one_rank_is_never_finite(world: World, folder: Path) -> dict[str, Any]:
    """Steps 5 and 6, and nothing before or after: the clips are to blame."""

    class Poisoned(Learner):
        def step(self, batch: Batch) -> StepResult:
            result = super().step(batch)
            bad = world.rank == 1 and batch.cursor in (5 * BATCH // REPEATS, 6 * BATCH // REPEATS)
            return StepResult(result.loss_sum * (float("nan") if bad else 1.0), result.weight, result.clips)

    options: dict[str, Any] = {"steps": 9, "learner": Poisoned, "strategy": "fsdp", "save_every": 2, "max_bad_steps": 2}
    attempts: list[int] = []

    def attempt() -> dict[str, Any]:
        attempts.append(1)
        return learn(world, folder=folder / "rolled", **options)

    made = until_done(attempt)
    return {"attempts": len(attempts), "start": made["start"], "cursor": made["cursor"], "losses": made["losses"][-3:]}


def begun_in_vain(world: World, folder: Path) -> dict[str, Any]:
    raise AssertionError("rank 0 failed before this")


def started_otherwise(world: World, folder: Path) -> dict[str, Any]:
    (folder / "videos").mkdir(exist_ok=True)
    options = PretrainOptions(folder / "videos", out=folder / "run", batch_size=8 << world.rank)
    share(None, options, CPU, world)
    raise AssertionError("different options were accepted")


def only_first_fails(world: World, folder: Path) -> dict[str, Any]:
    def work() -> None:
        raise UserError("the disk is full.", "Make room.")

    try:
        world.first(work)
    except UserError as error:
        return {"error": str(error), "sum": world.sum_(torch.tensor(float(world.rank + 1))).item()}
    raise AssertionError("no error")


def another_hangs(world: World, folder: Path) -> dict[str, Any]:
    if world.rank == 1:
        time.sleep(5)
        return {}
    learn(world, steps=2)
    raise AssertionError("went on without rank 1")


def another_fails(world: World, folder: Path) -> dict[str, Any]:
    class Failing(Learner):
        def step(self, batch: Batch) -> StepResult:
            if world.rank == 1 and len(self.keys) == 1:
                raise UserError("50 videos in a row could not be read.", "Look at the files.")
            return super().step(batch)

    learn(world, steps=4, learner=Failing)
    raise AssertionError("went on without rank 1")


def another_is_killed(world: World, folder: Path) -> dict[str, Any]:
    class Dying(Learner):
        def step(self, batch: Batch) -> StepResult:
            if world.rank == 1 and len(self.keys) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step(batch)

    learn(world, steps=4, learner=Dying)
    raise AssertionError("went on without rank 1")


GRADIENTS = [
    (1, "ddp", 1), (1, "ddp", 2), (1, "ddp", 4), (2, "ddp", 1), (2, "ddp", 2), (4, "ddp", 1), (4, "ddp", 2),
    (2, "fsdp", 2), (4, "fsdp", 1), (4, "hybrid", 1), (4, "hybrid", 2),
]  # fmt: skip
FEWER = [(1, "ddp", 1), (1, "ddp", 2), (4, "ddp", 2), (2, "fsdp", 2), (4, "hybrid", 1)]
WORLDS = {"mae": GRADIENTS, "classifier": FEWER}
MOVES = [(1, "ddp", 1), (2, "ddp", 1), (2, "fsdp", 1), (4, "hybrid", 2), (4, "ddp", 1), (2, "fsdp", 2), (1, "ddp", 1)]
Scenario = tuple[str, int, Callable[[World, Path], Mapping[str, Any]]]


def scenarios() -> list[Scenario]:
    made: list[Scenario] = []
    for kind, worlds in WORLDS.items():
        for size, strategy, accumulate in worlds:
            options = {"kind": kind, "strategy": strategy, "accumulate": accumulate}
            made.append((f"{kind}-{size}-{strategy}-{accumulate}", size, functools.partial(_learn, **options)))
    for size, strategy in ((1, "ddp"), (2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "hybrid")):
        options = {"strategy": strategy, "steps": 6, "clip_grad": 0.02}
        made.append((f"curve-{size}-{strategy}", size, functools.partial(_learn, **options)))
    for size, accumulate in ((1, 2), (2, 1)):
        options = {"kind": "classifier", "accumulate": accumulate, "dropout": 0.5, "steps": 3}
        made.append((f"dropout-{size}", size, functools.partial(_learn, **options)))
    for number, (size, strategy, accumulate) in enumerate(MOVES, 1):
        options = {"strategy": strategy, "accumulate": accumulate, "steps": number, "clip_grad": 0.02, "where": "moved"}
        made.append((f"moved-{number}", size, functools.partial(_learn, **options)))
    made.append(("stop", 2, one_rank_is_told_to_stop))
    made.append(("nan", 2, one_rank_is_not_finite))
    made.append(("rolled", 2, one_rank_is_never_finite))
    made.append(("first", 4, only_first_fails))
    made.append(("vain", 4, begun_in_vain))
    made.append(("otherwise", 2, started_otherwise))
    made.append(("fails", 2, another_fails))
    made.append(("hangs", 2, another_hangs))
    made.append(("killed", 2, another_is_killed))
    return made


def _learn(world: World, folder: Path, where: str | None = None, **options: Any) -> dict[str, Any]:
    return learn(world, folder=folder / where if where else None, **options)


def _find_no_videos() -> None:
    raise UserError("there are no videos.", "Look elsewhere.")


def run(folder: Path, rank: int, ports: list[int]) -> None:
    distributed.LAST_WORDS = 1.5  # seconds; all are on one machine
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for (name, size, work), port in zip(scenarios(), ports, strict=True):
        if rank >= size:
            continue
        launch = Launch(rank, size, rank % 2, min(size, 2), "127.0.0.1", port, "Slurm")
        began = time.monotonic()
        try:
            begin = _find_no_videos if name == "vain" else lambda: None
            # What fails in one process is heard of in the others when it ends, or else after so many seconds.
            with together(CPU, begin, launch=launch, timeout=SECONDS.get(name, 60)) as (world, _):
                assert (world is ALONE) or world.size == size
                made: Mapping[str, Any] = work(world, folder)
        except Lost as lost:
            made = {"lost": str(lost), "seconds": time.monotonic() - began}
        except UserError as error:
            made = {"error": str(error), "seconds": time.monotonic() - began}
        torch.save(dict(made), folder / f"{name}-{rank}.pt")


if __name__ == "__main__":
    top, ports = Path(sys.argv[1]), [int(port) for port in sys.argv[2:]]
    # "killed" is the last scenario.
    all_of(lambda rank: run(top, rank, ports), [0, -signal.SIGKILL, 0, 0], top, seconds=500)
