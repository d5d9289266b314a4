"""Scores over hidden pixels, against loops that anybody can follow."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stmae.metrics import Scores, hidden_scores


def slow_scores(original: np.ndarray, painted: np.ndarray, hidden: np.ndarray) -> tuple[list[float], list[float]]:
    explained, psnr = [], []
    for b in range(len(original)):
        error = spread = count = 0.0
        for c in range(original.shape[1]):
            pixels = [
                (original[b, c][place], painted[b, c][place])
                for place in np.ndindex(original.shape[2:])
                if hidden[b, 0][place]
            ]
            mean = sum(x for x, _ in pixels) / len(pixels)
            error += sum((x - y) ** 2 for x, y in pixels)
            spread += sum((x - mean) ** 2 for x, _ in pixels)
            count += len(pixels)
        explained.append(1 - error / spread)
        psnr.append(10 * math.log10(1 / (error / count)))
    return explained, psnr


def example(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    original, painted = rng.random((2, 3, 3, 2, 4, 5), dtype=np.float32)
    return original, painted, rng.random((3, 1, 2, 4, 5)) < 0.7


def test_scores_equal_the_slow_ones() -> None:
    original, painted, hidden = example()
    original, painted, hidden = original[:, :2], painted[:, :2], hidden
    found = hidden_scores(original, painted, hidden)
    explained, psnr = slow_scores(original, painted, hidden)
    np.testing.assert_allclose(found.explained, explained, rtol=1e-5)
    np.testing.assert_allclose(found.psnr, psnr, rtol=1e-5)


def test_visible_pixels_do_not_count() -> None:
    original, painted, hidden = example(1)
    before = hidden_scores(original, painted, hidden)
    changed = np.where(hidden, painted, 7.0)
    after = hidden_scores(np.where(hidden, original, -3.0), changed, hidden)
    np.testing.assert_array_equal(before.explained, after.explained)
    np.testing.assert_array_equal(before.psnr, after.psnr)


def test_the_truth_explains_all_and_its_mean_nothing() -> None:
    original, _, hidden = example(2)
    everywhere = np.ones_like(hidden)
    perfect = hidden_scores(original, original.copy(), everywhere)
    assert (perfect.explained == 1).all()
    assert np.isinf(perfect.psnr).all()
    mean = np.broadcast_to(original.mean(axis=(2, 3, 4), keepdims=True), original.shape)
    np.testing.assert_allclose(hidden_scores(original, mean, everywhere).explained, 0, atol=1e-5)


def test_no_single_colour_explains_more_than_nothing() -> None:
    original, _, hidden = example(3)
    for colour in (0.0, 0.3, 0.5, 0.9):
        assert (hidden_scores(original, np.full_like(original, colour), hidden).explained <= 0).all()


def test_a_flat_picture_has_no_explained_variance_and_is_left_out_of_the_mean() -> None:
    original, painted, hidden = example(4)
    original[0] = 0.4
    found = hidden_scores(original, painted, hidden)
    assert math.isnan(found.explained[0])
    assert found.mean_explained == pytest.approx(found.explained[1:].mean())
    assert math.isfinite(found.psnr[0])
    assert math.isnan(Scores(np.array([np.nan]), np.array([30.0])).mean_explained)
