"""Models on the hub: pushed to and read from a stand-in on this machine, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Hub
from PIL import Image
from tiny import tiny

import stmae
from stmae.errors import UserError
from stmae.model.config import as_dict
from stmae.weights import ENCODER, save_weights

pytest.importorskip("huggingface_hub")


# huggingface_hub tries again for half a minute.
IMPATIENT = "import sys, time; time.sleep = lambda s: None; from stmae.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run leaves: weights, configuration, numbers and a picture."""
    folder = tmp_path / "run"
    (folder / "reconstructions").mkdir(parents=True)
    model = tiny()
    save_weights(folder / ENCODER, model.state_dict(), {"model": as_dict(model.config), "clip": {"stride": 2.0}})
    (folder / "config.yaml").write_text(
        "# stmae run: the resolved configuration, which `--config` reads back\n"
        "model: vit_tiny\nvideos: /home/me/secret\nout: /home/me/run\nbetas: [0.9, 0.95]\nderived: {videos: 12}\n"
    )
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5, "held_out_loss": 1.75}\n')
    Image.new("RGB", (8, 8)).save(folder / "reconstructions" / "step-000002.png")
    return folder


def stmae_command(hub: Hub, home: Path, *arguments: str, offline: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": offline,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_card_tells_what_a_reader_asks(run, tmp_path):
    out = tmp_path / "looked-at"
    stmae.push(str(run), "user/name", to=out, license="cc-by-4.0", data="Twelve videos of mine.")
    card = (out / "README.md").read_text()
    for part in (
        "license: cc-by-4.0",
        'stmae.load("hf://user/name")',
        "| held_out_loss | 1.75 |",
        "| loss | 1.5 |",
        "Twelve videos of mine.",
        "| betas | 0.9 0.95 |",
        "![](reconstructions.png)",
        "2 blocks of 16",
    ):
        assert part in card
    assert "/home/me" not in card, "paths of this machine are nobody's business"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "encoder.safetensors", "reconstructions.png",
    ]  # fmt: skip
    assert stmae.load(out).config == stmae.load(run).config


@pytest.mark.slow
def test_there_and_back(run, tmp_path):
    with Hub() as hub:
        done = stmae_command(hub, tmp_path / "home", "-m", "stmae", "push", str(run), "user/name", "--private")
        assert done.returncode == 0, done.stderr
        assert "pushed" in done.stdout
        assert hub.private == {"user/name"}
        assert "encoder.safetensors" in hub.repositories["user/name"]
        code = "import stmae; print(sum(p.double().sum().item() for p in stmae.load('hf://user/name').parameters()))"
        read = stmae_command(hub, tmp_path / "other-home", "-c", code)
        assert read.returncode == 0, read.stderr
        wanted = sum(parameter.double().sum().item() for parameter in stmae.load(run).parameters())
        assert float(read.stdout) == pytest.approx(wanted, abs=1e-9)
        one = code.replace("user/name", "user/name/encoder.safetensors")  # many published ones are a file of several
        assert stmae_command(hub, tmp_path / "fourth", "-c", one).stdout == read.stdout
        none = stmae_command(hub, tmp_path / "fourth", "-c", one.replace("encoder.safetensors", "distill/none.pth"))
        assert "there is no such file on the hub" in none.stderr
        nothing = stmae_command(
            hub, tmp_path / "home", "-m", "stmae", "convert", "hf://user/nothing", "--out", str(tmp_path / "x")
        )
        assert nothing.returncode == 2
        assert 'there is no "hf://user/nothing" on the hub' in nothing.stderr
    gone = stmae_command(
        hub, tmp_path / "third", "-c", IMPATIENT, "convert", "hf://user/name", "--out", str(tmp_path / "x")
    )
    assert gone.returncode == 2
    assert "the hub cannot be reached" in gone.stderr
    cached = stmae_command(hub, tmp_path / "other-home", "-c", code, offline="1")
    assert cached.returncode == 0, "what was read once is there without the hub"


def test_names_are_checked(run):
    for name in ("name", "a/b/c", "/b"):
        with pytest.raises(UserError, match="user/name"):
            stmae.push(str(run), name)
