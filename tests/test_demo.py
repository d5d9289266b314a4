"""`stmae demo`: from nothing to pictures, on sample videos and on a person's own."""

from __future__ import annotations

from pathlib import Path

import pytest

import stmae
from stmae.tasks import demo as module


@pytest.mark.slow
def test_demo_makes_videos_a_run_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "SAMPLE_VIDEOS", 6)
    out = stmae.demo(out=tmp_path / "demo", minutes=0.01)
    assert len(list((out / "videos").iterdir())) == 6
    assert (out / "run" / "encoder.safetensors").is_file()
    assert {path.suffix for path in (out / "pictures").iterdir()} == {".gif", ".mp4", ".png"}
    printed = capsys.readouterr().out
    shown = printed[printed.index("made:") : printed.index("try next:")]
    for line in shown.splitlines()[1:]:
        assert Path(line.split("  ")[1]).exists(), line
    assert printed.count("\n  stmae ") >= 3

    # The same command again finds everything there, trains no more and shows it again.
    weights = (out / "run" / "encoder.safetensors").read_bytes()
    stmae.demo(out=tmp_path / "demo", minutes=0.01)
    assert (out / "run" / "encoder.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_demo_takes_a_folder_of_ones_own(videos: Path, tmp_path: Path) -> None:
    out = stmae.demo(data=videos, out=tmp_path / "demo", minutes=0.01)
    assert not (out / "videos").exists()
    assert list((out / "pictures").glob("*.png"))
