"""The run folder, its configuration, and the native weight format."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stmae.errors import UserError
from stmae.runs import (
    BadFiles,
    RunFolder,
    Verdicts,
    compare,
    find_weights,
    load_weights,
    read_config,
    save_weights,
    write_config,
)
from stmae.weights import plain, write_atomic

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([True, False]),
    "c": torch.ones(3, dtype=torch.bfloat16),
}


# Weights


def test_weights_come_back_with_their_configuration(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    config = {"size": "vit_tiny", "mean": (0.5, 0.25), "path": Path("x"), "deep": {"none": None, "words": ["ä", 1e-6]}}
    save_weights(path, TENSORS, config)
    tensors, read = load_weights(path)
    assert read == {"size": "vit_tiny", "mean": [0.5, 0.25], "path": "x", "deep": {"none": None, "words": ["ä", 1e-6]}}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_what_a_configuration_cannot_hold_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="float32"):
        plain({"dtype": torch.float32})


def wrong_files(folder: Path) -> dict[str, Path]:
    save_weights(folder / "good.safetensors", TENSORS, {})
    content = (folder / "good.safetensors").read_bytes()
    files = {
        name: folder / f"{name}.safetensors" for name in ("cut", "header", "empty", "text", "bare", "future", "json")
    }
    files["cut"].write_bytes(content[:-5])
    files["header"].write_bytes(content[:20])
    files["empty"].write_bytes(b"")
    files["text"].write_text("weights, honestly")
    save_file(TENSORS, str(files["bare"]))
    save_file(TENSORS, str(files["future"]), {"stmae_format": "2", "config": "{}"})
    save_file(TENSORS, str(files["json"]), {"stmae_format": "1", "config": "{"})
    files["pickle"] = folder / "model.pt"
    torch.save(TENSORS, files["pickle"])
    files["old pickle"] = folder / "old.pth"
    torch.save(TENSORS, files["old pickle"], _use_new_zipfile_serialization=False)
    files["folder"] = folder / "folder.safetensors"
    files["folder"].mkdir()
    files["missing"] = folder / "missing.safetensors"
    return files


@pytest.mark.parametrize(
    "kind, said",
    [
        ("cut", "truncated, corrupt or no safetensors"),
        ("header", "truncated, corrupt or no safetensors"),
        ("empty", "truncated, corrupt or no safetensors"),
        ("text", "truncated, corrupt or no safetensors"),
        ("bare", "no stmae configuration in its header"),
        ("future", "has format 2; this stmae reads format 1"),
        ("json", "is no JSON"),
        ("pickle", "is a pickle"),
        ("old pickle", "is a pickle"),
        ("folder", "is a folder"),
        ("missing", "does not exist"),
    ],
)
def test_what_is_no_file_of_weights_says_why(tmp_path: Path, kind: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_weights(wrong_files(tmp_path)[kind])
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("first", [b"\x80", b"\x80\x02", b"PK"])
def test_no_good_file_is_taken_for_a_pickle(tmp_path: Path, first: bytes) -> None:
    """A safetensors file begins with the length of its header, which can be any number."""
    path = tmp_path / "w.safetensors"
    save_weights(path, {}, {"words": ""})
    aim = int.from_bytes(first, "little")
    words = "x" * (aim - int.from_bytes(path.read_bytes()[:8], "little"))
    save_weights(path, {}, {"words": words})
    assert path.read_bytes().startswith(first)
    assert load_weights(path)[1] == {"words": words}


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "encoder.safetensors"
    save_weights(path, TENSORS, {"try": 1})

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_weights(path, {}, {"try": 2})
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "gone")
    assert load_weights(path)[1] == {"try": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_weights_are_found_by_run_by_checkpoint_and_by_file(tmp_path: Path) -> None:
    run = tmp_path / "first"
    run.mkdir()
    save_weights(run / "encoder.safetensors", TENSORS, {})
    for where in (run, str(run), run / "encoder.safetensors"):
        assert find_weights(where) == run / "encoder.safetensors"


def test_what_is_not_found_gets_a_suggestion(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name / "config.yaml", {})
    (tmp_path / "videos").mkdir()
    with pytest.raises(UserError, match=r'does not exist. Did you mean "first"\? Runs there: first, second\.'):
        find_weights(tmp_path / "frist")
    with pytest.raises(UserError, match=r"It holds the runs first, second"):
        find_weights(tmp_path)
    with pytest.raises(UserError, match=r"holds no weights"):
        find_weights(tmp_path / "first")
    with pytest.raises(UserError, match=r"holds no weights: neither .* Runs there: first, second"):
        find_weights(tmp_path / "videos")
    with pytest.raises(UserError, match="does not exist either"):
        find_weights(tmp_path / "no" / "where")


# Configuration


def test_a_configuration_survives_yaml(tmp_path: Path) -> None:
    config = {
        "lr": 1e-5,
        "tiny": 1e-30,
        "size": None,
        "area": (0.5, 1.0),
        "name": "1e-5",
        "on": True,
        "path": Path("ä b"),
        "no": "no",
    }
    write_config(tmp_path / "config.yaml", config)
    read = read_config(tmp_path / "config.yaml")
    assert read == plain(config)
    assert list(read) == list(config)


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: 1e-4\nb: 1.5e-4\nc: 3E5\nd: -2e3\ne: .5\nf: 12\ng: 1e-4x\n")
    assert read_config(path) == {"a": 1e-4, "b": 1.5e-4, "c": 3e5, "d": -2e3, "e": 0.5, "f": 12, "g": "1e-4x"}


@pytest.mark.parametrize(
    "text, said",
    [
        ("lr: 1\nlr: 2\n", '"lr" stands here twice'),
        ("a: [1", "no valid YAML"),
        ("- 1", 'is not a list of "option: value" lines'),
        ("", 'is not a list of "option: value" lines'),
        ("a: !!python/object/apply:os.getcwd []", "no valid YAML"),
        (b"a: \xff", "no valid YAML"),
        ("? [a, b]\n: 1\n", "no valid YAML"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_configuration_says_why(tmp_path: Path, text: str | bytes | None, said: str) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_config(path)
    assert said in str(error.value)


def test_configurations_are_compared_option_by_option() -> None:
    old = {"frames": 16, "area": [0.5, 1.0], "workers": 2, "gone": 1, "lr": 1}
    new = {"frames": 8, "area": (0.5, 1.0), "workers": 4, "fresh": None, "lr": 1.0}
    assert compare(old, old) == []
    assert compare(old, new, {"workers"}) == [
        "frames: 16 in the run, 8 now",
        "fresh: not set in the run, null now",
        "lr: 1 in the run, 1.0 now",
        "gone: 1 in the run, not set now",
    ]


# The folder


def test_a_new_folder_at_any_depth_and_the_same_again(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first"
    with RunFolder.open(out) as run:
        assert not run.exists
        run.settle_config({"frames": 16, "workers": 2})
        assert run.exists
        run.log.write_text("so far\n")
        run.checkpoints.mkdir()
    (out / ".encoder.safetensors.123.tmp").write_text("half")
    with RunFolder.open(str(out)) as run:
        assert run.exists
        assert run.settle_config({"frames": 16, "workers": 4}, {"workers"}) == ["workers: 2 before, 4 now"]
        assert read_config(run.config) == {"frames": 16, "workers": 4}
        with pytest.raises(UserError) as error:
            run.settle_config({"frames": 8, "workers": 4}, {"workers"})
        assert "frames: 16 in the run, 8 now" in str(error.value)
        assert "choose another --out" in str(error.value)
        assert read_config(run.config)["frames"] == 16
    assert sorted(os.listdir(out)) == [".lock", "checkpoints", "config.yaml", "log.txt"]


def test_a_run_that_never_began_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("begun")
    (tmp_path / ".DS_Store").touch()
    assert not RunFolder.open(tmp_path).exists


@pytest.mark.parametrize("content", ["movie.mp4", "config.yaml", "checkpoints/step-000001/state.json"])
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    file = tmp_path / content
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("frames: 16\n")
    (tmp_path / ".draft.tmp").touch()
    with pytest.raises(UserError, match=r"not empty and holds no stmae run. Choose another folder"):
        RunFolder.open(tmp_path)
    assert file.read_text() == "frames: 16\n"
    assert {path.name for path in tmp_path.iterdir()} == {file.relative_to(tmp_path).parts[0], ".draft.tmp"}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="a file is in the way"):
            RunFolder.open(out)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder.open("/proc/nowhere")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match="cannot be written"):
            RunFolder.open(tmp_path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path)
    with pytest.raises(UserError, match="another process is at work"):
        RunFolder.open(tmp_path)
    run.close()
    code = "import sys, stmae.runs; run = stmae.runs.RunFolder.open(sys.argv[1]); print('open', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "open\n"
    with pytest.raises(UserError, match="another process is at work"):
        RunFolder.open(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    RunFolder.open(tmp_path).close()


def test_the_run_folder_needs_no_torch() -> None:
    code = "import sys, stmae.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Bad files


def test_bad_files_are_counted_over_resumes(tmp_path: Path) -> None:
    path = tmp_path / "bad_files.csv"
    BadFiles(path).flush()
    assert not path.exists(), "no bad files, no list of them"
    bad = BadFiles(path)
    assert bad.add("b, with comma.mp4", "no video\nstream")
    assert not bad.add("b, with comma.mp4", "no video\nstream")
    assert bad.add("a\udcff.mp4", "truncated")
    bad.flush()
    again = BadFiles(path)
    assert len(again) == 2
    assert not again.add("a\udcff.mp4", "truncated")
    again.flush()
    assert path.read_bytes() == b'path,reason,times_met\na\xff.mp4,truncated,2\n"b, with comma.mp4",no video stream,2\n'
    for changed in ("path;reason;times_met\na;b;1\n", "path,reason,times_met\na,b,often\n"):
        path.write_text(changed)
        with pytest.raises(UserError, match=r"columns path, reason and times_met\. Delete it"):
            BadFiles(path)


def test_bad_files_of_any_name_come_back(tmp_path: Path) -> None:
    names = ["a\rb.mp4", "c\nd.mp4", 'e"f,g.mp4', "h.mp4"]
    bad = BadFiles(tmp_path / "bad.csv")
    for name in names:
        bad.add(name, "broken")
    bad.flush()
    assert set(BadFiles(tmp_path / "bad.csv").found) == set(names)


def test_a_date_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("out: 2024-05-01\nroot: 2024-13-45\n")
    assert read_config(tmp_path / "c.yaml") == {"out": "2024-05-01", "root": "2024-13-45"}


def test_verdicts_are_kept_by_each_process_and_read_by_all(tmp_path: Path) -> None:
    folder = tmp_path / "verdicts"
    first, second = Verdicts(folder, 0), Verdicts(folder, 1)
    first.add([])
    assert not folder.exists(), "no verdicts, no folder"
    first.add([(7, 3, "a, b"), (9, 2, "c")])
    second.add([(8, 1, "d")])
    first.add([(7, 3, "a, b"), (11, 3, "a, b")])
    again = Verdicts(folder, 1)
    assert again.found == [(7, 3, "a, b"), (9, 2, "c"), (11, 3, "a, b"), (8, 1, "d")]
    again.add([(12, 5, "e"), (7, 3, "a, b")])
    assert (folder / "1.csv").read_text() == "slot,item,reason\n8,1,d\n12,5,e\n"
    (folder / "0.csv").write_text("slot,item\n7,3\n")
    with pytest.raises(UserError, match=r"0\.csv.*slot, item and reason.*cannot go on exactly"):
        Verdicts(folder)


def test_the_header_is_json_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {}, {"size": "vit_tiny"})
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"stmae_format": "1", "config": '{"size": "vit_tiny"}'}
