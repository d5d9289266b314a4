"""`--init`: a new run takes weights, and the model's shape with them, from wherever a model can come from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled import SMALL, labelled_clips
from safetensors.torch import load_file
from test_parity import HERE
from test_refit import stills
from tiny import tiny, tiny_config

import stmae
from stmae.errors import UserError
from stmae.interop import load_reference
from stmae.interop.native import load_with_extras
from stmae.model.config import ClassifierConfig, as_dict
from stmae.model.heads import Classifier
from stmae.weights import ENCODER, save_weights

REFERENCE = HERE / "pretrain_all_frames.safetensors"  # of mae_st: 48 wide, patches of 2x8x8, 8 frames of 32x32
SHORT: dict[str, Any] = {
    "epochs": 2, "batch_size": 4, "repeats": 4, "lr": 1e-12, "workers": 0, "precision": "fp32", "holdout": 0.0,
    "loggers": (), "preset": "small",
}  # fmt: skip
CLIPS = torch.randint(0, 256, (4, 3, 4, 16, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def saved(folder: Path, model: Any, **extras: Any) -> str:
    folder.mkdir()
    save_weights(folder / ENCODER, model.float().state_dict(), {"model": as_dict(model.config), **extras})
    return str(folder)


def same(ours: dict[str, torch.Tensor], theirs: Any, *, but: str = "positions") -> None:
    state = theirs.state_dict()
    assert ours.keys() == state.keys()
    for name, value in state.items():
        if but not in name:
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_reference_checkpoint_goes_on_at_another_size_with_its_decoder(tmp_path):
    given = tmp_path / "given.safetensors"
    shutil.copyfile(REFERENCE, given)
    out = stmae.pretrain(CLIPS, out=tmp_path / "run", init=str(given), **SHORT)
    log = (out / "log.txt").read_text()
    assert "encoder and decoder" in log
    assert "facebookresearch/mae_st" in log
    assert "CC-BY-NC" in log
    model, extras = load_with_extras(out)
    theirs = load_reference(REFERENCE)
    same(load_file(out / ENCODER), theirs)
    clip = model.config.encoder.clip
    assert clip.shape == (4, 16, 48)
    assert clip.patch == (2, 8, 8)
    assert model.config.decoder == theirs.config.decoder
    assert (model.config.predict_frames, model.config.mask_ratio) == ("all", 0.9), "theirs, and this run's"
    assert extras["source"].startswith("facebookresearch/mae_st"), "whose weights it descends from stays known"
    config = (out / "config.yaml").read_text()
    for line in ("model: custom", "patch:\n- 2\n- 8\n- 8", "decoder_width: 32", "predict_frames: all"):
        assert line in config
    given.unlink()  # it has served
    again = stmae.pretrain(CLIPS, out=out, **{**SHORT, "epochs": 3})
    assert load_with_extras(again)[0].config == model.config
    assert load_with_extras(again)[1]["license"] == "cc-by-nc-4.0"


@pytest.mark.slow
def test_options_of_the_caller_come_first(tmp_path):
    own = {"decoder_depth": 1, "decoder_width": 64, "decoder_heads": 2, "mask_ratio": 0.5}
    out = stmae.pretrain(CLIPS, out=tmp_path / "run", init=str(REFERENCE), **SHORT, **own)
    assert "the encoder; the decoder starts afresh" in (out / "log.txt").read_text()
    model, _ = load_with_extras(out)
    assert (model.config.decoder.blocks.width, model.config.decoder.blocks.depth) == (64, 1)
    assert model.config.mask_ratio == 0.5
    theirs = load_reference(REFERENCE)
    for name, value in theirs.encoder.state_dict().items():
        if "positions" not in name:
            torch.testing.assert_close(model.encoder.state_dict()[name], value, rtol=0, atol=1e-6)
    with pytest.raises(UserError) as caught:
        stmae.pretrain(
            CLIPS, out=tmp_path / "no", init=str(REFERENCE), **SHORT, model="vit_tiny", patch=(2, 16, 16),
            positions="joint", class_token=False,
        )  # fmt: skip
    assert len(caught.value.problems) == 4, "all at once"
    assert "Leave patch out" in str(caught.value)


@pytest.mark.slow
def test_a_model_of_three_channels_sees_one(tmp_path):
    whole = tiny(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    grey = CLIPS[:, :1]
    out = stmae.pretrain(grey, out=tmp_path / "run", init=saved(tmp_path / "rgb", whole), **SHORT)
    assert "summed over 3 channels and spread over 1" in (out / "log.txt").read_text()
    found = stmae.load(out)
    assert found.config.clip.channels == 1
    wanted = whole.encoder(grey.expand(-1, 3, -1, -1, -1)[..., :24].contiguous())
    torch.testing.assert_close(found(grey[..., :24].contiguous()), wanted, rtol=0, atol=0.2)  # other positions


@pytest.mark.slow
def test_an_image_model_sees_videos(tmp_path):
    out = stmae.pretrain(CLIPS, out=tmp_path / "run", init=saved(tmp_path / "stills", stills()), **SHORT)
    log = (out / "log.txt").read_text()
    assert "encoder and decoder" in log
    assert "spread over the 2 frames" in log
    assert "positions: separable" in (out / "config.yaml").read_text()
    with pytest.raises(UserError, match="positions joint does not fit"):
        stmae.pretrain(CLIPS, out=tmp_path / "no", init=str(tmp_path / "stills"), **SHORT, positions="joint")
    config = load_with_extras(out)[0].config
    assert (config.encoder.clip.patch, config.encoder.positions, config.predict_frames) == (
        (2, 8, 8), "separable", "strided",
    )  # fmt: skip


@pytest.mark.slow
def test_a_classifier_of_other_classes_lends_its_encoder(tmp_path):
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(encoder=tiny_config().encoder, classes=7))
    out = stmae.pretrain(CLIPS, out=tmp_path / "run", init=saved(tmp_path / "judge", classifier), **SHORT)
    assert "the decoder starts afresh" in (out / "log.txt").read_text()
    same(
        {name: value for name, value in load_file(out / ENCODER).items() if name.startswith("encoder.")},
        torch.nn.ModuleDict({"encoder": classifier.encoder}),
    )


@pytest.mark.slow
def test_other_commands_take_a_reference_checkpoint_as_it_is(videos, tmp_path):
    stmae.embed(videos, model=str(REFERENCE), out=tmp_path / "features.npz")
    assert np.load(tmp_path / "features.npz")["features"].shape == (6, 48)
    made = stmae.reconstruct(videos, model=str(REFERENCE), out=tmp_path / "pictures", clips=1)
    assert made.pictures
    with pytest.raises(UserError, match=r"init .* does not exist\. .*hf://MCG-NJU/videomae-base\."):
        stmae.pretrain(videos, out=tmp_path / "run", init="MCG-NJU/videomae-base")


@pytest.mark.slow
def test_fine_tuning_takes_other_channels_and_image_models(tmp_path):
    clips = [(clip[:1], name) for clip, name in labelled_clips(each=2)]
    options = {**SMALL, "epochs": 1, "batch_size": 2, "holdout": 0.0, "preset": "few_videos"}
    out = stmae.finetune(clips, out=tmp_path / "grey", init=str(REFERENCE), **options)
    assert "summed over 3 channels and spread over 1" in (out / "log.txt").read_text()
    model, extras = load_with_extras(out)
    assert isinstance(model, Classifier)
    assert model.config.encoder.clip.channels == 1
    assert extras["license"] == "cc-by-nc-4.0"
    image = saved(tmp_path / "stills", stills())
    out = stmae.finetune(labelled_clips(each=2), out=tmp_path / "video", init=image, frames=4, **options)
    assert "spread over the 2 frames" in (out / "log.txt").read_text()
    config = load_with_extras(out)[0].config.encoder
    assert (config.clip.patch, config.clip.shape, config.positions) == ((2, 8, 8), (4, 32, 32), "separable")
