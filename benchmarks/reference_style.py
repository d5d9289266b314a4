"""A masked autoencoder for video written the plain way, as public repositories of the field have it: the measure of
what this package's arrangement of the same arithmetic gains.

What is plain: floats in, the whole clip through a convolution, then the hidden tokens thrown away; three linear layers
for q, k and v; attention written out with its (L, L) matrix; mask tokens put back in token order by a gather; the last
block, norm and projection of the decoder for all tokens; targets for all tokens, of which the mask keeps some. The
result is the method's: the same tokens, sizes, targets and loss as `stmae.model`, up to how weights are drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmae.model.config import BlocksConfig, MaeConfig


class PlainAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, L, D = x.shape
        q, k, v = (layer(x).reshape(B, L, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, L, D))


class PlainBlock(nn.Module):
    def __init__(self, config: BlocksConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = PlainAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.mlp_width), nn.GELU(), nn.Linear(config.mlp_width, config.width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainAutoencoder(nn.Module):
    """``PlainAutoencoder(config)(clip)`` gives the loss of clips (B, C, T, H, W), floats already normalised.

    A mask `hidden` (B, N) may be given, True = hidden; its samples must hide as many as the mask ratio says.
    """

    def __init__(self, config: MaeConfig) -> None:
        super().__init__()
        clip, encoder, decoder = config.encoder.clip, config.encoder.blocks, config.decoder.blocks
        self.patch, self.grid = clip.patch, clip.grid
        self.tokens = clip.grid[0] * clip.grid[1] * clip.grid[2]
        self.visible = int(self.tokens * (1 - config.mask_ratio))
        self.embed = nn.Conv3d(clip.channels, encoder.width, clip.patch, stride=clip.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, encoder.width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + self.tokens, encoder.width))
        self.blocks = nn.ModuleList(PlainBlock(encoder) for _ in range(encoder.depth))
        self.norm = nn.LayerNorm(encoder.width, eps=1e-6)
        self.decoder_embed = nn.Linear(encoder.width, decoder.width)
        self.decoder_class_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder.width))
        self.decoder_positions = nn.Parameter(0.02 * torch.randn(1, 1 + self.tokens, decoder.width))
        self.decoder_blocks = nn.ModuleList(PlainBlock(decoder) for _ in range(decoder.depth))
        self.decoder_norm = nn.LayerNorm(decoder.width, eps=1e-6)
        self.head = nn.Linear(decoder.width, config.target_values)

    def forward(self, clip: Tensor, hidden: Tensor | None = None) -> Tensor:
        x = self.embed(clip).flatten(2).transpose(1, 2) + self.positions[:, 1:]
        B, N, D = x.shape
        noise = torch.rand(B, N, device=x.device) if hidden is None else hidden.float()
        shuffled = noise.argsort(dim=1, stable=True)
        back = shuffled.argsort(dim=1)
        x = torch.gather(x, 1, shuffled[:, : self.visible, None].expand(-1, -1, D))
        x = torch.cat([(self.class_token + self.positions[:, :1]).expand(B, -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        missing = self.mask_token.to(x.dtype).expand(B, N - self.visible, -1)
        tokens = torch.cat([x[:, 1:], missing], dim=1)
        tokens = torch.gather(tokens, 1, back[:, :, None].expand(-1, -1, tokens.shape[2]))
        x = torch.cat([self.decoder_class_token.expand(B, -1, -1), tokens], dim=1) + self.decoder_positions
        for block in self.decoder_blocks:
            x = block(x)
        prediction = self.head(self.decoder_norm(x))[:, 1:]
        counts = torch.ones(B, N, device=x.device).scatter(1, shuffled[:, : self.visible], 0)
        error = (prediction.float() - self.targets(clip)).square().mean(dim=2)
        return (error * counts).sum() / counts.sum()

    def targets(self, clip: Tensor) -> Tensor:
        """Normalised pixels of the first frame of each patch, (B, N, ph * pw * C)."""
        B, C = clip.shape[:2]
        pt, ph, pw = self.patch
        t, h, w = self.grid
        cut = clip[:, :, ::pt].reshape(B, C, t, h, ph, w, pw).permute(0, 2, 3, 5, 4, 6, 1).reshape(B, t * h * w, -1)
        return (cut - cut.mean(dim=2, keepdim=True)) / (cut.var(dim=2, keepdim=True) + 1e-6).sqrt()
