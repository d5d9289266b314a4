"""The task of benchmarks/transfer.py: nothing but motion tells its labels, and no part knows another's footage."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import footage
        import motion8
        import transfer_arms
        import transfer_report
    finally:
        sys.path.remove(str(BENCHMARKS))
    return {"footage": footage, "motion8": motion8, "arms": transfer_arms, "report": transfer_report}


@pytest.fixture(scope="module")
def still(modules):
    """30 videos of a still, detailed picture each: 15 clusters of two."""
    videos, length = 30, 40
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (videos, 64, 64, 3), np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    frames = coarse.repeat(length, axis=0)
    counts = np.full(videos, length)
    clusters = np.arange(videos) // 2
    return modules["footage"].Footage(
        frames, [f"{i}.mp4" for i in range(videos)], np.arange(videos) * length, counts, clusters,
        modules["footage"].split_clusters(clusters), "still",
    )  # fmt: skip


def test_clusters_are_split_and_parts_share_none(modules, still):
    shares = {part: still.parts.count(part) for part in ("train", "val", "test")}
    assert shares == {"train": 7, "val": 2, "test": 6}
    seen = {part: {still.clusters[v] for v in still.videos(part)} for part in shares}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    for part in shares:
        drawn = modules["motion8"].draw(still, part, 96, 0)
        assert {still.clusters[v] for v in drawn.videos} == seen[part]
        moving = modules["motion8"].draw_unlabelled(still, part, 50, [1])
        assert {still.clusters[v] for v in moving.videos} <= seen[part]


def test_each_video_shows_every_direction_equally_often(modules, still):
    clips = modules["motion8"].draw(still, "test", 480, 3)
    assert len(clips) == 480
    for video in np.unique(clips.videos):
        counts = np.bincount(clips.labels[clips.videos == video], minlength=8)
        assert counts.min() == counts.max() > 0
    paths = clips.paths()
    assert paths.min() >= 0
    assert paths.max() <= 128 - 64
    steps = np.diff(paths, axis=1)
    assert (steps == steps[:, :1]).all()
    assert set(np.abs(steps).max(axis=(1, 2))) == {1, 2, 3}
    assert (np.sign(steps[:, 0]) == modules["motion8"].DIRECTIONS[clips.labels]).all()


def test_where_the_crop_is_says_nothing_of_where_it_goes(modules, still):
    """The middle of the path lies alike for all directions."""
    clips = modules["motion8"].draw(still, "train", 16_000, 4)
    paths = clips.paths()
    middles = (paths[:, 7] + paths[:, 8]) / 2
    by_label = np.stack([middles[clips.labels == label].mean(axis=0) for label in range(8)])
    error = middles.std(axis=0) / np.sqrt(2000)
    assert (np.abs(by_label - middles.mean(axis=0)) < 4.5 * error + 0.5).all()


def test_reversing_a_clip_turns_its_label_round(modules, still):
    motion8 = modules["motion8"]
    clips = motion8.draw(still, "val", 48, 5)
    pixels = motion8.pixels(still, clips)
    assert pixels.shape == (48, 3, 16, 64, 64)
    assert pixels.dtype == torch.uint8
    assert (motion8.phase_correlation(pixels) == clips.labels).all()
    turned = motion8.phase_correlation(motion8.reversed_in_time(pixels))
    assert (turned == motion8.OPPOSITE[clips.labels]).all()
    back = dataclasses.replace(clips, velocity=-clips.velocity)
    assert torch.equal(motion8.pixels(still, back), motion8.reversed_in_time(pixels))
    frames = motion8.repeated(pixels)
    assert torch.equal(frames[:, :, 0], frames[:, :, 15])
    assert sorted(motion8.shuffled(pixels)[0, 0].flatten(1).sum(1).tolist()) == sorted(
        pixels[0, 0].flatten(1).sum(1).tolist()
    )


def test_time_tasks(modules, still):
    moving = dataclasses.replace(still, frames=still.frames.copy())
    moving.frames[:] = (np.arange(len(moving.frames)) % 40)[:, None, None, None]
    motion8 = modules["motion8"]
    for task, steps in (("speed", {0: 1, 1: 2, 2: 3}), ("arrow", {0: 1, 1: -1})):
        if task == "speed":  # 46 frames are needed for the fastest
            moving = dataclasses.replace(moving, firsts=moving.firsts[:15] * 2, counts=np.full(15, 80),
                                         clusters=still.clusters[:30:2])  # fmt: skip
            moving.frames[:] = (np.arange(len(moving.frames)) % 80)[:, None, None, None]
        clips = motion8.draw_time(moving, "train", 24, 0, task)
        change = motion8.pixels(moving, clips)[:, 0, :, 0, 0].int().diff(dim=1)
        assert [steps[label] for label in clips.labels] == change[:, 0].tolist()
        assert (change == change[:, :1]).all()


def test_common_sources_are_one_cluster(modules):
    footage, rng = modules["footage"], np.random.default_rng(0)
    pictures = rng.uniform(0, 255, (5, 32, 32, 3))
    pictures[3] = pictures[1] + rng.uniform(-20, 20, (32, 32, 3))
    frames = np.zeros((8, 16, 16), np.uint8)
    tracks = [footage.Track(np.arange(8, dtype=np.int32) + 100 * i, frames + 40 * i) for i in range(5)]
    found = footage.cluster(tracks[:1] * 5, list(pictures), ["a", None, "a", None, None])
    assert found[0] == found[2]
    assert found[1] == found[3]


@pytest.mark.slow
def test_footage_is_decoded_once(modules, videos, tmp_path):
    said: list[str] = []
    first = modules["footage"].prepare([str(videos)], tmp_path, say=said.append)
    assert first.frames.shape[1:] == (128, 128, 3)
    assert len(first.frames) == first.counts.sum() == first.summary()["frames"]
    assert first.counts.max() <= 128
    assert first.frames[first.firsts[1]].std() > 5
    again = modules["footage"].prepare([str(videos)], tmp_path, say=said.append)
    assert again.identity == first.identity
    assert (again.clusters == first.clusters).all()


@pytest.mark.slow
def test_a_stopped_cell_goes_on_bit_for_bit(modules, still, tmp_path):
    arms = modules["arms"]
    ends = {"whole": time.monotonic() + 1000, "parts": 0.0}
    weights = {}
    for name, end in ends.items():
        work = tmp_path / name
        work.mkdir()
        place = arms.Place(still, arms.SMOKE, tmp_path / "out", work, end)
        stops = 0
        while True:
            try:
                found = arms.pretrain(place, 0)
                break
            except arms.OutOfTime:
                stops += 1
        assert stops == (0 if name == "whole" else arms.SMOKE.pretrain_steps - 1)
        assert found["rounds"] == 1
        place.out.mkdir(exist_ok=True)
        (place.out / "pretrain-0.json").write_text(json.dumps(found))
        weights[name] = arms.pretrained(place, 0).state_dict()
    assert all(torch.equal(value, weights["parts"][key]) for key, value in weights["whole"].items())


@pytest.mark.slow
def test_what_has_learned_no_motion_is_trained_on(modules, still, tmp_path):
    arms = modules["arms"]
    size = dataclasses.replace(arms.SMOKE, pretrain_steps=1, gate=9.0)
    place = arms.Place(still, size, tmp_path, tmp_path, time.monotonic() + 1000)
    found = arms.pretrain(place, 0)
    assert found["rounds"] == 3
    assert found["clips"] == 3 * size.pretrain_batch
    assert len({path.read_bytes() for path in tmp_path.glob("pretrain-0*.pt")}) == 3
    (tmp_path / "pretrain-0.json").write_text(json.dumps(found))
    told = arms.gate(place, 0)
    assert not told["passed"]
    assert told["ratio"] == pytest.approx(told["loss"]["in disorder"] / told["loss"]["in order"], abs=1e-3)


@pytest.mark.slow
def test_a_setting_is_tried_and_an_encoder_is_judged(modules, still, tmp_path):
    arms = modules["arms"]
    place = arms.Place(still, arms.SMOKE, tmp_path, tmp_path, time.monotonic() + 1000)
    found = arms.tune(place, "scratch", 1)
    assert found["steps"] == arms.SMOKE.finetune_steps[0]
    assert found["setting"] == arms.TUNING["scratch"][1]
    assert 0 <= found["val_accuracy"] <= 1
    model = arms.Classifier(arms.ClassifierConfig(encoder=arms.encoder_config(arms.SMOKE), classes=8))
    untouched = model.head.weight.clone()
    model.load_state_dict(arms.torch.load(place.state("tune-scratch-1"), weights_only=True)["model"])
    assert not torch.equal(model.head.weight, untouched)
    judged = modules["motion8"].judge(model.encoder, still, labels=16, held_out=16, seeds=(0,))
    assert judged["by_seed"] == [judged["accuracy"]]
    assert judged["clips"] == 16


def test_the_interval_knows_clusters_seeds_and_a_difference(modules):
    report, rng = modules["report"], np.random.default_rng(0)
    results = object.__new__(report.Results)
    results.clusters = np.repeat(np.arange(50), 60)
    hard = rng.uniform(0.2, 0.8, 50)  # common to both arms, so it cancels

    def arm(runs: tuple[int, ...], gain: float) -> np.ndarray:
        return rng.binomial(60, np.clip(hard + gain, 0, 1), (*runs, 50))

    base, better, same = arm((5,), 0.0), arm((2, 5), 0.1), arm((2, 5), 0.0)
    gain = report.estimate(results, better, base, draws=1000)
    assert 8 < gain.mean < 12
    assert gain.low > 5
    assert gain.high < 15
    nothing = report.estimate(results, same, base, draws=1000)
    assert nothing.low < 0 < nothing.high
    alone = report.estimate(results, base, draws=1000)
    assert alone.high - alone.low > 2 * (gain.high - gain.low)  # clusters differ far more than arms within them
