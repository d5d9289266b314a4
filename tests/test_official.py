"""Published sets by naming their official files: written in miniature with their quirks, opened, labels read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from labelled import SMALL, write_start

import stmae
from stmae.data.labels import Labels, read_labels
from stmae.data.official import leak
from stmae.data.opening import open_source
from stmae.data.sources import Source
from stmae.data.synthetic_sets import write_set
from stmae.errors import Problems, UserError
from stmae.tasks.places import check_places


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("kinetics400", "kinetics600", "kinetics700", "ssv2", "ucf101", "hmdb51")
    return {name: write_set(tmp_path_factory.mktemp(name), name, videos=2) for name in names}  # type: ignore[arg-type]


def by_class(source: Source, labels: Labels) -> dict[str, list[str]]:
    """File names by class."""
    found: dict[str, list[str]] = {name: [] for name in labels.classes}
    for item, number in enumerate(labels.targets):
        found[labels.classes[number]].append(source.name(item).rpartition("/")[2])
        assert source.media(item).path.is_file()
    return found


@pytest.mark.parametrize("version, val", [("400", "val"), ("600", "val"), ("700", "validate")])
def test_kinetics(sets: dict[str, Path], version: str, val: str) -> None:
    told: list[str] = []
    train = sets[f"kinetics{version}"]
    with pytest.raises(UserError, match=f"1 of the 9 entries .*gone{version}train_000003_000013.*--leave-out missing"):
        open_source(train)
    source = open_source(train, leave_out=("missing",), say=told.append)
    labels = read_labels(source)
    assert labels.classes == (
        "abseiling", "massaging person's head", "passing American football (in game)", "tying knot, not tie",
    )  # fmt: skip
    assert labels.counts.tolist() == [2, 2, 2, 2]
    assert by_class(source, labels)["tying knot, not tie"] == [
        f"btr{version}x300_000000_000010.mp4", f"btr{version}x301_000007_000017.mp4",
    ]  # fmt: skip
    assert any("gone" in text for text in told)
    held = open_source(train.parent / f"{val}.csv", subset="val", leave_out=("missing",))
    assert read_labels(held, classes=labels.classes).counts.tolist() == [1, 1, 1, 1]
    test = open_source(train.parent / "test.csv", subset="test")
    assert len(test) == 4
    with pytest.raises(UserError, match=r"4 of 4 items have no label|parts of a set"):
        read_labels(test)


def test_kinetics_json(tmp_path: Path) -> None:
    rows = {
        "-x_1": {
            "annotations": {"label": "tying knot", "segment": [7.0, 17.0]},
            "subset": "train",
            "url": "https://a/b",
        },
        "y": {"annotations": {"label": "abseiling", "segment": [0, 10]}, "subset": "validate", "url": "https://a/c"},
        "z": {"duration": 10.0, "subset": "test", "url": "https://a/d", "annotations": {}},
    }
    (tmp_path / "kinetics.json").write_text(json.dumps(rows))
    (tmp_path / "train").mkdir()
    (tmp_path / "train/-x_1_000007_000017.mp4").touch()
    source = open_source(tmp_path / "kinetics.json")
    assert [(source.name(i), source.label(i)) for i in range(len(source))] == [
        ("train/-x_1_000007_000017.mp4", "tying knot")
    ]


def test_something_something(sets: dict[str, Path]) -> None:
    train = sets["ssv2"]
    table = train.parent / "labels.json"
    source = open_source(train)
    labels = read_labels(source, label_map=table)
    assert labels.classes == (
        "Moving something up", "Moving something down", "Pushing something from right to left",
        "Pushing something from left to right",
    )  # in the order of the official numbers  # fmt: skip
    assert labels.counts.tolist() == [2, 2, 2, 2]
    assert by_class(source, labels)["Pushing something from left to right"] == ["74017.webm", "74034.webm"]
    # The command line's option maps names to numbers on opening; the classes are the same.
    mapped = open_source(train, label_map=table)
    assert mapped.label(0) == "30"
    again = read_labels(mapped, label_map=table)
    assert (again.classes, again.targets.tolist()) == (labels.classes, labels.targets.tolist())
    held = open_source(train.parent / "validation.json")
    assert read_labels(held, classes=labels.classes).counts.tolist() == [1, 1, 1, 1]
    with pytest.raises(UserError, match=r"4 of 4 items have no label|single class"):
        read_labels(open_source(train.parent / "test.json"))
    answers = open_source(train.parent / "test-answers.csv")
    assert read_labels(answers, classes=labels.classes).counts.tolist() == [1, 1, 1, 1]


def test_ucf101(sets: dict[str, Path]) -> None:
    train = sets["ucf101"]
    source = open_source(train)
    labels = read_labels(source)
    assert labels.classes == ("ApplyEyeMakeup", "Archery", "HandstandPushups", "YoYo")
    assert by_class(source, labels)["HandstandPushups"] == [
        "v_HandStandPushups_g01_c01.avi", "v_HandStandPushups_g02_c01.avi",
    ]  # fmt: skip
    held = open_source(train.parent / "testlist01.txt")
    judged = read_labels(held, classes=labels.classes)
    assert judged.counts.tolist() == [1, 1, 1, 1]
    assert {held.name(i) for i in range(4)}.isdisjoint(source.name(i) for i in range(len(source)))
    second = open_source(train.parent / "trainlist02.txt", root=train.parents[1] / "UCF-101")
    assert by_class(second, read_labels(second))["Archery"] == ["v_Archery_g01_c01.avi", "v_Archery_g03_c01.avi"]


def test_hmdb51(sets: dict[str, Path]) -> None:
    lists = sets["hmdb51"]
    parts = {part: open_source(lists, subset=part) for part in ("train", "test", "neither", "all")}
    assert {part: len(source) for part, source in parts.items()} == {"train": 8, "test": 4, "neither": 4, "all": 16}
    labels = read_labels(parts["train"])
    assert labels.classes == ("brush_hair", "cartwheel", "shake_hands", "wave")
    assert by_class(parts["train"], labels)["wave"] == [
        "Clip_0_(wave)_wave_f_cm_np1_ba_med_0.avi", "#Clip_1_(wave)_wave_f_cm_np1_ba_med_1.avi",
    ]  # fmt: skip
    second = open_source(str(lists / "*_test_split2.txt"))
    assert by_class(second, read_labels(second))["wave"] == [
        "Clip_0_(wave)_wave_f_cm_np1_ba_med_0.avi", "#Clip_3_(wave)_wave_f_cm_np1_ba_med_3.avi",
    ]  # fmt: skip


def test_commands_take_the_folder_of_lists(sets: dict[str, Path]) -> None:
    lists = sets["hmdb51"]
    for place in (lists, lists / "*_test_split3.txt"):
        problems = Problems()
        check_places(place, problems)
        check_places(place, problems, root=lists.parent / "hmdb51_org", subset="test")
        problems.raise_any()
    problems = Problems()
    check_places(lists / "*_test_split4.txt", problems)
    check_places(lists.parent / "hmdb51_org" / "wav", problems)
    with pytest.raises(UserError, match=r'2 mistakes(.|\n)*Did you mean ".*wave"'):
        problems.raise_any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, judged, options",
    [
        ("kinetics400", "val.csv", {"leave_out": ("missing",)}),
        ("kinetics600", "val.csv", {"leave_out": ("missing",)}),
        ("kinetics700", "validate.csv", {"leave_out": ("missing",)}),
        ("ssv2", "validation.json", {"label_map": "labels.json"}),
        ("ucf101", "testlist01.txt", {}),
        ("hmdb51", ".", {}),
    ],
)
def test_fine_tuned_and_judged(
    sets: dict[str, Path], tmp_path: Path, name: str, judged: str, options: dict[str, Any]
) -> None:
    """The official training list in, a classifier out, judged on the official other part: by naming files alone."""
    train = sets[name]
    lists = train if train.is_dir() else train.parent
    if "label_map" in options:
        options = options | {"label_map": str(lists / options["label_map"])}
    run = stmae.finetune(
        train, out=tmp_path / "run", init=write_start(tmp_path / "start"), **(SMALL | {"epochs": 1}), **options
    )
    classes = stmae.load(run).config.class_names
    assert len(classes) == 4
    held = {} if name != "hmdb51" else {"subset": "test"}
    held |= {"subset": "val"} if name.startswith("kinetics") else {}
    numbers = stmae.evaluate(
        lists / judged, model=str(run), views=1, crops=1, workers=0, out=tmp_path / "judged", **held, **options
    )
    assert 0 <= numbers["top-1 accuracy"].value <= 1
    found = json.loads((tmp_path / "judged" / "result.json").read_text())
    assert found["protocol"]["views"] == 1
    rows = (tmp_path / "judged" / "classes.csv").read_text()
    assert all(each in rows.replace('""', '"') for each in classes)


def test_a_set_of_another_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='Did you mean "ucf101"'):
        write_set(tmp_path, "ucf11")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "learned, judged, warned",
    [
        ("/sets/k700-2020/train", "/sets/k400/val", True),
        ("Kinetics_700", "kinetics400/annotations/val.csv", True),
        ("/sets/k600", "/sets/k400/val", False),
        ("/sets/k700", "/sets/k600", False),
        ("/videos/2k700", "/sets/k400", False),
        ("pack700", "k400", False),
    ],
)
def test_sets_that_share_videos(learned: str, judged: str, warned: bool) -> None:
    assert (leak(learned, judged) is not None) == warned
