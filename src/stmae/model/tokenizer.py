"""A small tokenizer of spacetime patches: each patch becomes the number of the nearest entry of a codebook.

With one code per patch the best picture of a code is the mean of its patches, so there is nothing that an encoder and
decoder network around the codebook could add: this one is k-means over pixels, learnt batch by batch, with codes that
die put to use again (van den Oord et al. 2017, appendix A.1; the mean patch is the codebook of one code).
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .patches import patchify

DECAY = 0.95  # of the running counts and sums
DEAD = 0.05  # a code whose count falls below this share of the average one's begins anew
LEAST_USED, LEAST_GAIN = 0.5, 3.0  # share of the codes, decibels over the mean patch: less is an experiment
CHUNK = 4096  # patches whose distances to all codes are held at a time


def falls_short(used: float, gain: float) -> bool:
    """Whether a codebook is but an experiment, by the share of its codes that are used and the decibels it gains."""
    return used < LEAST_USED or gain < LEAST_GAIN


class PatchTokenizer(nn.Module):
    """``tokenizer(clips)`` gives the codes (B, N) int64 of the patches of uint8 clips (floats: of pixels in 0..1).

    Args:
        patch: frames, rows, columns.
        codes: entries of the codebook.
    """

    codebook: Tensor
    counts: Tensor

    def __init__(self, *, patch: tuple[int, int, int], channels: int = 3, codes: int = 512) -> None:
        super().__init__()
        self.patch, self.channels, self.codes = patch, channels, codes
        values = patch[0] * patch[1] * patch[2] * channels
        self.register_buffer("codebook", torch.zeros(codes, values))
        self.register_buffer("counts", torch.zeros(codes))

    def forward(self, clips: Tensor) -> Tensor:
        """Codes (B, N), in the order of tokens."""
        patches = self.cut(clips)
        return self.nearest(patches.flatten(0, 1)).view(patches.shape[:2])

    def cut(self, clips: Tensor) -> Tensor:
        """Clips (B, C, T, H, W) to patches (B, N, P) of pixels in 0..1.

        Raises:
            UserError: other channels, or sizes that the patch does not divide.
        """
        if clips.shape[1] != self.channels:
            raise UserError(f"the clips have {clips.shape[1]} channels, the tokenizer {self.channels}.", "")
        pixels = patchify(clips, self.patch)
        return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()

    def nearest(self, patches: Tensor) -> Tensor:
        """The code of each patch (n, P): (n,) int64. Of equally near ones the first.

        In float32 whatever the autocast says: distances to neighbouring codes differ by less than half precision tells.
        """
        with nullcontext() if patches.is_meta else torch.autocast(patches.device.type, enabled=False):
            lengths = self.codebook.square().sum(dim=1)
            parts = [torch.addmm(lengths, part, self.codebook.T, alpha=-2) for part in patches.split(CHUNK)]
            return torch.cat([part.argmin(dim=1) for part in parts])

    def pictures(self, codes: Tensor) -> Tensor:
        """Codes (...) to patches (..., P) of pixels in 0..1."""
        return F.embedding(codes, self.codebook)

    @torch.no_grad()
    def learn(self, patches: Tensor, order: Tensor) -> None:
        """One step of k-means on patches (n, P).

        Args:
            order: a permutation (n,): the patches that codes begin with, where they have died, in this order.
        """
        own = F.one_hot(self.nearest(patches), self.codes).to(patches.dtype) if self.counts.any() else None
        if own is None:
            self._begin(torch.arange(self.codes), patches[order])
            return
        sums = self.codebook * self.counts[:, None] * DECAY + (own.T @ patches) * (1 - DECAY)
        self.counts.mul_(DECAY).add_(own.sum(dim=0), alpha=1 - DECAY)
        self.codebook.copy_(sums / self.counts.clamp(min=1e-6)[:, None])
        dead = (self.counts < DEAD * self.counts.mean()).nonzero()[:, 0]
        self._begin(dead[: len(patches)], patches[order])

    def _begin(self, which: Tensor, patches: Tensor) -> None:
        """Puts codes at patches, in the order of these, as if each had had its share of the last batch."""
        chosen = patches[torch.arange(len(which), device=patches.device) % len(patches)]
        self.codebook[which] = chosen
        self.counts[which] = len(patches) / self.codes
