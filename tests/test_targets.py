"""What is predicted: frames, values, standardisation, all against slow references."""

from __future__ import annotations

import numpy as np
import pytest
import references
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny import changed, random_clip, tiny, tiny_config

from stmae.errors import UserError
from stmae.model.paint import paint
from stmae.model.patches import Normalizer, patchify
from stmae.model.targets import Scene, orientations, patch_statistics, standardize, target_frames, targets


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


def test_frames_are_known_where_the_device_holds_no_numbers():
    with torch.device("meta"):
        assert target_frames(tiny_config(predict_frames="linspace"), 8) == [0, 2, 4, 7]


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
    got = targets(Scene(clip, patchify(clip, patch), torch.from_numpy(ids), config, normalize))
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
        return targets(Scene(video, patchify(video, (2, 8, 8)), ids, changed(config, **changes), normalize))

    assert torch.equal(target(clip), target(other))
    assert not torch.equal(target(clip, predict_frames="all"), target(other, predict_frames="all"))


# HOG, codes, features -------------------------------------------------------------------------------------------------


def scene(config, clip, ids=None, given=None):
    every = torch.arange(config.encoder.clip.tokens).expand(len(clip), -1) if ids is None else ids
    return Scene(clip, patchify(clip, config.encoder.clip.patch), every, config, Normalizer(config.encoder.clip), given)


def test_hog_is_the_references(shared):
    with safe_open(str(shared / "parity" / "hog_default.safetensors"), framework="pt") as file:
        clip, expected = file.get_tensor("input"), file.get_tensor("target")
    config = tiny_config(shape=(4, 64, 64), patch=(2, 16, 16), target="hog")
    got = targets(scene(config, clip))
    assert got.shape == expected.shape == (2, 32, 108)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", ["strided", "linspace", "all"])
def test_hog_is_the_slow_one(frames):
    config = tiny_config(shape=(4, 16, 24), patch=(2, 16, 8), channels=2, target="hog", predict_frames=frames)
    clip = random_clip(config)
    slow = references.targets(clip.numpy().astype(float), config)
    ids = torch.tensor([[0, 4, 5], [1, 2, 3]])
    got = targets(scene(config, clip, ids))
    assert got.shape == (2, 3, config.target_values)
    np.testing.assert_allclose(got.numpy(), np.stack([slow[b, ids[b]] for b in range(2)]), atol=1e-4)


def test_hog_of_a_flat_picture_is_zero_and_not_nan():
    config = tiny_config(target="hog")
    assert torch.equal(
        targets(scene(config, torch.full((1, 3, 8, 16, 24), 93, dtype=torch.uint8))), torch.zeros(1, 24, 27)
    )


def test_codes_are_scored_by_cross_entropy():
    model = tiny(target="tokens", given_values=7)
    clip, keys = random_clip(model.config), torch.tensor([1, 2])
    given = torch.randint(0, 7, (2, 24))
    out = model(clip, keys=keys, given=given)
    assert torch.equal(out.target, given.gather(1, out.hidden_ids))
    p = out.prediction.detach().numpy()
    chosen = np.take_along_axis(p, out.target[..., None].numpy(), axis=2)[..., 0]
    assert out.loss.item() == pytest.approx((np.log(np.exp(p).sum(axis=2)) - chosen).mean(), rel=1e-5)
    out.loss.backward()
    assert model.decoder.head.weight.grad.abs().sum() > 0


def test_features_of_a_teacher_are_standardised_each():
    model = tiny(target="teacher", given_values=5)
    clip, keys = random_clip(model.config), torch.tensor([1, 2])
    given = torch.randn(2, 24, 5) * 3 + 1
    out = model(clip, keys=keys, given=given)
    slow = references.standardise(given.numpy())
    np.testing.assert_allclose(out.target.numpy(), [slow[b, out.hidden_ids[b]] for b in range(2)], atol=1e-5)
    assert out.prediction.shape == (2, 18, 5)


@pytest.mark.parametrize("kind, wrong", [("tokens", torch.zeros(2, 23, dtype=torch.int64)), ("teacher", None)])
def test_what_has_to_come_from_outside_is_asked_for(kind, wrong):
    model = tiny(target=kind, given_values=5)
    with pytest.raises(UserError, match="tokenizer" if kind == "tokens" else "teacher"):
        model(random_clip(model.config), keys=torch.tensor([1, 2]), given=wrong)


def test_what_is_no_picture_is_not_painted():
    model = tiny(target="hog")
    clip = random_clip(model.config)
    with pytest.raises(UserError, match="hog"):
        paint(model, clip, model(clip, keys=torch.tensor([1, 2])))


def test_hog_is_that_of_float32_under_autocast() -> None:
    frames = torch.randint(0, 256, (2, 3, 2, 32, 32)).float()
    exact = orientations(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(orientations(frames), exact)
