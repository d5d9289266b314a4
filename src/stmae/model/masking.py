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
    160 * (1 - 0.9) is just below 16. "float" is the references' ``int(N * (1 - ratio))``, with that fault, save that
    it leaves one token visible where theirs would leave none.
    """
    margin = 0.0 if rule == "float" else 1e-6
    return min(max(math.floor(tokens * (1 - mask_ratio) + margin), 1), tokens - 1)


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


def require(name: str, given: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """Raises `UserError` unless what somebody gave has this shape and, where one is named, this type."""
    if given.shape != shape or dtype not in (None, given.dtype):
        wanted = f"{dtype} of shape {shape}" if dtype else f"of shape {shape}"
        raise UserError(f"{name} is {given.dtype} of shape {tuple(given.shape)}.", f"It must be {wanted}.")


def counted(hidden: Tensor) -> int:
    """The number of visible tokens of a mask (B, N) somebody gave.

    Raises:
        UserError: counts that differ between samples, nothing hidden or nothing visible.
    """
    counts = (~hidden).sum(dim=1).tolist()
    if len(set(counts)) > 1 or not 0 < counts[0] < hidden.shape[1]:
        raise UserError(
            f"the mask leaves {sorted(set(counts))} of {hidden.shape[1]} tokens visible.",
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


def key_uniform(keys: Tensor, count: int, stream: int) -> Tensor:
    """Numbers (B, count) in [0, 1), float64, from the clips' keys (B,), independent for every `stream` from 1 on."""
    own = key_noise(keys, stream)[:, -1]
    noise = key_noise(own ^ _signed(0xD6E8FEB86659FD93), count)  # else they would be the mask's, further on
    return _shift_right(noise, 11).double() * 2.0**-53


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number: torch multiplies and adds int64 modulo 2^64."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift that fills with zeros; torch's own repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
