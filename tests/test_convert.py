"""`stmae convert` and the one door: other projects' files wherever a model is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_families import transformers_model
from test_parity import HERE, Fixture

import stmae
from stmae.errors import UserError
from stmae.interop import save_reference
from stmae.interop.native import load_model, load_with_extras
from stmae.tasks.convert import parse_sizes

MAE_ST = {"num_heads": 4, "decoder_num_heads": 4, "num_frames": 8}
WORDS = tuple(f"{name}={value}" for name, value in MAE_ST.items())


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    """A checkpoint as mae_st's training leaves it."""
    path = tmp_path / "checkpoint-00099.pth"
    torch.save({"model": Fixture(HERE / "pretrain_all_frames.safetensors").weights, "epoch": 99}, path)
    return path


def test_there_and_back(pth, tmp_path, capsys):
    folder = stmae.convert(str(pth), out=tmp_path / "model", sizes=WORDS)
    said = capsys.readouterr().out
    assert "encoder and decoder" in said
    assert "CC-BY-NC" in said
    assert load_with_extras(folder)[1]["source"].startswith("facebookresearch/mae_st")
    assert stmae.load(folder)(torch.zeros(1, 3, 8, 32, 32, dtype=torch.uint8)).shape == (1, 48)
    back = stmae.convert(str(folder), out=tmp_path / "back.pth", to="mae_st")
    before, after = (torch.load(path, weights_only=True)["model"] for path in (pth, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_folder_of_transformers_goes_in_and_out(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers_model("VideoMAEForPreTraining", use_mean_pooling=False)
    theirs.save_pretrained(tmp_path / "theirs")
    out = stmae.convert(str(tmp_path / "theirs"), out=tmp_path / "out", to="videomae_hf")
    again = transformers.VideoMAEForPreTraining.from_pretrained(out).eval()
    assert again.state_dict().keys() == theirs.state_dict().keys()
    clip, hidden = torch.randn(1, 8, 3, 32, 32), torch.rand(1, 64).argsort(dim=1) < 58
    torch.testing.assert_close(
        again(clip, bool_masked_pos=hidden).loss, theirs(clip, bool_masked_pos=hidden).loss, rtol=0, atol=1e-6
    )
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]


def test_a_classifier_of_ours_in_the_class_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers_model("VideoMAEForVideoClassification")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    out = stmae.convert(str(tmp_path / "theirs"), out=tmp_path / "out", to="videomae_hf")
    again = transformers.VideoMAEForVideoClassification.from_pretrained(out).eval()
    clip = torch.randn(2, 3, 8, 32, 32)
    torch.testing.assert_close(again(clip.transpose(1, 2)).logits, ours(clip), rtol=0, atol=1e-5)


def test_every_door_takes_a_reference_file(pth, tmp_path):
    state = torch.load(pth, weights_only=True)["model"]
    with pytest.raises(UserError, match="num_heads"):
        stmae.load(pth)  # 48 wide: nobody published that, so the heads have to be said
    folder = stmae.convert(str(pth), out=tmp_path / "model", sizes=WORDS)
    bare = tmp_path / "bare.safetensors"
    save_file({**state, "extra": torch.ones(2)}, bare)
    with pytest.raises(UserError, match="num_heads"):
        load_model(bare)
    assert save_reference(load_model(folder), family="mae_st").keys() == state.keys()


def test_what_cannot_be_held_is_said_with_the_reason(tmp_path):
    theirs = transformers_model("VideoMAEForPreTraining")
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="target: normalized_pixels_per_channel here, normalized_pixels there"):
        stmae.convert(str(tmp_path / "theirs"), out=tmp_path / "a.pth", to="mae_st")
    ours = stmae.create_model("vit_tiny", frames=4, image_size=32)
    with pytest.raises(UserError, match=r"no place for .*class_token"):
        save_reference(ours, family="videomae")


def test_foreign_folders_and_files_are_refused_in_words(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"config\.json and"):
        load_model(tmp_path / "bert")
    save_file({"a": torch.ones(1)}, tmp_path / "bert" / "model.safetensors")
    with pytest.raises(UserError, match='model of type "bert"'):
        load_model(tmp_path / "bert")
    with pytest.raises(UserError, match="not those of a known family: a"):
        load_model(tmp_path / "bert" / "model.safetensors")


def test_sizes_are_words_with_an_equals_sign():
    assert parse_sizes(["num_heads=12", "norm_pix_loss=false", "img_size=[64, 32]"]) == {
        "num_heads": 12,
        "norm_pix_loss": False,
        "img_size": [64, 32],
    }
    with pytest.raises(UserError, match='"heads" is no size'):
        parse_sizes(["heads"])


def test_mistakes_come_back_without_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "stmae", "convert", str(tmp_path / "no.pth"), "--out",
         str(tmp_path / "x.bin"), "--to", "mae_st"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "neither a .pth nor a .safetensors" in done.stderr
    assert "| torch\n" not in done.stderr
