"""Labelled sets and their parts, without decoding a video."""

from __future__ import annotations

from pathlib import Path

import pytest

from stmae.data.sources import names_of, split
from stmae.errors import UserError
from stmae.tasks.labelled import Part, open_parts, own_parts
from stmae.tasks.probe_options import ProbeOptions
from stmae.tasks.protocol import leaks


def touch(folder: Path, parts: dict[str, dict[str, int]]) -> Path:
    for part, classes in parts.items():
        for name, count in classes.items():
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                (folder / part / name / f"{part or 'clip'}-{number}.mp4").touch()
    return folder


def options(videos: object, **more: object) -> ProbeOptions:
    return ProbeOptions(videos, model="x", **more)  # type: ignore[arg-type]


def names(part: Part) -> list[str]:
    return list(names_of(part.source))


def said(part: Part) -> dict[str, str]:
    """Classes by the videos' names."""
    return {name: part.labels.classes[target] for name, target in zip(names(part), part.labels.targets, strict=True)}


def test_folders_of_parts(tmp_path: Path) -> None:
    folder = touch(
        tmp_path, {"Training": {"a": 3, "b": 2}, "valid": {"a": 1, "b": 1}, "test": {"b": 2}, "extra": {"c": 1}}
    )
    told: list[str] = []
    parts = open_parts(options(folder), told.append)
    assert parts.origin == "train: 5, val: 2 (its own part), test: 2 (its own part)"
    assert said(parts.train)["b/Training-1.mp4"] == "b"
    assert said(parts.test) == {"b/test-0.mp4": "b", "b/test-1.mp4": "b"}  # numbered as in training
    assert parts.test.labels.classes == ("a", "b")
    assert any("mostly luck" in line for line in told)
    assert any(line.endswith(": extra") for line in told)


def test_a_val_part_alone_is_the_test_and_training_gives_a_new_val(tmp_path: Path) -> None:
    folder = touch(tmp_path, {"train": {"a": 30, "b": 30}, "val": {"a": 4, "b": 4}})
    parts = open_parts(options(folder), lambda text: None)
    assert parts.origin.endswith("test: 8 (its val part)")
    assert len(parts.train) + len(parts.val) == 60
    assert len(parts.val) > 3
    # Asked for by name, it is val.
    parts = open_parts(options(folder, val=folder / "val", test=0.2), lambda text: None)
    assert len(parts.val) == 8
    assert len(parts.train) + len(parts.test) == 60


def test_shares_follow_the_rule_of_every_split(tmp_path: Path) -> None:
    folder = touch(tmp_path, {"": {"a": 40, "b": 40}})
    parts = open_parts(options(folder, val="0.25", test=0.25), lambda text: None)
    everything = {**said(parts.train), **said(parts.val), **said(parts.test)}
    assert len(everything) == 80 == len(parts.train) + len(parts.val) + len(parts.test)
    assert all(name.startswith(f"{label}/") for name, label in everything.items())
    assert min(len(parts.val), len(parts.test)) > 10
    held = {*names(parts.val), *names(parts.test)}
    _, expected = split(open_parts(options(folder), lambda text: None).train.source, 0.0)
    assert not len(expected)
    # A larger share takes the same videos and more.
    more = open_parts(options(folder, val=0.35, test=0.25), lambda text: None)
    assert held < {*names(more.val), *names(more.test)}
    assert names(more.test) == names(parts.test)


def test_lists_that_tell_rows_apart(tmp_path: Path) -> None:
    touch(tmp_path, {"": {"x": 6}})
    subsets = ("train", "train", "validation", "validation", "test", "test")
    rows = [f"x/clip-{n}.mp4,{'jump' if n % 2 else 'run'},{part}" for n, part in enumerate(subsets)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    parts = open_parts(options(tmp_path / "list.csv"), lambda text: None)
    assert [len(part) for part in (parts.train, parts.val, parts.test)] == [2, 2, 2]
    assert said(parts.val) == {"x/clip-2.mp4": "run", "x/clip-3.mp4": "jump"}
    assert own_parts(options(tmp_path / "list.csv", subset="all")) == {}  # asked for otherwise


def test_hmdb_s_folder_of_lists(tmp_path: Path) -> None:
    touch(tmp_path / "hmdb51_org", {"": {"jump": 4, "run": 4}})
    (tmp_path / "splits").mkdir()
    for name in ("jump", "run"):
        rows = [f"clip-{n}.mp4 {part}" for n, part in enumerate((1, 1, 2, 0))]  # training, training, test, neither
        (tmp_path / "splits" / f"{name}_test_split1.txt").write_text("\n".join(rows))
    parts = open_parts(options(tmp_path / "splits"), lambda text: None)
    assert said(parts.test) == {"jump/clip-2.mp4": "jump", "run/clip-2.mp4": "run"}
    assert len(parts.train) + len(parts.val) == 4


def test_leaks_are_told_by_the_names_of_sets(tmp_path: Path) -> None:
    """Also of the run that a run began with."""
    for name, text in {"first": "videos: [/data/kinetics-700/train]", "tuned": f"init: {tmp_path / 'first'}"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text + "\n")
        told = leaks(tmp_path / name, "/data/k400/val")
        assert told is not None
        assert "Kinetics-400" in told
        assert leaks(tmp_path / name, "/data/ucf") is None
    assert leaks("elsewhere/k700.safetensors", "/data/k400") is not None
    (tmp_path / "first/config.yaml").write_text(f"init: {tmp_path / 'tuned'}\n")  # a ring ends too
    assert leaks(tmp_path / "tuned", "/data/k400") is None


def test_class_folders_are_no_parts(tmp_path: Path) -> None:
    assert own_parts(options(touch(tmp_path, {"": {"train": 2, "boat": 2}}))) == {}


def test_classes_that_training_lacks_are_named(tmp_path: Path) -> None:
    folder = touch(tmp_path, {"train": {"jump": 3, "run": 3}, "test": {"jump": 1, "runn": 1}})
    with pytest.raises(UserError, match=r'"runn"\. Did you mean "run"\?'):
        open_parts(options(folder), lambda text: None)
