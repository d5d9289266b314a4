"""The method on one screen: hide most of the clip, encode the rest, predict what was hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .config import Grid, MaeConfig
from .decoder import Decoder
from .encoder import VideoViT
from .masking import agnostic, counted, key_noise, require, split_tokens, visible_count
from .targets import pixel_targets


@dataclass
class MaeOutput:
    """What one pass gives, for N = V + M tokens. Ids ascend; rows go with `visible` or with `hidden_ids`."""

    loss: Tensor  # (): mean squared error over the hidden tokens, in float32
    latent: Tensor  # (B, V, D): the visible tokens after the encoder's norm, without the class token
    prediction: Tensor  # (B, M, P)
    target: Tensor  # (B, M, P) float32
    hidden: Tensor  # (B, N) bool, True = hidden
    visible: Tensor  # (B, V)
    hidden_ids: Tensor  # (B, M)


class MaskedAutoencoder(nn.Module):
    """A masked autoencoder for video (arXiv 2205.09113).

    clip ── patchify ──┬─ visible 10 % ── encoder ──┐
                       │                            ├── decoder ── prediction ─┐
                       │            mask tokens ────┘                          ├── loss
                       └─ hidden 90 % ── target ───────────────────────────────┘
    """

    def __init__(self, config: MaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VideoViT(config.encoder)
        width = config.encoder.blocks.width
        self.encoder_mask_token = nn.Parameter(torch.empty(1, width)) if config.mask_tokens_in_encoder else None
        self.decoder = Decoder(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.encoder_mask_token is not None:
            nn.init.normal_(self.encoder_mask_token, std=0.02)

    def forward(
        self, clip: Tensor, *, keys: Tensor | None = None, noise: Tensor | None = None, hidden: Tensor | None = None
    ) -> MaeOutput:
        """Hides, encodes, predicts, compares.

        Args:
            clip: (B, C, T, H, W); uint8, or float already normalised.
            keys: (B,) int64, one per clip: the mask follows from it.
            noise: (B, N): the tokens with the smallest values stay visible.
            hidden: (B, N) bool: the mask itself. With none of the three it is drawn at random.

        Raises:
            UserError: more than one of the three, or one that does not go with the clips; a clip that does not fit.
        """
        patches, grid = self.encoder.cut(clip)
        hidden, visible, hidden_ids = self.mask(len(clip), patches.shape[1], clip.device, keys, noise, hidden)
        tokens = self.encoder.embed(patches, grid, visible)
        if self.encoder_mask_token is not None:
            tokens = torch.cat([tokens, self.mask_tokens(self.encoder_mask_token, hidden_ids, grid)], dim=1)
        class_latent, latent = self.split_class(self.encoder.norm(self.encoder.encode(tokens)))
        prediction = self.decoder(latent, class_latent, visible, hidden_ids, grid)
        target = pixel_targets(clip, patches, hidden_ids, self.config, self.encoder.normalize)
        loss = F.mse_loss(prediction.to(target.dtype), target)
        return MaeOutput(loss, latent[:, : visible.shape[1]], prediction, target, hidden, visible, hidden_ids)

    def mask(
        self, B: int, N: int, device: torch.device, keys: Tensor | None, noise: Tensor | None, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`hidden` (B, N), `visible` (B, V), `hidden_ids` (B, M)."""
        if sum(given is not None for given in (keys, noise, hidden)) > 1:
            raise UserError("a mask follows from keys, noise or hidden, and several were given.", "Give one of them.")
        if hidden is not None:
            require("the mask", hidden, (B, N), torch.bool)
            return hidden, *split_tokens(hidden, counted(hidden))
        if keys is not None:
            require("the tensor of keys", keys, (B,), torch.int64)
            noise = key_noise(keys, N)
        elif noise is None:
            noise = torch.rand(B, N, device=device)
        require("the noise", noise, (B, N))
        count = visible_count(N, self.config.mask_ratio, self.config.visible_count)
        hidden = agnostic(noise, count)
        return hidden, *split_tokens(hidden, count)

    def mask_tokens(self, token: Tensor, hidden_ids: Tensor, grid: Grid) -> Tensor:
        """Mask tokens with the positions of the hidden patches: (B, M, D), for an encoder that sees them."""
        return token + F.embedding(hidden_ids, self.encoder.positions(grid))

    def split_class(self, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        """Parts the class token (B, 1, D), if there is one, from the rest."""
        if not self.config.encoder.class_token:
            return None, tokens
        return tokens[:, :1], tokens[:, 1:]
