"""Pictures of every kind of mask, and of what is decoded of the hidden tokens: docs/pictures/masks.png.

    python benchmarks/mask_pictures.py                       # of a made-up scene
    python benchmarks/mask_pictures.py clip.mp4

Hidden patches are grey. In the rows on decoding, the hidden patches that a step predicts are lighter than the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stmae import pictures
from stmae.data.dataset import FixedClips
from stmae.data.opening import open_source
from stmae.data.synthetic import Scene
from stmae.model.config import Grid, MaeConfig
from stmae.model.masking import decoded_rows, draw_mask, fixed_mask
from stmae.model.patches import patchify, unpatchify
from stmae.model.sizes import mae_config

FRAMES, SIZE, PATCH = 16, 112, (2, 8, 8)  # 8 x 14 x 14 patches, as of the paper's clips
DARK, GREY = 70, 170
ROWS: dict[str, dict[str, Any]] = {
    "agnostic, 90 % hidden": {"mask": "agnostic", "mask_ratio": 0.9},
    "space (tubes), 90 % hidden": {"mask": "space", "mask_ratio": 0.9},
    "time (whole time steps), 75 % hidden": {"mask": "time", "mask_ratio": 0.75},
    "block (boxes), 75 % hidden": {"mask": "block", "mask_ratio": 0.75},
    "motion (what moves), 75 % hidden": {"mask": "motion", "mask_ratio": 0.75},
    "one's own: the middle is hidden": {"mask": "own"},
    "tubes, of which running cells are decoded": {"mask": "space", "mask_ratio": 0.9, "decode": "running_cell"},
    "agnostic, of which a random half is decoded": {"mask": "agnostic", "mask_ratio": 0.9, "decode": "random"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", nargs="?", type=Path, help="a video; a made-up scene unless given")
    parser.add_argument("--key", type=int, default=2022, help="from which masks are drawn")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs/pictures/masks.png")
    args = parser.parse_args()
    clip = read(args.video) if args.video else scene()
    configs = {
        title: mae_config("vit_tiny", image_size=SIZE, patch=PATCH, **options) for title, options in ROWS.items()
    }
    blocks = [row(clip, title, config, args.key) for title, config in configs.items()]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pictures.save_png(args.out, pictures.grid(blocks, stacked=True))
    print(f"written to {args.out}")


def scene() -> Tensor:
    """(1, 3, T, H, W) uint8."""
    made = Scene(np.random.default_rng(11), SIZE, SIZE)
    frames = np.stack([made.frame(i * 4 / 30) for i in range(FRAMES)])
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].contiguous()


def read(path: Path) -> Tensor:
    return FixedClips(open_source(path), frames=FRAMES, stride=4.0, image_size=(SIZE, SIZE))[0].clips


def row(clip: Tensor, title: str, config: MaeConfig, key: int) -> pictures.Block:
    """All time steps of the clip under one mask."""
    grid: Grid = config.encoder.clip.grid
    patches, keys = patchify(clip, PATCH), torch.tensor([key])
    middle = torch.zeros(grid[1:])
    middle[grid[1] // 4 : -(grid[1] // 4), grid[2] // 4 : -(grid[2] // 4)] = 1
    hidden, _, hidden_ids = draw_mask(config, grid, patches, keys, own=fixed_mask(middle))
    shade = torch.where(hidden, GREY, 0)
    rows = decoded_rows(config, keys, hidden_ids, grid)
    if rows is not None:
        shade = torch.where(hidden, DARK, 0).scatter(1, hidden_ids.gather(1, rows), GREY)
    shown = torch.where(hidden[..., None], shade[..., None].to(torch.uint8), patches)
    frames = unpatchify(shown, grid, PATCH)[0].permute(1, 2, 3, 0).numpy()
    steps = range(grid[0])
    labels = [f"time step {t}" for t in steps]
    return pictures.Block(title, labels, [""] * len(steps), [[frames[t * PATCH[0]] for t in steps]])


if __name__ == "__main__":
    main()
