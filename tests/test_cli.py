"""The command line: answers without torch, passes on only what was given, and meets mistakes with a cure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import stmae.cli
from stmae.cli import COMMANDS, main, parse
from stmae.tasks.demo_options import DemoOptions
from stmae.tasks.embed_options import EmbedOptions
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.reconstruct_options import ReconstructOptions

# Runs commands one after the other in a fresh process and tells after each whether torch has been imported.
SCRIPT = """
import contextlib, io, json, sys
from stmae.cli import main
results = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as error:
            status = error.code
    results.append([status, out.getvalue(), err.getvalue(), "torch" in sys.modules])
print(json.dumps(results))
"""


def test_loggers_without_words_are_none() -> None:
    for words in (["--loggers"], ["--loggers", "--keep", "3"]):
        assert parse("pretrain", PretrainOptions, ["videos", "--out", "x", *words])["loggers"] == ()
    assert parse("pretrain", PretrainOptions, ["--loggers", "wandb", "--out", "x"])["loggers"] == ("wandb",)


def test_output_that_nobody_reads_on_is_no_bug_of_ours() -> None:
    command = f"'{sys.executable}' -m stmae pretrain --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("Pre-train")
    assert not done.stderr


def run_all(*commands: list[str]) -> list[tuple[int, str, str, bool]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout)]


def test_help_is_complete_and_needs_no_torch() -> None:
    commands = [[], ["--help"], ["help"], ["--version"], ["presets"], *([name, "--help"] for name in COMMANDS)]
    results = run_all(*commands)
    for arguments, (status, out, err, torch) in zip(commands, results, strict=True):
        assert status in (0, None), (arguments, err)
        assert not err, arguments
        assert not torch, arguments
        assert out.strip(), arguments
    overview, pretrain = results[0][1], results[len(commands) - len(COMMANDS)][1]
    for name in COMMANDS:
        assert f"  {name} " in overview
    for word in ("stmae pretrain videos/ --out runs/first", "--mask-ratio", "(default: 0.9)", "Clip options", "VIDEOS"):
        assert word in pretrain


def test_mistakes_that_options_show_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.xyz").touch()
    folder, out = str(tmp_path), ["--out", str(tmp_path / "run")]
    mistakes = {
        "missing folder": (["pretrain", f"{folder}/nope", *out], "nope", "does not exist", "Give a folder"),
        "a file": (["pretrain", f"{folder}/a.xyz", *out], "a.xyz", "neither a video nor a list", ".txt, .csv"),
        "ratio": (["pretrain", folder, *out, "--mask-ratio", "1.0"], "mask_ratio 1.0", "hides every", "below 1"),
        "patch": (["pretrain", folder, *out, "--frames", "15"], "frames 15", "does not divide", "14 or 16"),
        "size": (["pretrain", folder, *out, "--model", "vit_hug"], "vit_hug", "unknown model", "vit_huge"),
        "flag": (
            ["pretrain", folder, *out, "--mask-ration", "0.9"],
            "--mask-ration",
            "unknown option",
            '"--mask-ratio"?',
        ),
        "under_scored flag": (
            ["pretrain", folder, *out, "--mask_ration", "1"],
            "--mask_ration",
            "unknown",
            '"--mask-ratio"?',
        ),
        "word": (["embed", folder, *out, "more"], '"more"', "belongs to no option", "--help"),
        "second folder": (["pretrain", folder, "more", *out], '"more"', "does not exist", "Give a folder, a list"),
        "weights": (["pretrain", folder, folder, *out, "--weights", "1"], "1 weight", "2 sources", "one for each"),
        "reason": (["pretrain", folder, *out, "--leave-out", "statik"], "statik", "is no reason", '"static"'),
        "choice": (["pretrain", folder, *out, "--device", "gpu"], "gpu", "not one of", "auto, cpu, cuda, mps"),
        "number": (["pretrain", folder, *out, "--frames", "many"], "many", "is not a whole number", "frames"),
        "missing": (["pretrain", folder], "out", "is missing", "Give out"),
        "command": (["pretrian", folder], "pretrian", "unknown command", 'Did you mean "pretrain"?'),
        "ending": (["embed", folder, "--model", folder, "--out", "x.csv"], "x.csv", ".csv", ".parquet"),
        "model": (["reconstruct", folder, "--model", f"{folder}/r"], f"{folder}/r", "does not exist", "run's folder"),
        "minutes": (["demo", "--minutes", "0"], "minutes 0", "not above 0", "some time"),
    }
    results = run_all(*(arguments for arguments, *_ in mistakes.values()))
    for (name, (_, value, reason, cure)), (status, out_text, err, torch) in zip(mistakes.items(), results, strict=True):
        assert status == 2, name
        assert not torch, name
        assert not out_text, name
        assert err.startswith("error: "), name
        assert "Traceback" not in err, name
        for part in (value, reason, cure):
            assert part in err, (name, part, err)


def test_all_mistakes_come_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["pretrain", str(tmp_path / "nope"), "--out", "x", "--frames", "7", "--mask-ratio", "1", "--lr", "0"])
    err = capsys.readouterr().err
    assert status == 2
    assert "error: 4 mistakes" in err
    for part in ("nope", "frames 7", "mask_ratio 1.0", "lr 0"):
        assert part in err


def test_folders_without_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, texts = tmp_path / "empty", tmp_path / "texts"
    empty.mkdir()
    texts.mkdir()
    for number in range(3):
        (texts / f"{number}.txt").write_text("no video")
    for folder, words in ((empty, ["empty"]), (texts, [".txt", "3"])):
        assert main(["pretrain", str(folder), "--out", str(tmp_path / "run")]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        for word in [str(folder), *words]:
            assert word in err
        assert len(err.strip().splitlines()) == 2  # the problem, and the cure
        assert not (tmp_path / "run").exists()


def test_only_given_flags_are_passed_on() -> None:
    assert parse("pretrain", PretrainOptions, ["v", "--out", "x"]) == {"videos": "v", "out": "x"}
    given = parse(
        "pretrain",
        PretrainOptions,
        ["v", "--out", "x", "--mask_ratio", "0.9", "--image-size", "64", "--patch", "2", "8", "8", "--no-flip"]
        + ["--clip-grad", "none", "--lr=1e-4", "--class-token"],
    )
    assert given == {
        "videos": "v",
        "out": "x",
        "mask_ratio": 0.9,
        "image_size": 64,
        "patch": (2, 8, 8),
        "flip": False,
        "clip_grad": None,
        "lr": 1e-4,
        "class_token": True,
    }
    ratios = parse(
        "reconstruct", ReconstructOptions, ["v.mp4", "--model", "m", "--mask-ratio", "0.9", "0.95", "--start", "-1"]
    )
    assert ratios == {"videos": "v.mp4", "model": "m", "mask_ratio": (0.9, 0.95), "start": -1.0}
    assert parse("embed", EmbedOptions, ["v", "--model", "m", "--out", "f.npz"])["out"] == "f.npz"
    assert parse("demo", DemoOptions, []) == {}


def given_task(monkeypatch: pytest.MonkeyPatch, outcome: BaseException | None) -> list[dict]:
    """Puts a task in place of `demo` that notes its keywords and ends as told."""
    calls: list[dict] = []

    class Module:
        @staticmethod
        def demo(**keywords: object) -> None:
            calls.append(keywords)
            if outcome is not None:
                raise outcome

    monkeypatch.setattr(stmae.cli.importlib, "import_module", lambda name: Module)
    return calls


def test_a_command_calls_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = given_task(monkeypatch, None)
    assert main(["demo", "--minutes", "2"]) == 0
    assert calls == [{"minutes": 2.0}]


def test_interrupts_and_stops_have_their_own_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given_task(monkeypatch, KeyboardInterrupt())
    assert main(["demo"]) == 130
    stopped = RuntimeError("stopped by SIGTERM after step 7")
    stopped.exit_status = 75  # type: ignore[attr-defined]
    given_task(monkeypatch, stopped)
    assert main(["demo"]) == 75
    assert "after step 7" in capsys.readouterr().err


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    given_task(monkeypatch, AssertionError("shape"))
    with pytest.raises(AssertionError) as caught:
        main(["demo"])
    assert "report it" in caught.value.__notes__[0]


@pytest.mark.slow
def test_as_a_module_and_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "stmae", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("stmae ")
    program = Path(sys.executable).with_name("stmae")
    done = subprocess.run([program, "pretrain", "nowhere", "--out", "x"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 'videos "nowhere" does not exist.' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_doctor_reports_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in (
        "torch",
        "FFmpeg",
        "GFLOP/s",
        "bf16",
        "h264 hevc vp9 av1 mpeg4 mjpeg",
        "written and read",
        "free disk",
    ):
        assert word in out
