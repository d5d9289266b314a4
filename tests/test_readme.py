"""README.md is true: every command and every line of Python in it runs, and what it shows is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What makes a command of the README short enough for a test; given last, so it goes before what the preset says.
FEW = "--epochs 2 --batch-size 4 --repeats 2 --workers 0"
SHORT = {"pretrain": f"--model vit_tiny --frames 4 --image-size 32 {FEW}", "finetune": FEW}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(text: str) -> list[str]:
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def place(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos/ and labelled/ in it, where the README's commands are run one after the other."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(videos, folder / "videos")
    for number, video in enumerate(sorted(videos.iterdir())):
        (folder / "labelled" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(video, folder / "labelled" / "ab"[number % 2])
    return folder


def run(command: str, place: Path) -> str:
    """Runs `stmae ...` with this interpreter, as the installed script would."""
    assert command.startswith("stmae ")
    words = [sys.executable, "-m", *command.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, env=environment, timeout=250, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(place: Path) -> None:
    shell = [command for block in blocks("bash") for command in commands(block)]
    stmae = [command for command in shell if command.startswith("stmae ")]
    assert {command.split()[1] for command in stmae} >= {"pretrain", "reconstruct", "embed"}
    for command in stmae:
        run(f"{command} {SHORT.get(command.split()[1], '')}", place)
    assert list((place / "pictures").glob("*.gif"))
    assert (place / "features.parquet").stat().st_size > 0
    shown = re.search(r"```\nruns/first/\n(.*?)```", README, flags=re.DOTALL)
    assert shown is not None
    names = re.findall(r"([\w.]+\.(?:yaml|csv|txt|jsonl|safetensors)|[\w-]+/)", shown[1])
    for name in set(names) - {"bad_files.csv"} - {n for n in names if n.startswith("step")}:
        assert (place / "runs" / "first" / name).exists(), name


@pytest.mark.slow
def test_the_python_runs(place: Path) -> None:
    code = "\n".join(blocks("python"))
    short = 'out="runs/python", model="vit_tiny", epochs=2, frames=4, image_size=32, batch_size=4, repeats=2, workers=0'
    assert 'out="runs/first"' in code
    code = code.replace('out="runs/first"', short)
    code = "import torch\nclip = torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8)\n" + code
    code += "\nprint(tuple(features.shape), tokens.dim())\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "(1, 192) 5"


def test_other_commands_are_targets_or_helps() -> None:
    shell = [command for block in blocks("bash") for command in commands(block)]
    makefile = (ROOT / "Makefile").read_text()
    for command in shell:
        first, *rest = command.split()
        assert first in ("make", "pip", "stmae"), command
        if first == "make":
            assert re.search(rf"^{rest[0]}:", makefile, flags=re.MULTILINE), command


def test_files_it_points_to_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).is_file(), target
