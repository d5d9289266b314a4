"""`stmae probe` and `stmae knn`: the grid in one pass is that of single runs; what is chosen, scored and written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from labelled_videos import CLASSES, write_labelled
from PIL import Image
from small_run import save_run, small_model
from torch import nn

import stmae
from stmae.data.dataset import FixedClips
from stmae.data.labels import Labels
from stmae.data.sources import scan
from stmae.engine.log import Log
from stmae.errors import UserError
from stmae.metrics import knn_predict
from stmae.model.probes import AttentiveProbe, LinearProbe
from stmae.tasks.frozen import Features, _Store
from stmae.tasks.probe import Scale, Setting, head_scores, make_heads, train_heads

CPU = torch.device("cpu")


def features_of(rows: np.ndarray, targets: np.ndarray, problem: str = "single", classes: int = 3) -> Features:
    labels = Labels(problem, tuple(map(str, range(classes))), targets)  # type: ignore[arg-type]
    count = len(rows)
    return Features(labels, [str(i) for i in range(count)], rows, [1] * count, [[(0.0, 1.0)]] * count)


def some(kind: str, seed: int = 0, count: int = 60) -> Features:
    random = np.random.default_rng(seed)
    targets = random.integers(0, 3, count)
    rows = random.normal(size=(count, 8)) + 2 * np.eye(3, 8)[targets]
    if kind == "attentive":  # one of six tokens tells
        tokens = random.normal(size=(count, 6, 8))
        tokens[np.arange(count), random.integers(0, 6, count)] += 6 * np.eye(3, 8)[targets]
        return features_of(tokens.astype(np.float16), targets)
    return features_of(rows.astype(np.float32), targets)


def fresh(kind: str, train: Features, outputs: int = 3) -> nn.Module:
    torch.manual_seed(5)
    return LinearProbe.on(torch.from_numpy(train.rows), outputs) if kind == "linear" else AttentiveProbe(8, 2, outputs)


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_a_grid_in_one_pass_is_that_of_single_runs(kind: str) -> None:
    train = some(kind)
    settings = [Setting(lr, decay) for lr in (1e-3, 1e-2) for decay in (0.0, 0.5)]
    scale = Scale.of(train.labels)

    def trained(chosen: list[Setting]) -> list[nn.Module]:
        heads = [fresh(kind, train) for _ in chosen]
        train_heads(heads, chosen, train, scale, 25, 16, 3, CPU, Log())  # type: ignore[arg-type]
        return heads

    together = trained(settings)
    for head, setting in zip(together, settings, strict=True):
        (alone,) = trained([setting])
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(head.state_dict()[name], tensor, atol=2e-6, rtol=1e-4, msg=f"{setting} {name}")
    weights = [head.head.weight for head in together]
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(weights) for b in weights[:i])  # settings matter


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_probes_learn_what_there_is_to_learn(kind: str) -> None:
    train, test = some(kind, count=300), some(kind, seed=1)
    head = fresh(kind, train)
    train_heads([head], [Setting(1e-2, 0.0)], train, Scale.of(train.labels), 200, 32, 0, CPU, Log())  # type: ignore[list-item]
    (scores,) = head_scores([head], test, Scale.of(train.labels), 7, CPU)  # type: ignore[list-item]
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    assert (scores.argmax(1) == test.labels.targets).mean() > 0.75


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_heads_of_a_grid_begin_alike_and_with_the_training_set_s_statistics(kind: str) -> None:
    train = some(kind)
    encoder = SimpleNamespace(config=SimpleNamespace(blocks=SimpleNamespace(width=8, heads=2)))
    frozen: Any = SimpleNamespace(encoder=encoder, device=CPU)
    first, second = make_heads(kind, 2, train, frozen, seed=4)
    assert not torch.equal(first.head.weight, make_heads(kind, 1, train, frozen, seed=5)[0].head.weight)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    if isinstance(first, LinearProbe):
        rows = torch.from_numpy(train.rows)
        norm = torch.nn.BatchNorm1d(8, eps=1e-6, affine=False)
        torch.testing.assert_close(first(rows), first.head(norm(rows)))


def test_several_labels_and_values_are_learnt_too() -> None:
    random = np.random.default_rng(2)
    rows = random.normal(size=(80, 5)).astype(np.float32)
    several = (rows[:, :2] > 0).astype(np.float32)
    values = (100 + 10 * rows[:, :1] - 5 * rows[:, 1:2]).astype(np.float32)
    for problem, targets in (("multi", several), ("regression", values)):
        train = features_of(rows, targets, problem, targets.shape[1])
        head, scale = fresh("linear", train, targets.shape[1]), Scale.of(train.labels)
        train_heads([head], [Setting(3e-2, 0.0)], train, scale, 300, 40, 0, CPU, Log())  # type: ignore[list-item]
        (scores,) = head_scores([head], train, scale, 33, CPU)  # type: ignore[list-item]
        if problem == "multi":
            assert ((scores > 0.5) == (several > 0)).mean() > 0.95
        else:
            assert np.abs(scores - values).mean() < 1  # of a deviation of 11


def test_views_of_a_video_are_averaged_and_count_as_examples() -> None:
    labels = Labels("single", ("a", "b"), np.array([1, 0]))
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    features = Features(labels, ["x", "y"], rows, [2, 3], [[(0.0, 1.0)] * 2, [(0.0, 1.0)] * 3])
    assert features.targets.tolist() == [1, 1, 0, 0, 0]
    np.testing.assert_allclose(features.means(), [[1, 2], [6, 7]])
    found = features.predictions(rows)
    np.testing.assert_allclose(found.scores, [[1, 2], [6, 7]])
    assert [len(view) for view in found.views] == [2, 3]


def test_tokens_lie_on_disk_and_are_refused_where_there_is_no_room(tmp_path: Path) -> None:
    store = _Store(tmp_path / "x.npy", (6, 3, 4))
    rows = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    store.add(rows[:2])
    store.add(rows[2:])
    found = store.rows()
    assert isinstance(found, np.memmap)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, rows, atol=2e-3)
    with pytest.raises(UserError, match=r"1000000 clips take \d+\.\d GB") as caught:
        _Store(tmp_path / "y.npy", (1_000_000, 1568, 1024))
    assert "probe linearly" in str(caught.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("probe") / "run", small_model(), stride=2.0)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("probe") / "labelled", 4, ("train", "val", "test"))


def means_of(run: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes of a folder, one video after the other."""
    index = scan(folder)
    clips = FixedClips(index, frames=8, stride=2.0, image_size=(32, 32))
    with torch.no_grad():
        rows = torch.cat([stmae.load(run)(clips[item].clips) for item in range(len(index))])  # type: ignore[operator]
    return rows.numpy(), np.array([CLASSES.index(str(index.label(item))) for item in range(len(index))])


@pytest.mark.slow
def test_knn_is_that_of_the_features(
    run: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = stmae.knn(labelled, model=str(run), k=(3,), temperature=(0.07,), precision="fp32", out=tmp_path / "out")
    (train, known), (test, truth) = means_of(run, labelled / "train"), means_of(run, labelled / "test")
    votes = knn_predict(train, np.eye(3)[known], test, ks=[3], temperatures=[0.07])[3, 0.07]
    expected = (votes.argmax(1) == truth).mean()
    assert numbers["top-1 accuracy"].value == expected
    assert numbers["top-1 accuracy"].chance == pytest.approx(1 / 3)
    assert numbers["top-1 accuracy"].low < expected < numbers["top-1 accuracy"].high or expected in (0, 1)
    told = capsys.readouterr().out
    for words in ("val: 12 (its own part)", "chosen on val: k 3, temperature 0.07", "95 % interval", "chance"):
        assert words in told
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["protocol"]["k"] == 3
    assert result["protocol"]["frames"] == 8
    assert result["protocol"]["stride"] == 2.0
    assert result["protocol"]["decoder"].startswith("PyAV ")
    assert result["numbers"]["top-1 accuracy"]["value"] == expected


@pytest.mark.slow
def test_a_linear_probe_becomes_a_classifier(
    run: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = stmae.probe(
        labelled, model=str(run), lr=(1e-3, 1e-2), weight_decay=(0.0,), layer=6, precision="fp32", out=tmp_path / "out"
    )
    assert "training 2 linear heads together: 300 steps" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []
    again = stmae.evaluate(labelled, model=str(tmp_path / "out"), views=1, crops=1, precision="fp32")
    assert again["top-1 accuracy"].value == numbers["top-1 accuracy"].value
    assert again["calibration error"].value == pytest.approx(numbers["calibration error"].value, abs=1e-4)
    classifier = stmae.load(tmp_path / "out")
    assert classifier.config.class_names == CLASSES  # type: ignore[union-attr]
    assert len(classifier.encoder.blocks) == 6  # type: ignore[union-attr,arg-type]
    with pytest.raises(UserError, match="no layer 13"):
        stmae.probe(labelled, model=str(run), layer=13)


@pytest.mark.slow
def test_an_attentive_probe_runs_on_shares_and_leaves_nothing_behind(
    run: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": str(run), "val": 0.3, "test": 0.3, "views": 2, "epochs": 2, "precision": "fp32"}
    numbers = stmae.probe(labelled / "train", kind="attentive", out=tmp_path / "out", **options)
    assert 0 <= numbers["top-1 accuracy"].value <= 1
    told = capsys.readouterr().out
    assert "30% of the videos" in told
    assert "mostly luck" in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "result.json", "predictions.parquet", "classes.csv", "calibration.png", "confusion.png",
    }  # fmt: skip


@pytest.mark.slow
def test_pictures_that_stand_still_with_values(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    rows = []
    for number in range(30):
        bright = random.integers(20, 230)
        Image.fromarray(np.full((40, 40, 3), bright, np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{bright / 100}")
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows))
    options = {"model": str(run), "precision": "fp32", "out": tmp_path / "out"}
    by_probe = stmae.probe(tmp_path / "list.csv", lr=(1e-2,), weight_decay=(0.0, 1.0), **options)
    told = capsys.readouterr().out
    assert "mean absolute error on val (* chosen)" in told
    assert (tmp_path / "out" / "values.png").exists()
    by_neighbours = stmae.knn(tmp_path / "list.csv", **options)
    for numbers in (by_probe, by_neighbours):
        error = numbers["mean absolute error"]
        assert error.value < error.chance / 3  # brightness is easily seen
    assert "chosen on val: k 1" in capsys.readouterr().out
    classifier = stmae.load(tmp_path / "out")
    assert classifier.config.problem == "regression"  # type: ignore[union-attr]


def test_mistakes_come_at_once(labelled: Path) -> None:
    with pytest.raises(UserError) as caught:
        stmae.probe(labelled, model="nowhere", val=0.7, test="0.4", lr=(0.0,), epochs=0, views=0, crops=2)
    told = str(caught.value)
    for words in ("nowhere", "val and test take 1.1", "lr (0.0,)", "epochs 0", "views 0", "crops 2"):
        assert words in told
    with pytest.raises(UserError, match=r"val 1\.5 is no share"):
        stmae.knn(labelled, model=str(labelled), val=1.5)
