"""What is predicted: frames, values, standardisation, all against slow references."""

from __future__ import annotations

import numpy as np
import pytest
import references
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import changed, random_clip, tiny, tiny_config

from stmae.model.patches import Normalizer, patchify
from stmae.model.targets import patch_statistics, pixel_targets, standardize, target_frames


@given(rows=st.integers(1, 4), width=st.integers(2, 60), scale=st.floats(1e-4, 100), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_standardize_is_the_slow_one(rows, width, scale, seed):
    values = np.random.default_rng(seed).normal(3, scale, (2, rows, width))
    np.testing.assert_allclose(standardize(torch.from_numpy(values)).numpy(), references.standardise(values), atol=1e-9)


def test_statistics_undo_standardize():
    values = torch.randn(2, 5, 48, dtype=torch.float64)
    mean, deviation = patch_statistics(values)
    assert mean.shape == deviation.shape == (2, 5, 1)
    torch.testing.assert_close(standardize(values) * deviation + mean, values)


def test_a_flat_patch_is_zero_and_not_nan():
    assert torch.equal(standardize(torch.full((1, 1, 768), 0.3)), torch.zeros(1, 1, 768))


def test_frames_of_the_references():
    """mae_st's last token predicts its second frame, PySlowFast's never does (paper.md, 1.6)."""
    linspace = target_frames(tiny_config(predict_frames="linspace"), 16)
    assert linspace == [0, 2, 4, 6, 8, 10, 12, 15]
    assert target_frames(tiny_config(predict_frames="strided"), 16) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert target_frames(tiny_config(predict_frames="all"), 16) == list(range(16))


@pytest.mark.parametrize("kind", ["strided", "linspace", "all"])
@pytest.mark.parametrize("pt", [1, 2, 3, 4])
def test_frames_for_all_lengths(kind, pt):
    config = tiny_config(shape=(12, 8, 8), patch=(pt, 8, 4), predict_frames=kind)
    for frames in range(pt, 65, pt):
        chosen = target_frames(config, frames)
        assert chosen == references.target_frames(kind, frames, pt)
        assert max(chosen) < frames
        if kind == "strided":  # a patch's target is a part of that patch
            assert [frame // pt for frame in chosen] == list(range(frames // pt))


@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)),
    patch=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    channels=st.integers(1, 4),
    frames=st.sampled_from(["strided", "linspace", "all"]),
    kind=st.sampled_from(["pixels", "normalized_pixels"]),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_pixel_targets_are_the_slow_ones(grid, patch, channels, frames, kind, seed):
    if np.prod(grid) == 1 or np.prod(patch[1:]) * channels * (patch[0] if frames == "all" else 1) == 1:
        return  # a single token, or a single value, which has no variance
    shape = tuple(n * p for n, p in zip(grid, patch, strict=True))
    config = tiny_config(shape=shape, patch=patch, channels=channels, predict_frames=frames, target=kind)
    clip = random_clip(config, seed=seed)
    N = config.encoder.clip.tokens
    ids = np.stack([np.sort(np.random.default_rng(seed + b).permutation(N)[: max(N // 2, 1)]) for b in range(2)])
    normalize = Normalizer(config.encoder.clip)
    got = pixel_targets(clip, patchify(clip, patch), torch.from_numpy(ids), config, normalize)
    slow = references.targets(references.normalise(clip.numpy(), (0.45,), (0.225,)), config)
    expected = np.stack([slow[b, ids[b]] for b in range(2)])
    assert got.dtype == torch.float32
    assert got.shape == (*ids.shape, config.target_values)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-4 if kind == "normalized_pixels" else 1e-5)


def test_predicting_nothing_costs_about_one():
    """An unbiased variance makes it (P - 1) / P for textured patches, and less for flat ones (paper.md, 1.6)."""
    model = tiny(patch=(2, 8, 8))
    with torch.no_grad():
        model.decoder.head.weight.zero_()
        model.decoder.head.bias.zero_()
    clip = random_clip(model.config)
    P = model.config.target_values
    assert model(clip, keys=torch.tensor([1, 2])).loss.item() == pytest.approx((P - 1) / P, abs=1e-4)
    assert model(torch.full_like(clip, 93), keys=torch.tensor([1, 2])).loss.item() == pytest.approx(0, abs=1e-6)


def test_pixels_as_they_are_reach_the_loss():
    model = tiny(target="pixels")
    with torch.no_grad():
        model.decoder.head.weight.zero_()
        model.decoder.head.bias.zero_()
    clip = torch.full((1, 3, 8, 16, 24), 255, dtype=torch.uint8)
    assert model(clip, keys=torch.tensor([1])).loss.item() == pytest.approx(((1 - 0.45) / 0.225) ** 2, rel=1e-6)


def test_targets_do_not_depend_on_the_frames_that_are_not_predicted():
    config = tiny_config(predict_frames="strided")
    clip = random_clip(config)
    other = clip.clone()
    other[:, :, 1::2] = 255 - other[:, :, 1::2]
    ids, normalize = torch.arange(24).expand(2, -1), Normalizer(config.encoder.clip)

    def target(video, **changes):
        return pixel_targets(video, patchify(video, (2, 8, 8)), ids, changed(config, **changes), normalize)

    assert torch.equal(target(clip), target(other))
    assert not torch.equal(target(clip, predict_frames="all"), target(other, predict_frames="all"))
