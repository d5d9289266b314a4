"""Presets of `stmae pretrain`: named option values, each a plain function of what the run found.

Those of `stmae finetune` are in `finetune_presets.py`.

A preset gives values for options; those it does not mention keep their defaults, and everything the user gives
(in a `--config` file or as a flag) goes before it. A function's docstring is its line in `stmae presets`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What a preset may depend on."""

    videos: int
    """Videos found."""
    device: str
    """Type of the device the run computes on: cpu, cuda or mps."""
    scratch: bool = False
    """Whether a fine-tuning begins with random weights, so that the model has to be chosen too."""


Preset = Callable[[Facts], dict[str, Any]]


def auto(facts: Facts) -> dict[str, Any]:
    """paper on an accelerator, small on a CPU."""
    return (small if facts.device == "cpu" else paper)(facts)


def paper(facts: Facts) -> dict[str, Any]:
    """The paper's recipe: 16 frames of 224 x 224, 90 % hidden, 800 epochs (--model vit_large for its main model)."""
    return {}


def small(facts: Facts) -> dict[str, Any]:
    """A small model and small clips, for a CPU or a first look: minutes rather than days."""
    # Positions that begin as sine-cosine let a short run learn sooner (docs/results/short-runs.md); raw pixels need no
    # statistics of hidden patches to be shown.
    return {
        "model": "vit_tiny",
        "frames": 8,
        "image_size": 64,
        "patch": (2, 8, 8),
        "target": "pixels",
        "position_values": "learned_from_sincos",
        "class_token": False,
        "decoder_width": 192,
        "decoder_depth": 3,
        "decoder_heads": 3,
        "epochs": max(1.0, 25_000 / facts.videos),
        "batch_size": 8,
        "repeats": 2,
        "lr": 1e-3,
        "clip_grad": 1.0,
        "save_every": 250,
        "evaluate_every": 250,
    }


def demo(facts: Facts) -> dict[str, Any]:
    """What `stmae demo` trains: `small` in still smaller steps, each clip of another video."""
    return small(facts) | {
        "batch_size": 4,
        "repeats": 1,
        "holdout": 0.1,
        "save_every": 200,
        "evaluate_every": 200,
    }


# Other papers' recipes, as far as what is known of them can be said with this package's options. Sizes, clips and lr
# are the paper's unless named; docs/choices.md says what each takes from where, and where it differs.


def mae_st(facts: Facts) -> dict[str, Any]:
    """The paper's recipe as its released code has it: 16 decoder heads, and its own choice of the frames predicted."""
    return {"decoder_heads": 16, "predict_frames": "linspace"}


def videomae(facts: Facts) -> dict[str, Any]:
    """VideoMAE: tubes, both frames, each colour normalised, fixed sine-cosine positions, no class token."""
    return {
        "mask": "space",
        "target": "normalized_pixels_per_channel",
        "predict_frames": "all",
        "positions": "joint",
        "position_values": "sincos",
        "class_token": False,
        "decoder_width": 384,
        "decoder_heads": 6,
        "repeats": 1,
    }


def videomae_v2(facts: Facts) -> dict[str, Any]:
    """VideoMAE v2: VideoMAE with half of the hidden tokens decoded, by running cells."""
    return videomae(facts) | {"decode": "running_cell", "decode_share": 0.5}


def maskfeat(facts: Facts) -> dict[str, Any]:
    """MaskFeat's way on a plain ViT: HOG of boxes, from mask tokens in the encoder, by a linear layer."""
    return {
        "mask": "block",
        "mask_ratio": 0.4,
        "target": "hog",
        "mask_tokens_in_encoder": True,
        "decoder": "linear",
        "epochs": 300.0,
        "warmup": 10.0,
        "repeats": 1,
    }


def bevt(facts: Facts) -> dict[str, Any]:
    """BEVT's style: tokens of a tokenizer (needs --tokenizer), from mask tokens in the encoder, by a linear layer."""
    return {"mask": "block", "mask_ratio": 0.4, "target": "tokens", "mask_tokens_in_encoder": True, "decoder": "linear"}


def image_mae(facts: Facts) -> dict[str, Any]:
    """Image MAE: single frames, 75 % hidden, a decoder of 8 blocks; takes images, or frames of videos."""
    return {
        "frames": 1,
        "patch": (1, 16, 16),
        "mask_ratio": 0.75,
        "position_values": "sincos",
        "decoder_depth": 8,
        "decoder_heads": 16,
        "repeats": 1,
    }


def crossmae(facts: Facts) -> dict[str, Any]:
    """CrossMAE: a decoder that looks from hidden tokens to visible ones alone, and predicts a share of them."""
    return {"decoder": "cross_attention", "decode": "random", "decode_share": 0.25}


PRESETS: dict[str, Preset] = {
    preset.__name__: preset
    for preset in (auto, paper, small, demo, mae_st, videomae, videomae_v2, maskfeat, bevt, image_mae, crossmae)
}
