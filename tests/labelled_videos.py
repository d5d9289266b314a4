"""Labelled videos of a few frames whose classes a fresh encoder can tell, and a classifier that knows them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
from small_run import small_model

from stmae.model.config import ClassifierConfig, as_dict
from stmae.model.heads import Classifier
from stmae.weights import save_weights

CLASSES = ("bars", "blank", "checks")


def write_class(path: Path, name: str, seed: int, *, frames: int = 24, size: tuple[int, int] = (48, 32)) -> Path:
    """A moving pattern (width, height) of the class's kind, in a brightness and a pace of its own."""
    random = np.random.default_rng(seed)
    bright, pace = random.uniform(120, 200), random.uniform(0.2, 1.0)
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 2_000_000
        for n in range(frames):
            shift = pace * n
            shown = {
                "bars": (x + shift) // 8 % 2,
                "blank": np.zeros_like(x),
                "checks": ((x + shift) // 8 + y // 8) % 2,
            }[name]
            picture = (bright - 60 * shown + random.normal(0, 4, x.shape)).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture[..., None].repeat(3, -1), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_labelled(folder: Path, each: int = 6, parts: tuple[str, ...] = ("",), seed: int = 0) -> Path:
    """`each` videos of each class in class folders, below a folder for each part if there are several."""
    number = 1000 * seed
    for part in parts:
        for name in CLASSES:
            for place in range(each):
                number += 1
                write_class(folder / part / name / f"{place}.mp4", name, number)
    return folder


def small_classifier(names: tuple[str, ...] = CLASSES, problem: str = "single", **options: object) -> Classifier:
    """Of a fresh small encoder and a head whose outputs differ from clip to clip."""
    encoder = small_model().encoder
    config = ClassifierConfig(encoder=encoder.config, classes=len(names), class_names=names, problem=problem, **options)  # type: ignore[arg-type]
    torch.manual_seed(3)
    model = Classifier(config).eval()
    model.encoder.load_state_dict(encoder.state_dict())
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def save_classifier(folder: Path, model: Classifier, **clip: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    extras = {"model": as_dict(model.config), "clip": {"stride": 2.0, **clip}}
    save_weights(folder / "classifier.safetensors", model.state_dict(), extras)
    return folder
