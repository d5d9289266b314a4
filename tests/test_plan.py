"""`stmae plan`: the arithmetic, where each number comes from, and values that make no sense."""

import json
from pathlib import Path

import pytest

import stmae
from stmae.errors import UserError
from stmae.tasks.plan import PACKED_BYTES_PER_SECOND
from stmae.tasks.plan_options import count_of

GIVEN = {"gpus": 4, "cores": 10, "step_rate": 200.0, "seconds": 10.0, "packed_kilobytes": 40.0, "shard_gigabytes": 1.0}


def test_the_arithmetic_of_ten_million_clips(capsys: pytest.CaptureFixture[str]) -> None:
    forecast = stmae.plan("10M", load_rate=25.0, epochs=100.0, **GIVEN)
    assert forecast.videos == 10_000_000
    assert forecast.limit == "computing"  # 4 x 200 against 4 x 10 x 25
    assert forecast.rate == 800
    assert forecast.cores_needed == 8
    assert forecast.epoch_hours == pytest.approx(1e7 / 800 / 3600)
    assert forecast.hours == pytest.approx(100 * forecast.epoch_hours)
    assert forecast.packed_bytes == pytest.approx(1e7 * 10 * 40e3)
    assert forecast.shards == 4000
    assert forecast.index_bytes > 1e7 * 16
    assert forecast.origins["step_rate"] == forecast.origins["load_rate"] == "given"
    said = capsys.readouterr().out
    for words in ("Computing is the limit: 8 cores", "4 TB", "4,000 shards", "given"):
        assert words in said
    slow = stmae.plan("10M", load_rate=5.0, epochs=100.0, **GIVEN)
    assert (slow.limit, slow.rate, slow.cores_needed) == ("loading", 200, 40)
    assert "the GPUs work 25% of the time" in capsys.readouterr().out


@pytest.mark.slow
def test_the_rate_of_a_gpu_that_is_not_here_is_asked_for_or_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = {**GIVEN, "step_rate": None, "load_rate": 25.0}
    with pytest.raises(UserError, match=r"no GPU.*--step-rate.*--gpu A100.*--gpu this"):
        stmae.plan("10M", **given)
    large, base = (stmae.plan("10M", gpu="a100", model=f"vit_{size}", **given) for size in ("large", "base"))
    assert "assumed: 30% of its 312 TFLOP/s" in large.origins["step_rate"]
    assert 100 < large.step_rate < base.step_rate / 1.5 < 400
    faster = stmae.plan("10M", gpu="NVIDIA H100 80GB HBM3", **given)
    assert faster.step_rate == pytest.approx(large.step_rate * 989 / 312)


def test_numbers_as_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [count_of(text) for text in ("250000", "1e6", "10M", "1_000", "2.5k", "3B")] == [
        250000, 1000000, 10000000, 1000, 2500, 3000000000,
    ]  # fmt: skip
    assert count_of("videos/") is None
    (tmp_path / "2024").mkdir()
    monkeypatch.chdir(tmp_path)
    assert count_of("2024") is None  # a folder of that name


def test_what_makes_no_sense_is_told_together() -> None:
    with pytest.raises(UserError) as caught:
        stmae.plan("0", gpus=0, cores=0, step_rate=-1.0, load_rate=0.0, epochs=0.0, model="vit_hug")
    text = str(caught.value)
    for words in ("videos 0", "gpus 0", "cores 0", "step_rate -1", "load_rate 0", "epochs 0", "vit_huge"):
        assert words in text
    with pytest.raises(UserError, match=r"Known: H200, .*A100.* --step-rate"):
        stmae.plan("10M", gpu="Voodoo 2", load_rate=1.0)
    with pytest.raises(UserError, match=r"1\.5 is no number of videos"):
        stmae.plan("1.5")


def test_the_default_of_the_packed_size_is_the_committed_measurement() -> None:
    results = Path(__file__).resolve().parents[1] / "docs" / "results" / "check.json"
    measured = json.loads(results.read_text(encoding="utf-8"))["packed"]["bytes_per_second"]
    assert pytest.approx(measured, rel=0.02) == PACKED_BYTES_PER_SECOND


@pytest.mark.slow
def test_a_folder_is_measured(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"gpu": "this", "frames": 2, "image_size": 32, "measure_seconds": 0.1, "stride": 2.0, "gpus": 1, "cores": 2}
    forecast = stmae.plan(str(videos), model="vit_tiny", repeats=2, **small)
    assert forecast.videos == 6
    assert 1.4 < forecast.seconds < 2.1
    assert set(forecast.others) == {(kind, r) for kind in ("as they are", "packed") for r in (1, 2, 4)}
    assert forecast.load_rate == forecast.others["as they are", 2]
    for name in ("seconds", "step_rate", "load_rate", "bytes_per_second"):
        assert "measured here and now" in forecast.origins[name], name
    assert "What repeats and packing change" in capsys.readouterr().out
