"""From predictions to pixels: the truth comes back, nothing leaks, the baselines are what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import random_clip, tiny
from torch import Tensor

from stmae.metrics import scores
from stmae.model.mae import MaeOutput, MaskedAutoencoder
from stmae.model.paint import Painting, nearest_visible, paint
from stmae.model.targets import target_frames

TARGETS = ("normalized_pixels", "normalized_pixels_per_channel", "pixels")
FRAMES = ("strided", "linspace", "all")


def smooth_clip(model: MaskedAutoencoder, batch: int = 2) -> Tensor:
    """uint8 clips in which neighbours resemble each other, as in real ones."""
    clip = model.config.encoder.clip
    axes = [torch.linspace(0, 1, size) for size in (clip.channels, *clip.shape)]
    c, t, y, x = torch.meshgrid(*axes, indexing="ij")
    waves = [torch.sin(3 * x + 2 * y + 0.5 * t + c) * torch.cos(4 * y - x + b) for b in range(batch)]
    return (127 + 100 * torch.stack(waves)).round().byte()


def forward(model: MaskedAutoencoder, clip: Tensor, **options: Tensor) -> MaeOutput:
    with torch.no_grad():
        return model.float()(clip, **(options or {"keys": torch.arange(len(clip)) + 5}))


def hidden_pixels(model: MaskedAutoencoder, output: MaeOutput, painting: Painting) -> np.ndarray:
    """(B, 1, t', H, W) bool, built token by token."""
    clip = model.config.encoder.clip
    (_, h, w), (pt, ph, pw) = clip.grid, clip.patch
    depth = model.config.target_frames
    mask = np.zeros((len(output.hidden), 1, *painting.original.shape[2:]), bool)
    for b, token in np.argwhere(output.hidden.numpy()):
        t, rest = divmod(int(token), h * w)
        row, column = divmod(rest, w)
        mask[b, 0, t * depth : (t + 1) * depth, row * ph : (row + 1) * ph, column * pw : (column + 1) * pw] = True
    assert pt in (1, depth) or depth == 1
    return mask


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_model_that_predicts_the_truth_paints_the_original(target: str, frames: str, channels: int) -> None:
    model = tiny(target=target, predict_frames=frames, channels=channels, mean=(0.4,), std=(0.2,))
    clip = random_clip(model.config)
    output = forward(model, clip)
    painting = paint(model, clip, dataclasses.replace(output, prediction=output.target), statistics="true")
    chosen = target_frames(model.config, 8)
    assert painting.frames == chosen
    torch.testing.assert_close(painting.original, clip[:, :, chosen].float() / 255)
    torch.testing.assert_close(painting.painted, painting.original, atol=2e-6, rtol=0)
    found = scores(painting)
    assert (found["painted"].psnr > 100).all()
    assert (found["painted"].explained > 0.999999).all()
    assert (found["nothing"].explained <= 0).all()
    assert painting.statistics == (None if target == "pixels" else "true")


@pytest.mark.parametrize("frames", FRAMES)
def test_masked_and_hidden_show_what_the_encoder_saw(frames: str) -> None:
    model = tiny(predict_frames=frames)
    clip = random_clip(model.config)
    output = forward(model, clip)
    painting = paint(model, clip, output)
    hidden = hidden_pixels(model, output, painting)
    np.testing.assert_array_equal(painting.hidden.numpy(), hidden)
    everywhere = np.broadcast_to(hidden, painting.original.shape)
    assert (painting.masked.numpy()[everywhere] == 0.5).all()
    for picture in (painting.masked, painting.painted, painting.nothing, painting.copied):
        np.testing.assert_array_equal(picture.numpy()[~everywhere], painting.original.numpy()[~everywhere])
        assert 0 <= picture.min() <= picture.max() <= 1


@pytest.mark.parametrize("statistics", ["visible", "true"])
def test_only_the_true_statistics_leak_hidden_pixels(statistics: str) -> None:
    model = tiny(mask_ratio=0.8)
    clip = random_clip(model.config)
    output = forward(model, clip)
    other = torch.where(
        # Hidden at full length in time: the mask of the painted frames, repeated for each frame of a patch.
        paint(model, clip, output).hidden.repeat_interleave(2, dim=2),
        255 - random_clip(model.config, seed=9) // 3,
        clip,
    )
    assert not torch.equal(clip, other)
    again = forward(model, other, hidden=output.hidden)
    first, second = (paint(model, c, o, statistics=statistics) for c, o in ((clip, output), (other, again)))
    same = torch.equal(first.painted, second.painted)
    assert same == (statistics == "visible")
    assert torch.equal(first.nothing, second.nothing)
    assert torch.equal(first.copied, second.copied)


def test_estimated_statistics_come_near_the_true_ones_on_smooth_clips() -> None:
    model = tiny(shape=(8, 64, 64))
    clip = smooth_clip(model)
    output = forward(model, clip)
    truth = dataclasses.replace(output, prediction=output.target)
    painted = scores(paint(model, clip, truth, statistics="visible"))
    assert (painted["painted"].explained > 0.8).all()
    assert (painted["painted"].explained > painted["copied"].explained).all()


def test_uint8_and_normalised_float_clips_give_the_same_pictures() -> None:
    model = tiny(channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)).float()
    clip = random_clip(model.config)
    mean, std = (torch.tensor(v)[None, :, None, None, None] for v in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    ready = (clip.float() / 255 - mean) / std
    first, second = (paint(model, c, forward(model, c)) for c in (clip, ready))
    for name in ("original", "masked", "painted", "nothing", "copied"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", FRAMES)
def test_predicting_nothing_is_the_mean_colour_of_the_visible_patches(frames: str) -> None:
    model = tiny(predict_frames=frames)
    clip = random_clip(model.config)
    painting = paint(model, clip, forward(model, clip))
    hidden, original = painting.hidden.numpy()[:, 0], painting.original.numpy()
    for b in range(len(clip)):
        for c in range(3):
            visible = [original[b, c][place] for place in np.ndindex(hidden[b].shape) if not hidden[b][place]]
            filled = painting.nothing.numpy()[b, c][hidden[b]]
            np.testing.assert_allclose(filled, sum(visible) / len(visible), atol=1e-5)


def slow_nearest(visible: list[int], token: int, grid: tuple[int, int, int]) -> int:
    def place(i: int) -> tuple[int, int, int]:
        return i // (grid[1] * grid[2]), i // grid[2] % grid[1], i % grid[2]

    t, row, column = place(token)
    here = [v for v in visible if place(v)[1:] == (row, column)]
    if here:
        return min(here, key=lambda v: (abs(place(v)[0] - t), v))
    return min(visible, key=lambda v: (sum((a - b) ** 2 for a, b in zip(place(v), place(token), strict=True)), v))


@pytest.mark.parametrize("count", [1, 3, 12, 40])
def test_copied_patches_are_the_nearest_in_time_else_in_space_and_time(count: int) -> None:
    grid = (4, 3, 5)
    generator = torch.Generator().manual_seed(count)
    order = torch.stack([torch.randperm(60, generator=generator) for _ in range(3)])
    visible, hidden_ids = order[:, :count].sort().values, order[:, count:].sort().values
    found = nearest_visible(visible, hidden_ids, grid)
    for b in range(3):
        expected = [slow_nearest(visible[b].tolist(), token, grid) for token in hidden_ids[b].tolist()]
        assert found[b].tolist() == expected


@pytest.mark.parametrize("frames", FRAMES)
def test_the_copied_picture_shows_those_patches(frames: str) -> None:
    model = tiny(predict_frames=frames, shape=(8, 24, 24))
    clip = random_clip(model.config)
    output = forward(model, clip)
    painting = paint(model, clip, output)
    grid, depth = (4, 3, 3), model.config.target_frames

    def patch_of(picture: Tensor, b: int, token: int) -> np.ndarray:
        t, row, column = token // 9, token // 3 % 3, token % 3
        cut = picture[b, :, t * depth : (t + 1) * depth, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        return cut.numpy()

    for b in range(2):
        for token in output.hidden_ids[b].tolist():
            source = slow_nearest(output.visible[b].tolist(), token, grid)
            copied, original = patch_of(painting.copied, b, token), patch_of(painting.original, b, source)
            np.testing.assert_allclose(copied, original, atol=1e-6)
