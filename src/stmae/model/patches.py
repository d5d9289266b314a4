"""From pixels to tokens: cutting clips into spacetime patches, embedding them, and where they come from.

Token order everywhere: time slowest, then row, then column. Value order within a patch: frame, row, column,
channel (channel fastest), so the values of a patch's first frame are the first ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .config import ClipConfig, Grid, PositionLayout, PositionValues
from .transformer import Linear


def patchify(clip: Tensor, patch: Sequence[int]) -> Tensor:
    """Cuts clips (B, C, T, H, W) into patches (B, N, pt*ph*pw*C); any dtype.

    Raises:
        UserError: the patch does not divide the clip.
    """
    B, C, T, H, W = clip.shape
    pt, ph, pw = patch
    if T % pt or H % ph or W % pw:
        raise UserError(
            f"a patch of {pt}x{ph}x{pw} does not divide a clip of {T}x{H}x{W} (frames x height x width).",
            "Choose clip sizes that are multiples of the patch's.",
        )
    cut = clip.reshape(B, C, T // pt, pt, H // ph, ph, W // pw, pw)
    return cut.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(1, 3).flatten(2)


def unpatchify(patches: Tensor, grid: Grid, patch: Sequence[int]) -> Tensor:
    """The inverse of `patchify`: (B, N, pt*ph*pw*C) to (B, C, T, H, W)."""
    B, N, P = patches.shape
    pt, ph, pw = patch
    t, h, w = grid
    assert t * h * w == N, (grid, N)
    parts = patches.reshape(B, t, h, w, pt, ph, pw, P // (pt * ph * pw))
    return parts.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(B, -1, t * pt, h * ph, w * pw)


def take(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows `ids` (B, K) of `tokens` (B, N, P): (B, K, P). Meant for pixels: whole rows are copied, no gradient."""
    B, N, P = tokens.shape
    rows = ids + torch.arange(0, B * N, N, device=ids.device)[:, None]
    return tokens.reshape(B * N, P).index_select(0, rows.flatten()).view(B, -1, P)


class Normalizer(nn.Module):
    """uint8 values become floats with the mean and deviation of the configuration; floats pass as they are."""

    mean: Tensor
    std: Tensor

    def __init__(self, clip: ClipConfig) -> None:
        super().__init__()
        self.clip = clip
        for name in ("mean", "std"):
            self.register_buffer(name, torch.empty(clip.channels), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for buffer, values in ((self.mean, self.clip.mean), (self.std, self.clip.std)):
                buffer.copy_(torch.tensor(values).expand(self.clip.channels))

    def forward(self, values: Tensor) -> Tensor:
        """(..., P) with the channel fastest, to the model's float type (float32) of the same shape."""
        if values.dtype != torch.uint8:
            return values.to(self.mean.dtype)
        pixels = values.unflatten(-1, (-1, self.clip.channels))
        return ((pixels * (1 / 255) - self.mean) / self.std).flatten(-2)

    def undo(self, values: Tensor) -> Tensor:
        """Normalised values (..., P), channel fastest, to pixels in 0..1."""
        return (values.unflatten(-1, (-1, self.clip.channels)) * self.std + self.mean).flatten(-2)


class PatchEmbed(nn.Module):
    """Normalised patches (B, K, P) to tokens (B, K, D): the Conv3d of the paper as the matrix it is.

    A matrix can be applied to visible patches alone, which a convolution over the clip cannot.
    """

    def __init__(self, clip: ClipConfig, width: int) -> None:
        super().__init__()
        self.proj = Linear(clip.patch_values, width)

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches.to(self.proj.weight.dtype))  # float32 from uint8, also in a model of half precision


class Positions(nn.Module):
    """Position embeddings of a token grid: (t, h, w) to a table (N, D).

    * separable: a spatial table (h*w, D) plus a temporal one (t, D); "prevents the size from growing too large in
      3D" (paper, section 4). Sine-cosine values give a quarter of the columns to time and the rest to space.
    * joint: one table (N, D). Sine-cosine values are VideoMAE's, over the flat token index.

    For a grid other than its own, spatial positions are interpolated bicubically and temporal ones linearly.
    """

    def __init__(
        self, grid: Grid, width: int, layout: PositionLayout, values: PositionValues, class_token: bool
    ) -> None:
        super().__init__()
        self.grid, self.width, self.layout, self.values = grid, width, layout, values
        t, h, w = grid
        shapes = (
            {"spatial": (h * w, width), "temporal": (t, width)}
            if layout == "separable"
            else {"joint": (t * h * w, width)}
        )
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape), requires_grad=values != "sincos"))
        self.class_position = nn.Parameter(torch.empty(1, width)) if class_token else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for name, table in self.named_parameters(recurse=False):
                if name == "class_position" or self.values == "learned":
                    nn.init.trunc_normal_(table, std=0.02)
                else:
                    table.copy_(self._sincos(name))

    def _sincos(self, name: str) -> Tensor:
        t, h, w = self.grid
        time = 2 * (self.width // 8)
        space = self.width - time
        rows = 2 * (space // 4)
        if name == "joint":
            return interleaved_sincos(torch.arange(t * h * w), self.width)
        if name == "temporal":
            return F.pad(sincos(torch.arange(t), time), (0, space))
        row, column = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
        return F.pad(torch.cat([sincos(row, rows), sincos(column, space - rows)], dim=1), (time, 0))

    def forward(self, grid: Grid | None = None) -> Tensor:
        """The table (N, D), of the grid it was made for unless another is given."""
        if self.layout == "joint":
            joint = self.get_parameter("joint")
            return joint if grid in (None, self.grid) else resize_joint(joint, self.grid, grid or self.grid)
        spatial, temporal = self._separable(grid or self.grid)
        return (temporal[:, None] + spatial).flatten(0, 1)

    def _separable(self, grid: Grid) -> tuple[Tensor, Tensor]:
        spatial, temporal = self.get_parameter("spatial"), self.get_parameter("temporal")
        if grid == self.grid:
            return spatial, temporal
        return resize_spatial(spatial, self.grid[1:], grid[1:]), resize_temporal(temporal, grid[0])

    def resize(self, grid: Grid) -> None:
        """Replaces the tables by interpolated ones. A whole model is made one of other clips by `refit.refit`."""
        with torch.no_grad():
            if self.layout == "joint":
                tables = {"joint": self(grid)}
            else:
                tables = dict(zip(("spatial", "temporal"), self._separable(grid), strict=True))
        for name, table in tables.items():
            self.register_parameter(name, nn.Parameter(table.clone(), requires_grad=self.values != "sincos"))
        self.grid = grid


def sincos(positions: Tensor, width: int) -> Tensor:
    """(K,) integers to (K, width): sines, then cosines, of position * 10000^(-i / (width/2)); float64 inside."""
    half = math.ceil(width / 2)
    angles = positions.double()[:, None] * 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width].float()


def interleaved_sincos(positions: Tensor, width: int) -> Tensor:
    """As "Attention is all you need" has it: sine in even columns, cosine in odd ones (VideoMAE's table)."""
    half = math.ceil(width / 2)
    angles = positions.double()[:, None] * 10000 ** (-2 * torch.arange(half, dtype=torch.float64) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width].float()


def resize_spatial(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(h*w, D) to (h'*w', D), bicubic."""
    image = table.unflatten(0, old).permute(2, 0, 1)[None]
    return F.interpolate(image, size=new, mode="bicubic", align_corners=False)[0].flatten(1).T


def resize_temporal(table: Tensor, frames: int) -> Tensor:
    """(t, D) to (t', D), linear."""
    return F.interpolate(table.T[None], size=frames, mode="linear", align_corners=False)[0].T


def resize_joint(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """(t*h*w, D) to (t'*h'*w', D): every time step bicubically, then linearly over time."""
    steps = torch.stack([resize_spatial(step, old[1:], new[1:]) for step in table.unflatten(0, (old[0], -1))])
    return resize_temporal(steps.flatten(1), new[0]).reshape(math.prod(new), -1)
