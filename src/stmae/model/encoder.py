"""The encoder: a vanilla ViT that is given visible tokens only."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .config import EncoderConfig, Grid
from .patches import Normalizer, PatchEmbed, Positions, patchify, take
from .transformer import LayerNorm, blocks

Features = Literal["pooled", "grid", "tokens"]


class VideoViT(nn.Module):
    """A vision transformer over spacetime patches (paper, section 3; public code's sizes).

    ``encoder(clip)`` gives one vector per clip; ``encoder(clip, features="grid")`` a map over time and space.
    uint8 clips are normalised here; float clips are taken as normalised already.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.blocks.width
        self.normalize = Normalizer(config.clip)
        self.patch_embed = PatchEmbed(config.clip, width)
        self.class_token = nn.Parameter(torch.empty(1, width)) if config.class_token else None
        self.positions = Positions(
            config.clip.grid, width, config.positions, config.position_values, config.class_token
        )
        self.blocks = blocks(config.blocks)
        eps = config.blocks.norm_eps if config.norm_eps is None else config.norm_eps
        self.norm = LayerNorm(width, eps=eps) if config.norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.class_token is not None:
            nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, clip: Tensor, *, features: Features = "pooled", layer: int | None = None) -> Tensor:
        """Features of whole clips (B, C, T, H, W), any T, H, W that the patch divides.

        Args:
            clip: the clips.
            features: their form, below.
            layer: the block after which they are taken, 1 to the depth; None for the last. Later ones are not computed.

        Returns:
            "pooled": (B, D), the mean of the patch tokens; "grid": (B, t, h, w, D); "tokens": (B, N, D).
            All after the last norm (of whichever layer) and without the class token.

        Raises:
            UserError: wrong channels or dimensions, a size that the patch does not divide, integers other than uint8;
                a layer that there is not.
        """
        patches, grid = self.cut(clip)
        tokens = self.encode(self.embed(patches, grid), layer=self.layer(layer))
        tokens = self.norm(tokens)[:, int(self.config.class_token) :]
        if features == "tokens":
            return tokens
        return tokens.mean(dim=1) if features == "pooled" else tokens.unflatten(1, grid)

    def cut(self, clip: Tensor) -> tuple[Tensor, Grid]:
        """Clips (B, C, T, H, W) to raw patches (B, N, P), and the grid (t, h, w) they form."""
        channels = self.config.clip.channels
        if clip.ndim != 5 or clip.shape[1] != channels or 0 in clip.shape:
            raise UserError(
                f"the clip has shape {tuple(clip.shape)}.",
                f"It must be (B, {channels}, T, H, W): clips, channels, frames, height, width.",
            )
        if clip.dtype != torch.uint8 and not clip.is_floating_point():
            raise UserError(
                f"the clip is {clip.dtype}, so whether it is normalised cannot be told.",
                "Give pixels as uint8, or normalised floats.",
            )
        patches = patchify(clip, self.config.clip.patch)
        t, h, w = (size // step for size, step in zip(clip.shape[2:], self.config.clip.patch, strict=True))
        return patches, (t, h, w)

    def embed(self, patches: Tensor, grid: Grid, visible: Tensor | None = None) -> Tensor:
        """Tokens of the visible patches, with their positions, class token first: (B, [1 +] V, D).

        Hidden patches are not embedded at all: masking comes first.
        """
        positions = self.positions(grid)
        if visible is None:
            tokens = self.patch_embed(self.normalize(patches)) + positions
        else:
            tokens = self.patch_embed(self.normalize(take(patches, visible))) + F.embedding(visible, positions)
        return prepend(self.class_token, self.positions.class_position, tokens)

    def layer(self, layer: int | None) -> int:
        """The number of a layer, counted from 1: what was asked for, or the last.

        Raises:
            UserError: there is none of that number.
        """
        depth = self.config.blocks.depth
        if layer is not None and not 1 <= layer <= depth:
            raise UserError(f"the encoder has no layer {layer}.", f"Choose 1 to {depth}, which is the last.")
        return layer or depth

    def encode(self, tokens: Tensor, shares: Tensor | None = None, *, layer: int | None = None) -> Tensor:
        """The blocks, or the first `layer` of them, without the last norm: (B, L, D) to (B, L, D).

        `shares` (B, depth, 2): see `Block`.
        """
        for number, block in enumerate(self.blocks):
            if layer is not None and number >= layer:
                break
            tokens = block(tokens) if shares is None else block(tokens, share=shares[:, number])
        return tokens


def prepend(class_token: Tensor | None, position: Tensor | None, tokens: Tensor) -> Tensor:
    """Puts the class token with its position before tokens (B, L, D); without one, gives the tokens back."""
    if class_token is None or position is None:
        return tokens
    first = (class_token + position).to(tokens.dtype)
    return torch.cat([first.expand(tokens.shape[0], -1, -1), tokens], dim=1)
