"""Training that waits for its data says so once, with the cure that fits."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import Memory, Toy, ToyBatch, toy_batches, toy_model

from stmae.data.names import Names
from stmae.data.sources import Index, Mixture, TensorSource
from stmae.engine.log import Log
from stmae.engine.loop import train
from stmae.engine.optim import CosineSchedule, build_adamw, parameter_groups
from stmae.tasks.waiting import WaitingHint, waiting_cure


def slow(seconds: float) -> Iterator[ToyBatch]:
    for batch in toy_batches(rows=8):
        time.sleep(seconds)
        yield replace(batch, wait_seconds=seconds)


@pytest.mark.parametrize(("seconds", "hints"), [(0.05, 1), (0.0, 0)])
def test_one_hint_where_the_data_is_slow_and_none_where_it_is_not(seconds: float, hints: int) -> None:
    memory = Memory()
    log = Log([memory])
    log.sinks.append(WaitingHint(log, "More workers will help: --workers 7."))
    model = toy_model()
    optimizer = build_adamw(parameter_groups(model, 0.0), 1e-3)
    train(Toy(model), slow(seconds), optimizer, CosineSchedule(1e-3, 1, 8), steps=8, log=log, log_every=2)
    said = [text for text in memory.messages if "waits for data" in text]
    assert len(said) == hints
    if hints:
        assert said[0].endswith("of the time. More workers will help: --workers 7.")
        assert any("data wait" in text for text in memory.messages)  # in every line all the same


def test_the_cure_fits_what_is_done_already() -> None:
    folder = Index(Path("/videos"), Names.of(["a.mp4", "b.mp4"]))

    class Packed(Index):
        @property
        def blocks(self) -> np.ndarray:
            return np.zeros(2, np.int32)

    packed = Packed(Path("/shards"), Names.of(["a.mp4", "b.mp4"]))

    def cure(source: object = folder, workers: int = 7, repeats: int = 4, beside: bool = True) -> str:
        return waiting_cure(source, workers=workers, cores=8, repeats=repeats, beside=beside)  # type: ignore[arg-type]

    assert "--workers 7" in cure(workers=3)
    assert "--workers 7" in cure(packed, workers=3)
    assert "--workers 4" in cure(workers=2, beside=False)
    assert "stmae pack" in cure()
    assert "stmae pack" in cure(Mixture([folder, packed]))  # type: ignore[list-item]
    assert "--repeats 4" in cure(packed, repeats=1)
    assert "stmae plan" in cure(packed)
    assert "__getitem__" in cure(TensorSource(torch.zeros(2, 3, 2, 8, 8, dtype=torch.uint8)))
