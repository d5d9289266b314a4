"""kNN on a labelled set: the score itself, how class folders are read, and what a run logs of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_run import small_model, write_clock

import stmae
from stmae.data.dataset import FixedClips
from stmae.data.index import Index
from stmae.data.loader import read_fixed
from stmae.engine.distributed import ALONE
from stmae.errors import UserError
from stmae.metrics import knn_score
from stmae.tasks.monitor import Monitor


def slow_knn(known: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int, temperature: float) -> int:
    similar = [row @ query / np.linalg.norm(row) / np.linalg.norm(query) for row in known]
    near = sorted(range(len(known)), key=lambda i: -similar[i])[:k]
    votes = [sum(np.exp(similar[i] / temperature) for i in near if labels[i] == c) for c in range(labels.max() + 1)]
    return int(np.argmax(votes))


def test_the_score_is_that_of_a_slow_loop() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 60)
    features = random.normal(size=(60, 8)).astype(np.float32) + 1.5 * np.eye(4, 8)[labels]
    fewest = np.bincount(labels).min() - 1  # of 20 neighbours the other classes would be most, whatever they are
    guesses = [
        slow_knn(np.delete(features, i, 0), np.delete(labels, i), features[i], fewest, 0.07) for i in range(len(labels))
    ]
    assert fewest < 20
    expected = np.mean(np.array(guesses) == labels)
    assert 0.3 < expected < 1
    assert knn_score(features, labels) == expected
    split = [slow_knn(features[:40], labels[:40], query, 5, 0.5) for query in features[40:]]
    found = knn_score(features[:40], labels[:40], features[40:], labels[40:], k=5, temperature=0.5)
    assert found == np.mean(np.array(split) == labels[40:])


def test_lengths_do_not_matter_and_few_neighbours_do() -> None:
    labels = np.array([0, 0, 1, 1])
    directions = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    assert knn_score(directions * np.array([[1], [100], [1], [100]]), labels, k=1) == 1.0
    assert knn_score(directions, np.array([0, 1, 0, 1]), k=1) == 0.0
    assert knn_score(np.ones((2, 3)), np.array([0, 1])) == 0.0  # each only has the other
    apart = np.repeat(directions[[0, 2]], 4, axis=0) + np.arange(8)[:, None] / 100
    assert knn_score(apart, np.repeat([0, 1], 4)) == 1.0  # and not 0, as by votes of all 7 others


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two classes that differ in brightness."""
    folder = tmp_path / "labelled"
    for number in range(4):
        write_clock(folder / "dark" / f"{number}.mp4", seconds=1.2 + number / 10)
        clip = write_clock(folder / "late" / f"{number}.mp4", seconds=8.0 + number / 10, fps=8)
    assert clip.exists()
    return folder


def monitor(folder: Path) -> Monitor:
    def clips(index: Index) -> FixedClips:
        return FixedClips(index, frames=8, stride=4.0, image_size=(32, 32))

    return Monitor(folder, clips, read_fixed, ALONE, pytest.fail)


def test_class_folders_leave_one_out(labelled: Path) -> None:
    one = monitor(labelled)
    assert one.about == "8 videos of 2 classes, each by all others"
    model = small_model()
    first = one.score(model.encoder, torch.device("cpu"))
    assert first["monitor_chance"] == 0.5
    assert first["monitor_knn"] >= 0.75  # brightness alone tells them apart
    shutil.rmtree(labelled)  # clips were read once
    assert one.score(model.encoder, torch.device("cpu")) == first


def test_parted_folders_ask_for_one_part_only(labelled: Path, tmp_path: Path) -> None:
    parted = tmp_path / "parted"
    for name in ("dark", "late"):
        for number in range(4):
            part = parted / ("val" if number == 0 and name == "late" else "train") / name
            part.mkdir(parents=True, exist_ok=True)
            shutil.copy(labelled / name / f"{number}.mp4", part)
    one = monitor(parted)
    assert one.classes == ["dark", "late"]
    assert one.about == "8 videos of 2 classes, 1 of them by the others"
    found = one.score(small_model().encoder, torch.device("cpu"))
    assert found == {"monitor_knn": 1.0, "monitor_chance": 1.0}
    shutil.copytree(parted / "train", parted / "test")
    assert monitor(parted).about == one.about, "what is looked at while one trains is no test any more"
    shutil.rmtree(parted / "val")
    assert monitor(parted).about == "7 videos of 2 classes, each by all others"


def test_what_cannot_be_scored_is_refused(labelled: Path) -> None:
    shutil.copy(labelled / "dark" / "0.mp4", labelled / "stray.mp4")
    with pytest.raises(UserError, match=r"stray.mp4 lies in no class folder\."):
        monitor(labelled)
    (labelled / "stray.mp4").unlink()
    shutil.rmtree(labelled / "late")
    with pytest.raises(UserError, match=r"has 1 class \(dark\)"):
        monitor(labelled)


@pytest.mark.slow
def test_a_run_logs_it_and_leaves_unreadable_videos_out(
    videos: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (labelled / "dark" / "broken.mp4").write_bytes(b"no video")
    options = {
        "model": "vit_tiny", "frames": 8, "image_size": 32, "patch": (2, 8, 8), "decoder_width": 32,
        "decoder_depth": 1, "decoder_heads": 2, "epochs": "4 steps", "batch_size": 4, "workers": 0,
        "precision": "fp32", "evaluate_every": 2, "ema": 0.9,
    }  # fmt: skip
    run = stmae.pretrain(videos, out=tmp_path / "run", monitor=labelled, **options)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["monitor_knn"] for line in lines if "monitor_knn" in line}
    assert scores.keys() == {2, 4}
    assert all(0 <= score <= 1 for score in scores.values())
    told = capsys.readouterr().out
    assert "monitor: 9 videos of 2 classes" in told
    assert told.count("monitor: unreadable: dark/broken.mp4") == 1
    # Without it the same weights come out: looking changes nothing.
    plain = stmae.pretrain(videos, out=tmp_path / "plain", **options)
    one, other = (load_file(folder / "encoder.safetensors") for folder in (run, plain))
    assert all(torch.equal(one[name], other[name]) for name in one)
