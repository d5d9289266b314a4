"""No option is accepted and ignored: each, changed alone, changes what the run is made of or what it does."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import stmae
from stmae.data.sources import names_of
from stmae.engine.blocks import blocks_of
from stmae.engine.loop import Position
from stmae.errors import UserError
from stmae.model.config import BlocksConfig
from stmae.model.sizes import SIZES
from stmae.tasks import train as module
from stmae.tasks.pretrain_options import PretrainOptions

BASE: dict[str, Any] = {
    "preset": "paper",  # so that no preset has a value already
    "model": "vit_tiny", "frames": 8, "image_size": 32, "patch": (2, 8, 8), "decoder_width": 64, "decoder_depth": 1,
    "decoder_heads": 2, "target": "normalized_pixels", "epochs": 10, "batch_size": 8, "lr": 1e-3, "workers": 0,
    "precision": "fp32",
}  # fmt: skip

CHANGES: dict[str, Any] = {
    "seed": 1,
    "precision": "bf16",
    "frames": 4,
    "stride": 2.0,
    "image_size": 48,
    "workers": 1,
    "sampling": "segments",
    "order": "blocks",
    "model": "vit_small",
    "patch": (4, 8, 8),
    "mask_ratio": 0.75,
    "target": "pixels",
    "mask": "block",
    "decoder": "cross_attention",
    "decode": "running_cell",
    "predict_frames": "all",
    "positions": "joint",
    "position_values": "sincos",
    "class_token": False,
    "mask_tokens_in_encoder": True,
    "decoder_width": 32,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "epochs": 20,
    "warmup": 0,
    "schedule": "linear",
    "end_lr": 1e-5,
    "layer_decay": 0.75,
    "group_lr": ("decoder=0.5",),
    "group_decay": ("decoder=0.5",),
    "batch_size": 16,
    "accumulate": 2,
    "lr": 1e-4,
    "weight_decay": 0.1,
    "betas": (0.9, 0.999),
    "clip_grad": None,
    "ema": 0.99,
    "compile": "on",
    "checkpoint_activations": True,
    "threads": 3,
    "repeats": 2,
    "crop_area": (0.1, 0.2),
    "crop_aspect": (1.0, 1.0),
    "flip": False,
    "color_jitter": 0.6,
    "holdout": 0.4,
    "save_every": 7,
    "keep": 5,
    "file_timeout": 0,
    "milestone_every": 7,
    "max_bad_steps": 7,
    "loggers": (),
    "log_every": 7,
    "evaluate_every": 7,
}
# These have tests of their own: what they do is not a part of the run, or needs a run or a file to show it.
ELSEWHERE = {
    "videos", "out", "preset", "config", "init",  # below
    "root", "media", "subset", "value_range", "checked", "leave_out", "weights",  # below: they need other sources
    "device",  # below: this machine may have a single one
    "max_bad_share",  # test_pretrain.py: stops the run
    "cache", "cache_size",  # test_addresses.py: they need sources that lie elsewhere
    "parallel",  # test_distributed.py: nothing for one process
    "monitor",  # test_monitor.py
    "cooldown",  # below: for one schedule only
    "decode_share", "tokenizer", "teacher",  # below: for one choice only
}  # fmt: skip


# What the loop is given that is another object each time; what is in it is looked at above.
OBJECTS = {"log", "start", "checkpoints", "device", "ema", "model"}


class Made(Exception):
    """Carries what the run was made of out of the call."""


def digest(tensors: dict[str, torch.Tensor]) -> str:
    parts = [f"{name}{tuple(t.shape)}".encode() + t.detach().numpy().tobytes() for name, t in sorted(tensors.items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture
def fingerprint(monkeypatch: pytest.MonkeyPatch, videos: Path, tmp_path: Path) -> Iterator[Any]:
    """A function of options: runs pretrain up to its loop, and says what the loop was given."""
    caught: dict[str, Any] = {}

    def loader(dataset: Any, **keywords: Any) -> Any:
        made = real_loader(dataset, **{**keywords, "workers": 0})
        caught["loader"] = made
        caught["workers"], caught["timeout"] = keywords["workers"], keywords["timeout"]
        return made

    def train(job: Any, batches: Any, optimizer: Any, schedule: Any, **keywords: Any) -> Position:
        batch = next(batches)
        blocks = [("forward" in vars(block), block._compiled_call_impl is not None) for block in blocks_of(job.model)]
        for block in blocks_of(job.model):
            block._compiled_call_impl = None  # what compiling does has a test of its own
        with torch.autocast("cpu", keywords["autocast"] or torch.bfloat16, enabled=keywords["autocast"] is not None):
            job.model.eval()
            loss = job.step(batch).loss_sum
        caught.update(
            weights=digest(job.model.state_dict()),
            batch=digest({"clips": batch.clips.contiguous(), "keys": batch.keys}),
            held_out=None if job.setup.held_out is None else [*names_of(job.setup.held_out)],
            loss=loss.item(),
            groups=[{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
            schedule=schedule,
            keep=keywords["checkpoints"].keep,
            loggers=[type(sink).__name__ for sink in keywords["log"].sinks],
            threads=torch.get_num_threads(),
            more=sorted(keywords["checkpoints"].more),
            blocks=blocks,
            rest={
                k: v for k, v in keywords.items() if k not in ("log", "start", "checkpoints", "device", "ema", "model")
            },
        )
        return Position()

    for number, size in enumerate(("vit_tiny", "vit_small")):  # made so often that their real depth would take minutes
        small = BlocksConfig(width=48 + 48 * number, depth=2, heads=3, mlp_width=96)
        monkeypatch.setitem(SIZES, size, lambda small=small: small)
    real_loader = module.ClipLoader
    monkeypatch.setattr(module, "ClipLoader", loader)
    monkeypatch.setattr(module, "train", train)
    runs = iter(range(1000))

    def run(**options: Any) -> dict[str, Any]:
        caught.clear()
        stmae.pretrain(options.pop("videos", videos), out=tmp_path / f"run-{next(runs)}", **{**BASE, **options})
        caught.pop("loader").close()
        return dict(caught)

    return run


def test_every_option_is_here() -> None:
    assert {field.name for field in dataclasses.fields(PretrainOptions)} == CHANGES.keys() | ELSEWHERE


@pytest.mark.slow
def test_options_change_the_run(fingerprint: Any) -> None:
    base = fingerprint()
    assert fingerprint() == base  # nothing else makes a difference
    ignored = [name for name, value in CHANGES.items() if fingerprint(**{name: value}) == base]
    assert not ignored


@pytest.mark.slow
def test_preset_config_and_init_change_the_run(fingerprint: Any, videos: Path, tmp_path: Path) -> None:
    base = fingerprint()
    (tmp_path / "options.yaml").write_text("weight_decay: 0.3\nlr: 1e-5\n")
    from_file = fingerprint(config=tmp_path / "options.yaml")
    assert from_file["groups"] != base["groups"]
    assert from_file["schedule"] == base["schedule"]  # lr is given by keyword, which goes first
    assert fingerprint(preset="paper") != fingerprint(preset="demo")


@pytest.mark.slow
def test_the_cooldown_is_that_of_the_constant_schedule(fingerprint: Any) -> None:
    short, long = (fingerprint(schedule="constant", cooldown=share)["schedule"] for share in ("20%", "50%"))
    assert (short.cooldown_steps, long.cooldown_steps) == (short.steps // 5, round(short.steps / 2))
    assert short != fingerprint()["schedule"]


def random_walls(keys: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """A mask of one's own: a time step is hidden if the key is odd, another if it is even."""
    return (torch.arange(grid[0]) == keys[:, None] % 2).repeat_interleave(grid[1] * grid[2], dim=1)


@pytest.mark.slow
def test_options_of_one_choice_change_the_run(fingerprint: Any, tmp_path: Path) -> None:
    """What is hidden, predicted and decoded changes the loss of the first step, and nothing else does."""

    class Tokenizer:
        def __init__(self, codes: int) -> None:
            self.codes = codes

        def __call__(self, clips: torch.Tensor) -> torch.Tensor:
            return clips[:, 0, ::2, ::8, ::8].flatten(1).long() % self.codes

    np.save(tmp_path / "upper.npy", np.arange(4)[:, None] < np.full(4, 2))
    Image.fromarray(np.array([[255, 0]], np.uint8)).save(tmp_path / "left.png")
    losses = {
        repr(options): fingerprint(**options)["loss"]
        for options in (
            {},
            *({"mask": kind} for kind in ("space", "time", "block", "motion")),
            {"mask": random_walls}, {"mask": tmp_path / "upper.npy"}, {"mask": tmp_path / "left.png"},
            {"mask": np.arange(64) < 50}, {"mask": "test_every_option:random_walls"},
            {"target": "hog"}, {"target": "pixels"}, {"target": "normalized_pixels_per_channel"},
            {"target": "tokens", "tokenizer": Tokenizer(5)}, {"target": "tokens", "tokenizer": Tokenizer(6)},
            {"target": "teacher", "teacher": "self", "ema": 0.9},
            {"decode": "random"}, {"decode": "running_cell"}, {"decode": "random", "decode_share": 0.3},
            {"mask_tokens_in_encoder": True}, {"decoder": "cross_attention"},
            {"mask_tokens_in_encoder": True, "decoder": "linear"},
        )
    }  # fmt: skip
    assert losses[repr({"mask": random_walls})] == losses.pop(repr({"mask": "test_every_option:random_walls"}))
    assert len(set(losses.values())) == len(losses), losses


@pytest.mark.slow
def test_options_of_the_source_change_the_run(fingerprint: Any, videos: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in videos.iterdir())
    listed = tmp_path / "list.csv"
    listed.write_text("path,split\n" + "".join(f"{name},{'train' if i else 'test'}\n" for i, name in enumerate(names)))
    (tmp_path / "check.csv").write_text(f"path,flags\n{names[0]},static\n{names[1]},cuts\n")
    shutil.copytree(videos, tmp_path / "mixed")
    for i in range(4):
        Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(tmp_path / "mixed" / f"{i}.png")
    np.save(tmp_path / "array.npy", np.random.default_rng(0).integers(0, 999, (20, 40, 40), np.uint16))
    listing = {"videos": listed, "root": videos}
    for base, changes in (
        (listing, {"subset": "all"}),
        (listing, {"root": tmp_path / "mixed", "subset": "test"}),
        ({"videos": videos}, {"checked": tmp_path / "check.csv", "leave_out": ("static",)}),
        ({"videos": videos, "checked": tmp_path / "check.csv", "leave_out": ("static",)}, {"leave_out": ("cuts",)}),
        ({"videos": tmp_path / "mixed"}, {"media": ("images", "videos")}),
        ({"videos": tmp_path / "array.npy", "holdout": 0}, {"value_range": (0, 999)}),
        ({"videos": [videos, tmp_path / "mixed"]}, {"weights": (2, 1)}),
    ):
        assert fingerprint(**base) != fingerprint(**{**base, **changes}), changes


def test_a_device_that_is_not_there_is_refused(videos: Path, tmp_path: Path) -> None:
    missing = [
        name
        for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        if not there
    ]
    for name in missing:
        with pytest.raises(UserError, match=f'device "{name}" is not available'):
            stmae.pretrain(videos, out=tmp_path / "run", device=name)
    assert missing or torch.cuda.is_available()
