"""The tokenizer of patches: k-means that finds what there is, and uses all of its codes."""

from __future__ import annotations

import pytest
import torch

from stmae.errors import UserError
from stmae.model.patches import patchify
from stmae.model.tokenizer import PatchTokenizer


def batches(patches: torch.Tensor, steps: int, size: int = 256):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield (
            patches[torch.randint(0, len(patches), (size,), generator=generator)],
            torch.randperm(size, generator=generator),
        )


def kinds(count: int, each: int, values: int = 12, noise: float = 0.02) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(count, values, generator=generator)
    return centres, centres.repeat_interleave(each, 0) + noise * torch.randn(count * each, values, generator=generator)


def test_it_finds_the_kinds_of_patches_there_are():
    centres, patches = kinds(10, 50)
    made = PatchTokenizer(patch=(1, 2, 2), codes=24)
    for batch, order in batches(patches, 60):
        made.learn(batch, order)
    error = (made.pictures(made.nearest(patches)) - patches).square().mean()
    assert error < 2 * 0.02**2
    assert torch.cdist(centres, made.codebook).amin(dim=1).max() < 0.05
    assert (made.counts > 0).all()


def test_codes_that_nobody_uses_begin_anew():
    _, patches = kinds(10, 50)
    made = PatchTokenizer(patch=(1, 2, 2), codes=16)
    made.learn(patches[:256] * 0 + 100.0, torch.arange(256))  # all codes in one place, far away
    for batch, order in batches(patches, 120):
        made.learn(batch, order)
    assert made.nearest(patches).unique().numel() >= 10


def test_codes_stand_in_the_order_of_tokens():
    made = PatchTokenizer(patch=(2, 4, 4), codes=8)
    made.codebook.copy_(torch.linspace(0, 1, 8)[:, None].expand_as(made.codebook))
    clips = torch.randint(0, 8, (2, 1, 2, 2, 3)).repeat_interleave(2, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    clips = (clips * 255 / 7).round().to(torch.uint8).expand(-1, 3, -1, -1, -1)
    codes = made(clips)
    assert codes.shape == (2, 12)
    assert codes.dtype == torch.int64
    expected = (patchify(clips, (2, 4, 4)).float().mean(dim=2) * 7 / 255).round().long()
    assert torch.equal(codes, expected)
    torch.testing.assert_close(made(clips.float() / 255), codes)


def test_the_nearest_is_the_nearest():
    generator = torch.Generator().manual_seed(0)
    made = PatchTokenizer(patch=(1, 2, 2), codes=9)
    made.codebook.copy_(torch.rand(9, 12, generator=generator))
    patches = torch.rand(5000, 12, generator=generator)  # more than are held at a time
    assert torch.equal(made.nearest(patches), torch.cdist(patches, made.codebook).argmin(dim=1))


def test_other_channels_are_refused():
    with pytest.raises(UserError, match="1 channels"):
        PatchTokenizer(patch=(1, 2, 2), codes=4)(torch.zeros(1, 1, 2, 4, 4, dtype=torch.uint8))


def test_codes_are_those_of_float32_under_autocast() -> None:
    torch.manual_seed(0)
    tokenizer = PatchTokenizer(patch=(2, 8, 8), codes=64)
    clips = torch.randint(0, 256, (4, 3, 4, 64, 64), dtype=torch.uint8)
    tokenizer.codebook.copy_(tokenizer.cut(clips).flatten(0, 1)[:64] * 0.1 + 0.5)  # near each other
    exact = tokenizer(clips)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer(clips), exact)
    assert len(exact.unique()) > 32
