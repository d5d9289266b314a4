"""Colour jitter: what it changes, from keys alone, the same for all frames of a clip."""

from __future__ import annotations

import pytest
import torch

from stmae.data.jitter import GREY, colour_jitter
from stmae.errors import UserError


def clips(batch: int = 3, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(60, 180, (batch, channels, 4, 8, 8), generator=generator, dtype=torch.uint8)


KEYS = torch.tensor([5, -6, 1 << 62])


def test_it_follows_from_the_key_alone():
    together = colour_jitter(clips(), KEYS, 0.6)
    assert together.dtype == torch.uint8
    assert not torch.equal(together, clips())
    for b in range(3):
        assert torch.equal(colour_jitter(clips()[b : b + 1], KEYS[b : b + 1], 0.6)[0], together[b])
    assert torch.equal(colour_jitter(clips().flip(0), KEYS.flip(0), 0.6), together.flip(0))


def test_one_setting_for_all_frames():
    still = clips()[:, :, :1].expand(-1, -1, 4, -1, -1)
    changed = colour_jitter(still, KEYS, 0.6)
    assert torch.equal(changed, changed[:, :, :1].expand_as(changed))


def test_no_strength_changes_nothing_and_more_changes_more():
    assert torch.equal(colour_jitter(clips(), KEYS, 0.0), clips())
    weak, strong = ((colour_jitter(clips(), KEYS, s).float() - clips()).abs().mean() for s in (0.1, 0.6))
    assert 0 < weak < strong


def test_brightness_contrast_and_saturation_vary_on_their_own():
    many = clips(1).expand(200, -1, -1, -1, -1)
    changed = colour_jitter(many, torch.arange(200), 0.3).float()
    grey = (changed * torch.tensor(GREY)[:, None, None, None]).sum(dim=1)
    brightness = grey.mean(dim=(1, 2, 3))
    contrast = grey.std(dim=(1, 2, 3)) / brightness
    colour = (changed - grey[:, None]).std(dim=(1, 2, 3, 4)) / grey.std(dim=(1, 2, 3))
    table = torch.corrcoef(torch.stack([brightness, contrast, colour]))
    assert (table - torch.eye(3)).abs().max() < 0.25
    for factor in (brightness, contrast, colour):
        assert factor.max() / factor.min() == pytest.approx(1.3 / 0.7, rel=0.1)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_keep_their_saturation(channels):
    assert colour_jitter(clips(channels=channels), KEYS, 0.5).shape == (3, channels, 4, 8, 8)


def test_floats_are_refused():
    with pytest.raises(UserError, match="color_jitter"):
        colour_jitter(clips().float(), KEYS, 0.5)
