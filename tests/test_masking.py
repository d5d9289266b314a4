"""Masks: exact counts, the same sets as slow references, noise that follows from clip keys alone."""

from __future__ import annotations

import numpy as np
import pytest
import references
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import random_clip, tiny

from stmae.data import clips
from stmae.errors import UserError
from stmae.model.masking import agnostic, key_noise, split_tokens, visible_count

LENGTHS = (10, 20, 40, 49, 98, 100, 160, 196, 320, 392, 490, 640, 784, 980, 1280, 1568, 3136)
RATIOS = (0.5, 0.75, 0.8, 0.85, 0.9, 0.95)

# Where the integer part of the floating-point product loses a token: {ratio: {tokens: what it keeps}}. Of 10 tokens at
# 0.9 it would keep none; we keep one.
FLOAT_FAULTS = {
    0.9: {10: 1, 20: 1, 40: 3, 100: 9, 160: 15, 320: 31, 490: 48, 640: 63, 980: 97, 1280: 127},
    0.8: {10: 1, 20: 3, 40: 7, 100: 19, 160: 31, 320: 63, 490: 97, 640: 127, 980: 195, 1280: 255},
}

keys64 = st.integers(-(1 << 63), (1 << 63) - 1)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_exact_count_is_exact(tokens, ratio):
    assert visible_count(tokens, ratio) == references.visible_count(tokens, ratio)


@given(tokens=st.integers(2, 100_000), percent=st.integers(1, 999))
@settings(max_examples=300, deadline=None)
def test_exact_count_of_any_ratio(tokens, percent):
    assert visible_count(tokens, percent / 1000) == references.visible_count(tokens, percent / 1000)


def test_the_paper_keeps_156_of_1568():
    assert visible_count(1568, 0.9) == visible_count(1568, 0.9, "float") == 156


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_float_rule_loses_a_token_exactly_where_the_references_do(tokens, ratio):
    expected = FLOAT_FAULTS.get(ratio, {}).get(tokens, references.visible_count(tokens, ratio))
    assert visible_count(tokens, ratio, "float") == expected


@given(
    tokens=st.integers(2, 40),
    batch=st.integers(1, 4),
    values=st.integers(1, 100),  # few values: ties
    seed=st.integers(0, 999),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_agnostic_is_the_slow_one_ties_included(tokens, batch, values, seed, data):
    noise = np.random.default_rng(seed).integers(0, values, (batch, tokens))
    count = data.draw(st.integers(1, tokens - 1))
    for kind in (np.int64, np.float32):
        hidden = agnostic(torch.from_numpy(noise.astype(kind)), count)
        assert hidden.dtype == torch.bool
        np.testing.assert_array_equal(hidden.numpy(), references.agnostic(noise, count))
    visible, hidden_ids = split_tokens(hidden, count)
    for b in range(batch):
        assert visible[b].tolist() == np.flatnonzero(~hidden[b].numpy()).tolist()
        assert hidden_ids[b].tolist() == np.flatnonzero(hidden[b].numpy()).tolist()


def test_agnostic_hides_every_token_equally_often():
    tokens, count, draws = 40, 10, 4000
    hidden = agnostic(key_noise(torch.arange(draws), tokens), count)
    shown = (~hidden).sum(dim=0).float() / draws
    deviation = (0.25 * 0.75 / draws) ** 0.5
    assert (shown - count / tokens).abs().max() < 4.5 * deviation


@given(key=keys64, tokens=st.integers(1, 50))
@example(key=-1, tokens=8)
@example(key=-(1 << 63), tokens=8)
@example(key=(1 << 63) - 1, tokens=8)
@settings(max_examples=100, deadline=None)
def test_key_noise_is_splitmix64_bit_for_bit(key, tokens):
    noise = key_noise(torch.tensor([key]), tokens)
    assert noise.dtype == torch.int64
    unsigned = [value % (1 << 64) for value in noise[0].tolist()]
    assert unsigned == references.splitmix64(key, tokens)
    gamma = 0x9E3779B97F4A7C15
    assert unsigned == [clips.splitmix64(key + i * gamma) for i in range(tokens)]


def test_published_numbers_of_splitmix64():
    """The first numbers for seed 1234567, as the generator's users test it everywhere."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [value % (1 << 64) for value in key_noise(torch.tensor([1234567]), 5)[0].tolist()] == known
    assert references.splitmix64(1234567, 5) == known


def test_a_clips_noise_does_not_depend_on_the_batch_it_is_in():
    keys = torch.tensor([clips.clip_key(0, 0, item, repeat) for item in range(5) for repeat in range(2)])
    together = key_noise(keys, 30)
    alone = torch.cat([key_noise(key[None], 30) for key in keys])
    assert torch.equal(together, alone)
    assert len(torch.unique(together)) == together.numel()


def test_a_models_mask_follows_from_keys_or_noise():
    model = tiny()
    clip, keys = random_clip(model.config), torch.tensor([7, -9])
    out = model(clip, keys=keys)
    assert out.hidden.dtype == torch.bool
    assert (~out.hidden).sum(dim=1).tolist() == [6, 6]
    assert torch.equal(out.hidden, model(clip, noise=key_noise(keys, 24)).hidden)
    assert torch.equal(out.hidden.flip(0), model(clip, keys=keys.flip(0)).hidden)


def test_without_any_of_them_masks_are_drawn_anew():
    model = tiny()
    clip = random_clip(model.config)
    torch.manual_seed(0)
    first, second = model(clip).hidden, model(clip).hidden
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(model(clip).hidden, first)


@given(seed=st.integers(0, 999), count=st.integers(1, 23))
@settings(max_examples=10, deadline=None)
def test_a_given_mask_of_any_ratio_is_taken_as_it_is(seed, count):
    model = tiny()
    hidden = agnostic(torch.from_numpy(np.random.default_rng(seed).random((2, 24))), count)
    out = model(random_clip(model.config), hidden=hidden)
    assert torch.equal(out.hidden, hidden)
    assert out.visible.shape == (2, count)
    assert out.latent.shape == (2, count, 16)
    assert out.prediction.shape == out.target.shape == (2, 24 - count, 192)


@pytest.mark.parametrize(
    "mask, reason",
    [
        (torch.zeros(2, 24, dtype=torch.bool), "24"),
        (torch.ones(2, 24, dtype=torch.bool), "0"),
        (torch.tensor([[True, False], [True, True]]).repeat(1, 12), "0, 12"),
        (torch.ones(2, 24), "float32"),
        (torch.tensor([[True, False]]).repeat(2, 11), "22"),
        (torch.tensor([[True, False]]).repeat(1, 12), r"shape \(1, 24\)"),
    ],
    ids=["nothing hidden", "nothing visible", "unequal", "no bool", "wrong length", "for one clip"],
)
def test_a_wrong_mask_is_refused_with_its_reason(mask, reason):
    model = tiny()
    with pytest.raises(UserError, match=reason):
        model(random_clip(model.config), hidden=mask)


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise": torch.rand(2, 23)},
        {"noise": torch.rand(1, 24)},
        {"keys": torch.tensor([1])},
        {"keys": torch.tensor([1, 2], dtype=torch.int32)},
        {"noise": torch.rand(2, 24), "keys": torch.tensor([1, 2])},
    ],
    ids=["noise too short", "noise for one clip", "one key", "32-bit keys", "noise and keys"],
)
def test_a_model_refuses_what_does_not_go_with_its_clips(wrong):
    """None of these may give a mask in silence: too little noise would leave tokens neither visible nor hidden."""
    model = tiny()
    with pytest.raises(UserError):
        model(random_clip(model.config), **wrong)


def test_the_float_rule_leaves_something_visible():
    model = tiny(shape=(2, 16, 40), visible_count="float", mask_ratio=0.9)
    assert model(random_clip(model.config), keys=torch.tensor([1, 2])).latent.shape == (2, 1, 16)
