"""Cutting, embedding and positions against slow references on random shapes."""

from __future__ import annotations

import numpy as np
import pytest
import references
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_clip, tiny, tiny_config
from torch import nn

from stmae.errors import UserError
from stmae.model.config import ClipConfig
from stmae.model.encoder import VideoViT
from stmae.model.patches import (
    Normalizer,
    PatchEmbed,
    Positions,
    patchify,
    resize_joint,
    resize_spatial,
    resize_temporal,
    take,
    unpatchify,
)

sizes = st.integers(1, 3)
triples = st.tuples(sizes, sizes, sizes)
small = settings(max_examples=25, deadline=None)


@small
@given(batch=sizes, channels=st.integers(1, 4), grid=triples, patch=triples, seed=st.integers(0, 999))
def test_patchify_is_the_slow_one_and_unpatchify_undoes_it(batch, channels, grid, patch, seed):
    shape = (batch, channels, *(n * p for n, p in zip(grid, patch, strict=True)))
    clip = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    patches = patchify(torch.from_numpy(clip), patch)
    assert patches.dtype == torch.uint8
    np.testing.assert_array_equal(patches.numpy(), references.patchify(clip, patch))
    np.testing.assert_array_equal(unpatchify(patches, grid, patch).numpy(), clip)
    np.testing.assert_array_equal(references.unpatchify(patches.numpy(), shape, patch), clip)


def test_patchify_takes_clips_in_any_memory_order():
    clip = torch.rand(2, 4, 4, 6, 3).permute(0, 4, 1, 2, 3)  # decoded frames: channels last
    assert torch.equal(patchify(clip, (2, 2, 2)), patchify(clip.contiguous(), (2, 2, 2)))


def test_patchify_refuses_what_does_not_divide():
    with pytest.raises(UserError, match="2x4x4 does not divide a clip of 4x8x7"):
        patchify(torch.zeros(1, 3, 4, 8, 7), (2, 4, 4))


@small
@given(batch=sizes, tokens=st.integers(1, 9), seed=st.integers(0, 999), data=st.data())
def test_take_gathers_rows(batch, tokens, seed, data):
    rows = np.random.default_rng(seed).integers(0, 256, (batch, tokens, 5), dtype=np.uint8)
    count = data.draw(st.integers(1, tokens))
    ids = np.stack([np.random.default_rng(seed + b).permutation(tokens)[:count] for b in range(batch)])
    taken = take(torch.from_numpy(rows), torch.from_numpy(ids))
    np.testing.assert_array_equal(taken.numpy(), np.stack([rows[b, ids[b]] for b in range(batch)]))


def test_embedding_is_the_convolution_of_the_paper():
    torch.manual_seed(0)
    clip = ClipConfig(frames=4, height=8, width=12, channels=3, patch=(2, 4, 4))
    embed = PatchEmbed(clip, 10)
    nn.init.normal_(embed.proj.bias)
    video = torch.randn(2, 3, 4, 8, 12)
    kernel = embed.proj.weight.unflatten(1, (2, 4, 4, 3)).permute(0, 4, 1, 2, 3)
    expected = F.conv3d(video, kernel, embed.proj.bias, stride=(2, 4, 4)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(patchify(video, (2, 4, 4))), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "channels, mean, std",
    [(3, (0.45,), (0.225,)), (3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), (1, (0.5,), (0.3,)), (5, (0.1,), (2,))],
)
def test_uint8_is_normalised_per_channel_floats_pass(channels, mean, std):
    clip = ClipConfig(frames=2, height=4, width=4, channels=channels, patch=(2, 2, 2), mean=mean, std=std)
    normalize = Normalizer(clip)
    video = np.random.default_rng(0).integers(0, 256, (2, channels, 2, 4, 4), dtype=np.uint8)
    patches = patchify(torch.from_numpy(video), clip.patch)
    expected = references.patchify(references.normalise(video, mean, std), clip.patch)
    np.testing.assert_allclose(normalize(patches).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(normalize.undo(normalize(patches)).numpy(), patches.numpy() / 255, atol=1e-6)
    floats = torch.randn(2, 3, clip.patch_values)
    assert torch.equal(normalize(floats), floats)


# Positions -----------------------------------------------------------------------------------------------------------


@small
@given(grid=triples, width=st.integers(1, 6).map(lambda n: 8 * n), seed=st.integers(0, 99))
def test_sincos_tables_are_the_slow_ones(grid, width, seed):
    separable = Positions(grid, width, "separable", "sincos", class_token=False)()
    np.testing.assert_allclose(separable.numpy(), references.sincos_separable(grid, width), atol=2e-7)
    joint = Positions(grid, width, "joint", "sincos", class_token=False)()
    np.testing.assert_allclose(joint.numpy(), references.sincos_interleaved(int(np.prod(grid)), width), atol=2e-7)


@pytest.mark.parametrize("width", [8, 9, 10, 12, 17, 18, 30])
@pytest.mark.parametrize("layout", ["separable", "joint"])
def test_sincos_tables_of_any_width_tell_all_tokens_apart(layout, width):
    grid = (4, 3, 5)
    table = Positions(grid, width, layout, "sincos", class_token=False)()
    assert table.shape == (60, width)
    assert table.abs().max() <= (2 if layout == "separable" else 1)
    distances = torch.cdist(table, table) + 1e9 * torch.eye(60)
    assert distances.min() > 1e-3


@small
@given(grid=triples, width=st.integers(1, 9), seed=st.integers(0, 99))
def test_separable_positions_add_time_to_space(grid, width, seed):
    torch.manual_seed(seed)
    positions = Positions(grid, width, "separable", "learned", class_token=True)
    weights = {f"positions.{name}": value.detach().numpy() for name, value in positions.named_parameters()}
    np.testing.assert_array_equal(positions().detach().numpy(), references.positions(weights))


@pytest.mark.parametrize("layout", ["separable", "joint"])
@pytest.mark.parametrize(
    "values, trained", [("learned", True), ("learned_from_sincos", True), ("sincos", False)], ids=lambda v: str(v)
)
def test_which_positions_are_trained(layout, values, trained):
    positions = Positions((2, 3, 3), 16, layout, values, class_token=True)
    for name, table in positions.named_parameters():
        assert table.requires_grad == (trained or name == "class_position"), name
    start = Positions((2, 3, 3), 16, layout, "sincos", class_token=False)()
    assert torch.equal(positions(), start) == (values != "learned")
    assert positions.class_position.std() < 0.05


@small
@given(old=triples, new=triples, layout=st.sampled_from(["separable", "joint"]), value=st.floats(-2, 2))
def test_resized_constant_tables_stay_constant(old, new, layout, value):
    positions = Positions(old, 6, layout, "learned", class_token=False)
    with torch.no_grad():
        for table in positions.parameters():
            table.fill_(value)
    total = value * (2 if layout == "separable" else 1)
    resized = positions(new)
    assert resized.shape == (np.prod(new), 6)
    torch.testing.assert_close(resized, torch.full_like(resized, total), rtol=1e-5, atol=1e-5)


@small
@given(grid=triples, seed=st.integers(0, 99))
def test_resizing_to_the_same_grid_changes_nothing(grid, seed):
    t, h, w = grid
    torch.manual_seed(seed)
    spatial, temporal, joint = torch.randn(h * w, 5), torch.randn(t, 5), torch.randn(t * h * w, 5)
    for table, resized in (
        (spatial, resize_spatial(spatial, (h, w), (h, w))),
        (temporal, resize_temporal(temporal, t)),
        (joint, resize_joint(joint, grid, grid)),
    ):
        torch.testing.assert_close(resized, table, rtol=0, atol=1e-6)


def test_resizing_keeps_rows_columns_and_time_apart():
    """A table that names its own row, column and time must still do so at twice the size, away from the border.

    Steps are half a cell then; a bicubic kernel follows a straight line to a twentieth of a cell.
    """
    t, h, w = grid = (6, 8, 10)
    axes = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
    table = torch.stack(axes, dim=-1).flatten(0, 2).float()
    resized = resize_joint(table, grid, (12, 16, 20)).unflatten(0, (12, 16, 20))
    axes = torch.meshgrid(torch.arange(12), torch.arange(16), torch.arange(20), indexing="ij")
    expected = (torch.stack(axes, dim=-1) + 0.5) / 2 - 0.5  # centres of the finer cells
    inner = (slice(1, -1), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(resized[inner], expected[inner], rtol=0, atol=0.05)
    space = resize_spatial(table[: h * w, 1:], (h, w), (16, 20)).unflatten(0, (16, 20))
    torch.testing.assert_close(space[4:-4, 4:-4], expected[0, 4:-4, 4:-4, 1:], rtol=0, atol=0.05)
    torch.testing.assert_close(resize_temporal(torch.arange(6.0)[:, None], 12)[1:-1, 0], expected[1:-1, 0, 0, 0])


@pytest.mark.parametrize("layout", ["separable", "joint"])
def test_resize_for_good_is_resize_on_the_fly(layout):
    torch.manual_seed(0)
    positions = Positions((4, 2, 3), 8, layout, "sincos", class_token=True)
    on_the_fly = positions((6, 4, 2))
    positions.resize((6, 4, 2))
    torch.testing.assert_close(positions(), on_the_fly, rtol=0, atol=1e-6)
    assert positions.grid == (6, 4, 2)
    assert not any(table.requires_grad for name, table in positions.named_parameters() if name != "class_position")


@pytest.mark.parametrize("layout", ["separable", "joint"])
@pytest.mark.parametrize("shape", [(8, 16, 24), (4, 16, 24), (16, 32, 8), (2, 8, 8)])
def test_the_encoder_runs_at_other_sizes(layout, shape):
    encoder = VideoViT(tiny_config(positions=layout).encoder)
    clip = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8)
    grid = tuple(size // step for size, step in zip(shape, (2, 8, 8), strict=True))
    assert encoder(clip, features="grid").shape == (2, *grid, 16)
    assert encoder(clip, features="tokens").shape == (2, np.prod(grid), 16)
    pooled = encoder(clip)
    assert pooled.shape == (2, 16)
    torch.testing.assert_close(pooled, encoder(clip, features="tokens").mean(dim=1))


def test_a_clip_of_the_wrong_kind_is_refused():
    model = tiny()
    with pytest.raises(UserError, match=r"must be \(B, 3, T, H, W\)"):
        model(torch.zeros(2, 4, 8, 16, 24))
    with pytest.raises(UserError, match=r"shape \(3, 8, 16, 24\)"):
        model(random_clip(model.config)[0])
    for empty in (random_clip(model.config)[:0], random_clip(model.config)[:, :, :0]):
        with pytest.raises(UserError, match="shape"):
            model(empty)
    with pytest.raises(UserError, match="uint8, or normalised floats"):
        model(random_clip(model.config).long())
