"""`stmae pretrain` as a whole: what it writes, that it goes on exactly, what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import stmae
from stmae.data.loader import Batch
from stmae.engine.meter import StepResult
from stmae.errors import UserError
from stmae.presets import PRESETS
from stmae.tasks.pretrain import Pretraining
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.pretrain_setup import PretrainSetup
from stmae.tasks.task import bind

# Small enough for seconds, large enough for operations to be split over threads.
SMALL: dict[str, Any] = {
    "model": "vit_tiny",
    "frames": 8,
    "image_size": 32,
    "patch": (2, 8, 8),
    "target": "pixels",
    "position_values": "learned_from_sincos",
    "decoder_width": 64,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "epochs": 12,
    "batch_size": 8,
    "lr": 1e-3,
    "clip_grad": 1.0,
    "workers": 0,
    "precision": "fp32",
    "log_every": 2,
    "evaluate_every": 4,
    "save_every": 3,
    "holdout": 0.2,
}


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the sample videos."""
    return stmae.pretrain(videos, out=tmp_path_factory.mktemp("runs") / "first", **SMALL)


def test_a_run_writes_what_the_readme_shows(run: Path) -> None:
    names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert names == {
        "config.yaml", "index.csv", "log.txt", "metrics.jsonl", "tensorboard", "reconstructions", "checkpoints",
        "encoder.safetensors",
    }  # fmt: skip
    assert len(list((run / "checkpoints").glob("step-*"))) == 2  # --keep's default
    assert (run / "reconstructions" / "step-000000.png").stat().st_size > 1000
    assert list((run / "tensorboard").iterdir())


def test_the_loss_falls_and_is_logged_every_interval(run: Path) -> None:
    losses = {line["step"]: line["loss"] for line in metrics(run) if "loss" in line}
    held_out = [line["held_out_loss"] for line in metrics(run) if "held_out_loss" in line]
    assert list(losses) == [*range(2, max(losses), 2), max(losses)] or list(losses) == list(
        range(2, max(losses) + 1, 2)
    )
    assert losses[max(losses)] < 0.8 * losses[2]
    assert len(held_out) >= 2


def test_the_encoder_loads_and_is_the_checkpoints(run: Path) -> None:
    encoder = stmae.load(run)
    clip = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert encoder(clip).shape == (2, 192)
        assert encoder(clip, features="grid").shape == (2, 4, 4, 4, 192)
    newest = max((run / "checkpoints").glob("step-*"))
    saved, exported = load_file(newest / "model.safetensors"), load_file(run / "encoder.safetensors")
    assert saved.keys() == exported.keys()
    assert all(torch.equal(saved[name], exported[name]) for name in saved)


@pytest.mark.slow
def test_config_reads_back(run: Path, videos: Path, tmp_path: Path) -> None:
    again = stmae.pretrain(videos, out=tmp_path / "again", config=run / "config.yaml")
    first, second = (load_file(path / "encoder.safetensors") for path in (run, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def start(videos: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
    options = {**SMALL, "epochs": 40, "workers": 1, "evaluate_every": 8}
    words = [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", *str(value).strip("()").split(", "))
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "stmae", "pretrain", str(videos), "--out", str(out), *words, *flags],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        # Threads that spin while they wait slow a busy machine down.
        env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    out = tmp_path_factory.mktemp("whole") / "run"
    process = start(videos, out)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "signum, everywhere, status",
    [(signal.SIGKILL, False, -signal.SIGKILL), (signal.SIGINT, True, 130), (signal.SIGTERM, True, 75)],
    ids=["SIGKILL", "SIGINT to all as by a terminal", "SIGTERM to all as by Slurm"],
)
def test_a_run_that_was_ended_goes_on_exactly(
    videos: Path, tmp_path: Path, whole: Path, signum: int, everywhere: bool, status: int
) -> None:
    """Its worker is told too, where a terminal or a scheduler tells the whole group of processes."""
    broken = start(videos, tmp_path / "run")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run" / "checkpoints").glob("step-*[1-9]")) and time.monotonic() < deadline:
        time.sleep(0.05)
    if everywhere:
        os.killpg(broken.pid, signum)
    else:
        broken.kill()
    said, _ = broken.communicate(timeout=100)
    assert broken.returncode == status, said
    assert "Traceback" not in said
    done = max(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*"))

    second = start(videos, tmp_path / "run")
    output, _ = second.communicate(timeout=200)
    assert second.returncode == 0, output
    assert f"going on from step {done} " in output

    one, two = (load_file(folder / "encoder.safetensors") for folder in (whole, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    clock = ("clips_per_second", "data_wait", "memory", "eta", "mfu", "flops")
    kept = [
        [{k: v for k, v in line.items() if not k.startswith(clock) and "second" not in k} for line in metrics(folder)]
        for folder in (whole, tmp_path / "run")
    ]
    names = ("step", "loss", "explained", "grad_norm", "lr", "held_out_loss")
    assert [{k: line.get(k) for k in names} for line in kept[0]] == [
        {k: line.get(k) for k in names} for line in kept[1]
    ]


def test_a_finished_run_does_nothing_more(run: Path, videos: Path) -> None:
    before = (run / "encoder.safetensors").read_bytes()
    assert stmae.pretrain(videos, out=run) == run  # its own options stand in its folder
    assert (run / "encoder.safetensors").read_bytes() == before


def test_another_model_in_the_same_folder_is_refused(run: Path, videos: Path) -> None:
    with pytest.raises(UserError, match=r"decoder_depth: 1 in the run, 2 now"):
        stmae.pretrain(videos, out=run, **{**SMALL, "decoder_depth": 2})


def test_other_videos_in_the_same_folder_are_refused(run: Path, videos: Path, tmp_path: Path) -> None:
    shutil.copy(next(videos.iterdir()), tmp_path / "other.mp4")
    with pytest.raises(UserError, match=r"begun with other videos: none of its 6 is in .* choose another --out"):
        stmae.pretrain(tmp_path, out=run)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"holdout": 0.5}, r"holdout: 0\.2 in the run, 0\.5 now"),
        ({"init": "."}, r'init: null in the run, "\." now'),
        ({"preset": "paper"}, r'begun with preset "auto", not "paper"'),
    ],
)
def test_what_only_a_new_run_can_have_is_refused(run: Path, videos: Path, options: dict[str, Any], said: str) -> None:
    config = (run / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=said):
        stmae.pretrain(videos, out=run, **options)
    assert (run / "config.yaml").read_bytes() == config


@pytest.mark.slow
def test_what_may_change_is_noted_with_old_and_new(videos: Path, tmp_path: Path) -> None:
    out = stmae.pretrain(videos, out=tmp_path / "run", **{**SMALL, "evaluate_every": 100, "epochs": 8})
    steps = yaml.safe_load((out / "config.yaml").read_text())["derived"]["steps"]
    stmae.pretrain(videos, out=out, epochs=16, log_every=1, lr=5e-4)
    log = (out / "log.txt").read_text()
    for line in ("epochs: 8 before, 16 now", "log_every: 2 before, 1 now", "lr: 0.001 before, 0.0005 now"):
        assert f"\n  {line}\n" in log
    assert f"from step {steps} on it learns otherwise than it was begun; lr is 0.000" in log
    lines = {line["step"]: line["lr"] for line in metrics(out) if "lr" in line}
    assert lines[steps + 1] > lines[steps + 2] > 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["derived"]["warmup_steps"] == int(config["warmup"].split()[0]), "it is not warmed up anew"
    assert config["derived"]["steps"] == max(lines) > steps


@pytest.mark.slow
def test_a_roll_back_names_the_clips(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Pretraining.step

    def step(self: Pretraining, batch: Batch) -> StepResult:
        result = real(self, batch)
        factor = float("nan") if batch.cursor // 4 - 1 in (4, 5) else 1.0  # four videos a step, two clips of each
        return StepResult(result.loss_sum * factor, result.weight, result.clips, result.numbers)

    monkeypatch.setattr(Pretraining, "step", step)
    options = {**SMALL, "epochs": "10 steps", "max_bad_steps": 2, "log_every": 1, "evaluate_every": 100}
    out = stmae.pretrain(videos, out=tmp_path / "run", **options)
    log = (out / "log.txt").read_text()
    assert "2 updates in a row, steps 5 to 6," in log
    assert re.search(r"what the first of them saw:\n  \S+\.mp4, slot \d+, keys [0-9a-f-]+ ", log)
    assert "going on from step 0 of" not in log
    newest = max((out / "checkpoints").glob("step-*"))
    assert json.loads((newest / "state.json").read_text())["left_out"] == [2, 3, 4, 5]
    assert [line["step"] for line in metrics(out) if "lr" in line] == [*range(1, 11)]


def setup_of(videos: Any, **options: Any) -> PretrainSetup:
    return PretrainSetup.of(bind(PretrainOptions, (videos,), options))


def test_a_presets_holdout_parts_the_videos(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "small", lambda facts: {**SMALL, "holdout": 0.7})
    assert setup_of(videos, out=tmp_path / "run", preset="small").kept_out >= 3


@pytest.mark.slow
def test_tensors_are_parted_as_the_run_was_begun(tmp_path: Path) -> None:
    clips = torch.zeros(12, 3, 4, 16, 16, dtype=torch.uint8)
    options = {name: value for name, value in SMALL.items() if name not in ("frames", "image_size")}
    out = stmae.pretrain(clips, out=tmp_path / "run", **{**options, "epochs": 1, "holdout": 0.7})
    begun = yaml.safe_load((out / "config.yaml").read_text())["derived"]
    again = setup_of(clips, out=out, precision="auto")
    assert again.options.precision == "fp32"  # the run's
    assert (len(again.source), again.kept_out) == (begun["videos"], begun["held_out"])
    assert again.kept_out > 3
    with pytest.raises(UserError, match="begun with 12 clips, and 11 are given"):
        setup_of(clips[1:], out=out)


def test_memory_that_is_too_small_is_told(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")

    monkeypatch.setattr("stmae.tasks.train.train", full)
    with pytest.raises(UserError, match=r"too small for 8 clips at a time: .* 2 GiB\. Raise --accumulate above 1"):
        stmae.pretrain(videos, out=tmp_path / "run", **SMALL)


@pytest.mark.slow
def test_new_and_missing_files_are_named_on_resume(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    out = stmae.pretrain(folder, out=tmp_path / "run", **{**SMALL, "epochs": 2})
    index = (out / "index.csv").read_text()
    shutil.copy(next(folder.iterdir()), folder / "zz-new.mp4")
    capsys.readouterr()
    stmae.pretrain(folder, out=out)
    assert "1 new (zz-new.mp4)" in capsys.readouterr().out
    assert (out / "index.csv").read_text() == index


@pytest.mark.slow
def test_unreadable_files_are_named_and_training_goes_on(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    (folder / "broken.mp4").write_bytes(b"not a video" * 100)
    out = stmae.pretrain(folder, out=tmp_path / "run", **{**SMALL, "max_bad_share": 0.5, "holdout": 0.0})
    lines = (out / "bad_files.csv").read_text().splitlines()
    assert lines[0] == "path,reason,times_met"
    assert lines[1].startswith("broken.mp4,")
    assert any(line.get("bad_files") == 1 for line in metrics(out))
    assert all(len(line) > 2 for line in metrics(out))  # no evaluation, no line of it


def test_too_many_unreadable_files_stop_the_run(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes(b"not a video" * 100)
    with pytest.raises(UserError, match=r"unreadable, more than max_bad_share 0\.1"):
        stmae.pretrain(folder, out=tmp_path / "run", **{**SMALL, "holdout": 0.0})
    assert (
        "a.mp4" in (tmp_path / "run" / "bad_files.csv").read_text()
        or "b.mp4" in (tmp_path / "run" / "bad_files.csv").read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uint8", "float", "dataset"])
def test_tensors_of_any_channels_train(tmp_path: Path, kind: str) -> None:
    clips: Any = torch.randint(0, 256, (12, 4, 4, 16, 24), dtype=torch.uint8)
    if kind == "float":
        clips = clips / 128 - 1
    if kind == "dataset":
        clips = torch.utils.data.TensorDataset(clips, torch.arange(12))
    options = {name: value for name, value in SMALL.items() if name not in ("frames", "image_size")}
    out = stmae.pretrain(clips, out=tmp_path / "run", **{**options, "epochs": 4})
    encoder = stmae.load(out)
    assert encoder.config.clip.channels == 4
    assert encoder(torch.zeros(1, 4, 4, 16, 24, dtype=torch.uint8), features="grid").shape == (1, 2, 2, 3, 192)


def test_tensors_of_another_size_than_asked_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"4x16x24.*frames"):
        stmae.pretrain(torch.zeros(3, 3, 4, 16, 24, dtype=torch.uint8), out=tmp_path / "run", frames=8)


@pytest.mark.slow
def test_init_takes_weights_to_another_length_and_size(run: Path, videos: Path, tmp_path: Path) -> None:
    changed = {**SMALL, "frames": 4, "image_size": 48, "epochs": 1, "lr": 1e-12}
    out = stmae.pretrain(videos, out=tmp_path / "run", init=str(run), **changed)
    old, new = load_file(run / "encoder.safetensors"), load_file(out / "encoder.safetensors")
    assert torch.allclose(old["encoder.blocks.3.mlp.fc1.weight"], new["encoder.blocks.3.mlp.fc1.weight"], atol=1e-6)
    assert torch.allclose(old["decoder.head.weight"], new["decoder.head.weight"], atol=1e-6)
    assert new["encoder.positions.spatial"].shape == (36, 192)
    (tmp_path / "base").symlink_to(run)
    options = {**SMALL, "epochs": 1, "init": str(tmp_path / "base")}
    stmae.pretrain(videos, out=tmp_path / "second", **options)
    (tmp_path / "base").unlink()
    stmae.pretrain(videos, out=tmp_path / "second", **options)  # it has served
    with pytest.raises(UserError, match=r'model vit_small does not fit ".*", which has vit_tiny'):
        stmae.pretrain(videos, out=tmp_path / "other", init=str(run), **{**SMALL, "model": "vit_small"})


def test_processes_that_do_not_know_their_place_are_refused(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE says that 2 processes were started, and RANK is missing"):
        stmae.pretrain(videos, out=tmp_path / "run", **SMALL)


@pytest.mark.slow
def several(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """This process as rank 0 of `size`, the others of which never come."""
    place = {"RANK": "0", "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(
    run: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stmae.engine.distributed.LAST_WORDS", 0.1)
    several(monkeypatch, 4)
    with pytest.raises(UserError, match=r"repeats 4 x accumulate 2 x 4 processes\. Choose 32, or start 3 processes"):
        stmae.pretrain(videos, out=tmp_path / "run", **{**SMALL, "batch_size": 24, "accumulate": 2, "repeats": 4})
    several(monkeypatch, 5)  # torchrun has lost one of six, say
    with pytest.raises(UserError, match=r"batch_size 8 is not a multiple of repeats 2 x 5 processes\..* start 4 proc"):
        stmae.pretrain(videos, out=run)  # a run that is there keeps its batch size


def test_one_process_tasks_refuse_several(run: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several(monkeypatch, 2)
    with pytest.raises(UserError, match=r"2 processes were started, and only `stmae pretrain` and `stmae"):
        stmae.embed(videos, model=str(run), out=run.parent / "features.parquet")
