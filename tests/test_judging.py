"""Numbers, tables and files of predictions, worked out by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from toy import Memory

from stmae import charts
from stmae.data.labels import Labels
from stmae.engine.log import Log
from stmae.tasks.judging import Predictions, class_rows, judge, quality, save, show

SCORES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1]])
LABELS = Labels("single", ("jump", "run", "wave"), np.array([0, 1, 1, 0]))


def found(labels: Labels = LABELS, scores: np.ndarray = SCORES) -> Predictions:
    views = [np.stack([row, row]) for row in scores]
    return Predictions(
        labels, [f"{n}.mp4" for n in range(len(scores))], scores, views, [[(0, 1), (1, 2)]] * len(scores)
    )


def test_numbers_of_classes() -> None:
    numbers = judge(found(), np.array([1, 3, 5]))  # training has most of "wave", of which no video is judged
    assert list(numbers) == ["top-1 accuracy", "mean class accuracy", "calibration error"]
    top1 = numbers["top-1 accuracy"]
    assert (top1.value, top1.chance) == (0.5, pytest.approx(1 / 3))  # lots do better than "wave"
    assert (top1.low, top1.high) == (pytest.approx(0.15, abs=0.001), pytest.approx(0.85, abs=0.001))
    assert numbers["mean class accuracy"].value == 0.5
    assert numbers["calibration error"].value == pytest.approx((0.3 + 0.2 + 0.5 + 0.6) / 4)
    assert judge(found())["top-1 accuracy"].chance == 0.5
    assert judge(found(), np.array([0, 9, 0]))["top-1 accuracy"].chance == 0.5
    many = Labels("single", tuple("abcdef"), np.array([0, 5]))
    falling = np.tile(np.arange(6.0)[::-1], (2, 1)) / 15
    top5 = judge(found(many, falling), np.array([6, 5, 4, 3, 2, 1]))["top-5 accuracy"]
    assert (top5.value, top5.chance) == (0.5, pytest.approx(5 / 6))


def test_classes_that_are_few_but_right_are_not_thought_certain() -> None:
    number = judge(found(Labels("single", ("a", "b"), np.array([0, 1])), np.eye(2)))["mean class accuracy"]
    assert number.value == 1
    assert number.low < 0.75


def test_numbers_of_several_labels_and_of_values() -> None:
    several = Labels("multi", ("x", "y"), np.array([[1, 0], [1, 1], [0, 0], [1, 0]], np.float32))
    scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.1, 0.2], [0.6, 0.8]])
    numbers = judge(found(several, scores))
    assert numbers["mAP"].value == pytest.approx((1 + 0.5) / 2)
    assert numbers["mAP"].chance == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert [row["average_precision"] for row in class_rows(found(several, scores))] == [1.0, 0.5]
    values = Labels("regression", ("value",), np.array([[1.0], [2.0], [3.0]], np.float32))
    numbers = judge(found(values, np.array([[1.5], [2.0], [2.0]])), np.array([2.0]))
    error = numbers["mean absolute error"]
    assert (error.value, error.chance) == (pytest.approx(0.5), pytest.approx(2 / 3))
    assert error.low <= 0.5 <= error.high
    assert numbers["explained variance R2"].value == pytest.approx(1 - 1.25 / 2)


def test_settings_of_equal_accuracy_are_told_apart_by_likelihood() -> None:
    sure = SCORES.copy()
    sure[3] = [0.01, 0.98, 0.01]  # wrong all the same, but now it is certain
    assert quality(LABELS, sure)[0] == quality(LABELS, SCORES)[0]
    assert quality(LABELS, SCORES) > quality(LABELS, sure)
    assert quality(LABELS, sure) > quality(LABELS, SCORES * np.nan)


def test_what_people_read() -> None:
    memory = Memory()
    predictions = found()
    show(Log([memory]), predictions, judge(predictions), "two classes")
    text = "\n".join(memory.messages)
    assert "top-1 accuracy       50.0 %  15.0 % to 85.0 %  50.0 %" in text
    assert "cannot be told from chance" in text
    assert "jump   2       50.0 %    9 to 91 %      run (1)" in text
    assert "(1 class without a video here)" in text


@pytest.mark.slow
def test_files_hold_all_of_it(tmp_path: Path) -> None:
    predictions = found()
    written = save(tmp_path / "out", predictions, judge(predictions), {"views": 2, "fps": 30.0}, "a title")
    assert {path.name for path in written} == {path.name for path in (tmp_path / "out").iterdir()}
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["numbers"]["top-1 accuracy"]["value"] == 0.5
    assert result["numbers"]["calibration error"]["low"] is None  # JSON has no NaN
    assert result["protocol"] == {"views": 2, "fps": 30.0}
    table = parquet.read_table(tmp_path / "out" / "predictions.parquet")
    assert table["label"].to_pylist() == ["jump", "run", "run", "jump"]
    assert table["predicted"].to_pylist() == ["jump", "run", "jump", "run"]
    assert table["right"].to_pylist() == [True, True, False, False]
    np.testing.assert_allclose(np.array(table["scores"].to_pylist()), SCORES, atol=1e-7)
    assert np.array(table["view_scores"].to_pylist()).shape == (4, 2, 3)
    assert table["view_end"].to_pylist()[0] == [1, 2]
    assert json.loads(table.schema.metadata[b"stmae"])["classes"] == ["jump", "run", "wave"]
    rows = list(csv.DictReader((tmp_path / "out" / "classes.csv").open()))
    assert [(row["class"], row["videos"], row["right"], row["taken_for"]) for row in rows] == [
        ("jump", "2", "1", "run"), ("run", "2", "1", "jump"), ("wave", "0", "0", ""),
    ]  # fmt: skip


@pytest.mark.slow
def test_charts_of_any_number_of_classes() -> None:
    for count in (2, 30, 200):
        matrix = np.eye(count, dtype=int) * 3
        matrix[0, 1] = 1
        png = charts.confusion_chart(matrix, [f"a class of a long name, number {n}" for n in range(count)], title="x")
        with Image.open(io.BytesIO(png)) as image:
            assert min(image.size) > 300
            assert max(image.size) < 3000
