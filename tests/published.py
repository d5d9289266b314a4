"""Names and shapes of other projects' checkpoints, as their code makes them; no weights.

Written from what the projects' code was seen to do (the parity files' names are the same ones, on small models), never
from opening a published file: none could be had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Size:
    """Of an encoder; `decoder` is (width, depth, heads), or None for a file without one; `classes` of a classifier."""

    width: int
    depth: int
    mlp: int
    patch: int = 16
    patch_frames: int = 2
    frames: int = 16
    image: int = 224
    decoder: tuple[int, int, int] | None = None
    classes: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        """Steps of time, and tokens in each."""
        return self.frames // self.patch_frames, (self.image // self.patch) ** 2


def mae_st(size: Size) -> Shapes:
    """facebookresearch/mae_st: q, k and v apart, separable positions, a class token on either side."""
    found = _vit(size, "split") | _separable("", size.width, size.grid)
    if size.classes:
        return found | _linear("head", size.classes, size.width)
    if size.decoder:
        width, depth, _ = size.decoder
        found |= _linear("decoder_embed", width, size.width) | {"mask_token": (1, 1, width)}
        found |= {"decoder_cls_token": (1, 1, width)} | _separable("decoder_", width, size.grid)
        found |= _blocks("decoder_blocks", width, depth, 4 * width, "split") | _norm("decoder_norm", width)
        found |= _linear("decoder_pred", size.patch**2 * 3, width)
    return found


def slowfast(size: Size) -> Shapes:
    """PySlowFast: fused qkv, separable positions in the encoder, a joint table in the decoder; its last norm among its
    blocks."""
    found = _vit(size, "fused") | _separable("", size.width, size.grid)
    if size.classes:
        return found | _linear("head.projection", size.classes, size.width)
    assert size.decoder
    width, depth, _ = size.decoder
    found |= _linear("decoder_embed", width, size.width) | {"mask_token": (1, 1, width)}
    found |= {"decoder_pos_embed": (1, 1 + math.prod(size.grid), width)}
    found |= _blocks("pred_head.transforms.0", width, depth, 4 * width, "fused")
    found |= _norm(f"pred_head.transforms.0.{depth}", width)
    return found | _linear("pred_head.projections.0", size.patch**2 * 3, width)


def videomae(size: Size) -> Shapes:
    """VideoMAE, v1 and v2: no class token, no positions in the file, biases of q and v beside the weight."""
    kernel = (size.width, 3, size.patch_frames, size.patch, size.patch)
    if size.classes:
        found = {"patch_embed.proj.weight": kernel, "patch_embed.proj.bias": (size.width,)}
        found |= _blocks("blocks", size.width, size.depth, size.mlp, "fused_qv_bias") | _norm("fc_norm", size.width)
        return found | _linear("head", size.classes, size.width)
    assert size.decoder
    width, depth, _ = size.decoder
    found = {"encoder.patch_embed.proj.weight": kernel, "encoder.patch_embed.proj.bias": (size.width,)}
    found |= _blocks("encoder.blocks", size.width, size.depth, size.mlp, "fused_qv_bias")
    found |= _norm("encoder.norm", size.width) | {"encoder_to_decoder.weight": (width, size.width)}
    found |= {"mask_token": (1, 1, width)} | _norm("decoder.norm", width)
    found |= _blocks("decoder.blocks", width, depth, 4 * width, "fused_qv_bias")
    return found | _linear("decoder.head", size.patch_frames * size.patch**2 * 3, width)


def mae_image(size: Size) -> Shapes:
    """facebookresearch/mae: a two-dimensional kernel, joint tables with a first row for the class token."""
    found = _vit(size, "fused", image=True) | {"pos_embed": (1, 1 + size.grid[1], size.width)}
    if size.classes:  # averaged tokens, then the norm
        found = {
            name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: s for name, s in found.items()
        }
        return found | _linear("head", size.classes, size.width)
    if size.decoder:
        width, depth, _ = size.decoder
        found |= _linear("decoder_embed", width, size.width) | {"mask_token": (1, 1, width)}
        found |= {"decoder_pos_embed": (1, 1 + size.grid[1], width)} | _norm("decoder_norm", width)
        found |= _blocks("decoder_blocks", width, depth, 4 * width, "fused")
        found |= _linear("decoder_pred", size.patch**2 * 3, width)
    return found


FAMILIES = {"mae_st": mae_st, "slowfast": slowfast, "videomae": videomae, "mae_image": mae_image}


def _vit(size: Size, qkv: str, image: bool = False) -> Shapes:
    kernel = (size.width, 3, *([] if image else [size.patch_frames]), size.patch, size.patch)
    found: Shapes = {"cls_token": (1, 1, size.width), "patch_embed.proj.weight": kernel}
    found |= {"patch_embed.proj.bias": (size.width,)} | _blocks("blocks", size.width, size.depth, size.mlp, qkv)
    return found | _norm("norm", size.width)


def _separable(prefix: str, width: int, grid: tuple[int, int]) -> Shapes:
    names = ("temporal", "spatial", "class")
    return {f"{prefix}pos_embed_{name}": (1, rows, width) for name, rows in zip(names, (*grid, 1), strict=True)}


def _blocks(prefix: str, width: int, depth: int, mlp: int, qkv: str) -> Shapes:
    found: Shapes = {}
    for number in range(depth):
        block = f"{prefix}.{number}"
        if qkv == "split":
            found |= {
                name: shape for part in "qkv" for name, shape in _linear(f"{block}.attn.{part}", width, width).items()
            }
        else:
            found[f"{block}.attn.qkv.weight"] = (3 * width, width)
            biases = {"qkv.bias": 3 * width} if qkv == "fused" else {"q_bias": width, "v_bias": width}
            found |= {f"{block}.attn.{name}": (rows,) for name, rows in biases.items()}
        found |= _linear(f"{block}.attn.proj", width, width) | _norm(f"{block}.norm1", width)
        found |= _norm(f"{block}.norm2", width) | _linear(f"{block}.mlp.fc1", mlp, width)
        found |= _linear(f"{block}.mlp.fc2", width, mlp)
    return found


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def by_formula(shapes: Shapes) -> dict[str, Tensor]:
    """Weights of which no two are alike, of the sizes that training gives, from a formula that needs no file."""
    found = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        wave = torch.sin(1.7 * torch.arange(math.prod(shape), dtype=torch.float64) + 3.1 * number + 0.5)
        one = name.endswith("weight") and len(shape) == 1
        found[name] = ((1.0 if one else 0.0) + 0.3 * wave).float().reshape(shape)
    return found


_B: dict[str, Any] = {"width": 768, "depth": 12, "mlp": 3072}
_L: dict[str, Any] = {"width": 1024, "depth": 24, "mlp": 4096}
_H: dict[str, Any] = {"width": 1280, "depth": 32, "mlp": 5120}
_S: dict[str, Any] = {"width": 384, "depth": 12, "mlp": 1536}
_G: dict[str, Any] = {"width": 1408, "depth": 40, "mlp": 6144, "patch": 14}
_STILL: dict[str, Any] = {"frames": 1, "patch_frames": 1}

# File -> family, size, and millions of parameters in the encoder (paper.md; VideoMAE's and image MAE's tables).
FILES: dict[str, tuple[str, Size, float]] = {
    "mae_pretrain_vit_large_k400.pth": ("mae_st", Size(**_L, decoder=(512, 4, 16)), 304),
    "mae_pretrain_vit_huge_k400.pth": ("mae_st", Size(**_H, decoder=(512, 4, 16)), 632),
    "mae_st fine-tuned ViT-L, K400": ("mae_st", Size(**_L, classes=400), 304),
    "VIT_B_16x4_MAE_PT.pyth": ("slowfast", Size(**_B, decoder=(512, 4, 8)), 87),
    "VIT_L_16x4_MAE_PT.pyth": ("slowfast", Size(**_L, decoder=(512, 4, 8)), 304),
    "VIT_H_16x4_MAE_PT_400e_85.1.pyth": ("slowfast", Size(**_H, decoder=(512, 4, 8)), 632),
    "PySlowFast fine-tuned ViT-L, K400": ("slowfast", Size(**_L, classes=400), 304),
    "VideoMAE ViT-S pre-trained": ("videomae", Size(**_S, decoder=(192, 4, 3)), 22),
    "VideoMAE ViT-B pre-trained": ("videomae", Size(**_B, decoder=(384, 4, 6)), 86),
    "VideoMAE ViT-L pre-trained": ("videomae", Size(**_L, decoder=(512, 12, 8)), 303),
    "VideoMAE ViT-H pre-trained": ("videomae", Size(**_H, decoder=(640, 12, 8)), 631),
    "VideoMAE ViT-B fine-tuned, SSv2": ("videomae", Size(**_B, classes=174), 86),
    "VideoMAE ViT-L fine-tuned, K400": ("videomae", Size(**_L, classes=400), 303),
    "vit_g_hybrid_pt_1200e.pth": ("videomae", Size(**_G, decoder=(512, 4, 8)), 1012),
    "vit_g_hybrid_pt_1200e_k710_ft.pth": ("videomae", Size(**_G, classes=710), 1012),
    "vit_b_k710_dl_from_giant.pth": ("videomae", Size(**_B, classes=710), 86),
    "vit_s_k710_dl_from_giant.pth": ("videomae", Size(**_S, classes=710), 22),
    "mae_pretrain_vit_base.pth": ("mae_image", Size(**_B, **_STILL), 86),
    "mae_pretrain_vit_huge.pth": ("mae_image", Size(**_H, **_STILL, patch=14), 631),
    "mae_visualize_vit_base.pth": ("mae_image", Size(**_B, **_STILL, decoder=(512, 8, 16)), 86),
    "mae_visualize_vit_large.pth": ("mae_image", Size(**_L, **_STILL, decoder=(512, 8, 16)), 303),
    "mae_finetuned_vit_large.pth": ("mae_image", Size(**_L, **_STILL, classes=1000), 303),
}
