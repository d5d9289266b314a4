"""A pre-norm transformer block: nothing about video in here."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import BlocksConfig


class Linear(nn.Linear):
    """A linear layer with the reference's initialisation: Xavier-uniform weight, zero bias.

    Args:
        parts: independent matrices stacked in one, such as q, k and v: each gets the range of its own shape.
        std: draw the weight from a normal distribution cut at two deviations instead.
    """

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = True, parts: int = 1, std: float | None = None
    ) -> None:
        self.parts, self.std = parts, std
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        for part in self.weight.detach().chunk(self.parts):
            if self.std is None:
                nn.init.xavier_uniform_(part)
            else:
                nn.init.trunc_normal_(part, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class LayerNorm(nn.LayerNorm):
    """Layer norm in float32 whatever the autocast says: on the CPU autocast would hand back bf16."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Attention(nn.Module):
    """Softmax attention over all tokens."""

    def __init__(self, config: BlocksConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.width, 3 * config.width, bias=config.qkv_bias, parts=3)
        self.proj = Linear(config.width, config.width)

    def forward(self, x: Tensor, tail: int | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); with `tail`, to (B, tail, D): the outputs of the last `tail` tokens only."""
        if tail is None:
            q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, L, d)
        else:
            D = x.shape[2]
            bias = self.qkv.bias
            q = F.linear(x[:, -tail:], self.qkv.weight[:D], None if bias is None else bias[:D])
            q = q.unflatten(2, (self.heads, -1)).transpose(1, 2)
            kv = F.linear(x, self.qkv.weight[D:], None if bias is None else bias[D:])
            k, v = kv.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Widen, GELU (exact), narrow."""

    def __init__(self, config: BlocksConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: BlocksConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, tail: int | None = None, share: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D), or with `tail` to (B, tail, D): a last block need not compute what nobody reads.

        `share` (B, 2) multiplies the two branches of each clip: drop path makes it 0 for some and more for the others.
        """
        kept = x if tail is None else x[:, -tail:]
        if share is None:
            x = kept + self.attn(self.norm1(x), tail)
            return x + self.mlp(self.norm2(x))
        first, second = share.to(x.dtype)[:, :, None, None].unbind(1)
        x = kept + first * self.attn(self.norm1(x), tail)
        return x + second * self.mlp(self.norm2(x))


def blocks(config: BlocksConfig) -> nn.ModuleList:
    """`config.depth` blocks."""
    return nn.ModuleList(Block(config) for _ in range(config.depth))


class CrossAttention(nn.Module):
    """Softmax attention from one set of tokens to another."""

    def __init__(self, config: BlocksConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q = Linear(config.width, config.width, bias=config.qkv_bias)
        self.kv = Linear(config.width, 2 * config.width, bias=config.qkv_bias, parts=2)
        self.proj = Linear(config.width, config.width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(B, L, D), looking at `memory` (B, K, D), to (B, L, D)."""
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """x + attention(norm1(x), norm_memory(memory)), then x + mlp(norm2(x))."""

    def __init__(self, config: BlocksConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width, eps=config.norm_eps)
        self.norm_memory = LayerNorm(config.width, eps=config.norm_eps)
        self.attn = CrossAttention(config)
        self.norm2 = LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(B, L, D) and memory (B, K, D) to (B, L, D)."""
        x = x + self.attn(self.norm1(x), self.norm_memory(memory))
        return x + self.mlp(self.norm2(x))
