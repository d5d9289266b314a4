"""Runs of `stmae.pretrain` alone and in two processes on gloo: `python pair.py FOLDER VIDEOS LABELLED PORT...`.

Both processes go through all runs (rank 0 alone through those of one process), and are forks of one, since importing
torch takes longer than any of them. What a run gives, or the words of its error, is kept in FOLDER/<name>-<rank>.json;
the runs lie beside.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from forks import all_of

import stmae
from stmae.data.dataset import BadFile
from stmae.data.loader import Batch
from stmae.data.workers import Verdict
from stmae.engine.distributed import Lost
from stmae.errors import UserError
from stmae.model.config import BlocksConfig
from stmae.model.sizes import SIZES
from stmae.tasks import fit
from stmae.tasks.training import Training

BASE: dict[str, Any] = {
    "model": "vit_tiny", "frames": 4, "image_size": 32, "patch": (2, 16, 16), "decoder_width": 32, "decoder_depth": 1,
    "decoder_heads": 2, "target": "pixels", "epochs": "6 steps", "warmup": 0, "schedule": "constant", "cooldown": 0,
    "batch_size": 8, "repeats": 2, "lr": 1e-3, "clip_grad": 1.0, "workers": 0, "precision": "fp32", "log_every": 1,
    "evaluate_every": 3, "save_every": 3, "holdout": 0.2, "device": "cpu", "threads": 1, "loggers": (),
}  # fmt: skip
FULL: dict[str, Any] = {"ema": 0.9, "checkpoint_activations": True}
FITS = 4  # clips, in the runs that ask for "auto"


@dataclass
class Run:
    """One run: in how many processes, where (its name by default), and what is otherwise while it lasts."""

    processes: int
    options: dict[str, Any] = field(default_factory=dict)
    out: str = ""
    changed: Callable[[int], contextlib.AbstractContextManager[Any]] = lambda rank: contextlib.nullcontext()


def compiled_without_code(rank: int) -> contextlib.AbstractContextManager[Any]:
    """All of compilation but the C++ that takes minutes."""
    return mock.patch("torch.compile", functools.partial(torch.compile, backend="aot_eager"))


def only_rank_0_looks(rank: int) -> contextlib.AbstractContextManager[Any]:
    def estimated(*_: Any) -> int:
        assert rank == 0, "what fits is found once, by rank 0"
        return FITS

    return mock.patch.object(fit, "_estimated", estimated)


def rank_1_has_news(rank: int) -> contextlib.AbstractContextManager[Any]:
    """Its loader gave up on a file, and could not read another."""
    real = Training.watch

    def told(batches: Iterator[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            if rank == 1 and number == 0:
                batch.verdicts.append(Verdict(1, 2, "it ended two workers"))
                batch.bad.append(BadFile("c.mp4", "no video", item=2, used=True))
                batch.shrunk = 3
            yield batch

    def watch(self: Training, batches: Iterator[Batch]) -> Iterator[Batch]:
        return real(self, told(batches))

    return mock.patch.object(Training, "watch", watch)


def own_host(rank: int) -> contextlib.AbstractContextManager[Any]:
    """Each process has a cache of its own, as on two hosts."""
    return mock.patch.dict(os.environ, XDG_CACHE_HOME=os.path.abspath(f"cache-{rank}"))


def another_host(rank: int) -> contextlib.AbstractContextManager[Any]:
    return own_host(7)


RUNS: dict[str, Run] = {
    "one": Run(1, {**FULL, "monitor": "labelled"}),
    "ddp": Run(2, {**FULL, "monitor": "labelled"}),
    "fsdp": Run(2, {**FULL, "monitor": "labelled", "parallel": "fsdp"}),
    "between-one": Run(1, {**FULL, "evaluate_every": 2}),
    "between": Run(2, {**FULL, "evaluate_every": 2, "parallel": "fsdp"}),
    "monitor": Run(2, {"epochs": "1 steps", "holdout": 0.0, "monitor": "labelled", "parallel": "fsdp"}),
    "half": Run(2, {**FULL, "epochs": "3 steps", "parallel": "fsdp"}, out="moved"),
    "moved": Run(1, {**FULL, "epochs": "6 steps", "accumulate": 2}),
    "fp16-one": Run(1, {"precision": "fp16"}),
    "fp16-two": Run(2, {"precision": "fp16"}),
    "compiled": Run(2, {**FULL, "compile": "on"}, changed=compiled_without_code),
    "auto": Run(2, {"batch_size": "auto", "epochs": "1 steps"}, changed=only_rank_0_looks),
    "auto-parts": Run(2, {"batch_size": 16, "accumulate": "auto", "epochs": "1 steps"}, changed=only_rank_0_looks),
    "address": Run(2, {"epochs": "3 steps"}, out="file://bucket", changed=own_host),
    "address-on": Run(1, {"epochs": "6 steps"}, out="file://bucket", changed=another_host),
    "news": Run(2, {"epochs": "2 steps"}, changed=rank_1_has_news),
    "count": Run(2, {"clips": "count"}),
    "content": Run(2, {"clips": "content"}),
}  # fmt: skip


def own_clips(kind: str, rank: int) -> torch.Tensor:
    """Clips from Python that are not the same in both processes."""
    generator = torch.Generator().manual_seed(rank if kind == "content" else 0)
    count = 12 + (rank if kind == "count" else 0)
    return torch.randint(0, 256, (count, 3, 4, 32, 32), dtype=torch.uint8, generator=generator)


def go(name: str, run: Run, videos: str, rank: int) -> dict[str, Any]:
    options = {**BASE, **run.options}
    source: Any = videos
    if "clips" in options:
        source = own_clips(options.pop("clips"), rank)
    out = run.out or name
    if out.startswith("file://"):
        out = f"file://{os.path.abspath(out.removeprefix('file://'))}"
    with run.changed(rank):
        try:
            return {"run": str(stmae.pretrain(source, out=out, **options))}
        except (UserError, Lost) as error:
            return {"error": str(error)}


def work(videos: str, rank: int, ports: list[int]) -> None:
    SIZES["vit_tiny"] = lambda: BlocksConfig(width=48, depth=2, heads=3, mlp_width=96)  # a few layers, not twelve
    torch.use_deterministic_algorithms(True)
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost"}
    job |= {"SLURM_TASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    for (name, run), port in zip(RUNS.items(), ports, strict=True):
        if rank >= run.processes:
            continue
        environment = job | {"MASTER_PORT": str(port)} if run.processes > 1 else {}
        began = time.monotonic()
        with mock.patch.dict(os.environ, environment):
            made = go(name, run, videos, rank)
        print(f"{name}: {time.monotonic() - began:.1f} s")
        Path(f"{name}-{rank}.json").write_text(json.dumps(made))


if __name__ == "__main__":
    folder, videos, labelled, *ports = sys.argv[1:]
    os.chdir(folder)
    os.symlink(labelled, "labelled")
    all_of(lambda rank: work(videos, rank, [int(port) for port in ports]), [0, 0], Path(folder), seconds=400)
