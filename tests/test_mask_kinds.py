"""Every kind of mask against its slow version, with exact and equal counts; which hidden tokens are decoded."""

from __future__ import annotations

import numpy as np
import pytest
import references
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import changed, random_clip, tiny, tiny_config

from stmae.errors import UserError
from stmae.model.config import MASK_UNITS
from stmae.model.mae import MaskedAutoencoder
from stmae.model.masking import MASKS, decoded_rows, draw_mask, fixed_mask, split_tokens, visible_tokens

keys64 = st.integers(-(1 << 63), (1 << 63) - 1)
grids = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
kinds = pytest.mark.parametrize("kind", MASKS)
PAPER = (8, 14, 14)
SLOW = {
    "agnostic": lambda key, grid, count, patches: references.agnostic(
        np.array([references.signed(references.splitmix64(key, int(np.prod(grid))))]), count
    ),
    "space": lambda key, grid, count, patches: references.space(key, grid, count),
    "time": lambda key, grid, count, patches: references.time(key, grid, count),
    "block": lambda key, grid, count, patches: references.boxes(key, grid, count),
    "motion": lambda key, grid, count, patches: references.motion(key, grid, count, patches),
}


def test_of_tokens_that_no_box_covers_the_smallest_noise_stays_visible() -> None:
    hidden = MASKS["block"](torch.tensor([0]), (3, 3, 4), 1, torch.zeros(1, 36, 3))  # leaves two of them
    np.testing.assert_array_equal(hidden.numpy().ravel(), references.boxes(0, (3, 3, 4), 1).ravel())


@kinds
@given(key=keys64, grid=grids, data=st.data(), still=st.booleans())
@settings(max_examples=15, deadline=None)
def test_each_kind_is_the_slow_one(kind, key, grid, data, still):
    units = MASK_UNITS[kind](grid)
    if units < 2:
        return
    count = data.draw(st.integers(1, units - 1))
    top = 1 if still else 256  # without motion all changes are equal
    patches = np.random.default_rng(abs(key) % 2**32).integers(0, top, (1, int(np.prod(grid)), 3), np.uint8)
    hidden = MASKS[kind](torch.tensor([key]), grid, count, torch.from_numpy(patches))
    slow = SLOW[kind](key, grid, count, patches[0])
    np.testing.assert_array_equal(hidden.numpy().ravel(), slow.ravel())
    assert (~hidden).sum() == count * np.prod(grid) // units


@kinds
@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.75, 0.9, 0.95, 0.99])
def test_counts_are_exact_and_equal_at_any_ratio(kind, ratio):
    config = tiny_config(shape=(16, 112, 112), patch=(2, 8, 8), mask=kind, mask_ratio=ratio)
    units = {"space": 196, "time": 8}.get(kind, 1568)
    expected = references.visible_count(units, ratio) * (1568 // units)
    assert visible_tokens(config, PAPER) == expected
    patches = torch.randint(0, 256, (16, 1568, 2), dtype=torch.uint8)
    hidden, visible, hidden_ids = draw_mask(config, PAPER, patches, torch.arange(16) * 977)
    assert (~hidden).sum(dim=1).tolist() == [expected] * 16
    assert visible.shape[1] + hidden_ids.shape[1] == 1568


@kinds
def test_a_mask_is_a_function_of_its_key_alone(kind):
    config = tiny_config(shape=(8, 32, 32), mask=kind)
    patches = torch.randint(0, 256, (4, 64, 6), dtype=torch.uint8)
    keys = torch.tensor([5, -6, 7, 1 << 62])
    together, _, _ = draw_mask(config, (4, 4, 4), patches, keys)
    for b in range(4):
        alone, _, _ = draw_mask(config, (4, 4, 4), patches[b : b + 1], keys[b : b + 1])
        assert torch.equal(alone[0], together[b])
    others, _, _ = draw_mask(config, (4, 4, 4), patches, keys + 1)
    assert not torch.equal(others, together)


@pytest.mark.parametrize("kind", ["agnostic", "space", "time", "block", "motion"])
def test_every_token_is_hidden_equally_often(kind):
    """Also by boxes, whose corners of the clip would be spared if they could not stick out."""
    grid, draws = (4, 4, 4), 3000
    config = tiny_config(shape=(8, 32, 32), mask=kind, mask_ratio=0.75)
    patches = torch.zeros(draws, 64, 1, dtype=torch.uint8)
    hidden, _, _ = draw_mask(config, grid, patches, torch.arange(draws))
    often = hidden.float().mean(dim=0)
    assert (often - 0.75).abs().max() < (0.15 if kind == "block" else 5 * (0.75 * 0.25 / draws) ** 0.5)


def test_boxes_are_more_of_a_piece_than_single_tokens():
    def borders(kind):
        config = tiny_config(shape=(16, 112, 112), mask=kind, mask_ratio=0.75)
        hidden, _, _ = draw_mask(config, PAPER, torch.zeros(8, 1568, 1, dtype=torch.uint8), torch.arange(8))
        volume = hidden.unflatten(1, PAPER)
        return sum((volume.diff(dim=axis)).float().mean().item() for axis in (1, 2, 3)) / 3

    assert borders("block") < 0.5 * borders("agnostic")


def test_motion_hides_what_moves_and_is_agnostic_without_motion():
    config = tiny_config(shape=(16, 112, 112), mask="motion", mask_ratio=0.5)
    patches = torch.zeros(16, 8, 196, 4, dtype=torch.uint8)
    patches[:, ::2, :49] = 200  # a quarter of the cells flickers
    hidden, _, _ = draw_mask(config, PAPER, patches.flatten(1, 2), torch.arange(16))
    share = hidden.unflatten(1, (8, 196))
    assert share[:, :, :49].float().mean() > 0.7
    assert share[:, :, 49:].float().mean() < 0.45
    floats, _, _ = draw_mask(config, PAPER, patches.flatten(1, 2).float(), torch.arange(16))
    assert torch.equal(floats, hidden)


@kinds
def test_a_grid_with_a_single_unit_is_refused(kind):
    grid = {"time": (1, 4, 4), "space": (4, 1, 1)}.get(kind, (1, 1, 1))
    with pytest.raises(UserError, match="single"):
        tiny_config(shape=(2 * grid[0], 8 * grid[1], 8 * grid[2]), mask=kind)
    config = tiny_config(mask=kind)
    with pytest.raises(UserError, match="single"):
        visible_tokens(config, grid)


# One's own ----------------------------------------------------------------------------------------------------------


def test_a_function_of_ones_own_is_called_with_keys_and_grid():
    seen = []

    def own(keys, grid):
        seen.append((keys.tolist(), grid))
        hidden = torch.ones(len(keys), *grid, dtype=torch.bool)
        hidden[:, 0] = False
        return hidden

    model = MaskedAutoencoder(tiny_config(mask="own"), own_mask=own)
    out = model(random_clip(model.config), keys=torch.tensor([3, 9]))
    assert seen == [([3, 9], (4, 2, 3))]
    assert out.visible.tolist() == [list(range(6))] * 2
    with pytest.raises(UserError, match="own_mask"):
        MaskedAutoencoder(model.config)(random_clip(model.config), keys=torch.tensor([3, 9]))


def test_an_uneven_mask_of_ones_own_is_refused():
    def own(keys, grid):
        return torch.arange(24)[None] < torch.tensor([[5], [6]])

    model = MaskedAutoencoder(tiny_config(mask="own"), own_mask=own)
    with pytest.raises(UserError, match="18, 19"):
        model(random_clip(model.config), keys=torch.tensor([3, 9]))


def test_fixed_masks_of_all_shapes_and_pictures():
    frame = torch.tensor([[1, 0, 1], [0, 1, 1]])
    keys, grid = torch.tensor([1, 2]), (4, 2, 3)
    expected = frame.bool().flatten().repeat(4)
    for mask in (frame, frame.expand(4, 2, 3), frame.flatten().repeat(4), frame.repeat_interleave(5, 0) * 255):
        hidden = fixed_mask(mask)(keys, grid)
        assert hidden.shape == (2, 24)
        assert torch.equal(hidden[0], expected)
        assert torch.equal(hidden[1], expected)
    with pytest.raises(UserError, match="shape"):
        fixed_mask(torch.ones(23))(keys, grid)
    with pytest.raises(UserError, match="shape"):
        fixed_mask(torch.ones(2, 2, 2, 2))


# What is decoded ----------------------------------------------------------------------------------------------------


@given(key=keys64, grid=grids, share=st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_running_cell_is_the_slow_one(key, grid, share, seed):
    N = int(np.prod(grid))
    if N < 2:
        return
    hidden = torch.from_numpy(references.agnostic(np.random.default_rng(seed).random((1, N)), 1))
    _, hidden_ids = split_tokens(hidden, 1)
    config = tiny_config(decode="running_cell", decode_share=share)
    rows = decoded_rows(config, torch.tensor([key]), hidden_ids, grid)
    count = max(1, int((N - 1) * share + 1e-6))
    expected = references.running_cell(key, hidden_ids[0].tolist(), grid, count)
    assert hidden_ids[0, rows[0]].tolist() == expected


def test_a_running_cell_decodes_every_place_of_a_cell_and_moves_on():
    config = tiny_config(decode="running_cell", decode_share=0.5)
    ids = torch.arange(64).expand(500, -1)
    rows = decoded_rows(config, torch.arange(500), ids, (4, 4, 4))
    decoded = torch.zeros(500, 64, dtype=torch.bool).scatter(1, rows, True).unflatten(1, (4, 4, 4))
    cells = decoded.unflatten(2, (2, 2)).unflatten(4, (2, 2)).sum(dim=(3, 5))
    assert (cells == 2).all()  # two of every cell of 2 x 2, in every time step
    assert not torch.equal(decoded[:, 0], decoded[:, 1])
    assert torch.equal(decoded[:, 0], ~decoded[:, 2])  # half a round later it is the other two
    assert (decoded.float().mean(dim=0) - 0.5).abs().max() < 0.12


@pytest.mark.parametrize("kind", ["random", "running_cell"])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_a_share_of_the_hidden_tokens_is_decoded(kind, share):
    model = tiny(decode=kind, decode_share=share)
    clip, keys = random_clip(model.config), torch.tensor([3, 4])
    out, full = model(clip, keys=keys), model(clip, keys=keys, decode_all=True)
    assert torch.equal(out.hidden, full.hidden)  # the mask is the same, whatever is decoded of it
    assert torch.equal(full.decoded, full.hidden_ids)
    assert out.decoded.shape == (2, max(1, int(18 * share)))
    for b in range(2):
        assert set(out.decoded[b].tolist()) <= set(out.hidden_ids[b].tolist())
        assert out.decoded[b].tolist() == sorted(out.decoded[b].tolist())
    assert share == 1 or out.decoded[0].tolist() != out.decoded[1].tolist()
    rows = (full.decoded[:, :, None] == out.decoded[:, None]).float().argmax(dim=1)
    torch.testing.assert_close(out.target, full.target.take_along_dim(rows[..., None], dim=1))


def test_what_a_cross_attention_decoder_predicts_does_not_depend_on_what_else_it_predicts():
    model = tiny(decoder="cross_attention", decode="random")
    clip, keys = random_clip(model.config), torch.tensor([3, 4])
    part, full = model(clip, keys=keys), model(clip, keys=keys, decode_all=True)
    rows = (full.decoded[:, :, None] == part.decoded[:, None]).float().argmax(dim=1)
    torch.testing.assert_close(part.prediction, full.prediction.take_along_dim(rows[..., None], dim=1))


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"decoder": "linear"}, "mask tokens"),
        ({"decoder": "cross_attention", "mask_tokens_in_encoder": True}, "mask_tokens_in_encoder"),
        ({"decode": "random", "decode_share": 0.0}, "decode share"),
        ({"target": "hog", "patch": (2, 4, 8)}, "multiples of 8"),
        ({"target": "tokens"}, "given_values"),
        ({"mask": "tube"}, "tube"),
    ],
    ids=lambda value: str(value),
)
def test_what_does_not_go_together_is_refused(options, reason):
    with pytest.raises(UserError, match=reason):
        tiny_config(**options)


def test_a_model_without_memory_draws_masks_too():
    for kind in MASKS:
        config = changed(tiny_config(), mask=kind)
        with torch.device("meta"):
            model = MaskedAutoencoder(config)
            out = model(torch.empty(2, 3, 8, 16, 24), keys=torch.empty(2, dtype=torch.int64))
        assert out.visible.shape == (2, visible_tokens(config, (4, 2, 3)))


def test_without_keys_masks_are_drawn_at_random():
    model = tiny(mask="block")
    first, second = (model(random_clip(model.config)).hidden for _ in range(2))
    assert not torch.equal(first, second)
