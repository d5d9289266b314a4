"""What the paper varies, through `stmae pretrain`: each choice runs, goes on exactly, and shares a batch out evenly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import random_clip, tiny

import stmae
from stmae.errors import UserError
from stmae.presets import PRESETS
from stmae.tasks import pretrain as module
from stmae.tasks.choices import named
from stmae.tasks.outside import open_mask, open_tokenizer

SMALL: dict[str, Any] = {
    "preset": "paper", "model": "vit_tiny", "frames": 4, "image_size": 32, "patch": (2, 8, 8), "decoder_width": 32,
    "decoder_depth": 1, "decoder_heads": 2, "epochs": "6 steps", "warmup": 0, "batch_size": 4, "repeats": 2, "lr": 1e-3,
    "workers": 0, "precision": "fp32", "save_every": 2, "evaluate_every": 3, "holdout": 0.2, "loggers": (),
}  # fmt: skip


class Greys:
    """A tokenizer: how bright a patch's first pixel is, in 6 steps."""

    codes = 6

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        return clips[:, 0, ::2, ::8, ::8].flatten(1).long() * 6 // 256


def corner(keys: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """A mask of one's own: all but the corner that the key says."""
    t, h, w = grid
    place = torch.stack([keys % 2 * (h - 1) * w, (keys // 2) % 2 * (w - 1)]).sum(dim=0)
    return (torch.arange(h * w) != place[:, None]).repeat(1, t)


CHOICES: dict[str, dict[str, Any]] = {
    "boxes, tokens, running cells, jitter": {
        "mask": "block", "target": "tokens", "tokenizer": Greys(), "decode": "running_cell", "color_jitter": 0.4,
    },
    "one's own mask, own teacher, cross-attention": {
        "mask": corner, "target": "teacher", "teacher": "self", "ema": 0.9, "decoder": "cross_attention",
        "decode": "random",
    },
    "motion, HOG by a linear layer": {
        "mask": "motion", "target": "hog", "mask_tokens_in_encoder": True, "decoder": "linear",
    },
}  # fmt: skip
choices = pytest.mark.parametrize("options", CHOICES.values(), ids=CHOICES.keys())


def numbers(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "explained", "correct", "held_out_loss", "held_out_explained", "held_out_correct")
    return [{name: line[name] for name in kept if name in line} for line in lines]


@pytest.mark.slow
@choices
def test_each_choice_goes_on_exactly(
    options: dict[str, Any], videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stmae.pretrain(videos, out=tmp_path / "whole", **SMALL, **options)
    assert all(np.isfinite(list(line.values())).all() for line in numbers(whole))
    with monkeypatch.context() as patched:
        step, left = module.Pretraining.step, iter(range(4))

        def cut(job: Any, batch: Any) -> Any:
            if next(left, None) is None:
                raise RuntimeError("power cut")
            return step(job, batch)

        patched.setattr(module.Pretraining, "step", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            stmae.pretrain(videos, out=tmp_path / "broken", **SMALL, **options)
    broken = stmae.pretrain(videos, out=tmp_path / "broken", **SMALL, **options)
    assert "going on from step" in (broken / "log.txt").read_text()
    one, two = (load_file(run / "encoder.safetensors") for run in (whole, broken))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert numbers(whole)[-1] == numbers(broken)[-1]


SPLIT = {
    **{mask: {"mask": mask} for mask in ("agnostic", "space", "time", "block", "motion")},
    "running cells": {"decode": "running_cell", "decode_share": 0.4},
    "cross-attention": {"decoder": "cross_attention", "decode": "random"},
    "linear": {"decoder": "linear", "mask_tokens_in_encoder": True},
    "HOG": {"target": "hog"},
    "tokens": {"target": "tokens", "given_values": 5},
    "teacher": {"target": "teacher", "given_values": 5},
}


@pytest.mark.parametrize("options", SPLIT.values(), ids=SPLIT.keys())
def test_a_batch_shared_out_among_processes_gives_the_same_gradient(options: dict[str, Any]) -> None:
    """Each sample hides and decodes as many tokens as any other, so a mean of means is the mean."""
    model = tiny(**options)
    clips, keys = random_clip(model.config, batch=4), torch.tensor([7, -8, 1 << 60, 3])
    given = {
        "tokens": torch.arange(4 * 24).view(4, 24) % 5,
        "teacher": torch.randn(4, 24, 5, generator=torch.Generator().manual_seed(0)),
    }.get(model.config.target)

    def gradient(rows: slice) -> torch.Tensor:
        model.zero_grad()
        model(clips[rows], keys=keys[rows], given=None if given is None else given[rows]).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole, parts = gradient(slice(0, 4)), [gradient(slice(0, 2)), gradient(slice(2, 4))]
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mae_st", "videomae", "videomae_v2", "maskfeat", "bevt", "image_mae", "crossmae"])
def test_each_preset_trains(name: str, videos: Path, tmp_path: Path) -> None:
    own = {"patch": (1, 8, 8), "frames": 1} if name == "image_mae" else {"patch": (2, 8, 8), "frames": 4}
    small = {
        **{option: SMALL[option] for option in ("model", "image_size", "workers", "precision", "loggers", "holdout")},
        **own, "decoder_width": 64, "decoder_heads": 4, "decoder_depth": 1, "epochs": "2 steps", "warmup": 0,
        "batch_size": 4,
    }  # fmt: skip
    tokenizer = {"tokenizer": Greys()} if name == "bevt" else {}
    run = stmae.pretrain(videos, out=tmp_path / "run", preset=name, **small, **tokenizer)
    saved = (run / "config.yaml").read_text()
    for option, value in PRESETS[name](None).items():  # type: ignore[arg-type]
        if option not in small and isinstance(value, str):
            assert f"{option}: {value}" in saved
    assert stmae.load(run).config.blocks.width == 192


@pytest.mark.slow
def test_a_tokenizer_is_learnt_judged_and_used(videos: Path, tmp_path: Path) -> None:
    small = {"frames": 4, "image_size": 32, "patch": (2, 8, 8), "workers": 0, "holdout": 0.3}
    made = stmae.tokenizer(videos, out=tmp_path / "tok.safetensors", codes=16, steps=20, batch_size=4, **small)
    assert made.path.is_file()
    assert made.used >= 0.5
    assert made.gain > 1  # of six videos, where those held out look otherwise
    assert made.experimental == (made.gain < 3)
    again = stmae.tokenizer(videos, out=tmp_path / "again.safetensors", codes=16, steps=20, batch_size=4, **small)
    assert torch.equal(load_file(again.path)["codebook"], load_file(made.path)["codebook"])
    assert (again.psnr, again.used) == (made.psnr, made.used)
    tokenizer = open_tokenizer(made.path)
    codes = tokenizer(torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8))
    assert codes.shape == (2, 32)
    assert codes.max() < 16
    run = stmae.pretrain(videos, out=tmp_path / "run", **SMALL, target="tokens", tokenizer=made.path)
    assert all("loss" in line or "held_out_loss" in line for line in numbers(run))
    assert ("tokenizer is an experiment" in (run / "log.txt").read_text()) == made.experimental
    with pytest.raises(UserError, match="patches"):
        stmae.pretrain(
            videos, out=tmp_path / "other", **{**SMALL, "patch": (4, 8, 8)}, target="tokens", tokenizer=made.path
        )
    with pytest.raises(UserError, match="holds no tokenizer"):
        open_tokenizer(run / "encoder.safetensors")


@pytest.mark.slow
def test_features_of_another_run_are_a_target(videos: Path, tmp_path: Path) -> None:
    first = stmae.pretrain(videos, out=tmp_path / "first", **SMALL)
    second = stmae.pretrain(videos, out=tmp_path / "second", **SMALL, target="teacher", teacher=str(first))
    assert numbers(second)[-1]["held_out_loss"] < 2.5  # standardised features have a square of 1
    assert not (second / "reconstructions").exists() or not list((second / "reconstructions").iterdir())
    with pytest.raises(UserError, match="patches"):
        stmae.pretrain(
            videos, out=tmp_path / "third", **{**SMALL, "patch": (4, 8, 8)}, target="teacher", teacher=str(first)
        )
    with pytest.raises(UserError, match="no picture"):
        stmae.reconstruct(second, model=str(second), out=tmp_path / "pictures")


@pytest.mark.parametrize(
    "options, reason, cure",
    [
        ({"mask": "blok"}, 'unknown mask "blok"', '"block"'),
        ({"mask": "gone.npy"}, "does not exist", "file"),
        ({"mask": "own:fn"}, "given from Python", "again"),
        ({"mask": 3}, "mask is a int", "function"),
        ({"target": "tokens"}, "needs a tokenizer", "stmae tokenizer"),
        ({"target": "teacher"}, "needs a teacher", "--teacher"),
        ({"teacher": "self"}, "no meaning", "target teacher"),
        ({"target": "teacher", "teacher": "self"}, "running average", "--ema"),
        ({"target": "teacher", "teacher": "self", "ema": 0.9, "parallel": "fsdp"}, "whole model", "ddp"),
        ({"decode_share": 0.3}, "decode_share 0.3 has no meaning", "running_cell"),
        ({"decode": "random", "decode_share": 0.0}, "decode_share 0", "0.5"),
        ({"decoder": "linear"}, "mask tokens", "--mask-tokens-in-encoder"),
        ({"decoder": "cross_attention", "mask_tokens_in_encoder": True}, "visible tokens alone", "one of them"),
        ({"target": "hog", "patch": (2, 4, 4)}, "8 x 8", "multiples of 8"),
        ({"color_jitter": 2.0}, "color_jitter 2", "0.4"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_mistakes_are_named(options: dict[str, Any], reason: str, cure: str, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        stmae.pretrain(videos, out=tmp_path / "run", **{**SMALL, **options})
    problem, told = caught.value.problems[0]
    assert reason in problem
    assert cure in told
    assert not (tmp_path / "run").exists()


def test_what_is_given_in_vain_is_said(videos: Path, tmp_path: Path) -> None:
    """Once, of what the caller gave, and not of what a preset, an earlier part of the run or its file says."""
    more = {**SMALL, "mask": "test_choices:corner", "mask_ratio": 0.5, "epochs": "2 steps", "preset": "maskfeat"}
    del more["decoder_heads"]

    def log(name: str) -> str:
        return (tmp_path / name / "log.txt").read_text()

    stmae.pretrain(videos, out=tmp_path / "run", **more)
    assert "mask_ratio has no meaning with a mask of one's own" in log("run")
    assert "decoder_width has no meaning with decoder linear" in log("run")
    assert "decoder_heads has no" not in log("run")
    stmae.pretrain(out=tmp_path / "again", videos=videos, config=tmp_path / "run/config.yaml")
    assert "no meaning" not in log("again")
    stmae.pretrain(videos, out=tmp_path / "run", **{**more, "epochs": "3 steps"})
    assert log("run").count("mask_ratio has no meaning") == 1


def test_masks_of_ones_own_are_opened_and_named(tmp_path: Path) -> None:
    grid, keys = (2, 4, 4), torch.tensor([1, 2])
    array = np.arange(16).reshape(4, 4) > 3
    np.save(tmp_path / "mask.npy", array)
    for mask in (array, torch.from_numpy(array), tmp_path / "mask.npy", str(tmp_path / "mask.npy")):
        opened = open_mask(mask)
        assert opened is not None
        assert opened(keys, grid)[0].tolist() == [*array.ravel(), *array.ravel()]
    assert open_mask("block") is None
    assert named(corner) == "test_choices:corner"
    assert open_mask(named(corner)) is corner
    assert named(array) == named(torch.from_numpy(array))
    assert named(array) != named(~array)
    assert named(Greys()).startswith("own:")
    with pytest.raises(UserError, match="cannot be imported"):
        open_mask("test_choices:nothing")
    (tmp_path / "bad.npy").write_text("no array")
    with pytest.raises(UserError, match="cannot be read"):
        open_mask(tmp_path / "bad.npy")
    with pytest.raises(UserError, match="codes"):
        open_tokenizer(len)
