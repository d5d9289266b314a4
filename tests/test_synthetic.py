"""The synthetic videos are real, varied, the same every time, and move."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from stmae.data.sources import scan
from stmae.data.synthetic import Scene, write_videos


def test_the_same_seed_gives_the_same_files(tmp_path: Path, videos: Path) -> None:
    again = write_videos(tmp_path / "a", count=2, seconds=(1.5, 2.0))
    assert [path.name for path in again] == [path.name for path in sorted(videos.iterdir())[:2]]
    for path in again:
        assert path.read_bytes() == (videos / path.name).read_bytes()
    other = write_videos(tmp_path / "b", count=2, seed=1, seconds=(0.3, 0.3))
    assert other[0].read_bytes() != again[0].read_bytes()


def test_files_differ_in_kind_size_and_rate(videos: Path) -> None:
    kinds = set()
    for name in scan(videos).paths:
        with av.open(str(videos / name)) as container:
            stream = container.streams.video[0]
            frames = sum(1 for _ in container.decode(stream))
            rate = float(stream.average_rate)
            assert 1.4 < frames / rate < 2.1
            kinds.add((container.format.name, stream.codec_context.name, stream.width, stream.height, rate))
    assert len({kind[0] for kind in kinds}) >= 3
    assert len({kind[1] for kind in kinds}) >= 3
    assert len({kind[2:4] for kind in kinds}) == 6
    assert len({kind[4] for kind in kinds}) >= 5
    assert any(height > width for _, _, width, height, _ in kinds)


def test_scenes_are_colourful_smooth_and_move() -> None:
    for number in range(12):
        scene = Scene(np.random.default_rng((0, number)), 96, 128)
        now, soon, later = (scene.frame(t).astype(float) for t in (1.0, 1.0 + 1 / 30, 2.0))
        assert now.std() > 15  # contrast
        assert (now.max(-1) - now.min(-1)).mean() > 25  # colour
        assert np.abs(np.diff(now, axis=1)).mean() < 8  # no noise
        assert 0 < np.abs(soon - now).mean() < 8  # a frame to the next is a small step
        assert np.abs(later - now).mean() > 4  # a second is a large one
