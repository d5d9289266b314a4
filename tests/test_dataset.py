"""Clips of a slot: shape, key, crop, and what stands in for a file that cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stmae.data import clips as choice
from stmae.data import dataset
from stmae.data.dataset import KINDRED_STAND_INS, MAX_STAND_INS, FixedClips, VideoClips
from stmae.data.sources import Index, Mixture, TensorSource, scan
from stmae.data.video import read_clips
from stmae.errors import UserError


def training(source: Any, **changes: Any) -> VideoClips:
    options: dict[str, Any] = {"frames": 4, "stride": 4, "image_size": (32, 48), "repeats": 2, "seed": 5}
    return VideoClips(source, **{**options, **changes})


def test_a_slot_is_what_its_keys_say(videos: Path) -> None:
    index = scan(videos)
    clips = training(index)
    n = len(index)
    seen = set()
    for slot in range(2 * n):
        sample = clips[slot]
        assert sample.item == choice.pass_order(5, slot // n, n)[slot % n]
        assert sample.keys.tolist() == [choice.clip_key(5, slot // n, sample.item, r) for r in range(2)]
        assert sample.clips.shape == (2, 3, 4, 32, 48)
        assert sample.clips.dtype == torch.uint8
        assert sample.bad == []
        assert not torch.equal(sample.clips[0], sample.clips[1])
        seen |= {*sample.keys.tolist()}
    assert len(seen) == 4 * n
    again = training(index)
    for slot in (2 * n - 1, 0, n):  # any order, another object
        assert torch.equal(again[slot].clips, clips[slot].clips)


def test_pixels_are_the_crop_resized_and_mirrored(videos: Path) -> None:
    clips = training(scan(videos), repeats=1)
    for slot in range(4):
        sample = clips[slot]
        key, path = int(sample.keys[0]), clips.source.path(sample.item)
        expected = []

        def take(_: int, __: int, frame: Any, key: int = key, expected: list[torch.Tensor] = expected) -> None:
            box = choice.crop_box(key, *frame.shape[:2])
            part = frame[box.top : box.top + box.height, box.left : box.left + box.width]
            picture = torch.from_numpy(part.copy()).permute(2, 0, 1)[None].float()
            picture = F.interpolate(picture, (32, 48), mode="bilinear", antialias=True)[0]
            expected.append(picture.flip(-1) if choice.flip(key) else picture)

        read_clips(path, 1, lambda _, d, key=key: choice.clip_times(d, 4, 4, key).times, take)
        assert (sample.clips[0].float() - torch.stack(expected, 1)).abs().max() <= 1  # rounding of uint8


def test_mirroring_can_be_turned_off(videos: Path) -> None:
    index = scan(videos)
    on, off = training(index), training(index, flip=False)
    differ = 0
    for slot in range(4):
        for key, a, b in zip(on[slot].keys.tolist(), on[slot].clips, off[slot].clips, strict=True):
            assert torch.equal(a, b.flip(-1) if choice.flip(key) else b)
            differ += choice.flip(key)
    assert 0 < differ < 8


@pytest.fixture
def partly_broken(videos: Path, tmp_path: Path) -> Path:
    for path in sorted(videos.iterdir())[:2]:
        shutil.copy(path, tmp_path)
    (tmp_path / "text.mp4").write_text("no video\n" * 99)
    (tmp_path / "void.mkv").touch()
    return tmp_path


def test_another_video_stands_in_for_an_unreadable_one(partly_broken: Path) -> None:
    index = scan(partly_broken)
    clips = training(index, repeats=2)
    reported, keys = set(), []
    for slot in range(3 * len(index)):
        sample = clips[slot]
        assert sample.clips.shape[0] == 2
        planned = int(choice.pass_order(5, slot // 4, 4)[slot % 4])
        broken = index.paths[planned] in ("text.mp4", "void.mkv")
        assert bool(sample.bad) == broken
        if broken:
            assert sample.bad[0].item == planned
            assert not sample.bad[0].used
            assert sample.item != planned
        reported |= {(bad.path, bad.reason) for bad in sample.bad}
        keys += sample.keys.tolist()
        assert torch.equal(sample.clips, training(index)[slot].clips)
    assert {path for path, _ in reported} == {"text.mp4", "void.mkv"}
    assert any("empty" in reason for _, reason in reported)
    assert len(set(keys)) == len(keys)  # a stand-in is a clip of its own


def test_nothing_but_unreadable_videos_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match=rf"{MAX_STAND_INS} videos in a row.*a\.mp4.*empty"):
        training(scan(tmp_path))[0]


def test_a_class_of_unreadable_videos_is_filled_from_the_others(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    clips = training(Mixture([scan(tmp_path), scan(videos)]))
    slot = next(slot for slot in range(len(clips)) if clips.place(slot)[1] == 0)
    sample = clips[slot]
    assert sample.item > 0
    assert len(sample.bad) >= KINDRED_STAND_INS
    assert {bad.path.rpartition("/")[2] for bad in sample.bad} == {"a.mp4"}


def test_damage_after_a_sound_part_is_reported_and_the_part_used(shared: Path) -> None:
    clips = training(Index(shared / "data/broken", ("decord__corrupted.mp4",)), repeats=4)
    sample = clips[0]
    assert sample.clips.shape[0] == 4
    assert [(bad.path, bad.used) for bad in sample.bad] == [("decord__corrupted.mp4", True)]


def test_short_videos_are_counted(videos: Path) -> None:
    index = scan(videos)
    assert training(index)[0].shrunk == 0
    assert training(index, stride=60)[0].shrunk == 2
    many = training(index, frames=200)[0]
    assert (many.shrunk, many.repeated) == (2, 2)


def test_fixed_clips_are_central_and_always_the_same(videos: Path) -> None:
    index = scan(videos)
    fixed = FixedClips(index, frames=4, stride=2, image_size=(40, 40))
    samples = list(fixed)
    assert [sample.item for sample in samples] == list(range(len(index)))
    assert len({int(sample.keys[0]) for sample in samples}) == len(index)
    again = FixedClips(index, frames=4, stride=2, image_size=(40, 40))[2]
    assert torch.equal(again.clips, samples[2].clips)
    assert torch.equal(again.keys, samples[2].keys)
    frames: list[torch.Tensor] = []

    def take(_: int, __: int, frame: Any) -> None:
        box = choice.centre_box(*frame.shape[:2], 1.0)
        part = frame[box.top : box.top + box.height, box.left : box.left + box.width]
        picture = torch.from_numpy(part.copy()).permute(2, 0, 1)[None].float()
        frames.append(F.interpolate(picture, (40, 40), mode="bilinear", antialias=True)[0])

    read_clips(index.path(2), 1, lambda _, d: choice.times_at(d, 4, 2, 0.5).times, take)
    assert (again.clips[0].float() - torch.stack(frames, 1)).abs().max() <= 1


def test_an_unreadable_file_is_a_fixed_sample_without_clips(partly_broken: Path) -> None:
    samples = list(FixedClips(scan(partly_broken), frames=4, stride=2, image_size=(16, 16)))
    assert [len(sample.keys) for sample in samples] == [1, 1, 0, 0]
    assert samples[2].clips.shape == (0, 3, 4, 16, 16)
    assert [sample.bad[0].path for sample in samples[2:]] == ["text.mp4", "void.mkv"]


def test_tensors_are_used_as_they_are() -> None:
    data = torch.randn(5, 2, 4, 6, 8)
    clips = training(TensorSource(data), image_size=(6, 8), repeats=3)
    for slot in range(10):
        sample = clips[slot]
        assert sample.clips.shape == (3, 2, 4, 6, 8)
        assert sample.clips.dtype == torch.float32
        for key, clip in zip(sample.keys.tolist(), sample.clips, strict=True):
            given = data[sample.item]
            assert torch.equal(clip, given.flip(-1) if choice.flip(key) else given)
    fixed = FixedClips(TensorSource(data), frames=4, stride=1, image_size=(6, 8))
    assert torch.equal(fixed[3].clips[0], data[3])


def test_values_that_cannot_work_are_refused_together(videos: Path) -> None:
    with pytest.raises(UserError, match="frames is 0") as caught:
        training(scan(videos), frames=0, stride=0)
    assert len(caught.value.problems) == 2
    with pytest.raises(UserError, match=r"crop_area is \(0.9, 0.5\)") as caught:
        training(scan(videos), repeats=0, crop_area=(0.9, 0.5))
    assert len(caught.value.problems) == 2
    with pytest.raises(UserError, match="no video to train on"):
        training(Index(videos, ()))
    with pytest.raises(UserError, match=r"frames=4 and image_size=\(6, 8\)"):
        training(TensorSource(torch.zeros(2, 3, 4, 6, 8)))


def test_frames_resized_together_are_those_resized_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fits into the group, and where a clip's frames come a second time."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (7, 40, 50, 3), np.uint8)
    box = choice.Box(3, 5, 31, 42)
    for mirrored in (False, True):
        alone = torch.stack([dataset.resized(frame, box, 24, 32, mirrored) for frame in frames])
        for together in (1, 2, 3, 7, 100):
            monkeypatch.setattr(dataset, "GATHERED", together * 31 * 42 * 3)
            out = torch.zeros_like(alone)
            filling = dataset._Filling(out, box, mirrored)
            for position in (0, 1, 2, 3, *range(7)):
                filling.add(position, frames[position])
            assert torch.equal(out, alone)
    same = choice.Box(0, 0, 24, 32)
    assert torch.equal(dataset.resized(frames[0], same, 24, 32, True), torch.from_numpy(frames[0, :24, 31::-1].copy()))
