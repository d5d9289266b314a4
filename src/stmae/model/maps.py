"""What an encoder sees where: attention and principal components of features, on the token grid."""

from __future__ import annotations

import torch
from torch import Tensor

from .encoder import VideoViT
from .transformer import Block


@torch.no_grad()
def attention_map(encoder: VideoViT, clip: Tensor, layer: int | None = None) -> Tensor:
    """How much each patch is attended to in a block, in shares that sum to 1 over a head's patches.

    Args:
        encoder: with a class token, its attention is shown; without one what a patch receives from all patches on
            average.
        clip: (B, C, T, H, W).
        layer: the block, 1 to the depth; None for the last.

    Returns:
        (B, heads, t, h, w) float32.

    Raises:
        UserError: a layer that there is not, a clip that does not fit.
    """
    number = encoder.layer(layer)
    patches, grid = encoder.cut(clip)
    tokens = encoder.embed(patches, grid)
    if number > 1:
        tokens = encoder.encode(tokens, layer=number - 1)
    block = encoder.blocks[number - 1]
    assert isinstance(block, Block)
    attention = block.attn
    q, k, _ = attention.qkv(block.norm1(tokens)).float().unflatten(2, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    q = q * q.shape[-1] ** -0.5
    if encoder.config.class_token:
        received = (q[:, :, :1] @ k.transpose(2, 3)).softmax(-1)[:, :, 0, 1:]
    else:
        # A few queries at a time: the whole table of a long clip is larger than any memory.
        parts = [(part @ k.transpose(2, 3)).softmax(-1).sum(2) for part in q.split(256, dim=2)]
        received = torch.stack(parts).sum(0)
    received = received / received.sum(-1, keepdim=True)
    return received.unflatten(2, grid)


@torch.no_grad()
def principal_maps(features: Tensor, count: int = 3) -> Tensor:
    """The largest principal components of each clip's features over its own tokens, from 0 to 1.

    Args:
        features: (B, t, h, w, D), of `encoder(clip, features="grid")`.
        count: of components.

    Returns:
        (B, t, h, w, count) float32: each component from its 2nd to its 98th percentile, cut off there. Its sign is such
        that the largest weight of a feature is positive. Components that there are not are 0.5.
    """
    found = []
    for clip in features.float():
        tokens = clip.flatten(0, 2)
        centred = tokens - tokens.mean(0)
        _, values, directions = torch.linalg.svd(centred, full_matrices=False)
        there = min(count, int((values > 1e-6 * values[0]).sum()))
        parts = tokens.new_full((len(tokens), count), 0.5)
        if there == 0:  # all tokens are alike
            found.append(parts.unflatten(0, tuple(clip.shape[:3])))
            continue
        directions = directions[:there]
        strongest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        own = centred @ (directions * strongest.sign()).T  # (N, there)
        low, high = torch.quantile(own, torch.tensor([0.02, 0.98], device=own.device), dim=0)
        parts[:, :there] = ((own - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        found.append(parts.unflatten(0, tuple(clip.shape[:3])))
    return torch.stack(found)
