"""The method on one screen: hide most of the clip, encode the rest, predict what was hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .config import Grid, MaeConfig
from .decoder import DECODERS, Decoder, LinearDecoder
from .encoder import VideoViT
from .masking import OwnMask, decoded_rows, draw_mask, random_keys, require
from .targets import Scene, compare, targets


@dataclass
class MaeOutput:
    """What one pass gives, for N = V + M tokens. Ids ascend; rows go with `visible` or with `decoded`."""

    loss: Tensor  # (): mean squared error (for codes, cross-entropy) over the decoded tokens, in float32
    latent: Tensor  # (B, V, D): the visible tokens after the encoder's norm, without the class token
    prediction: Tensor  # (B, K, P)
    target: Tensor  # (B, K, P) float32; for codes (B, K) int64
    hidden: Tensor  # (B, N) bool, True = hidden
    visible: Tensor  # (B, V)
    hidden_ids: Tensor  # (B, M)
    decoded: Tensor  # (B, K): the hidden tokens that were predicted; all M of them unless `decode` takes a share


class MaskedAutoencoder(nn.Module):
    """A masked autoencoder for video (arXiv 2205.09113).

    clip ── patchify ──┬─ visible 10 % ── encoder ──┐
                       │                            ├── decoder ── prediction ─┐
                       │            mask tokens ────┘                          ├── loss
                       └─ hidden 90 % ── target ───────────────────────────────┘
    """

    def __init__(self, config: MaeConfig, *, own_mask: OwnMask | None = None) -> None:
        super().__init__()
        self.config, self.own_mask = config, own_mask
        self.encoder = VideoViT(config.encoder)
        width = config.encoder.blocks.width
        self.encoder_mask_token = nn.Parameter(torch.empty(1, width)) if config.mask_tokens_in_encoder else None
        self.decoder: Decoder | LinearDecoder = DECODERS[config.decoder.kind](config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.encoder_mask_token is not None:
            nn.init.normal_(self.encoder_mask_token, std=0.02)

    def forward(
        self,
        clip: Tensor,
        *,
        keys: Tensor | None = None,
        noise: Tensor | None = None,
        hidden: Tensor | None = None,
        given: Tensor | None = None,
        decode_all: bool = False,
    ) -> MaeOutput:
        """Hides, encodes, predicts, compares.

        Args:
            clip: (B, C, T, H, W); uint8, or float already normalised.
            keys: (B,) int64, one per clip: the mask follows from it, and what is decoded.
            noise: (B, N): the tokens with the smallest values stay visible, whatever the kind of mask.
            hidden: (B, N) bool: the mask itself. With none of the three it is drawn at random.
            given: for targets from outside, a tokenizer's codes (B, N) or a teacher's features (B, N, P).
            decode_all: predict every hidden token, also where training takes a share.

        Raises:
            UserError: more than one of the three, or one that does not go with the clips; a clip that does not fit.
        """
        if sum(way is not None for way in (keys, noise, hidden)) > 1:
            raise UserError("a mask follows from keys, noise or hidden, and several were given.", "Give one of them.")
        patches, grid = self.encoder.cut(clip)
        keys = random_keys(len(clip), clip.device) if keys is None else keys
        require("the tensor of keys", keys, (len(clip),), torch.int64)
        hidden, visible, hidden_ids = draw_mask(self.config, grid, patches, keys, noise, hidden, self.own_mask)
        rows = None if decode_all else decoded_rows(self.config, keys, hidden_ids, grid)
        decoded = hidden_ids if rows is None else hidden_ids.gather(1, rows)

        tokens = self.encoder.embed(patches, grid, visible)
        if self.encoder_mask_token is not None:
            tokens = torch.cat([tokens, self.mask_tokens(self.encoder_mask_token, hidden_ids, grid)], dim=1)
        class_latent, latent = self.split_class(self.encoder.norm(self.encoder.encode(tokens)))
        seen = latent[:, : visible.shape[1]]
        if self.encoder_mask_token is not None:
            tail = latent[:, visible.shape[1] :]
            latent = torch.cat([seen, tail if rows is None else tail.take_along_dim(rows[..., None], dim=1)], dim=1)
        prediction = self.decoder(latent, class_latent, visible, decoded, grid)

        target = targets(Scene(clip, patches, decoded, self.config, self.encoder.normalize, given))
        return MaeOutput(compare(prediction, target), seen, prediction, target, hidden, visible, hidden_ids, decoded)

    def encode(self, clip: Tensor) -> Tensor:
        """Features (B, D) of whole clips, nothing hidden, as `encoder(clip)` gives them."""
        features: Tensor = self.encoder(clip)
        return features

    def mask_tokens(self, token: Tensor, hidden_ids: Tensor, grid: Grid) -> Tensor:
        """Mask tokens with the positions of the hidden patches: (B, M, D), for an encoder that sees them."""
        return token + F.embedding(hidden_ids, self.encoder.positions(grid))

    def split_class(self, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        """Parts the class token (B, 1, D), if there is one, from the rest."""
        if not self.config.encoder.class_token:
            return None, tokens
        return tokens[:, :1], tokens[:, 1:]
