"""`stmae.pretrain` in two processes is `stmae.pretrain`: every switch of it, and what one process has to tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pair
import pytest
import torch
from safetensors.torch import load_file
from small_run import write_clock
from test_distributed import free_ports

from stmae.runs import read_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Pair:
    """What the runs of `pair.py` left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, rank: int = 0) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}-{rank}.json").read_text())

    def __truediv__(self, name: str) -> Path:
        assert "run" in self(name), self(name)
        return self.folder / name

    def lines(self, name: str, *names: str) -> list[list[float]]:
        lines = [json.loads(line) for line in (self / name / "metrics.jsonl").read_text().splitlines()]
        return [[line[each] for each in names] for line in lines if all(each in line for each in names)]

    def exported(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self / name / "encoder.safetensors")


@pytest.fixture(scope="module")
def done(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    labelled = tmp_path_factory.mktemp("labelled")
    for number in range(3):
        write_clock(labelled / "dark" / f"{number}.mp4", seconds=1.2 + number / 10)
        write_clock(labelled / "late" / f"{number}.mp4", seconds=8.0 + number / 10, fps=8)
    ports = free_ports(len(pair.RUNS))
    command = [sys.executable, pair.__file__, str(folder), str(videos), str(labelled), *map(str, ports)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return Pair(folder)


def assert_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "moved", "compiled"])
def test_averages_checkpointed_activations_and_compiled_blocks(done: Pair, name: str) -> None:
    one, other = done.lines("one", "step", "loss", "explained"), done.lines(name, "step", "loss", "explained")
    assert [line[0] for line in other] == [*range(1, 7)]
    assert other == [pytest.approx(line, rel=1e-3, abs=1e-4) for line in one]
    held_out = done.lines("one", "held_out_loss", "held_out_explained")
    assert done.lines(name, "held_out_loss", "held_out_explained") == [
        pytest.approx(line, rel=1e-3, abs=1e-4) for line in held_out
    ]
    assert_near(done.exported("one"), done.exported(name), 2e-3)
    newest = done / name / "checkpoints" / "step-000006"
    average, weights = load_file(newest / "engine.safetensors"), load_file(newest / "model.safetensors")
    exported = done.exported(name)
    assert all(torch.equal(average[f"ema/{key}"], exported[key]) for key in exported if f"ema/{key}" in average)
    assert not torch.equal(weights["decoder.head.weight"], exported["decoder.head.weight"])


def test_steps_after_an_evaluation_of_the_average_have_their_own_weights(done: Pair) -> None:
    """Evaluated after step 2, saved after step 3: FSDP2 holds on to what it gathered for the evaluation."""
    one, other = done.lines("between-one", "step", "loss"), done.lines("between", "step", "loss")
    assert other == [pytest.approx(line, rel=1e-5) for line in one]


def test_the_monitor_comes_first_where_nothing_is_held_out(done: Pair) -> None:
    assert done.lines("monitor", "step", "monitor_knn")[-1][0] == 1


def test_what_was_asked_for_was_done(done: Pair) -> None:
    assert "processes   2, fsdp (as asked)" in (done / "fsdp" / "log.txt").read_text()
    assert "compile     on (as asked)" in (done / "compiled" / "log.txt").read_text()
    log = (done / "moved" / "log.txt").read_text()
    assert "going on from step 3 of 6" in log
    assert "world_size 2, now 1: the run goes on to tolerance" in log


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_the_monitor_scores_all_videos_whoever_reads_them(done: Pair, name: str) -> None:
    scores = done.lines("one", "step", "monitor_knn", "monitor_chance")
    assert [step for step, _, chance in scores if chance == 0.5] == [3, 6]
    assert done.lines(name, "step", "monitor_knn", "monitor_chance") == scores


def test_pictures_are_drawn_once(done: Pair) -> None:
    for name in ("one", "ddp", "fsdp"):
        drawn = sorted(path.name for path in (done / name / "reconstructions").iterdir())
        assert drawn == [f"step-00000{step}.{kind}" for step in (0, 3, 6) for kind in ("gif", "png")]


def test_float16(done: Pair) -> None:
    for name in ("loss", "grad_norm"):
        one, two = done.lines("fp16-one", "step", name), done.lines("fp16-two", "step", name)
        assert two == [pytest.approx(line, rel=2e-2) for line in one]
        # It is other arithmetic than float32, and nearly the same.
        assert one != done.lines("one", "step", name)
    assert [loss for _, loss in done.lines("fp16-one", "step", "loss")] == pytest.approx(
        [loss for _, loss in done.lines("one", "step", "loss")], rel=5e-2
    )
    scales = [
        load_file(done / name / "checkpoints" / "step-000006" / "engine.safetensors")["loss_scale/scale"]
        for name in ("fp16-one", "fp16-two")
    ]
    assert scales[0] == scales[1] > 0
    assert "cpu, fp16 (as asked)" in (done / "fp16-two" / "log.txt").read_text()


def test_auto_is_found_once_for_all(done: Pair) -> None:
    config = read_config(done / "auto" / "config.yaml")
    assert (config["batch_size"], config["accumulate"]) == (2 * pair.FITS, 1)
    config = read_config(done / "auto-parts" / "config.yaml")
    assert (config["batch_size"], config["accumulate"]) == (16, 2)
    assert f"16 clips of 8 videos in 2 parts ({pair.FITS} clips fit" in (done / "auto-parts" / "log.txt").read_text()


def test_a_run_at_an_address_is_staged_by_rank_0_alone(done: Pair) -> None:
    stage = Path(done("address")["run"])
    assert stage.is_relative_to(done.folder / "cache-0")
    assert not list((done.folder / "cache-1").rglob("*.safetensors"))
    bucket = done.folder / "bucket"
    assert (bucket / "checkpoints" / "step-000006" / "manifest.json").exists()
    log = (bucket / "log.txt").read_text()
    assert "going on from step 3 of 6" in log, "another host went on from there"
    lines = [json.loads(line) for line in (bucket / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [*range(1, 7)]
    assert Path(done("address-on")["run"]).is_relative_to(done.folder / "cache-7")


def test_what_one_process_learns_of_its_files_is_kept_for_all(done: Pair) -> None:
    run = done / "news"
    assert (run / "verdicts" / "0.csv").read_text() == "slot,item,reason\n1,2,it ended two workers\n"
    assert "c.mp4,used up to the damage: no video" in (run / "bad_files.csv").read_text()
    assert "warning: damaged: c.mp4" in (run / "log.txt").read_text()
    assert done.lines("news", "step", "shrunk_clips") == [[1, 3], [2, 3]]


def test_clips_from_python_that_differ_are_refused(done: Pair) -> None:
    for name, differing in (("count", "Tensor of 13"), ("content", "Tensor of 12")):
        for rank in range(2):
            error = done(name, rank)["error"]
            assert "the processes do not agree on what to train" in error
            assert 'rank 1: videos: "Tensor of 12, the first torch.uint8 (3, 4, 32, 32) ' in error
            assert f'" on rank 0, "{differing}, the first ' in error
        assert not (done.folder / name / "metrics.jsonl").exists()
