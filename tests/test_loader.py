"""Batches depend on the cursor alone: not on workers, nor on how often the loader was started, nor on the ranks."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest
import torch

from stmae.data.dataset import VideoClips
from stmae.data.loader import Batch, ClipLoader
from stmae.data.sources import TensorSource, scan
from stmae.errors import UserError


@pytest.fixture
def clips(videos: Path) -> VideoClips:
    return VideoClips(scan(videos), frames=4, stride=4, image_size=(32, 32), repeats=2, seed=1)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.clips, b.clips) and torch.equal(a.keys, b.keys) and a.cursor == b.cursor


def test_batches_hold_the_slots_in_order(clips: VideoClips) -> None:
    loader = ClipLoader(clips, batch_size=6)
    for number in range(3):
        batch = next(loader)
        assert batch.clips.shape == (6, 3, 4, 32, 32)
        assert batch.clips.dtype == torch.uint8
        assert batch.keys.dtype == torch.int64
        assert batch.cursor == loader.cursor == 3 * (number + 1)
        assert batch.wait_seconds > 0
        for place in range(3):
            sample = clips[3 * number + place]
            assert torch.equal(batch.clips[2 * place : 2 * place + 2], sample.clips)
            assert torch.equal(batch.keys[2 * place : 2 * place + 2], sample.keys)


@pytest.mark.slow
def test_workers_and_starting_again_change_nothing(clips: VideoClips) -> None:
    loader = ClipLoader(clips, batch_size=4)
    batches = [next(loader) for _ in range(5)]
    with ClipLoader(clips, batch_size=4, workers=2) as working:
        assert all(same(a, b) for a, b in zip(batches, working, strict=False))
    with ClipLoader(clips, batch_size=4, cursor=batches[1].cursor, workers=1) as resumed:
        assert same(next(resumed), batches[2])
        resumed.close()  # and goes on where it stood
        assert same(next(resumed), batches[3])
    loader = ClipLoader(clips, batch_size=4, cursor=batches[1].cursor)
    assert all(same(a, b) for a, b in zip(batches[2:], loader, strict=False))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_out_the_global_batch(clips: VideoClips, world_size: int) -> None:
    whole = ClipLoader(clips, batch_size=4 * world_size, cursor=5)
    ranks = [ClipLoader(clips, batch_size=4, cursor=5, rank=r, world_size=world_size) for r in range(world_size)]
    for _ in range(2):
        parts, batch = [next(rank) for rank in ranks], next(whole)
        assert torch.equal(torch.cat([part.clips for part in parts]), batch.clips)
        assert torch.equal(torch.cat([part.keys for part in parts]), batch.keys)
        assert {part.cursor for part in parts} == {batch.cursor}


def test_counts_and_reports_are_added_up(videos: Path, tmp_path: Path) -> None:
    for path in videos.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "void.mp4").touch()
    dataset = VideoClips(scan(tmp_path), frames=4, stride=60, image_size=(16, 16), repeats=2, seed=0)
    batch = next(ClipLoader(dataset, batch_size=14))
    assert batch.shrunk == 14
    assert "void.mp4" in {bad.path for bad in batch.bad}


def test_to_moves_tensors_and_keeps_the_rest() -> None:
    dataset = VideoClips(
        TensorSource(torch.rand(3, 2, 4, 6, 8)), frames=4, stride=1, image_size=(6, 8), repeats=1, seed=0
    )
    batch = next(ClipLoader(dataset, batch_size=4))  # more than there are items: the stream does not end
    assert batch.clips.dtype == torch.float32
    moved = batch.to("meta")
    assert moved.clips.device.type == moved.keys.device.type == "meta"
    assert moved.clips.shape == (4, 2, 4, 6, 8)
    assert moved.cursor == batch.cursor == 4


def test_a_batch_must_be_whole_videos(clips: VideoClips) -> None:
    for size in (0, 3):
        with pytest.raises(UserError, match="multiple of 2"):
            ClipLoader(clips, batch_size=size)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_leaves_workers_at_work(clips: VideoClips) -> None:
    with ClipLoader(clips, batch_size=2, workers=1) as loader:
        next(loader)
        os.kill(loader.pids[0], signal.SIGINT)
        assert len(list(itertools.islice(loader, 50))) == 50


@pytest.mark.slow
def test_mistakes_in_workers_are_told(clips: VideoClips, tmp_path: Path) -> None:
    (tmp_path / "void.mp4").touch()
    bad = VideoClips(scan(tmp_path), frames=4, stride=4, image_size=(16, 16), repeats=1, seed=0)
    with (
        ClipLoader(bad, batch_size=1, workers=1) as loader,
        pytest.raises(UserError, match=r"void\.mp4.*empty") as caught,
    ):
        next(loader)
    assert "Traceback" not in str(caught.value)
