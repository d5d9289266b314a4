"""`stmae convert` and the one door: other projects' files wherever a model is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published import Size, by_formula, videomae
from safetensors.torch import save_file
from test_families import transformers_model
from test_parity import HERE, Fixture

import stmae
from stmae.errors import Note, UserError
from stmae.interop import load_reference, save_reference
from stmae.interop.native import load_model, load_with_extras
from stmae.model.config import as_dict
from stmae.model.encoder import VideoViT
from stmae.tasks.convert import parse_sizes
from stmae.weights import ENCODER, save_weights

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


@pytest.mark.slow
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
    assert ours.config.class_names == (), "LABEL_0 is no name"
    theirs.config.id2label = dict(enumerate(["run", "jump", "sit", "lie", "fly"]))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert ours.config.class_names == ("run", "jump", "sit", "lie", "fly")
    out = stmae.convert(str(tmp_path / "theirs"), out=tmp_path / "out", to="videomae_hf")
    again = transformers.VideoMAEForVideoClassification.from_pretrained(out).eval()
    assert again.config.id2label[4] == "fly"
    clip = torch.randn(2, 3, 8, 32, 32)
    torch.testing.assert_close(again(clip.transpose(1, 2)).logits, ours(clip), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_encoder_of_ours_in_the_class_of_transformers(tmp_path):
    """A model trained here in VideoMAE's shape: its decoder is not transformers', the encoder is."""
    transformers = pytest.importorskip("transformers")
    ours = stmae.create_model(
        "vit_tiny", frames=4, image_size=32, class_token=False, positions="joint", position_values="sincos",
        target="normalized_pixels_per_channel", predict_frames="all", decoder_width=32, decoder_depth=1,
        decoder_heads=2,
    ).eval()  # fmt: skip
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run" / ENCODER, ours.state_dict(), {"model": as_dict(ours.config)})
    with pytest.raises(UserError, match=r"decoder.*\n.*encoder-only"):
        stmae.convert(str(tmp_path / "run"), out=tmp_path / "no", to="videomae_hf")
    out = stmae.convert(str(tmp_path / "run"), out=tmp_path / "hf", to="videomae_hf", encoder_only=True)
    theirs = transformers.VideoMAEModel.from_pretrained(out).eval()
    clip = torch.randn(2, 3, 4, 32, 32)
    found = theirs(clip.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(found, ours.encoder(clip, features="tokens"), rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "bare")  # transformers leaves the prefix out of an encoder's names
    same = stmae.load(tmp_path / "bare")
    torch.testing.assert_close(same(clip, features="tokens"), found, rtol=0, atol=1e-5)


def test_a_video_model_as_an_image_model(pth, tmp_path, capsys):
    folder = stmae.convert(str(pth), out=tmp_path / "model", sizes=WORDS)
    with pytest.raises(UserError, match="decoder of videos"):
        stmae.convert(str(folder), out=tmp_path / "image.pth", to="mae_image")
    capsys.readouterr()
    out = stmae.convert(str(folder), out=tmp_path / "image.pth", to="mae_image", encoder_only=True)
    assert "mean 0.45, std 0.225" in capsys.readouterr().out
    theirs = torch.load(out, weights_only=True)["model"]
    video = torch.load(pth, weights_only=True)["model"]
    kernel = theirs["patch_embed.proj.weight"]
    torch.testing.assert_close(kernel, video["patch_embed.proj.weight"].sum(dim=2), rtol=0, atol=1e-6)
    assert torch.equal(theirs["pos_embed"][:, 1:], video["pos_embed_spatial"])
    assert torch.equal(theirs["pos_embed"][:, :1], video["pos_embed_class"])
    image = load_reference(out, config={"num_heads": 4})
    assert image(torch.zeros(1, 3, 1, 32, 32)).shape == (1, 48)
    with pytest.raises(UserError, match="class_token: False here"):
        save_reference(stmae.create_model("vit_tiny", frames=4, image_size=32, class_token=False).encoder,
                       family="mae_image")  # fmt: skip


@pytest.mark.slow
def test_the_licence_of_what_is_read_is_said(pth, tmp_path):
    with pytest.warns(Note, match=r"facebookresearch/mae_st; .*CC-BY-NC"):
        load_reference(pth, config=MAE_ST)
    folder = stmae.convert(str(pth), out=tmp_path / "model", sizes=WORDS)
    with pytest.warns(Note, match="CC-BY-NC"):
        extras = load_with_extras(folder)[1]
    assert extras["license"] == "cc-by-nc-4.0"
    done = subprocess.run(
        [sys.executable, "-m", "stmae", "push", str(folder), "user/name", "--to", str(tmp_path / "pushed"),
         "--data", "Kinetics-400."],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("note: made from weights"), done.stderr
    assert len(done.stderr.splitlines()) == 1, "a line, and no place in the code"
    card = (tmp_path / "pushed" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card
    assert "facebookresearch/mae_st" in card
    assert "## Data\n\nKinetics-400." in card


def test_the_licence_on_the_card_of_a_folder(tmp_path):
    theirs = transformers_model("VideoMAEForPreTraining")
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "README.md").write_text("---\ntags: [a]\nlicense: apache-2.0\n---\n# Hello\n")
    with pytest.warns(Note, match=r"licence of its published weights: apache-2\.0"):
        assert load_with_extras(tmp_path / "theirs")[1]["license"] == "apache-2.0"


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


def test_a_folder_of_videomae_v2(tmp_path):
    """Its configuration as its pages on the hub show it; the class around the model names everything "model."."""
    size = Size(width=32, depth=2, mlp=64, patch=8, image=32, frames=8, classes=1)
    state = {f"model.{name}": value for name, value in by_formula(videomae(size)).items() if "head" not in name}
    save_file(state, tmp_path / "model.safetensors")
    inner = {"img_size": 32, "patch_size": 8, "num_classes": 0, "embed_dim": 32, "depth": 2, "num_heads": 2,
             "layer_norm_eps": 1e-6, "tubelet_size": 2, "num_frames": 8, "cos_attn": False}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "VideoMAEv2_Base", "model_config": inner}))
    (tmp_path / "README.md").write_text('---\nlicense: "cc-by-nc-4.0"\n---\n')
    model, extras = load_with_extras(tmp_path)
    assert extras["license"] == "cc-by-nc-4.0"
    assert isinstance(model, VideoViT)
    assert (model.config.blocks.heads, model.config.clip.shape) == (2, (8, 32, 32))
    assert torch.equal(model.norm.weight, state["model.fc_norm.weight"])
    inner["cos_attn"] = True
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "VideoMAEv2_Base", "model_config": inner}))
    with pytest.raises(UserError, match="cos_attn"):
        load_model(tmp_path)


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
