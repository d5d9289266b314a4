"""`--batch-size auto` and `--accumulate auto`: what fits, what follows, and that a run keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import random_clip, tiny_config
from torch import Tensor

import stmae
from stmae.errors import UserError
from stmae.model.mae import MaskedAutoencoder
from stmae.runs import read_config
from stmae.tasks import fit
from stmae.tasks.fit import free_memory, kept_bytes, largest, settle_batch
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.pretrain_setup import trial

CPU = torch.device("cpu")


@pytest.mark.parametrize("room", [0, 3, 4, 7, 8, 31, 100, 333, 5000])
def test_the_largest_that_fits_to_an_eighth(room: int) -> None:
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= room

    found = largest(fits, unit=4, most=1024)
    assert found % 4 == 0
    assert found <= room
    best = min(room, 1024) // 4 * 4
    assert found == best if best < 64 else found > best * 7 / 8 - 4
    assert len(tried) < 16


def options(**values: Any) -> PretrainOptions:
    return PretrainOptions("videos", out=Path("x"), **{"repeats": 2, **values})


TRIAL = trial(options(), tiny_config())


def settled(monkeypatch: pytest.MonkeyPatch, most: int, processes: int = 1, **values: Any) -> tuple[int, int]:
    monkeypatch.setattr(fit, "_estimated", lambda *_: most)
    found, told = settle_batch(options(**values), TRIAL, CPU, processes)
    assert f"{most} clips fit at a time" in told
    return found.batch_size, found.accumulate


def test_what_follows_from_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, 12, batch_size="auto") == (12, 1)
    assert settled(monkeypatch, 12, batch_size="auto", accumulate=4) == (48, 4)
    assert settled(monkeypatch, 12, processes=2, batch_size="auto", accumulate=4) == (96, 4)
    assert settled(monkeypatch, 12, batch_size=64, accumulate="auto") == (64, 8)
    assert settled(monkeypatch, 12, batch_size=60, accumulate="auto") == (60, 5)
    assert settled(monkeypatch, 12, processes=2, batch_size=64, accumulate="auto") == (64, 4)
    assert settled(monkeypatch, 100, batch_size=64, accumulate="auto") == (64, 1)
    with pytest.raises(UserError, match="not even the 2 clips of one video"):
        settled(monkeypatch, 1, batch_size="auto")
    with pytest.raises(UserError, match=r"batch_size 6 is not a multiple of 2 repeats x 2 processes\. Choose 8"):
        settled(monkeypatch, 12, processes=2, batch_size=6, accumulate="auto")
    plain = options(batch_size=6)
    assert settle_batch(plain, TRIAL, CPU) == (plain, "")


def test_what_a_step_keeps_is_counted_as_it_is() -> None:
    """The count on the meta device is what a real forward pass keeps."""
    config = tiny_config()
    real: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            real[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model = MaskedAutoencoder(config)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(random_clip(config, batch=4), keys=torch.arange(4))
    with torch.device("meta"):
        counted = kept_bytes(MaskedAutoencoder(config), trial(options(), config), 4)
    assert output.loss.isfinite()
    assert sum(real.values()) == pytest.approx(counted, rel=0.25)


@pytest.mark.slow
def test_an_estimate_grows_with_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(shape=(16, 64, 64), width=64, depth=4)
    found = []
    step = trial(options(), config)
    for megabytes in (80, 200, 10_000):
        monkeypatch.setattr(fit, "free_memory", lambda megabytes=megabytes: megabytes * 10**6)
        found.append(settle_batch(options(batch_size="auto"), step, CPU)[0].batch_size)
    assert 2 <= found[0] < found[1] <= found[2] == fit.CPU_CLIPS
    monkeypatch.setattr(fit, "free_memory", lambda: 80 * 10**6)
    lean = settle_batch(options(batch_size="auto", checkpoint_activations=True), step, CPU)[0].batch_size
    assert lean > found[0]
    assert free_memory() > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_steps_are_tried_on_a_gpu() -> None:
    found, told = settle_batch(options(batch_size="auto", precision="bf16"), TRIAL, torch.device("cuda"))
    assert "tried on this GPU" in told
    assert found.batch_size >= 2


@pytest.mark.slow
def test_a_run_keeps_what_was_found(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "model": "vit_tiny", "frames": 8, "image_size": 32, "patch": (2, 8, 8), "decoder_width": 32,
        "decoder_depth": 1, "decoder_heads": 2, "epochs": "2 steps", "workers": 0, "precision": "fp32",
    }  # fmt: skip
    monkeypatch.setattr(fit, "_estimated", lambda *_: 8)
    run = stmae.pretrain(videos, out=tmp_path / "run", batch_size="auto", **small)
    assert read_config(run / "config.yaml")["batch_size"] == 8
    assert (
        "8 clips of 4 videos (8 clips fit at a time: an estimate; half of the free memory)"
        in run.joinpath("log.txt").read_text()
    )
    monkeypatch.setattr(fit, "_estimated", lambda *_: pytest.fail("looked for again"))
    stmae.pretrain(videos, out=tmp_path / "run", batch_size="auto", **{**small, "epochs": "3 steps"})
    assert read_config(run / "config.yaml")["batch_size"] == 8


def test_two_autos_are_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size and accumulate are both auto"):
        stmae.pretrain(videos, out=tmp_path / "run", batch_size="auto", accumulate="auto")
