"""The decoder: a small ViT that sees encoded tokens and mask tokens, and predicts the hidden patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import MaeConfig
from .encoder import prepend
from .patches import Positions
from .transformer import LayerNorm, Linear, blocks


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
        self.blocks = blocks(self.config.blocks)
        eps = self.config.blocks.norm_eps if self.config.norm_eps is None else self.config.norm_eps
        self.norm = LayerNorm(width, eps=eps)
        self.head = Linear(width, config.target_values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)
        if self.class_token is not None:
            nn.init.zeros_(self.class_token)  # as in the reference; its position is not zero

    def forward(
        self,
        latent: Tensor,
        class_latent: Tensor | None,
        visible: Tensor,
        hidden_ids: Tensor,
        grid: tuple[int, int, int],
    ) -> Tensor:
        """Predictions for the hidden tokens: (B, M, P), rows in the order of `hidden_ids`.

        Args:
            latent: (B, V, D) encoded visible tokens, in the order of `visible`; or (B, V + M, D), the hidden ones
                behind, where the encoder had mask tokens.
            class_latent: (B, 1, D), the encoder's class token, or None.
        """
        tokens = self.embed(latent)
        if self.mask_token is not None:
            B, M = hidden_ids.shape
            tokens = torch.cat([tokens, self.mask_token.to(tokens.dtype).expand(B, M, -1)], dim=1)
        tokens = tokens + F.embedding(torch.cat([visible, hidden_ids], dim=1), self.positions(grid))
        if self.config.class_token == "encoder":
            assert class_latent is not None
            first = self.embed(class_latent) + self.positions.class_position
            tokens = torch.cat([first.to(tokens.dtype), tokens], dim=1)
        tokens = prepend(self.class_token, self.positions.class_position, tokens)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        tokens = self.blocks[-1](tokens, tail=hidden_ids.shape[1])
        return self.head(self.norm(tokens))
