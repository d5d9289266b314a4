"""Strong augmentation: one setting for all frames of a clip, drawn from its key, whatever batch the clip stands in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from stmae.data.augment import ERASE_AREA, OPERATIONS, Strength, augment, erase_box
from stmae.data.clips import clip_key, noise, uniform, uniforms
from stmae.data.mixing import _beta, mix
from stmae.errors import UserError

ONE = torch.ones(1, 1, 1, 1, 1)
FILL = torch.full((1, 1, 1, 1), 114.75)


def pictures(count: int = 6, frames: int = 3, channels: int = 3, size: tuple[int, int] = (12, 16)) -> Tensor:
    """Clips that stand still, uint8 (B, C, T, H, W)."""
    generator = torch.Generator().manual_seed(0)
    still = torch.randint(0, 256, (count, channels, 1, *size), generator=generator, dtype=torch.uint8)
    return still.expand(-1, -1, frames, -1, -1).contiguous()


def keys(count: int, start: int = 0) -> Tensor:
    return torch.tensor([clip_key(7, 0, item, 0) for item in range(start, start + count)])


def test_many_draws_are_the_single_ones() -> None:
    some = keys(5).numpy()
    table = uniforms(some, [0, 5000, 7999])
    assert table.tolist() == [[uniform(int(key), stream) for stream in (0, 5000, 7999)] for key in some]


def test_noise_is_normal_and_independent_of_its_length() -> None:
    drawn = noise(-3, 1, 20_001)
    assert drawn.shape == (20_001,)
    assert abs(drawn.mean()) < 0.03
    assert drawn.std() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(drawn[:10_000], drawn[10_001:])[0, 1]) < 0.03
    assert abs(np.corrcoef(drawn, noise(-3, 2, 20_001))[0, 1]) < 0.03


def test_what_happens_to_a_clip_does_not_depend_on_its_batch() -> None:
    clips, own, strength = pictures(8), keys(8), Strength(erase=0.5)
    before = clips.clone()
    whole = augment(clips, own, strength)
    assert torch.equal(clips, before), "what was given stays as it is"
    parts = torch.cat([augment(clips[i : i + 1], own[i : i + 1], strength) for i in range(8)])
    assert torch.equal(whole, parts)
    assert (whole != clips).flatten(1).any(1).sum() >= 5
    assert not torch.equal(whole, augment(clips, keys(8, start=100), strength))
    assert torch.equal(augment(clips, own, Strength(operations=0, erase=0.0)), clips)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_one_setting_holds_for_all_frames(channels: int) -> None:
    """A clip that stands still stands still afterwards, under every operation and for any number of channels."""
    clips = pictures(150, channels=channels, size=(9, 7))
    changed = augment(clips, keys(150), Strength(erase=0.5, mean=(0.5,) * channels, std=(0.2,) * channels))
    assert torch.equal(changed[:, :, :1].expand_as(changed), changed)
    assert changed.dtype == torch.uint8


def test_every_operation_is_drawn_as_often_and_half_of_them_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[tuple[str, int]] = []

    def counting(name: str):  # type: ignore[no-untyped-def]
        return lambda x, level, sign, fill: applied.append((name, len(x))) or x

    monkeypatch.setattr("stmae.data.augment.OPERATIONS", {name: counting(name) for name in OPERATIONS})
    augment(torch.zeros(3000, 1, 1, 1, 1, dtype=torch.uint8), keys(3000), Strength(erase=0.0))
    counts = {name: sum(count for other, count in applied if other == name) for name in OPERATIONS}
    assert sum(counts.values()) == pytest.approx(3000, rel=0.05), "two operations on half of the clips each"
    assert all(count == pytest.approx(200, rel=0.25) for count in counts.values()), counts


def test_operations_do_what_their_names_say() -> None:
    x = pictures(1, frames=2).float()

    def run(name: str, level: float = 0.7, sign: float = 1.0, clip: Tensor = x) -> Tensor:
        return OPERATIONS[name](clip, level * ONE, sign * ONE, FILL)

    assert torch.equal(run("invert"), 255 - x)
    assert torch.equal(run("posterize", 0.5).to(torch.uint8), x.to(torch.uint8) & 0b11000000)
    assert torch.equal(run("solarize", 0.5), torch.where(x >= 128, 255 - x, x))
    assert torch.equal(run("solarize_add", 0.5), torch.where(x < 128, x + 55, x))
    assert torch.allclose(run("brightness", 0.5), x * 1.45)
    assert torch.allclose(run("brightness", 0.5, -1), x * 0.55)
    for name in ("color", "contrast", "brightness", "sharpness", "rotate", "shear_x", "shear_y", "translate_x"):
        assert torch.allclose(run(name, 0.0), x, atol=1e-2), f"{name} of magnitude 0 changes nothing"
        assert not torch.allclose(run(name), x, atol=1), name
    grey = x[:, :1].expand_as(x)
    assert torch.allclose(run("color", clip=grey), grey, atol=1e-3)
    narrow = 100 + x / 10
    stretched = run("auto_contrast", clip=narrow)
    assert stretched.amin().item() == 0
    assert stretched.amax().item() == pytest.approx(255)
    flat = torch.full_like(x, 77.0)
    for name in ("auto_contrast", "equalize", "contrast", "sharpness", "color"):
        assert torch.allclose(run(name, clip=flat), flat, atol=1e-2), name


def test_geometry_against_obvious_loops() -> None:
    """Where each pixel comes from; of a picture whose values rise evenly, which bicubic sampling reproduces."""
    height, width = 24, 32
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = (columns + 4.0 * rows).expand(1, 1, 1, height, width)

    def middle(name: str, level: float) -> Tensor:
        return OPERATIONS[name](x, level * ONE, ONE, FILL)[0, 0, 0, 8:16, 12:20]

    r, c = rows[8:16, 12:20].float(), columns[8:16, 12:20].float()
    assert torch.allclose(middle("translate_x", 0.1), (c + 0.045 * width) + 4 * r, atol=0.25)
    assert torch.allclose(middle("translate_y", 0.1), c + 4 * (r + 0.045 * height), atol=0.25)
    assert torch.allclose(middle("shear_x", 0.2), (c + 0.06 * (r + 0.5)) + 4 * r, atol=0.25)
    assert torch.allclose(middle("shear_y", 0.2), c + 4 * (r + 0.06 * (c + 0.5)), atol=0.25)
    angle = torch.deg2rad(torch.tensor(15.0))
    up, right = r - (height - 1) / 2, c - (width - 1) / 2
    wanted = (
        (width - 1) / 2 + angle.cos() * right + angle.sin() * up
        + 4 * ((height - 1) / 2 - angle.sin() * right + angle.cos() * up)
    )  # fmt: skip
    assert torch.allclose(middle("rotate", 0.5), wanted, atol=0.25)
    outside = OPERATIONS["translate_x"](x, ONE, ONE, FILL)
    assert torch.allclose(outside[..., -5:], FILL.expand(1, 1, 1, height, 5)), "the mean comes in at the edge"


def test_equalize_is_the_obvious_one() -> None:
    x = (pictures(2).float() ** 2 / 400).floor()
    found = OPERATIONS["equalize"](x, ONE, ONE, FILL)
    for clip, wanted in zip(x.long(), found, strict=True):
        for channel, result in zip(clip, wanted, strict=True):
            counts = torch.bincount(channel.flatten(), minlength=256)
            step = (int(counts.sum()) - int(counts[counts.nonzero()[-1]])) // 255
            before, table = 0, []
            for value in range(256):
                table.append(min(255, (before + step // 2) // step) if step else value)
                before += int(counts[value])
            assert torch.equal(torch.tensor(table)[channel].float(), result)


def test_erasing() -> None:
    own = [clip_key(3, 0, item, 0) for item in range(800)]
    boxes = [erase_box(key, 112, 96, 0.25) for key in own]
    found = [box for box in boxes if box]
    assert len(found) == pytest.approx(200, abs=35)
    for box in found:
        assert min(box.top, box.left) >= 0
        assert box.top + box.height <= 112
        assert box.left + box.width <= 96
        assert ERASE_AREA[0] * 0.9 <= box.height * box.width / (112 * 96) <= ERASE_AREA[1] * 1.1
    clips = torch.zeros(40, 3, 2, 32, 32, dtype=torch.uint8)
    erased = augment(clips, torch.tensor(own[:40]), Strength(operations=0, erase=1.0))
    filled = (erased > 0).flatten(1).float().mean(1)
    assert filled.min() > 0.01
    assert erased[erased > 0].float().mean().item() == pytest.approx(255 * 0.46, rel=0.05)
    floats = augment(torch.zeros(4, 2, 1, 32, 32), torch.tensor(own[:4]), Strength(operations=0, erase=1.0))
    assert floats.dtype == torch.float32
    assert floats.min() < -1, "clips that are normalised get normalised noise"
    with pytest.raises(UserError, match="rand_augment 0"):
        augment(floats, torch.tensor(own[:4]), Strength())


# Mixing


def targets(count: int) -> Tensor:
    return torch.eye(count, dtype=torch.float64)


@pytest.mark.parametrize("alphas", [{"mixup": 0.8, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}])
def test_pixels_and_targets_are_mixed_alike(alphas: dict[str, float]) -> None:
    levels = torch.arange(0, 240, 40, dtype=torch.uint8)
    clips = levels[:, None, None, None, None].expand(6, 3, 2, 20, 30).contiguous()
    mixed, mixed_targets = mix(clips, targets(6), keys(6), repeats=1, **alphas)
    assert torch.allclose(mixed_targets.sum(1), torch.ones(6, dtype=torch.float64))
    assert [row.nonzero().flatten().tolist() for row in mixed_targets] == [
        [0, 1],
        [0, 1],
        [2, 3],
        [2, 3],
        [4, 5],
        [4, 5],
    ]
    wanted = mixed_targets @ levels.double()
    assert torch.allclose(mixed.double().mean(dim=(1, 2, 3, 4)), wanted, atol=0.51), "in the share of their pixels"
    assert torch.equal(mixed[:, :, :1].expand_as(mixed), mixed), "all frames alike"
    if alphas["cutmix"]:
        assert set(mixed.unique().tolist()) <= set(levels.tolist())
    again = mix(clips[2:4], targets(6)[2:4], keys(6)[2:4], repeats=1, **alphas)
    assert torch.equal(again[0], mixed[2:4]), "an even part of a batch comes out alike"
    assert torch.equal(again[1], mixed_targets[2:4])


def test_clips_of_one_video_are_not_mixed_with_each_other() -> None:
    clips = pictures(8)
    _, mixed = mix(clips, targets(8), keys(8), repeats=2, mixup=0.8, cutmix=1.0)
    assert [set(row.nonzero().flatten().tolist()) for row in mixed] == [
        {0, 2}, {1, 3}, {0, 2}, {1, 3}, {4, 6}, {5, 7}, {4, 6}, {5, 7},
    ]  # fmt: skip


@pytest.mark.parametrize("videos", [1, 2, 3, 5])
def test_any_number_of_videos_can_be_mixed(videos: int) -> None:
    clips = pictures(videos * 2)
    mixed, mixed_targets = mix(clips, targets(2 * videos), keys(2 * videos), repeats=2, mixup=0.8, cutmix=1.0)
    assert mixed.shape == clips.shape
    assert torch.allclose(mixed_targets.sum(1), torch.ones(2 * videos, dtype=torch.float64))
    if videos == 1:
        assert torch.equal(mixed, clips)
    else:
        assert (mixed != clips).flatten(1).any(1).all()


def test_shares_are_of_the_beta_distribution() -> None:
    for alpha in (0.2, 0.8, 1.0, 2.0):
        drawn = np.array([_beta(clip_key(1, 2, item, 0), alpha) for item in range(2000)])
        assert drawn.mean() == pytest.approx(0.5, abs=0.03)
        assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_the_host_never_waits_for_the_device() -> None:
    clips = torch.empty(16, 3, 2, 16, 16, dtype=torch.uint8, device="meta")
    changed = augment(clips, keys(16), Strength(erase=0.5))
    mixed, _ = mix(changed, torch.empty(16, 5, device="meta"), keys(16), repeats=2, mixup=0.8, cutmix=1.0)
    assert mixed.shape == clips.shape
    assert mixed.is_meta
