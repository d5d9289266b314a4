"""Presets of `stmae finetune`: the authors' recipe (PySlowFast), one for few videos, published files by their names.

Only numbers that the published files state are in those; tests hold them against these (docs/finetuning.md).
"""

from __future__ import annotations

from typing import Any

from stmae.presets import Facts, Preset, small


def auto(facts: Facts) -> dict[str, Any]:
    """recipe on an accelerator with 5,000 videos or more, few_videos otherwise."""
    return (few_videos if facts.device == "cpu" or facts.videos < 5_000 else recipe)(facts)


def recipe(facts: Facts) -> dict[str, Any]:
    """The authors' recipe for ViT-L (PySlowFast's), in steps of any size; slowfast_ presets follow its files."""
    return {}


def few_videos(facts: Facts) -> dict[str, Any]:
    """Tens to a few thousand labelled videos: small steps, gentle augmentation, more passes the fewer they are."""
    shape = ("model", "frames", "image_size", "patch", "position_values", "class_token")
    own = {name: value for name, value in small(facts).items() if name in shape} | {"layer_decay": 1.0}
    return (own if facts.scratch else {}) | {
        "epochs": min(200.0, max(30.0, 30_000 / facts.videos)),
        "batch_size": 16,
        "base_lr": 8e-3,
        "rand_augment": 0,
        "erase": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "crop_area": (0.5, 1.0),
        "drop_path": 0.1,
        "dropout": 0.3,
        "clip_grad": 1.0,
    }


def slowfast_k400_ft_base(facts: Facts) -> dict[str, Any]:
    """Kinetics-400, ViT-B, PySlowFast's k400_VIT_B_16x4_FT.yaml (a batch of 16 videos for its 1, which cannot run)."""
    return _kinetics() | {
        "epochs": 150.0,
        "base_lr": 4.8e-3,  # 6e-4 for the 32 clips of a node
        "layer_decay": 0.65,
        "drop_path": 0.1,
        "dropout": 0.3,
        "end_lr": 1e-5,
        "warmup": "10 epochs",
    }


def slowfast_k400_ft_large(facts: Facts) -> dict[str, Any]:
    """Kinetics-400, ViT-L, PySlowFast's k400_VIT_L_16x4_FT.yaml."""
    return _kinetics() | {
        "epochs": 100.0,
        "base_lr": 2.4e-3,  # 3e-4 for the 32 clips of a node
        "layer_decay": 0.75,
        "drop_path": 0.2,
        "dropout": 0.3,
        "end_lr": 1e-5,
        "warmup": "10 epochs",
    }


def slowfast_k400_ft_huge(facts: Facts) -> dict[str, Any]:
    """Kinetics-400, ViT-H, PySlowFast's k400_VIT_H_16x4_FT.yaml."""
    return _kinetics() | {
        "epochs": 75.0,
        "repeats": 1,
        "batch_size": 16,
        "base_lr": 4.8e-3,  # 3e-4 for the 16 clips of a node
        "layer_decay": 0.8,
        "drop_path": 0.2,
        "dropout": 0.5,
        "end_lr": 1e-6,
        "warmup": "5 epochs",
    }


def _kinetics() -> dict[str, Any]:
    """What the three have in common; a step is a node's."""
    return {
        "frames": 16,
        "stride": 4.0,
        "image_size": 224,
        "repeats": 2,
        "batch_size": 32,
        "weight_decay": 0.05,
        "betas": (0.9, 0.999),
        "clip_grad": 5.0,
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_smoothing": 0.1,
        "rand_augment": 2,
        "magnitude": 7.0,
        "magnitude_std": 0.5,
        "erase": 0.25,
        "crop_area": (0.08, 1.0),
        "crop_aspect": (3 / 4, 4 / 3),
        "flip": True,
        "decay_positions": True,
    }


def videomae_ssv2_ft_base(facts: Facts) -> dict[str, Any]:
    """Something-Something v2, ViT-B pre-trained for 800 epochs, VideoMAE's FINETUNE.md: frames spread, no flip."""
    return {
        "frames": 16,
        "image_size": 224,
        "sampling": "segments",
        "flip": False,
        "repeats": 1,
        "epochs": 50.0,
        "base_lr": 5e-4,
    }


FINETUNE_PRESETS: dict[str, Preset] = {
    "auto": auto,
    "recipe": recipe,
    "few_videos": few_videos,
    "slowfast_k400_ft_base": slowfast_k400_ft_base,
    "slowfast_k400_ft_large": slowfast_k400_ft_large,
    "slowfast_k400_ft_huge": slowfast_k400_ft_huge,
    "videomae_ssv2_ft_base": videomae_ssv2_ft_base,
}
