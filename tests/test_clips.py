"""What a clip shows is a pure function of its key, lies inside the video, and is drawn fairly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stmae.data.clips import (
    centre_box,
    clip_key,
    clip_times,
    crop_box,
    flip,
    next_key,
    pass_order,
    segment_times,
    segment_times_at,
    splitmix64,
    times_at,
    uniform,
    view_boxes,
)

KEY, NEXT = 2391539541053276776, 3791236603674338492
DRAWS, ORDER = [0.216422750657, 0.220533650734, 0.151013562344], [7, 2, 4, 0, 5, 6, 3, 1]

keys = st.integers(-(2**63), 2**63 - 1)
lengths = st.integers(1, 4000)


def test_splitmix64_is_the_published_one() -> None:
    # The first outputs of the reference generator with seed 0, whose state grows by the golden ratio's gamma.
    gamma = 0x9E3779B97F4A7C15
    outputs = [splitmix64(i * gamma) for i in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_splitmix64_of_arrays_is_that_of_integers(numbers: list[int]) -> None:
    assert splitmix64(np.array(numbers, np.uint64)).tolist() == [splitmix64(x) for x in numbers]


def test_keys_stay_what_they_are() -> None:
    # A change here breaks the promise that old runs can go on.
    assert clip_key(0, 0, 0, 0) == KEY
    assert next_key(KEY) == NEXT
    assert [round(uniform(KEY, stream), 12) for stream in range(3)] == DRAWS
    assert pass_order(0, 0, 8).tolist() == ORDER


@given(*(st.integers(0, 2**40) for _ in range(4)))
def test_keys_fit_int64_and_differ_in_every_argument(seed: int, pass_: int, item: int, repeat: int) -> None:
    key = clip_key(seed, pass_, item, repeat)
    assert -(2**63) <= key < 2**63
    others = {
        clip_key(seed + 1, pass_, item, repeat),
        clip_key(seed, pass_ + 1, item, repeat),
        clip_key(seed, pass_, item + 1, repeat),
        clip_key(seed, pass_, item, repeat + 1),
        next_key(key),
    }
    assert len(others | {key}) == 6
    assert clip_key(seed, pass_, item, repeat) == key


def test_keys_of_a_run_are_all_different() -> None:
    many = {clip_key(s, p, i, r) for s in range(3) for p in range(5) for i in range(300) for r in range(4)}
    assert len(many) == 3 * 5 * 300 * 4


def test_uniform_is_uniform_and_its_streams_independent() -> None:
    draws = np.array([[uniform(clip_key(1, 0, i, 0), stream) for stream in (0, 1, 1000, 2000)] for i in range(4000)])
    assert ((draws >= 0) & (draws < 1)).all()
    for column in draws.T:
        counts = np.histogram(column, bins=20, range=(0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 50  # chi-squared, 19 degrees of freedom: 1 in 10 000
    correlation = np.corrcoef(draws.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.07
    assert 0.46 < np.mean([flip(clip_key(2, 0, i, 0)) for i in range(4000)]) < 0.54


@given(st.integers(0, 2**32), st.integers(0, 1000), st.integers(0, 300))
def test_a_pass_visits_every_item_once(seed: int, pass_: int, n: int) -> None:
    assert sorted(pass_order(seed, pass_, n).tolist()) == list(range(n))


def test_passes_and_seeds_differ_in_their_order() -> None:
    orders = {tuple(pass_order(seed, pass_, 50)) for seed in range(10) for pass_ in range(10)}
    assert len(orders) == 100
    large = pass_order(0, 3, 100_000)
    assert large.dtype == np.int64
    assert abs(np.corrcoef(large, np.arange(100_000))[0, 1]) < 0.02


@given(st.floats(1e-3, 1e5), st.integers(1, 64), st.floats(0.1, 64), keys)
def test_times_rise_inside_the_video(duration: float, frames: int, stride: float, key: int) -> None:
    clip = clip_times(duration, frames, stride, key)
    assert clip.times.shape == (frames,)
    assert clip.times[0] >= 0
    assert clip.times[-1] < duration
    assert (np.diff(clip.times) > 0).all()
    steps = np.diff(clip.times) * 30
    assert (steps <= stride * (1 + 1e-6)).all()
    if not clip.shrunk and frames > 1:
        assert steps.mean() == pytest.approx(stride, rel=2e-3)
    if frames > 1 and duration < 0.99 * frames * stride / 30:
        assert clip.shrunk
    np.testing.assert_array_equal(clip.times, clip_times(duration, frames, stride, key).times)


@given(st.integers(1, 40), st.sampled_from([10, 23.976, 25, 30, 60]), st.floats(4, 8), keys)
def test_a_video_of_as_many_frames_as_the_clip_gives_each_once(
    frames: int, fps: float, stride: float, key: int
) -> None:
    times = clip_times(frames / fps, frames, 30 * stride, key).times
    assert np.floor(times * fps + 1e-9).astype(int).tolist() == list(range(frames))


def test_starts_are_spread_over_all_that_fits() -> None:
    starts = [clip_times(10.0, 16, 4, clip_key(0, 0, i, 0)).times[0] for i in range(2000)]
    assert 0 <= min(starts) < 0.05
    assert 7.95 < max(starts) < 8.0
    assert times_at(10.0, 16, 4, 0.5).times[[0, -1]] == pytest.approx([4.0, 6.0])


@given(keys, lengths, lengths, st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted))
def test_crops_lie_inside(key: int, height: int, width: int, area: list[float]) -> None:
    box = crop_box(key, height, width, (area[0], area[1]))
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert box.height >= 1 <= box.width
    assert box == crop_box(key, height, width, (area[0], area[1]))


def test_crops_have_the_area_and_aspect_asked_for() -> None:
    boxes = [crop_box(clip_key(0, 0, i, 0), 240, 320) for i in range(1000)]
    areas = np.array([box.height * box.width / (240 * 320) for box in boxes])
    aspects = np.array([box.width / box.height for box in boxes])
    assert areas.min() > 0.49
    assert areas.max() <= 1
    assert aspects.min() > 0.74
    assert aspects.max() < 1.35
    assert len(set(boxes)) > 900


def test_a_crop_that_never_fits_becomes_the_largest_central_one() -> None:
    box = crop_box(7, 100, 1000, (0.9, 1.0), (3 / 4, 4 / 3))
    assert (box.top, box.height, box.width) == (0, 100, 133)
    assert box.left == (1000 - 133) // 2


@given(lengths, lengths, st.floats(0.2, 5))
def test_the_centre_box_is_central_and_as_large_as_can_be(height: int, width: int, ratio: float) -> None:
    box = centre_box(height, width, ratio)
    assert box.height == height or box.width == width
    assert abs(2 * box.top + box.height - height) <= 1
    assert abs(2 * box.left + box.width - width) <= 1
    if min(box.height, box.width) > 50:
        assert box.width / box.height == pytest.approx(ratio, rel=0.02)


@given(st.floats(0.05, 500), st.integers(1, 32), st.integers(-(2**63), 2**63 - 1))
def test_segments_give_a_frame_of_each_part(duration: float, frames: int, key: int) -> None:
    bounds = np.arange(frames + 1) * (duration / frames)
    random, middle = segment_times(duration, frames, key), segment_times_at(duration, frames, 0.5)
    for chosen in (random, middle):
        assert not chosen.shrunk
        assert (chosen.times >= bounds[:-1] * (1 - 1e-12)).all()
        assert (chosen.times <= bounds[1:]).all()
        assert chosen.times[-1] < duration
    assert np.allclose(middle.times, (bounds[:-1] + bounds[1:]) / 2)


def test_segments_meet_every_frame_of_a_part_equally_often() -> None:
    # 24 frames at 24 fps in 4 parts of 6: each frame is shown by a sixth of the clips.
    shown = np.stack([np.floor(segment_times(1.0, 4, key).times * 24) for key in range(3000)]).astype(int)
    assert (shown // 6 == np.arange(4)).all()
    counts = np.bincount(shown.ravel(), minlength=24)
    assert counts.min() > 400
    assert counts.max() < 600
    assert (np.floor(segment_times_at(1.0, 4, 0.5).times * 24) == [3, 9, 15, 21]).all()


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.3, 3))
def test_three_views_are_the_ends_and_the_middle(height: int, width: int, ratio: float) -> None:
    first, middle, last = view_boxes(height, width, ratio)
    assert middle == centre_box(height, width, ratio)
    assert (first.top, first.left) == (0, 0)
    assert (last.top + last.height, last.left + last.width) == (height, width)
    assert {(b.height, b.width) for b in (first, middle, last)} == {(middle.height, middle.width)}
