"""Presets of `stmae finetune` against the published recipes' own numbers (not against the presets' text)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stmae.errors import UserError
from stmae.finetune_presets import FINETUNE_PRESETS
from stmae.presets import Facts
from stmae.tasks.build import Plan
from stmae.tasks.finetune_options import FinetuneOptions
from stmae.tasks.task import bind, resolve

K400 = Facts(videos=240_000, device="cuda")


def resolved(preset: str, facts: Facts = K400, **given: Any) -> FinetuneOptions:
    options = FinetuneOptions(videos="", out=Path("runs/x"), init="none", preset=preset, **given)
    # What is asked for is the preset's numbers: there are no videos to be looked at here.
    values = FINETUNE_PRESETS[preset](facts)
    return FinetuneOptions(**{**values, **options.given})


def peak(options: FinetuneOptions, clips: int | None = None) -> float:
    return options.base_lr * (clips or options.batch_size) / 256


# Per node of 8 GPUs, as PySlowFast's files have them: loader epochs, repeats, videos, learning rate, layer decay, drop
# path, head dropout, learning rate at the end.
SLOWFAST = {
    "slowfast_k400_ft_base": (75, 2, None, 6e-4, 0.65, 0.1, 0.3, 1e-5),
    "slowfast_k400_ft_large": (50, 2, 16, 3e-4, 0.75, 0.2, 0.3, 1e-5),
    "slowfast_k400_ft_huge": (75, 1, 16, 3e-4, 0.80, 0.2, 0.5, 1e-6),
}


@pytest.mark.parametrize("preset", SLOWFAST)
def test_slowfasts_recipes(preset: str) -> None:
    epochs, repeats, videos, lr, layer_decay, drop_path, dropout, end_lr = SLOWFAST[preset]
    options = resolved(preset)
    assert options.repeats == repeats
    assert options.epochs == epochs * repeats, "effective epochs"
    if videos is not None:  # ViT-B's file has 1, which 8 GPUs cannot share
        assert options.batch_size == videos * repeats
    assert peak(options) == pytest.approx(lr)
    assert peak(options, 16 * options.batch_size) == pytest.approx(16 * lr), "it grows with the nodes"
    assert (options.layer_decay, options.drop_path, options.dropout) == (layer_decay, drop_path, dropout)
    assert options.end_lr == end_lr
    assert options.decay_positions, "zero decay of vectors only"
    common = {
        "weight_decay": 0.05, "betas": (0.9, 0.999), "clip_grad": 5.0, "mixup": 0.8, "cutmix": 1.0, "flip": True,
        "label_smoothing": 0.1, "magnitude": 7.0, "magnitude_std": 0.5, "erase": 0.25, "crop_area": (0.08, 1.0),
        "frames": 16, "stride": 4.0, "image_size": 224, "sampling": "dense", "schedule": "cosine",
    }  # fmt: skip
    assert {name: getattr(options, name) for name in common} == common
    assert options.crop_aspect == pytest.approx((0.75, 1.333), abs=1e-3)
    plan = Plan.of(FinetuneOptions(**{**options.given, "lr": peak(options)}), K400.videos)
    assert plan.steps == 240_000 * epochs * repeats // options.batch_size
    assert plan.warmup_steps == 240_000 * 5 * repeats // options.batch_size, "5 loader epochs"
    assert plan.lr == pytest.approx(lr)


def test_the_recipe_is_mae_sts_rule_for_the_learning_rate() -> None:
    """blr 0.0024 per 256 clips, repeats counted; 3e-4 for the 2 x 2 clips on each of 8 GPUs."""
    options = resolved("recipe")
    assert peak(options, 256) == pytest.approx(0.0024)
    assert peak(options, 2 * 2 * 8) == pytest.approx(3e-4)
    assert (options.layer_decay, options.drop_path, options.dropout) == (0.75, 0.2, 0.3)
    assert (options.mixup, options.cutmix, options.label_smoothing, options.clip_grad) == (0.8, 1.0, 0.1, 5.0)
    assert (options.end_lr, options.decay_positions, options.repeats) == (1e-6, False, 2)


def test_videomaes_recipe_for_something_something() -> None:
    options = resolved("videomae_ssv2_ft_base", Facts(videos=168_913, device="cuda"))
    assert peak(options, 256) == pytest.approx(5e-4)
    assert (options.epochs, options.sampling, options.flip, options.frames) == (50, "segments", False, 16)


def test_few_videos_are_gone_through_more_often() -> None:
    epochs = [resolved("few_videos", Facts(videos=n, device="cpu")).epochs for n in (50, 500, 5000)]
    assert epochs == [200, 60, 30]
    scratch = FINETUNE_PRESETS["few_videos"](Facts(videos=500, device="cpu", scratch=True))
    assert (scratch["model"], scratch["layer_decay"]) == ("vit_tiny", 1.0)
    assert "model" not in FINETUNE_PRESETS["few_videos"](Facts(videos=500, device="cpu"))


@pytest.mark.parametrize("preset", FINETUNE_PRESETS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_preset_can_work(preset: str, device: str, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"")
    options = bind(FinetuneOptions, (tmp_path / "videos",), {"out": tmp_path / "x", "init": "none", "preset": preset})
    assert resolve(options, options.facts(200, device)).preset == preset


def test_a_shape_that_the_preset_chooses_is_checked_with_it(tmp_path: Path) -> None:
    """From scratch the small preset has patches of 8, so that 72 pixels are fine, and 70 are not."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"")
    given = {"out": tmp_path / "x", "init": "none", "preset": "few_videos"}
    assert bind(FinetuneOptions, (tmp_path / "videos",), {**given, "image_size": 72}).image_size == 72
    with pytest.raises(UserError, match=r"72 or 80|64 or 72"):
        bind(FinetuneOptions, (tmp_path / "videos",), {**given, "image_size": 70})
