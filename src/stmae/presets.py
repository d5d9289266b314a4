"""Presets of `stmae pretrain`: named option values, each a plain function of what the run found.

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


PRESETS: dict[str, Preset] = {"auto": auto, "paper": paper, "small": small, "demo": demo}
