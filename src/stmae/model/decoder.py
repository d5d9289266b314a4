"""The decoder: a small ViT that sees encoded tokens and mask tokens, and predicts the hidden patches.

`DECODERS` holds the kinds. They are called alike, ``decoder(latent, class_latent, visible, decoded, grid)``, and give
predictions (B, K, P) with rows in the order of `decoded`:

* latent: (B, V, D) encoded visible tokens, in the order of `visible`; or (B, V + K, D), those to be decoded behind,
  where the encoder had mask tokens.
* class_latent: (B, 1, D), the encoder's class token, or None.
* visible (B, V), decoded (B, K): token ids.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DecoderKind, Grid, MaeConfig
from .encoder import prepend
from .patches import Positions
from .transformer import CrossBlock, LayerNorm, Linear, blocks


class Decoder(nn.Module):
    """Self-attention over all tokens (paper, section 3).

    The sequence is not put back in token order: attention does not care where a token stands, only which position
    was added to it. It is ``class | visible | hidden``, so that the last block and the projection can work on the
    hidden tail alone; what they would compute for visible tokens nobody reads.
    """

    def __init__(self, config: MaeConfig) -> None:
        super().__init__()
        self.config = config.decoder
        clip, width = config.encoder.clip, config.decoder.blocks.width
        self.embed = Linear(config.encoder.blocks.width, width, bias=self.config.embed_bias)
        # With mask tokens in the encoder every token arrives here encoded already.
        self.mask_token = None if config.mask_tokens_in_encoder else nn.Parameter(torch.empty(1, width))
        self.class_token = nn.Parameter(torch.empty(1, width)) if self.config.class_token == "own" else None
        self.positions = Positions(
            clip.grid, width, self.config.positions, self.config.position_values, self.config.class_token != "none"
        )
        self.blocks = self.make_blocks()
        eps = self.config.blocks.norm_eps if self.config.norm_eps is None else self.config.norm_eps
        self.norm = LayerNorm(width, eps=eps)
        self.head = Linear(width, config.target_values)
        self.reset_parameters()

    def make_blocks(self) -> nn.ModuleList:
        return blocks(self.config.blocks)

    def reset_parameters(self) -> None:
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)
        if self.class_token is not None:
            nn.init.zeros_(self.class_token)  # as in the reference; its position is not zero

    def forward(
        self, latent: Tensor, class_latent: Tensor | None, visible: Tensor, decoded: Tensor, grid: Grid
    ) -> Tensor:
        """As above."""
        tokens = self.embed(latent)
        if self.mask_token is not None:
            tokens = torch.cat([tokens, self.mask_token.to(tokens.dtype).expand(*decoded.shape, -1)], dim=1)
        tokens = tokens + F.embedding(torch.cat([visible, decoded], dim=1), self.positions(grid))
        tokens = self.with_class(tokens, class_latent)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        tokens = self.blocks[-1](tokens, tail=decoded.shape[1])
        return self.head(self.norm(tokens))

    def with_class(self, tokens: Tensor, class_latent: Tensor | None) -> Tensor:
        """The tokens (B, L, D) behind the class token, the encoder's or the decoder's own, if there is one."""
        if self.config.class_token == "encoder":
            assert class_latent is not None
            first = self.embed(class_latent) + self.positions.class_position
            tokens = torch.cat([first.to(tokens.dtype), tokens], dim=1)
        return prepend(self.class_token, self.positions.class_position, tokens)


class CrossDecoder(Decoder):
    """Cross-attention from mask tokens to visible ones; mask tokens do not see each other (CrossMAE).

    Its cost grows with the tokens decoded and not with their square, and what is predicted for one does not depend on
    which others are decoded.
    """

    def make_blocks(self) -> nn.ModuleList:
        return nn.ModuleList(CrossBlock(self.config.blocks) for _ in range(self.config.blocks.depth))

    def forward(
        self, latent: Tensor, class_latent: Tensor | None, visible: Tensor, decoded: Tensor, grid: Grid
    ) -> Tensor:
        """As above."""
        assert self.mask_token is not None
        positions = self.positions(grid)
        memory = self.with_class(self.embed(latent) + F.embedding(visible, positions), class_latent)
        tokens = (self.mask_token + F.embedding(decoded, positions)).to(memory.dtype)
        for block in self.blocks:
            tokens = block(tokens, memory)
        return self.head(self.norm(tokens))


class LinearDecoder(nn.Module):
    """A linear layer on the encoder's mask tokens (MaskFeat)."""

    def __init__(self, config: MaeConfig) -> None:
        super().__init__()
        self.head = Linear(config.encoder.blocks.width, config.target_values)

    def forward(
        self, latent: Tensor, class_latent: Tensor | None, visible: Tensor, decoded: Tensor, grid: Grid
    ) -> Tensor:
        """As above."""
        return self.head(latent[:, visible.shape[1] :])


DECODERS: dict[DecoderKind, type[Decoder] | type[LinearDecoder]] = {
    "self_attention": Decoder,
    "cross_attention": CrossDecoder,
    "linear": LinearDecoder,
}
