"""Labels as targets, and what is said where they disagree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stmae.data.index import Index
from stmae.data.labels import read_labels
from stmae.data.names import Names
from stmae.data.opening import open_source
from stmae.data.sources import Mixture
from stmae.errors import UserError


def source(*labels: str, paths: list[str] | None = None) -> Index:
    names = paths or [f"{i}.mp4" for i in range(len(labels))]
    return Index(Path("/videos"), Names.of(names), Names.of(list(labels)))


def folders(root: Path, *paths: str) -> Index:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    found = open_source(root)
    assert isinstance(found, Index)
    return found


def test_class_folders(tmp_path: Path) -> None:
    labels = read_labels(folders(tmp_path, "jump/a.mp4", "jump/more/b.mp4", "sit/c.mp4"))
    assert (labels.problem, labels.classes, labels.targets.tolist()) == ("single", ("jump", "sit"), [0, 0, 1])
    assert labels.targets.dtype == np.int64
    assert labels.counts.tolist() == [2, 1]


def test_folders_named_by_numbers_stay_classes(tmp_path: Path) -> None:
    labels = read_labels(folders(tmp_path, "0.5/a.mp4", "1.25/b.mp4", "10/c.mp4"))
    assert (labels.problem, labels.classes) == ("single", ("0.5", "1.25", "10"))


@pytest.mark.parametrize(
    "cells, problem, classes, targets",
    [
        (["10", "9", "10"], "single", ("9", "10"), [1, 0, 1]),
        (["1.0", "0.0", "0.0"], "single", ("0.0", "1.0"), [1, 0, 0]),  # pandas writes whole numbers so
        (["sit", "big jump", "sit"], "single", ("big jump", "sit"), [1, 0, 1]),
        (["sit;jump", "sit", "-"], "multi", ("jump", "sit"), [[1, 1], [0, 1], [0, 0]]),
        (["3 10", "9", "3"], "multi", ("3", "9", "10"), [[1, 0, 1], [0, 1, 0], [1, 0, 0]]),
        (["0.5", "2", "-1e3"], "regression", ("value",), [[0.5], [2], [-1000]]),
        (["0.5 1", "2 2", "3 4"], "regression", ("value 1", "value 2"), [[0.5, 1], [2, 2], [3, 4]]),
        (["0.5;1", "2;2", "3;4"], "regression", ("value 1", "value 2"), [[0.5, 1], [2, 2], [3, 4]]),
    ],
)
def test_what_a_list_asks_is_told_by_its_labels(cells, problem, classes, targets) -> None:
    labels = read_labels(source(*cells))
    assert (labels.problem, labels.classes, labels.targets.tolist()) == (problem, classes, targets)
    assert labels.targets.dtype == (np.int64 if problem == "single" else np.float32)


def test_the_problem_can_be_said() -> None:
    cells = source("1", "2", "4")
    assert read_labels(cells, problem="regression").targets.tolist() == [[1], [2], [4]]
    multi = read_labels(cells, problem="multi")
    assert multi.targets.tolist() == np.eye(3).tolist()
    assert multi.counts.tolist() == [1, 1, 1]
    assert read_labels(source("a;b", "c"), problem="single").classes == ("a;b", "c")
    with pytest.raises(UserError, match='Did you mean "multi"'):
        read_labels(cells, problem="mult")  # type: ignore[arg-type]


def test_a_trained_models_classes_fix_the_order() -> None:
    labels = read_labels(source("sit", "jump"), classes=("sit", "wave", "jump"))
    assert (labels.classes, labels.targets.tolist()) == (("sit", "wave", "jump"), [0, 2])
    assert labels.counts.tolist() == [1, 0, 1]
    # One class is fine where the model knows more.
    assert read_labels(source("jump"), classes=("sit", "jump")).targets.tolist() == [1]
    with pytest.raises(UserError, match=r'1 classes are not among the 2 .*"jumps".*Did you mean "jump"'):
        read_labels(source("sit", "jumps"), classes=("sit", "jump"))
    with pytest.raises(UserError, match="named twice"):
        read_labels(source("a"), classes=("a", "b", "b"))


@pytest.mark.parametrize("kind", ["ucf", "ssv2"])
def test_a_label_map_names_and_orders_the_classes(tmp_path: Path, kind: str) -> None:
    if kind == "ucf":
        path, text = tmp_path / "classInd.txt", "1 Zebra\n2 Ape\n10 Bear\n"
    else:
        path, text = tmp_path / "labels.json", '{"Zebra": "1", "Ape": "2", "Bear": "10"}'
    path.write_text(text)
    for cells in (("10", "1"), ("Bear", "Zebra"), ("10", "Zebra")):  # trainlist01 has numbers, testlist01 folders
        labels = read_labels(source(*cells), label_map=path)
        assert (labels.classes, labels.targets.tolist()) == (("Zebra", "Ape", "Bear"), [2, 0])
    with pytest.raises(UserError, match=r'2 labels are not in the label map: "11", "Zebr"'):
        read_labels(source("11", "Zebr", "1"), label_map=path)


def test_items_without_a_label(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'2 of 3 items have no label: "1.mp4", "2.mp4"'):
        read_labels(source("jump", "", ""))
    with pytest.raises(UserError, match=r'1 of 2 items have no label: "b.mp4"'):
        read_labels(folders(tmp_path, "jump/a.mp4", "b.mp4"))


def test_one_class_and_empty_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'a single class: "jump".*two at least'):
        read_labels(source("jump", "jump"))
    mine = folders(tmp_path, "jump/a.mp4", "sit/b.mp4", "notes/readme.txt")
    (tmp_path / "wave").mkdir()
    (tmp_path / ".cache").mkdir()
    with pytest.raises(UserError, match=r'2 class folders hold nothing that can be used: "notes", "wave"'):
        read_labels(mine)


def test_the_parts_of_a_set_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'parts of a set, not classes: test, train. Give one of them: .*/test"'):
        read_labels(folders(tmp_path, "train/jump/a.mp4", "test/sit/b.mp4"))


def test_a_file_with_two_labels() -> None:
    with pytest.raises(UserError, match=r'1 files have two labels: "a.mp4".*jump;wave'):
        read_labels(source("jump", "wave", "sit", paths=["a.mp4", "a.mp4", "b.mp4"]))
    again = read_labels(source("jump", "jump", "sit", paths=["a.mp4", "a.mp4", "b.mp4"]))
    assert again.targets.tolist() == [0, 0, 1]


def test_numbers_that_are_none() -> None:
    with pytest.raises(UserError) as caught:
        read_labels(source("0.5", "high", "nan", "1 2"), problem="regression")
    text = str(caught.value)
    assert '2 labels are no numbers: "1.mp4: high", "2.mp4: nan"' in text
    assert "different amounts of numbers" in text
    with pytest.raises(UserError, match="the model has 2 outputs, the labels 1 number"):
        read_labels(source("0.5", "1"), problem="regression", classes=("a", "b"))


def test_several_sources(tmp_path: Path) -> None:
    first = folders(tmp_path / "one", "jump/a.mp4", "sit/b.mp4")
    second = folders(tmp_path / "two", "sit/c.mp4", "wave/d.mp4")
    labels = read_labels(Mixture([first, second]))
    assert (labels.classes, labels.targets.tolist()) == (("jump", "sit", "wave"), [0, 1, 1, 2])


def test_no_torch_is_needed() -> None:
    code = "import sys, stmae.data.labels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
