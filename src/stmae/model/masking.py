"""Which tokens are hidden.

One sense in the whole package: `hidden` is a bool (B, N), True = hidden from the encoder. The same as indices, in
ascending token order: `visible` (B, V) and `hidden_ids` (B, M), V + M = N.

A mask follows from the clips' 64-bit keys, in integer arithmetic alone, so it is the same on every device and in every
batch. `MASKS` holds the kinds. Each leaves a fixed number of its units visible: tokens, the cells of a frame (space:
a tube through all time steps), or time steps (time: whole slices).

    agnostic    space       time        block         two time steps of 4 x 4 tokens, # hidden
    ##.# #.##   #..# #..#   #### ....   .### .###
    .### ##.#   ##.# ##.#   #### ....   .### .###
    #### .##.   #### ####   #### ....   .... ####
    #.## ####   .### .###   #### ....   .... ####
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .config import DecodeKind, Grid, MaeConfig, MaskKind

# From keys (B,), the grid, how many units stay visible, and the raw patches (B, N, P), to `hidden` (B, N).
Mask = Callable[[Tensor, Grid, int, Tensor], Tensor]
OwnMask = Callable[[Tensor, Grid], Tensor]  # from keys (B,) and the grid to hidden (B, N) or (B, t, h, w)

BLOCKS = 128  # drawn per clip: they cover 97 % of the tokens, where 95 % hidden is a lot


def visible_count(tokens: int, mask_ratio: float, rule: str = "exact") -> int:
    """How many of N tokens stay visible.

    "exact" is floor(N (1 - ratio)), at least 1 and at most N - 1; a millionth is added because in floating point
    160 * (1 - 0.9) is just below 16. "float" is the references' ``int(N * (1 - ratio))``, with that fault, save that
    it leaves one token visible where theirs would leave none.
    """
    margin = 0.0 if rule == "float" else 1e-6
    return min(max(math.floor(tokens * (1 - mask_ratio) + margin), 1), tokens - 1)


def visible_tokens(config: MaeConfig, grid: Grid) -> int:
    """V: how many tokens the configuration's mask leaves visible in a clip of this grid.

    Raises:
        UserError: the mask has a single unit to draw, such as "time" in a clip of one time step.
    """
    units = config.mask_units(grid)
    if units < 2:
        raise UserError(f'mask "{config.mask}" has a single unit to draw in a grid of {grid}.', "Choose another mask.")
    return visible_count(units, config.mask_ratio, config.visible_count) * (math.prod(grid) // units)


def draw_mask(
    config: MaeConfig,
    grid: Grid,
    patches: Tensor,
    keys: Tensor,
    noise: Tensor | None = None,
    hidden: Tensor | None = None,
    own: OwnMask | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`hidden` (B, N), `visible` (B, V) and `hidden_ids` (B, M): as given, else from noise, else from the keys.

    Raises:
        UserError: what is given does not go with the clips; a mask of one's own that is not there or uneven.
    """
    B, N = patches.shape[:2]
    if hidden is None and noise is None and config.mask == "own":
        if own is None:
            raise UserError(
                "the model was trained with a mask of somebody's own, which no file holds.",
                "Give hidden=, or own_mask= where the model is made.",
            )
        hidden = own(keys, grid).flatten(1).to(patches.device)
    if hidden is not None:
        require("the mask", hidden, (B, N), torch.bool)
        return hidden, *split_tokens(hidden, counted(hidden))
    if noise is not None:
        require("the noise", noise, (B, N))
        count = visible_count(N, config.mask_ratio, config.visible_count)
        hidden = agnostic(noise, count)
    else:
        count = visible_tokens(config, grid)
        hidden = MASKS[config.mask](keys, grid, count // (N // config.mask_units(grid)), patches)
    return hidden, *split_tokens(hidden, count)


# The kinds ----------------------------------------------------------------------------------------------------------


def agnostic(noise: Tensor, count: int) -> Tensor:
    """Hides at random, agnostic of space and time: the `count` tokens of smallest noise stay visible.

    Args:
        noise: (B, N) of any ordered dtype; equal values are settled by token order.

    Returns:
        `hidden` (B, N) bool.
    """
    order = noise.argsort(dim=1, stable=True)
    return torch.ones_like(noise, dtype=torch.bool).scatter(1, order[:, :count], False)


def space(keys: Tensor, grid: Grid, count: int, patches: Tensor) -> Tensor:
    """Space-only, or tube: `count` cells of the frame stay visible, the same ones in every time step."""
    t, h, w = grid
    return agnostic(key_noise(keys, h * w), count).repeat(1, t)


def time(keys: Tensor, grid: Grid, count: int, patches: Tensor) -> Tensor:
    """Time-only, or frame: `count` time steps stay visible, whole."""
    t, h, w = grid
    return agnostic(key_noise(keys, t), count).repeat_interleave(h * w, dim=1)


def block(keys: Tensor, grid: Grid, count: int, patches: Tensor) -> Tensor:
    """Block-wise, or cube: boxes are hidden one after the other until no more than `count` tokens are visible.

    A box spans from a quarter to half of each axis, and may stick out of the clip, so that every token is as likely to
    be hidden as any other. Of the box that would hide too many, only its last tokens are. What no box covers comes
    last, at random. The paper does not say how its blocks are drawn ("block-wise", section 3): sizes are ours.
    """
    draws = key_noise(keys, 6 * BLOCKS + math.prod(grid))
    sides, places = draws[:, : 6 * BLOCKS].view(-1, 2, 3, BLOCKS).unbind(1)
    covered = torch.ones(len(keys), BLOCKS, 1, dtype=torch.bool, device=keys.device)
    for axis, size in enumerate(grid):
        least, most = max(1, size // 4), max(1, size // 2)
        side = least + below(sides[:, axis], most - least + 1)  # (B, BLOCKS)
        first = below(places[:, axis], size + side - 1) - side + 1
        steps = torch.arange(size, device=keys.device)
        inside = (steps >= first[..., None]) & (steps < (first + side)[..., None])
        covered = (covered[..., :, None] & inside[..., None, :]).flatten(2)
    turns = torch.arange(BLOCKS, device=keys.device, dtype=torch.int16)[:, None]
    turn = torch.where(covered, turns, BLOCKS).amin(dim=1).long()  # (B, N): the box that hides a token first
    rest = draws[:, 6 * BLOCKS :].argsort(dim=1, stable=True, descending=True).argsort(dim=1)  # smallest noise last
    turn = turn + (turn == BLOCKS) * rest
    return agnostic(-turn, count)


def motion(keys: Tensor, grid: Grid, count: int, patches: Tensor) -> Tensor:
    """Motion-guided without a flow network: a token is the likelier hidden, the more its pixels change over time.

    Tokens stand in order of their change (the sum of absolute differences from the patch at the same place one time
    step later; before, for the last) and in a random order; the `count` of the smallest sum of both places stay
    visible. In a clip where nothing moves the mask is agnostic. Where the mask lies then tells the encoder a little of
    what it hides, as with all that follows motion. After MGM and MGMAE, which move their masks along
    with codec motion vectors or optical flow; frame difference in place of these is ours.
    """
    noise = key_noise(keys, math.prod(grid))
    steps = patches.unflatten(1, (grid[0], -1)).to(torch.int32 if patches.dtype == torch.uint8 else patches.dtype)
    change = (steps[:, 1:] - steps[:, :-1]).abs().sum(dim=-1)
    change = torch.cat([change, change[:, -1:]], dim=1) if grid[0] > 1 else torch.zeros_like(steps[..., 0])
    shuffled = noise.argsort(dim=1, stable=True)  # equal changes are settled at random, not by token order
    by_change = shuffled.gather(1, change.flatten(1).gather(1, shuffled).argsort(dim=1, stable=True))
    return agnostic(shuffled.argsort(dim=1) + by_change.argsort(dim=1), count)


MASKS: dict[MaskKind, Mask] = {
    "agnostic": lambda keys, grid, count, patches: agnostic(key_noise(keys, math.prod(grid)), count),
    "space": space,
    "time": time,
    "block": block,
    "motion": motion,
}


def fixed_mask(mask: Tensor) -> OwnMask:
    """The same mask for every clip, from (N,), (h, w) or (t, h, w), nonzero = hidden; sizes other than the grid's are
    resampled (nearest), so that a picture may be given.

    Raises:
        UserError: another number of dimensions; when used, a length that is not the grid's.
    """
    if mask.ndim not in (1, 2, 3):
        raise UserError(f"the mask has shape {tuple(mask.shape)}.", "Give (N,), (h, w) or (t, h, w).")

    there: dict[torch.device, Tensor] = {}

    def own(keys: Tensor, grid: Grid) -> Tensor:
        if keys.device not in there:
            there[keys.device] = mask.to(keys.device) != 0
        hidden = there[keys.device]
        if mask.ndim == 1:
            require("the mask", hidden, (math.prod(grid),))
            return hidden.expand(len(keys), -1)
        volume = hidden.expand(grid[0], -1, -1) if mask.ndim == 2 else hidden
        resampled = F.interpolate(volume[None, None].float(), size=grid, mode="nearest-exact")[0, 0] > 0
        return resampled.flatten().expand(len(keys), -1)

    return own


# Which hidden tokens are decoded ------------------------------------------------------------------------------------


def decoded_rows(config: MaeConfig, keys: Tensor, hidden_ids: Tensor, grid: Grid) -> Tensor | None:
    """Which of the hidden tokens are to be predicted: (B, K), ascending rows of `hidden_ids`; None for all."""
    if config.decode == "all":
        return None
    count = max(1, math.floor(hidden_ids.shape[1] * config.decode_share + 1e-6))
    noise = key_noise(keys ^ _DECODE, math.prod(grid)).gather(1, hidden_ids)
    order = DECODED[config.decode](noise, keys, hidden_ids, grid)
    return order.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values


def running_cell(noise: Tensor, keys: Tensor, hidden_ids: Tensor, grid: Grid) -> Tensor:
    """VideoMAE v2's: in each cell of 2 x 2 tokens the decoded ones move on by one from time step to time step.

        0 1     the places of a cell in the order of their turns; a share of 1/2 decodes 0 and 1 in one step, 1 and 2
        3 2     in the next, and so on

    The step that begins is drawn from the clip's key, so that every place gets its turn. Counts are kept exact: within
    one turn the noise decides.
    """
    _, h, w = grid
    time, row, column = hidden_ids // (h * w), hidden_ids // w % h, hidden_ids % w
    place = 2 * (row % 2) + (row + column) % 2
    turn = (place - time - key_noise(keys, 1)) % 4
    return (turn << 61) + _shift_right(noise, 3)


# From noise (B, M) of the hidden tokens, keys, their ids and the grid, to what they are ordered by.
DECODED: dict[DecodeKind, Callable[[Tensor, Tensor, Tensor, Grid], Tensor]] = {
    "random": lambda noise, keys, hidden_ids, grid: noise,
    "running_cell": running_cell,
}


# Helpers ------------------------------------------------------------------------------------------------------------


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


def random_keys(count: int, device: torch.device) -> Tensor:
    """Keys for clips that have none: (B,) int64."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (count,), device=device)


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


def below(noise: Tensor, limit: int | Tensor) -> Tensor:
    """Noise of 64 bits as whole numbers from 0 to below `limit` (at most 2^31)."""
    return (_shift_right(noise, 32) * limit) >> 32


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number: torch multiplies and adds int64 modulo 2^64."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift that fills with zeros; torch's own repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


_DECODE = 0x6465_636F_6465  # keeps the choice of decoded tokens apart from the mask
