"""`stmae check`: flags, the CSV, what is kept of copies, leaks, and what the summary says."""

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from test_survey import scene

import stmae
from stmae.data.copies import Pair
from stmae.data.media import Media
from stmae.data.opening import open_source
from stmae.data.sources import names_of
from stmae.data.survey import Facts
from stmae.data.synthetic import write_video
from stmae.errors import UserError
from stmae.tasks import check as module
from stmae.tasks.check import COLUMNS, Row, mark_duplicates, mark_leaks, troubles
from stmae.tasks.check_report import TROUBLES, histogram

SMALL = {"frames": 2, "stride": 2.0, "image_size": 32, "repeats": 1, "speed_seconds": 0.1, "workers": 2}


def crashing_survey(job: tuple[Media, float]) -> Facts:
    """What a decoder that crashes on one file looks like from outside."""
    if job[0].name.endswith("crash.mp4"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return module.survey(*job)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    (folder / "in").mkdir()
    frames = list(scene(0, 45))
    write_video(folder / "in" / "a.mp4", iter(frames), 15)
    write_video(folder / "in" / "a-small.mkv", (np.ascontiguousarray(f[::2, ::2]) for f in frames), 15)
    write_video(folder / "b.mp4", scene(1, 30), 15)
    write_video(folder / "still.avi", iter([next(scene(2, 1))] * 30), 15)
    write_video(folder / "cut.mp4", (frame for seed in (3, 4) for frame in scene(seed, 15)), 15)
    write_video(folder / "crash.mp4", scene(5, 30), 15)
    (folder / "broken.mp4").write_bytes(b"not a video" * 50)
    return folder


@pytest.mark.slow
def test_every_trouble_has_its_flag_and_one_copy_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_survey", crashing_survey)
    findings = stmae.check(folder, out=tmp_path / "check.csv", **SMALL)
    flags = {row.path: row.flags for row in findings.rows}
    assert flags == {
        "b.mp4": [],
        "broken.mp4": ["unreadable"],
        "crash.mp4": ["unreadable"],
        "cut.mp4": ["cuts"],
        "in/a-small.mkv": ["duplicate"],
        "in/a.mp4": [],
        "still.avi": ["static"],
    }
    copy = next(row for row in findings.rows if row.path == "in/a-small.mkv")
    assert copy.duplicate_of == "in/a.mp4"
    assert copy.score is not None
    assert copy.score > 0.95
    assert findings.speed is not None
    assert findings.speed.clips_per_second > 0
    with open(tmp_path / "check.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == [row.path for row in findings.rows]
    by_path = {row["path"]: row for row in rows}
    assert "SIGSEGV" in by_path["crash.mp4"]["reason"]
    assert by_path["cut.mp4"]["cuts"] == "1.00"
    assert by_path["b.mp4"]["codec"] == "h264"
    said = capsys.readouterr().out
    for words in ("7 items", "5 readable", "broken.mp4", "in/a-small.mkv: as in/a.mp4", "clips/s per core"):
        assert words in said
    assert "--leave-out unreadable static duplicate" in said


@pytest.mark.slow
def test_leaks_into_another_set(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "test"
    other.mkdir()
    write_video(other / "part.mp4", iter(list(scene(1, 30))[6:26]), 15, options={"crf": "30", "threads": "1"})
    findings = stmae.check(folder, against=other, out=tmp_path / "c.csv", **SMALL)
    leaks = findings.flagged("leak")
    assert [(row.path, row.leak_of) for row in leaks] == [("b.mp4", "part.mp4")]


def test_the_best_of_a_group_is_kept_and_what_shares_little_is_no_duplicate() -> None:
    def row(name: str, duration: float, width: int = 320) -> Row:
        return Row(name, Facts(duration=duration, looked=duration, width=width, height=240, bytes=1000))

    rows = [row("part", 4), row("whole", 10), row("small", 10, 160), row("next", 10), row("alone", 5)]
    pairs = [
        Pair(0, 1, 3.0, 4.0, 0.99),  # a part of the whole
        Pair(1, 2, 0.0, 10.0, 0.99),  # the same, smaller
        Pair(1, 3, -8.0, 2.0, 0.97),  # begins where the other ends
    ]
    mark_duplicates(rows, pairs)
    assert {row.path: (row.flags, row.duplicate_of) for row in rows} == {
        "part": (["duplicate"], "whole"),
        "whole": ([], ""),
        "small": (["duplicate"], "whole"),
        "next": (["overlap"], "whole"),
        "alone": ([], ""),
    }


def test_what_is_alike_for_less_than_a_second_is_no_duplicate() -> None:
    def rows() -> list[Row]:
        return [Row(name, Facts(duration=0.7, looked=0.7, width=320, height=240)) for name in "abc"]

    again, copy = Pair(0, 1, 0.0, 0.6, 0.97), Pair(1, 2, 0.0, 0.6, 0.99)
    assert (again.sure, copy.sure, Pair(0, 1, 0.0, 1.0, 0.96).sure) == (False, True, True)
    ours = rows()
    mark_duplicates(ours, [again, copy])
    assert [(row.flags, row.duplicate_of) for row in ours] == [([], ""), (["alike"], "a"), (["duplicate"], "b")]
    ours = rows()
    mark_leaks(ours, [again, copy, Pair(1, 0, 0.0, 0.6, 0.975)], Names())
    assert [(row.flags, row.leak_of) for row in ours] == [(["leak_alike"], "b"), (["leak"], "c"), ([], "")]


class Names:
    """Of another source."""

    def name(self, item: int) -> str:
        return "abc"[item]


def test_flags_of_an_items_own_facts() -> None:
    sound = {"duration": 10.0, "motion": 50.0, "looked": 10.0}
    assert troubles(Facts(**sound), 2.0) == []
    assert troubles(Facts(**sound), 12.0) == ["short"]
    assert troubles(Facts(**sound), 10.0) == []
    assert troubles(Facts(**sound, damage="cut off"), 2.0) == ["damaged"]
    assert troubles(Facts(**{**sound, "motion": 1.0}), 2.0) == ["static"]
    assert troubles(Facts(**sound, variable_rate=True, key_seconds=8.0), 2.0) == ["variable_rate", "far_keys"]
    assert troubles(Facts(reason="holds no video stream, only audio", audio_only=True), 2.0) == ["unreadable", "audio"]
    assert troubles(Facts(kind="image"), 2.0) == []
    assert set(TROUBLES) >= {"unreadable", "audio", "damaged", "short", "static", "cuts", "duplicate", "leak"}


def test_mistakes_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        stmae.check(tmp_path / "nowhere", frames=0, look=-1.0, workers=0, out=tmp_path)
    text = str(caught.value)
    for words in ("does not exist", "frames 0", "look -1", "workers 0", "is a folder"):
        assert words in text


def test_histograms_leave_out_empty_bins() -> None:
    assert histogram([1, 2, 2.5, 99], (0, 2, 5, 10)) == [("below 2", 1), ("2 to 5", 2), ("10 and more", 1)]


def test_clips_from_python_are_no_files() -> None:
    import torch

    with pytest.raises(UserError, match="no files that could be checked"):
        stmae.check(torch.zeros(2, 3, 2, 8, 8, dtype=torch.uint8))


@pytest.mark.slow
def test_copies_are_found_across_several_sources(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    write_video(more / "b again.mkv", (np.ascontiguousarray(f[::2, ::2]) for f in scene(1, 30)), 15)
    (tmp_path / "list.txt").write_text("still.avi 0\nnone.mp4 1\n")
    places = [folder / "in", tmp_path / "list.txt", more, folder / "b.mp4"]
    given = {"root": folder, "leave_out": ("missing",)}
    findings = stmae.check(places, out=tmp_path / "check.csv", **given, **SMALL)
    flagged = {row.path: row.flags for row in findings.rows if row.flags}
    assert flagged == {
        f"{folder}/in/a-small.mkv": ["duplicate"],
        f"{folder}/still.avi": ["static"],
        f"{more}/b again.mkv": ["duplicate"],
    }
    assert "1 of the 2 entries" in capsys.readouterr().out
    left = open_source(places, root=folder, checked=tmp_path / "check.csv", leave_out=("duplicate", "missing"))
    assert [*names_of(left)] == [f"{folder}/in/a.mp4", f"{folder}/still.avi", f"{folder}/b.mp4"]
