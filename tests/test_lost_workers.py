"""Training goes on when workers do not: killed ones change nothing, and what was decided on deadly files is kept."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_pretrain import SMALL
from test_workers import Disturbed

import stmae
from stmae.data.loader import Batch, ClipLoader
from stmae.tasks import train as module
from stmae.tasks.setup import Setup

OPTIONS: dict[str, Any] = {**SMALL, "batch_size": 4, "repeats": 2, "holdout": 0, "epochs": 6, "max_bad_share": 0.5}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "encoder.safetensors")


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_killed_workers_change_nothing(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = stmae.pretrain(videos, out=tmp_path / "calm", **OPTIONS)
    killed = []

    class Attacked(ClipLoader):
        def __next__(self) -> Batch:
            batch = super().__next__()
            if len(killed) < 3:
                killed.append(self.pids[0])
                os.kill(self.pids[0], signal.SIGKILL)
            return batch

    monkeypatch.setattr(module, "ClipLoader", Attacked)
    disturbed = stmae.pretrain(videos, out=tmp_path / "disturbed", **{**OPTIONS, "workers": 2})
    assert_equal(weights(calm), weights(disturbed))
    assert len(killed) == 3
    log = (disturbed / "log.txt").read_text()
    assert log.count("was ended by SIGKILL") >= 2  # two of them at once may be the same news
    assert not (disturbed / "verdicts").exists()


@pytest.mark.slow
def test_a_resumed_run_heeds_the_verdicts(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file hangs when a run is begun; when the steps since its last checkpoint are done again, it would be quick."""

    class Ended(Exception):
        pass

    def ending(*arguments: Any, **keywords: Any) -> Any:
        checkpoints = keywords["checkpoints"]
        save = checkpoints.save

        def save_and_end(position: Any, **more: Any) -> None:
            save(position, **more)
            if position.step == 6:
                checkpoints.wait()
                raise Ended

        checkpoints.save = save_and_end
        return train(*arguments, **keywords)

    def run(trouble: str) -> dict[str, torch.Tensor]:
        dataset = Disturbed(videos, trouble, 2, size=(32, 32), frames=8)
        monkeypatch.setattr(Setup, "training_clips", lambda self: dataset)
        workers = 1 if trouble else 0
        with pytest.raises(Ended):
            stmae.pretrain(videos, out=tmp_path / "run", **{**OPTIONS, "workers": workers, "file_timeout": 1.0})
        newest = tmp_path / "run/checkpoints/step-000006"
        found = load_file(newest / "model.safetensors")
        shutil.rmtree(newest)
        return found

    train = module.train
    monkeypatch.setattr(module, "train", ending)
    first = run("sleep")
    kept = (tmp_path / "run/verdicts/0.csv").read_text()
    assert kept.count(",2,decoding it took longer than 1 s\n") == 2  # each pass over six videos is three steps
    assert_equal(run(""), first)
    assert (tmp_path / "run/verdicts/0.csv").read_text() == kept
    shutil.rmtree(tmp_path / "run/verdicts")
    other = run("")
    assert not all(torch.equal(other[name], first[name]) for name in first)
