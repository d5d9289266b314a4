"""`stmae bench`: its numbers hang together, and its advice follows from them. How fast anything is, no test asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import stmae
from stmae.errors import UserError

SMALL = {"model": "vit_tiny", "frames": 4, "image_size": 32, "patch": (2, 16, 16), "decoder_width": 32}


@pytest.mark.slow
def test_numbers_hang_together(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    report = stmae.bench(
        str(videos), out=out, seconds=0.01, batches=(1, 2), decoder_heads=2, device="cpu", precision="fp32", **SMALL
    )
    one, two = report.training
    assert (one.batch, two.batch) == (1, 2)
    assert 0 < one.memory < two.memory
    assert report.best.clips_per_second == max(one.clips_per_second, two.clips_per_second)
    assert report.share == report.best.clips_per_second * report.flops_per_clip / report.matmul
    assert report.loading is not None
    needed = report.best.clips_per_second / report.loading
    assert report.limit == ("loading" if needed > report.cores else "computing")
    assert any("stmae pack" in line for line in report.advice) == (report.limit == "loading")
    assert json.loads(out.read_text())["training"][1]["memory"] == two.memory
    assert f"The limit is {report.limit}." in capsys.readouterr().out


@pytest.mark.slow
def test_without_videos_only_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    report = stmae.bench(
        seconds=0.001, batches=(1,), decoder_heads=2, decode="random", target="teacher", teacher="self", **SMALL
    )
    assert (report.loading, report.limit) == (None, None)
    assert not any("--decode" in line for line in report.advice), "what is done already is no advice"
    assert "loads" not in capsys.readouterr().out


def test_mistakes_are_told_together() -> None:
    with pytest.raises(UserError, match=r"3 mistakes|batches has 0") as caught:
        stmae.bench("/nowhere", batches=(0,), seconds=0.0)
    for words in ("/nowhere", "batches has 0", "seconds 0"):
        assert words in str(caught.value)
