"""Copies are found whatever was done to them; other footage of the same scene is none."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from stmae.data.copies import describe, find_copies
from stmae.data.synthetic import Scene
from stmae.data.tracks import SIDE, TRACK_SIDE, Track, make_track

RATE = 24


def pictures(seed: int, begin: float, seconds: float, rate: int = RATE) -> list[np.ndarray]:
    scene = Scene(np.random.default_rng(seed), 64, 64)
    return [scene.frame(begin + i / rate) for i in range(round(seconds * rate))]


def track(frames: Sequence[np.ndarray], rate: int = RATE) -> Track:
    thumbs = [Image.fromarray(f).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX) for f in frames]
    return make_track(np.arange(len(frames) + 1) / rate, np.stack([np.asarray(thumb) for thumb in thumbs]))


def noisy(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.clip(f * 0.9 + 8 + rng.normal(0, 6, f.shape), 0, 255).astype(np.uint8) for f in frames]


@pytest.mark.slow
def test_copies_are_found_and_nothing_else() -> None:
    whole = pictures(0, 0, 6)
    tracks = [
        track(whole),
        track(noisy(whole)),  # 1: encoded again, darker
        track(pictures(0, 0, 6, rate=10), rate=10),  # 2: another frame rate
        track([frame[3:-3, 3:-3] for frame in whole]),  # 3: cropped by 5 % on all sides
        track(whole[round(2.1 * RATE) : round(4.6 * RATE)]),  # 4: a part of it
        track(pictures(0, 30, 6)),  # 5: the same scene at another time
        None,
        *(track(pictures(seed, 0, 4)) for seed in range(1, 7)),  # 7...: others
    ]
    pairs = find_copies(tracks)
    assert {(pair.first, pair.second) for pair in pairs if pair.first == 0} == {(0, 1), (0, 2), (0, 3), (0, 4)}
    assert max(max(pair.first, pair.second) for pair in pairs) == 4
    part = next(pair for pair in pairs if (pair.first, pair.second) == (0, 4))
    assert part.offset == pytest.approx(-2.1, abs=0.1)
    assert part.seconds == pytest.approx(2.5, abs=0.3)
    assert find_copies(tracks) == pairs


def test_two_sets_are_held_against_each_other_only() -> None:
    ours = [track(pictures(seed, 0, 3)) for seed in (0, 0, 1)]
    theirs = [track(noisy(pictures(seed, 0.5, 2))) for seed in (2, 1)]
    pairs = find_copies(ours, theirs)
    assert [(pair.first, pair.second) for pair in pairs] == [(2, 1)]
    assert pairs[0].offset == pytest.approx(-0.5, abs=0.1)
    assert find_copies(ours, []) == []
    assert find_copies([None, None]) == []


def test_still_pictures_are_copies_where_they_are_the_same() -> None:
    first, second = pictures(0, 0, 0.05)[0], pictures(1, 0, 0.05)[0]
    found = find_copies([track([first] * 24), track([first] * 30), track([second] * 24)])
    assert [(pair.first, pair.second) for pair in found] == [(0, 1)]


def test_descriptors_are_of_unit_length() -> None:
    rng = np.random.default_rng(0)
    for thumbs in (
        np.zeros((8, TRACK_SIDE, TRACK_SIDE), np.uint8),
        rng.integers(0, 255, (8, TRACK_SIDE, TRACK_SIDE), dtype=np.uint8),
        rng.integers(0, 255, (1, TRACK_SIDE, TRACK_SIDE), dtype=np.uint8),
    ):
        assert float(np.linalg.norm(describe(thumbs))) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_work_does_not_grow_with_the_square() -> None:
    """Comparisons of descriptors, counted: ten times the videos, some thirty times the work, not a hundred."""
    from stmae.data import copies

    rng = np.random.default_rng(0)
    counts = []
    for videos in (300, 3000):
        base = rng.integers(0, 255, (videos, 1, 4, 4), dtype=np.uint8).repeat(4, axis=2).repeat(4, axis=3)
        moves = rng.integers(-20, 20, (videos, 8, TRACK_SIDE, TRACK_SIDE))
        thumbs = np.clip(base.astype(int) + moves, 0, 255).astype(np.uint8)
        windows = copies._windows([Track(np.arange(8, dtype=np.int32), each) for each in thumbs])
        multiplied = 0
        count = max(1, int(np.sqrt(videos)))
        centres = windows.descriptors[rng.choice(videos, count, replace=False)]
        homes = np.bincount(copies._nearest(windows.descriptors, centres, 1)[:, 0], minlength=count)
        visits = copies._nearest(windows.descriptors, centres, copies.CELLS)
        multiplied = videos * count + int(homes[visits].sum())
        counts.append(multiplied)
    assert counts[1] / counts[0] < 50
