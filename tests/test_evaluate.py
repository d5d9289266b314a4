"""`stmae evaluate` and `stmae predict`: views are those of a loop, always the same, and named."""

from __future__ import annotations

import csv
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled_videos import CLASSES, save_classifier, small_classifier, write_class, write_labelled
from PIL import Image
from pyarrow import parquet
from small_run import save_run, small_model, write_clock

import stmae
from stmae.data.sources import Index, scan
from stmae.data.views import End, View, read_views, spread, stream_views, windows
from stmae.errors import UserError
from stmae.model.config import ClassifierConfig
from stmae.model.heads import Classifier
from stmae.tasks.features import Batches, rows_of_videos

SIZE = (32, 32)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("evaluate") / "tuned", small_classifier())


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("evaluate") / "labelled", 2)


def views_of(path: Path, places: Any, crops: int = 1) -> list[View]:
    views: list[View] = []
    read_views(path, places, image_size=SIZE, give=views.append, crops=crops)
    return sorted(views, key=lambda view: view.number)


def scores_of(model: torch.nn.Module, views: list[View]) -> np.ndarray:
    with torch.no_grad():
        return np.stack([model(view.clip[None])[0].softmax(0).numpy() for view in views])


@pytest.mark.slow
def test_views_are_averaged_as_in_a_loop(
    tuned: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (labelled / "bars" / "broken.mp4").write_bytes(b"\0" * 1000)
    options = {"model": str(tuned), "views": 3, "precision": "fp32", "batch_size": 5}
    numbers = stmae.evaluate(labelled, out=tmp_path / "out", **options)
    (labelled / "bars" / "broken.mp4").unlink()
    told = capsys.readouterr().out
    assert "1 of 7 videos cannot be read and are not judged" in told
    assert "3 views x 3 crops" in told
    model, index = small_classifier(), scan(labelled)
    expected = [scores_of(model, views_of(labelled / name, spread(8, 2.0, 3), 3)) for name in index.paths]
    table = parquet.read_table(tmp_path / "out" / "predictions.parquet")
    assert table["path"].to_pylist() == list(index.paths)
    np.testing.assert_allclose(np.array(table["view_scores"].to_pylist()), expected, atol=1e-5)
    means = np.mean(expected, axis=1)
    np.testing.assert_allclose(np.array(table["scores"].to_pylist()), means, atol=1e-5)
    assert np.ptp(expected, axis=1).max() > 1e-3  # views differ
    truth = np.array([CLASSES.index(name.split("/")[0]) for name in index.paths])
    assert numbers["top-1 accuracy"].value == (means.argmax(1) == truth).mean()
    again = stmae.evaluate(labelled, out=tmp_path / "again", **{**options, "batch_size": 2, "workers": 1})
    assert again == numbers  # never random
    protocol = json.loads((tmp_path / "out" / "result.json").read_text())["protocol"]
    assert (protocol["views"], protocol["crops"], protocol["stride"], protocol["width"]) == (3, 3, 2.0, 32)
    assert len(protocol["weights_sha256"]) == 64


@pytest.mark.slow
def test_classes_that_the_model_does_not_know_are_named(labelled: Path, tmp_path: Path) -> None:
    other = save_classifier(tmp_path / "other", small_classifier(("bars", "black", "checks")))
    with pytest.raises(UserError, match=r'1 classes are not among the 3 .*"blank"\. Did you mean "black"\?'):
        stmae.evaluate(labelled, model=str(other))
    encoder = save_run(tmp_path / "run", small_model())
    with pytest.raises(UserError, match="holds no classifier, only an encoder"):
        stmae.evaluate(labelled, model=str(encoder))
    with pytest.raises(UserError, match="has no part called val"):
        stmae.evaluate(labelled, model=str(other), part="val")


@pytest.mark.slow
def test_models_whose_outputs_have_no_names(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = small_classifier()
    config = ClassifierConfig(encoder=named.config.encoder, classes=3)
    unnamed = Classifier(config).eval()
    unnamed.load_state_dict(named.state_dict())
    model = str(save_classifier(tmp_path / "unnamed", unnamed))
    options = {"model": model, "views": 1, "crops": 1, "precision": "fp32"}
    by_name = stmae.evaluate(labelled, **options)
    assert "in alphabetical order" in capsys.readouterr().out
    paths = sorted(path.relative_to(labelled).as_posix() for path in labelled.glob("*/*.mp4"))
    rows = [f"{path} {CLASSES.index(path.split('/')[0])}" for path in paths]
    (tmp_path / "numbers.txt").write_text("\n".join(rows))
    by_number = stmae.evaluate(tmp_path / "numbers.txt", root=labelled, out=tmp_path / "out", **options)
    assert by_number["top-1 accuracy"] == by_name["top-1 accuracy"]
    two = [row for row in rows if not row.endswith("0")]
    (tmp_path / "two.txt").write_text("\n".join(two))  # classes 1 and 2 of three keep their numbers
    found = stmae.evaluate(tmp_path / "two.txt", root=labelled, out=tmp_path / "two", **options)
    assert found["top-1 accuracy"].value == np.mean(
        parquet.read_table(tmp_path / "out" / "predictions.parquet")["right"].to_pylist()[2:]
    )
    (tmp_path / "wrong.txt").write_text("\n".join([*two, f"{paths[0]} 7"]))
    with pytest.raises(UserError, match="3 outputs without names"):
        stmae.evaluate(tmp_path / "wrong.txt", root=labelled, **options)


@pytest.mark.slow
def test_several_labels_values_and_stills(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "several.csv").write_text("path,label\n0.png,a;b\n1.png,a\n2.png,-\n3.png,b\n")
    (tmp_path / "values.csv").write_text("path,label\n" + "".join(f"{n}.png,{n + 0.5}\n" for n in range(4)))
    model = str(save_classifier(tmp_path / "multi", small_classifier(("a", "b"), "multi")))
    numbers = stmae.evaluate(tmp_path / "several.csv", model=model, crops=1, precision="fp32", out=tmp_path / "out")
    assert 0 <= numbers["mAP"].value <= 1
    table = parquet.read_table(tmp_path / "out" / "predictions.parquet")
    assert table["labels"].to_pylist() == [["a", "b"], ["a"], [], ["b"]]
    assert [len(views) for views in table["view_scores"].to_pylist()] == [1] * 4  # a still has one view
    assert np.array(table["scores"].to_pylist()).sum(1).max() != pytest.approx(1)  # probabilities of each
    model = str(save_classifier(tmp_path / "value", small_classifier(("value",), "regression")))
    numbers = stmae.evaluate(tmp_path / "values.csv", model=model, crops=1, precision="fp32")
    assert numbers["mean absolute error"].chance == 1.0


@pytest.mark.slow
def test_predictions_of_windows_are_those_of_single_calls(tuned: Path, tmp_path: Path) -> None:
    video = write_class(tmp_path / "long.mp4", "checks", 3, frames=100)
    options = {"model": str(tuned), "window": 0.4, "top": 2, "precision": "fp32", "batch_size": 3}
    found = stmae.predict(video, out=tmp_path / "out.parquet", **options)
    views = views_of(video, windows(8, 2.0, 0.4))
    assert len(found) == len(views) > 5
    expected = scores_of(small_classifier(), views)
    for row, view, scores in zip(found, views, expected, strict=True):
        assert (row.path, row.start) == ("long.mp4", pytest.approx(view.times[0]))
        assert row.end == pytest.approx(view.end, abs=0.02)
        order = np.argsort(-scores)[:2]
        assert row.labels == tuple(CLASSES[i] for i in order)
        np.testing.assert_allclose(row.scores, scores[order], atol=1e-5)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["labels"].to_pylist() == [list(row.labels) for row in found]
    stmae.predict(video, out=tmp_path / "out.csv", **options)
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["label_1"] for row in rows] == [row.labels[0] for row in found]
    stmae.predict(video, out=tmp_path / "out.jsonl", **options)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [tuple(line["labels"]) for line in lines] == [row.labels for row in found]
    assert {path.name for path in tmp_path.iterdir()} == {"long.mp4", "out.parquet", "out.csv", "out.jsonl"}


@pytest.mark.slow
def test_predictions_of_a_folder(tuned: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = stmae.predict(labelled, model=str(tuned), views=2, precision="fp32")
    index, model = scan(labelled), small_classifier()
    expected = [scores_of(model, views_of(labelled / name, spread(8, 2.0, 2))).mean(0) for name in index.paths]
    assert [row.path for row in found] == list(index.paths)
    assert [row.labels[0] for row in found] == [CLASSES[scores.argmax()] for scores in expected]
    np.testing.assert_allclose([row.scores[0] for row in found], np.max(expected, axis=1), atol=1e-5)
    assert all(len(row.labels) == 3 for row in found)  # the model has no more
    assert f"bars/0.mp4  {found[0].labels[0]} {100 * found[0].scores[0]:.0f} %" in capsys.readouterr().out


def test_mistakes_of_predict_come_at_once(labelled: Path) -> None:
    with pytest.raises(UserError) as caught:
        stmae.predict(labelled, model="nowhere", out="x.txt", window=1.0, views=3, top=0)
    for words in ("nowhere", "ends in .txt", "views 3 and window 1 exclude", "top 0"):
        assert words in str(caught.value)


@pytest.mark.slow
def test_clips_are_held_until_their_batch_is_full_and_no_longer(tmp_path: Path) -> None:
    """However long a video is: clips that are in memory at once are counted."""
    write_clock(tmp_path / "clock.mp4", seconds=9.0)
    clips: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def watched(stream: Iterator[View | End]) -> Iterator[View | End]:
        for thing in stream:
            if isinstance(thing, View):
                clips.append(weakref.ref(thing.clip))
            yield thing

    def model(batch: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, sum(clip() is not None for clip in clips))
        return batch.float().mean(dim=(1, 2, 3, 4))[:, None]

    index = Index(tmp_path, ["clock.mp4"])  # type: ignore[arg-type]
    stream = stream_views(index, windows(4, 1.0, 0.1), image_size=(16, 16), threads=1)
    (found,) = rows_of_videos(watched(stream), Batches(model, torch.device("cpu"), "fp32", 4))
    assert len(found.rows) == found.end.clips == len(clips) > 80
    assert 4 <= most <= 5  # those of a batch, and the one in hand
    brightness = [row[0] for row in found.rows]
    assert np.diff(brightness).min() > -1
    assert brightness[-1] - brightness[0] > 100
