"""A run of a small untrained model, as `stmae pretrain` leaves it, and videos whose frames tell their number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from stmae.model.config import as_dict
from stmae.model.mae import MaskedAutoencoder
from stmae.model.sizes import create_model
from stmae.runs import save_weights


def small_model(**options: Any) -> MaskedAutoencoder:
    """8 frames of 32 x 32 pixels, 64 tokens."""
    torch.manual_seed(0)
    sizes = {"frames": 8, "image_size": 32, "patch": (2, 8, 8)}
    return create_model("vit_tiny", **(sizes | options), decoder_width=32, decoder_depth=1, decoder_heads=2).eval()


def save_run(folder: Path, model: MaskedAutoencoder, stride: float = 4.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    extras = {"model": as_dict(model.config), "clip": {"stride": stride}}
    save_weights(folder / "encoder.safetensors", model.state_dict(), extras)
    return folder


def write_clock(path: Path, *, seconds: float, fps: int = 30, size: tuple[int, int] = (64, 48)) -> Path:
    """A video that grows brighter from frame to frame: 20 at its start, 40 a second later, at most 10 seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 2_000_000
        for n in range(round(seconds * fps)):
            picture = np.full((size[1], size[0], 3), round(20 + 20 * n / fps), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def clock_times(clip: torch.Tensor) -> np.ndarray:
    """The times in seconds at which a clip (C, T, H, W) of such a video was taken."""
    return (clip.float().mean(dim=(0, 2, 3)).numpy() - 20) / 20
