"""Which tokens are hidden.

One sense in the whole package: `hidden` is a bool (B, N), True = hidden from the encoder. The same as indices, in
ascending token order: `visible` (B, V) and `hidden_ids` (B, M), V + M = N.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import UserError


def visible_count(tokens: int, mask_ratio: float, rule: str = "exact") -> int:
    """How many of N tokens stay visible.

    "exact" is floor(N (1 - ratio)), at least 1 and at most N - 1; a millionth is added because in floating point
    160 * (1 - 0.9) is just below 16. "float" is the references' ``int(N * (1 - ratio))``, with that fault.
    """
    if rule == "float":
        return int(tokens * (1 - mask_ratio))
    return min(max(math.floor(tokens * (1 - mask_ratio) + 1e-6), 1), tokens - 1)


def agnostic(noise: Tensor, count: int) -> Tensor:
    """Hides at random, agnostic of space and time: the `count` tokens of smallest noise stay visible.

    Args:
        noise: (B, N) of any ordered dtype; equal values are settled by token order.

    Returns:
        `hidden` (B, N) bool.
    """
    order = noise.argsort(dim=1, stable=True)
    return torch.ones_like(noise, dtype=torch.bool).scatter(1, order[:, :count], False)


def split_tokens(hidden: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`hidden` (B, N) with `count` False in each row, to `visible` (B, V) and `hidden_ids` (B, M), both ascending."""
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)  # a stable sort keeps token order within each half
    return order[:, :count], order[:, count:]


def counted(hidden: Tensor, tokens: int) -> int:
    """The number of visible tokens of a mask somebody gave.

    Raises:
        UserError: wrong shape or type, counts that differ between samples, nothing hidden or nothing visible.
    """
    if hidden.dtype != torch.bool or hidden.ndim != 2 or hidden.shape[1] != tokens:
        raise UserError(
            f"the mask is {hidden.dtype} of shape {tuple(hidden.shape)}.", f"It must be bool of shape (B, {tokens})."
        )
    counts = (~hidden).sum(dim=1).tolist()
    if len(set(counts)) > 1 or not 0 < counts[0] < tokens:
        raise UserError(
            f"the mask leaves {sorted(set(counts))} of {tokens} tokens visible.",
            "Every sample must have the same number, at least 1 visible and 1 hidden.",
        )
    return counts[0]


def key_noise(keys: Tensor, tokens: int) -> Tensor:
    """Noise (B, N) int64 from the clips' 64-bit keys (B,) alone: the same on every device and in every batch.

    Token i of key k gets the i-th number of splitmix64 seeded with k (Steele, Lea and Flood 2014).
    """
    steps = torch.arange(1, tokens + 1, device=keys.device) * _signed(0x9E3779B97F4A7C15)
    x = keys[:, None] + steps
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number: torch multiplies and adds int64 modulo 2^64."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift that fills with zeros; torch's own repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
