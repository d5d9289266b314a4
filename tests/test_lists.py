"""Lists in the layouts that people have, and finding the files that they name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stmae.data.lists import Listed, locate, read_label_map, read_list
from stmae.errors import UserError


def listed(folder: Path, name: str, text: str, **options: str) -> Listed:
    (folder / name).write_text(text)
    return read_list(folder / name, **options)


@pytest.mark.parametrize(
    "name, text, paths, labels",
    [
        ("mae_st.csv", "a/x.mp4 3\nb/y.mp4 0\n", ["a/x.mp4", "b/y.mp4"], ["3", "0"]),
        ("slowfast.csv", "a/x.mp4,3\nb/y.mp4,0\n", ["a/x.mp4", "b/y.mp4"], ["3", "0"]),
        ("frames.txt", "a/x.mp4 120 3\nb/y.mp4 95 0\n", ["a/x.mp4", "b/y.mp4"], ["3", "0"]),
        ("blanks.txt", "my clips/a b.mp4 3\nmy clips/c.mp4 0\n", ["my clips/a b.mp4", "my clips/c.mp4"], ["3", "0"]),
        ("blanks_unlabelled.txt", "my clips/a b.mp4\n\nc d.MOV\n", ["my clips/a b.mp4", "c d.MOV"], None),
        ("words.txt", "v/a.mp4 playing guitar\nv/b.mp4 sit\n", ["v/a.mp4", "v/b.mp4"], ["playing guitar", "sit"]),
        ("times.txt", "a.mp4 0.0 10.5 3\nb.mp4 0 -1 0\n", ["a.mp4", "b.mp4"], ["3", "0"]),
        ("rate.txt", "a.mp4 29.97 high jump\nb.mp4 25. 7\n", ["a.mp4", "b.mp4"], ["high jump", "7"]),
        ("caption.csv", 'path,label,said\na.mp4,1,"two\nlines"\nb.mp4,2,x\n', ["a.mp4", "b.mp4"], ["1", "2"]),
        ("tabs.tsv", "my clips/a b.mp4\tbig jump\nc.mp4\tsit\n", ["my clips/a b.mp4", "c.mp4"], ["big jump", "sit"]),
        ("semicolons.txt", "a.webm;1\nb.webm;2\n", ["a.webm", "b.webm"], ["1", "2"]),
        ("quoted.csv", '"a, b.mp4","sit, down"\n"c.mp4",jump\n', ["a, b.mp4", "c.mp4"], ["sit, down", "jump"]),
        ("header.csv", "label,video_path\nsit,a.mp4\njump,b.mp4\n", ["a.mp4", "b.mp4"], ["sit", "jump"]),
        ("header.tsv", "id\tlabel\n1\tsit\n2\tjump\n", ["1", "2"], ["sit", "jump"]),
        ("one_column.csv", "path\na b.mp4\nc.mp4\n", ["a b.mp4", "c.mp4"], None),
        ("ids.txt", "74225\n116154\n", ["74225", "116154"], None),
        ("ids.csv", "74225,Holding\n116154,Turning\n", ["74225", "116154"], ["Holding", "Turning"]),
        ("bom.txt", "\ufeffa.mp4\n", ["a.mp4"], None),
        ("trainlist01.txt", "Apply/v_1.avi 1\nApply/v_2.avi 1\n", ["Apply/v_1.avi", "Apply/v_2.avi"], ["1", "1"]),
        ("testlist01.txt", "Apply/v_g01_c01.avi\n", ["Apply/v_g01_c01.avi"], None),
        ("kinetics.csv", "label,youtube_id,time_start,time_end\nsit,-x_1,7,17\n", ["-x_1_000007_000017"], ["sit"]),
        ("a.jsonl", '{"video": "a.mp4", "label": 3}\n{"video": "b c.mp4"}\n', ["a.mp4", "b c.mp4"], ["3", ""]),
        ("several.json", '[{"video": "a.mp4", "label": ["sit", "eat"]}, {"video": "b.mp4", "label": []}]',
         ["a.mp4", "b.mp4"], ["sit;eat", "-"]),
        ("b.jsonl", '"a.mp4"\n"b.mp4"\n', ["a.mp4", "b.mp4"], None),
        ("pairs.json", '[["a.mp4", 1], ["b.mp4", 2]]', ["a.mp4", "b.mp4"], ["1", "2"]),
        ("dict.json", '{"a.mp4": "sit", "b.mp4": "jump"}', ["a.mp4", "b.mp4"], ["sit", "jump"]),
        ("net.json", '{"database": {"v1": {"label": "sit"}, "v2": {"label": "jump"}}}', ["v1", "v2"], ["sit", "jump"]),
    ],
)  # fmt: skip
def test_layouts(tmp_path: Path, name: str, text: str, paths: list[str], labels: list[str] | None) -> None:
    assert listed(tmp_path, name, text) == Listed(paths, labels)


def test_what_exists_decides_where_a_line_can_be_cut_in_two_ways(tmp_path: Path) -> None:
    assert listed(tmp_path, "a.csv", "7,x.mp4\n8,y.mp4\n").paths == ["7,x.mp4", "8,y.mp4"]
    (tmp_path / "x.mp4").touch()
    assert listed(tmp_path, "a.csv", "7,x.mp4\n8,y.mp4\n") == Listed(["x.mp4", "y.mp4"], ["7", "8"])


def test_something_something(tmp_path: Path) -> None:
    rows = [
        {"id": "74225", "label": "holding a potato", "template": "Holding [something]", "placeholders": ["potato"]},
        {"id": "116154", "label": "turning a cup", "template": "Turning [something]", "placeholders": ["cup"]},
    ]
    (tmp_path / "labels.json").write_text('{"Holding something": "41", "Turning something": "166"}')
    found = listed(tmp_path, "train.json", json.dumps(rows))
    assert found == Listed(["74225", "116154"], ["Holding something", "Turning something"])
    mapped = listed(tmp_path, "train.json", json.dumps(rows), label_map=str(tmp_path / "labels.json"))
    assert mapped.labels == ["41", "166"]


def test_label_maps(tmp_path: Path) -> None:
    (tmp_path / "classInd.txt").write_text("1 ApplyEyeMakeup\r\n2 Apply Lipstick\n")
    assert read_label_map(tmp_path / "classInd.txt") == {"1": "ApplyEyeMakeup", "2": "Apply Lipstick"}
    (tmp_path / "wrong.txt").write_text("1\n")
    with pytest.raises(UserError, match="without a name"):
        read_label_map(tmp_path / "wrong.txt")


def test_subsets(tmp_path: Path) -> None:
    text = "a b.avi 1\nc.avi 2\nd.avi 0\n"
    name = "brush_hair_test_split1.txt"
    assert listed(tmp_path, name, text) == Listed(["a b.avi"], ["brush_hair"], 2)
    assert listed(tmp_path, name, text, subset="test").paths == ["c.avi"]
    assert len(listed(tmp_path, name, text, subset="all").paths) == 3
    text = "path,label,split\na.mp4,1,training\nb.mp4,2,validation\n"
    assert listed(tmp_path, "k.csv", text).paths == ["a.mp4"]
    assert listed(tmp_path, "k.csv", text, subset="val").paths == ["b.mp4"]
    assert listed(tmp_path, "k.csv", text, subset="validation").paths == ["b.mp4"]
    with pytest.raises(UserError, match=r"no rows of the subset \"test\", only: training, validation"):
        listed(tmp_path, "k.csv", text, subset="test")


def test_lists_that_are_none(tmp_path: Path) -> None:
    for name, text, why in (
        ("a.txt", "\n", "is empty"),
        ("a.json", "[{]", "no valid JSON"),
        ("a.jsonl", '"a.mp4"\n{\n', "line 2 is no valid JSON"),
        ("b.json", '[{"size": 3}]', "entry 1 has no path"),
        ("a.csv", "path,label\na.mp4,1\n,2\n", "line 3 has no path"),
        ("b.txt", "a.mp4\0", "is no text"),
        ("c.csv", 'path,label\na.mp4,"x\nb.mp4,y\nc.mp4,z\n', "line 2 has a quote that is not closed"),
        ("d.csv", 'path,label\na.mp4,"' + 200_000 * "x" + "\n", "is no table"),
        ("e.csv", "youtube_id,time_start,time_end\nx,,3\n", "line 2 cannot be read"),
        ("c.json", "5", "holds 5 and no list"),
        ("d.json", '{"x": {"annotations": {"label": "y", "segment": [1]}}}', "entry 1 cannot be read"),
    ):
        with pytest.raises(UserError, match=why):
            listed(tmp_path, name, text)
    with pytest.raises(UserError, match="No such file"):
        read_list(tmp_path / "none.txt")


def test_entries_are_found_by_path_by_stem_and_by_name(tmp_path: Path) -> None:
    below = ["x/a.mp4", "y/b.webm", "y/twice.avi", "z/twice.avi", "x/notes.txt"]
    for name in below:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    asked = ["x/a.mp4", "x/a", "b", "b.webm", "twice", "none.mp4", "x/notes"]
    found, missing = locate(tmp_path, asked, lambda _: below)
    assert found == ["x/a.mp4", "x/a.mp4", "y/b.webm", "y/b.webm", "twice", "none.mp4", "x/notes"]
    assert missing == [4, 5, 6]
    many = [f"m/{i}.mp4" for i in range(150)]  # so many that the folder is listed
    (tmp_path / "m").mkdir()
    for name in many[:-1]:
        (tmp_path / name).touch()
    assert locate(tmp_path, many, lambda _: [])[1] == [149]
