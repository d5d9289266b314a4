"""`stmae embed`: the right features of the right times, in files that read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from small_run import save_run, small_model, write_clock

import stmae
from stmae.data.dataset import FixedClips
from stmae.data.sources import scan
from stmae.errors import UserError

SPAN = 8 * 4 / 30


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("embed") / "run", small_model())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 3, 1.5 and 0.5 seconds, and a file that is none."""
    folder = tmp_path_factory.mktemp("embed") / "videos"
    for name, seconds in (("a/long.mp4", 3.0), ("b/middle.avi", 1.5), ("b/short.mkv", 0.5)):
        write_clock(folder / name, seconds=seconds)
    (folder / "b" / "broken.mp4").write_bytes(b"\0" * 1000)
    return folder


def features_of(run: Path, clips: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return stmae.load(run)(clips).numpy()


def test_a_row_per_video(run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stmae.embed(videos, model=str(run), out=tmp_path / "new" / "features.parquet", precision="fp32")
    table = parquet.read_table(path)
    assert table.column_names == ["path", "start", "end", "frames", "features"]
    assert table.schema.field("features").type == pyarrow.list_(pyarrow.float32(), 192)
    assert table["path"].to_pylist() == ["a/long.mp4", "b/middle.avi", "b/short.mkv"]
    assert table["frames"].to_pylist() == [8, 8, 8]
    index = scan(videos)
    fixed = FixedClips(index, frames=8, stride=4.0, image_size=(32, 32))
    clips = torch.cat([fixed[item].clips for item, name in enumerate(index.paths) if "broken" not in name])
    found = np.array(table["features"].to_pylist(), np.float32)
    np.testing.assert_allclose(found, features_of(run, clips), atol=1e-5)
    assert np.ptp(found, axis=0).max() > 1e-3  # different videos, different features
    times = list(zip(table["start"].to_pylist(), table["end"].to_pylist(), strict=True))
    np.testing.assert_allclose(times[0], [(3 - SPAN + 4 / 30) / 2, (3 + SPAN + 4 / 30) / 2], atol=0.02)
    np.testing.assert_allclose(times[2], [0.5 / 16, 0.5], atol=0.02)
    about = json.loads(table.schema.metadata[b"stmae"])
    assert (about["stride"], about["views"], about["window"]) == (4.0, 1, None)
    told = capsys.readouterr().out
    assert "1 of 4 videos cannot be read" in told
    assert "b/broken.mp4" in told
    assert "3 rows of 192 features" in told
    assert [entry.name for entry in path.parent.iterdir()] == ["features.parquet"]  # nothing half-written beside it


def test_a_row_per_window_with_its_times(run: Path, videos: Path, tmp_path: Path) -> None:
    path = stmae.embed(videos, model=str(run), out=tmp_path / "features.npz", window=0.75, precision="fp32")
    with np.load(path) as file:
        assert file["path"].tolist() == ["a/long.mp4"] * 4 + ["b/middle.avi"] * 2 + ["b/short.mkv"]
        start, end, features = file["start"], file["end"], file["features"]
        assert features.dtype == np.float32
        assert features.shape == (7, 192)
    np.testing.assert_allclose(start[:6], [0, 0.75, 1.5, 3 - SPAN, 0, 1.5 - SPAN], atol=0.02)
    np.testing.assert_allclose(end[:6], start[:6] + SPAN, atol=0.02)
    np.testing.assert_allclose((start[6], end[6]), (0, 0.5), atol=0.02)
    # The window in the middle of the long video has the features of a video that is nothing but it.
    assert np.linalg.norm(features[0] - features[1]) > 1e-3


def test_window_features_are_those_of_the_frames_at_its_times(run: Path, tmp_path: Path) -> None:
    video = write_clock(tmp_path / "clock.mp4", seconds=4.0)
    path = stmae.embed(video, model=str(run), out=tmp_path / "features.npz", window=1.0, precision="fp32")
    with np.load(path) as file:
        start, features = file["start"], file["features"]
        assert file["path"].tolist() == ["clock.mp4"] * 4
    for first, row in zip(start, features, strict=True):
        brightness = np.floor((first + np.arange(8) * 4 / 30) * 30 + 1e-3) / 30 * 20 + 20
        clip = np.broadcast_to(brightness.round().astype(np.uint8)[None, :, None, None], (3, 8, 32, 32))
        expected = features_of(run, torch.from_numpy(clip.copy())[None])[0]
        others = [np.linalg.norm(row - other) for other in features if other is not row]
        assert np.linalg.norm(row - expected) < 0.3 * sorted(others)[1]


def test_views_are_averaged(run: Path, videos: Path, tmp_path: Path) -> None:
    video = videos / "a" / "long.mp4"
    path = stmae.embed(video, model=str(run), out=tmp_path / "three.npz", views=3, batch_size=2, precision="fp32")
    with np.load(path) as file:
        found, frames = file["features"], file["frames"]
        assert file["start"][0] < 0.5
        assert file["end"][0] > 2.5
    assert frames.tolist() == [24]
    from stmae.data.views import View, read_views, spread

    clips: list[View] = []
    read_views(video, spread(8, 4.0, 3), image_size=(32, 32), give=clips.append)
    expected = features_of(run, torch.stack([view.clip for view in clips])).mean(axis=0)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_workers_and_batches_change_nothing(
    run: Path, videos: Path, tmp_path: Path, workers: int, batch_size: int
) -> None:
    options = {"model": str(run), "window": 0.5, "precision": "fp32"}
    first = stmae.embed(videos, out=tmp_path / "a.npz", workers=1, **options)
    second = stmae.embed(videos, out=tmp_path / "b.npz", workers=workers, batch_size=batch_size, **options)
    with np.load(first) as one, np.load(second) as other:
        for name in ("path", "start", "end", "frames"):
            np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_allclose(one["features"], other["features"], atol=1e-5)


def test_clips_from_python(run: Path, tmp_path: Path) -> None:
    clips = torch.randint(0, 256, (3, 3, 8, 32, 32), dtype=torch.uint8)
    path = stmae.embed(clips, model=str(run), out=tmp_path / "a.parquet", batch_size=2, precision="fp32")
    table = parquet.read_table(path)
    assert table["path"].to_pylist() == ["0", "1", "2"]
    assert all(math.isnan(value) for value in table["start"].to_pylist())
    np.testing.assert_allclose(np.array(table["features"].to_pylist()), features_of(run, clips), atol=1e-5)
    with pytest.raises(UserError, match="no meaning for clips from Python"):
        stmae.embed(clips, model=str(run), out=tmp_path / "a.parquet", views=2)


def test_names_that_are_not_utf8_are_written(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    sound = write_clock(folder / "x.mp4", seconds=0.5)
    try:
        sound.rename(folder / b"caf\xe9.mp4".decode("utf-8", "surrogateescape"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    path = stmae.embed(folder, model=str(run), out=tmp_path / "a.parquet")
    assert parquet.read_table(path)["path"].to_pylist() == ["caf\\xe9.mp4"]


def test_mistakes_are_told_before_any_work(run: Path, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        stmae.embed(videos, model=str(tmp_path / "none"), out=tmp_path / "features.csv", views=0)
    assert len(error.value.problems) == 3
    assert "features.csv" in str(error.value)
    with pytest.raises(UserError, match="exclude each other"):
        stmae.embed(videos, model=str(run), out=tmp_path / "a.npz", views=2, window=1.0)
    with pytest.raises(UserError, match=r"the video cannot be read: broken\.mp4"):
        stmae.embed(videos / "b" / "broken.mp4", model=str(run), out=tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_features_of_an_earlier_layer(run: Path, tmp_path: Path) -> None:
    video = write_clock(tmp_path / "clock.mp4", seconds=1.5)
    rows = {}
    for layer in (2, 12, None):
        path = stmae.embed(video, model=str(run), out=tmp_path / "features.npz", layer=layer, precision="fp32")
        with np.load(path) as file:
            rows[layer] = file["features"]
    clip = FixedClips(scan(tmp_path), frames=8, stride=4.0, image_size=(32, 32))[0].clips
    with torch.no_grad():
        np.testing.assert_allclose(rows[2], stmae.load(run)(clip, layer=2).numpy(), atol=1e-5)
    assert np.array_equal(rows[12], rows[None])
    with pytest.raises(UserError, match="no layer 13"):
        stmae.embed(video, model=str(run), out=tmp_path / "features.npz", layer=13)
