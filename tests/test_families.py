"""Checkpoints of the other families: outputs, loss and gradients agree with the numbers their own code computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_parity import Fixture, close
from torch import Tensor

from stmae.errors import UserError
from stmae.interop import load_reference, save_reference
from stmae.interop.families import FAMILIES
from stmae.interop.naming import to_theirs
from stmae.model.heads import Classifier
from stmae.model.mae import MaskedAutoencoder

PRETRAIN = {
    "slowfast": "slowfast_mae_pretrain_default",
    "videomae": "videomae_pretrain_default",
    "mae_image": "mae_image_default",
}
FINETUNE = {"slowfast": "slowfast_finetune_default", "videomae": "videomae_finetune_default"}


class Pretrained(Fixture):
    def __init__(self, family: str, path: Path) -> None:
        super().__init__(path)
        self.family: Any = family

    def load(self) -> Any:
        return load_reference(self.weights, family=self.family, config=self.config)

    @property
    def clip(self) -> Tensor:
        clip = self["input"]
        return clip[:, :, None] if clip.ndim == 4 else clip  # an image is a clip of one frame

    @property
    def hidden(self) -> Tensor:
        return self["mask"].bool()


@pytest.fixture(params=PRETRAIN)
def pretrained(request: pytest.FixtureRequest, shared: Path) -> Pretrained:
    return Pretrained(request.param, shared / "parity" / f"{PRETRAIN[request.param]}.safetensors")


def test_outputs_and_loss(pretrained):
    model = pretrained.load()
    assert isinstance(model, MaskedAutoencoder)
    out = model(pretrained.clip, hidden=pretrained.hidden)
    latent, prediction = pretrained["latent"], pretrained["pred"]
    if pretrained.family != "videomae":  # theirs have a class token first, then the order of ascending noise
        kept = pretrained["noise"].argsort(dim=1)[:, : out.visible.shape[1]]
        by_token, order = kept.sort(dim=1)
        assert torch.equal(by_token, out.visible)
        latent = torch.take_along_dim(latent[:, 1:], order[..., None], dim=1)
        prediction = torch.take_along_dim(prediction, out.hidden_ids[..., None], dim=1)
        noisy = model(pretrained.clip, noise=pretrained["noise"])
        assert torch.equal(noisy.hidden, pretrained.hidden), "their count of visible tokens"
    close(out.latent, latent)
    close(out.prediction, prediction)
    close(out.loss, pretrained["loss"].reshape(()))
    targets = {"videomae": "labels", "slowfast": "target_masked"}.get(pretrained.family)
    if targets:
        close(out.target.flatten(0, 1), pretrained[targets].flatten(0, -2))


def test_gradients(pretrained):
    model = pretrained.load()
    model(pretrained.clip, hidden=pretrained.hidden).loss.backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    ours = to_theirs(grads, model.config, FAMILIES[pretrained.family])
    assert set(ours) == set(pretrained.weights)
    assert len(pretrained.grads) >= 50
    for name, theirs in pretrained.grads.items():
        if ".attn.qkv.bias" in name:  # a key's bias cannot change a softmax: its part is rounding
            parts = zip(ours[name].chunk(3), theirs.chunk(3), strict=True)
            for (a, b), scale in zip(parts, (theirs.abs().max().item(), 1.0, theirs.abs().max().item()), strict=True):
                close(a, b, scale)
        else:
            close(ours[name], theirs, theirs.abs().max().item())


def test_their_files_go_in_and_out_bit_for_bit(pretrained):
    model = pretrained.load()
    back = save_reference(model, family=pretrained.family)
    assert back.keys() == pretrained.weights.keys()
    for name, value in pretrained.weights.items():
        assert torch.equal(back[name], value), name


@pytest.mark.parametrize("family", FINETUNE)
def test_classifiers(shared, family):
    fixture = Pretrained(family, shared / "parity" / f"{FINETUNE[family]}.safetensors")
    model = fixture.load()
    assert isinstance(model, Classifier)
    logits = model(fixture["input"])
    close(logits, fixture["logits"])
    if family == "slowfast":
        close(logits.softmax(dim=1), fixture["probs"])
    check_round_trip_of(model, fixture)


def check_round_trip_of(model: Any, fixture: Pretrained) -> None:
    back = save_reference(model, family=fixture.family)
    assert back.keys() == fixture.weights.keys()
    assert all(torch.equal(back[name], value) for name, value in fixture.weights.items())


def test_an_image_model_sees_a_still_as_it_saw_the_image(shared):
    fixture = Pretrained("mae_image", shared / "parity" / "mae_image_default.safetensors")
    image = fixture.load()
    video = load_reference(fixture.weights, family="mae_image", config={**fixture.config, "num_frames": 6})
    assert video.config.encoder.clip.shape == (6, 32, 32)
    still = fixture.clip.expand(-1, -1, 6, -1, -1)
    for side in (image, video):
        assert side.config.decoder.class_token == "encoder"
    patches, grid = video.encoder.cut(still)
    tokens = video.encoder.embed(patches, grid)[:, 1:].unflatten(1, grid)
    expected = image.encoder.embed(*image.encoder.cut(fixture.clip))[:, 1:].unflatten(1, (4, 4))
    for step in range(grid[0]):
        close(tokens[:, step], expected)
    # One step of time is the image model itself, whole.
    single = load_reference(fixture.weights, family="mae_image", config={**fixture.config, "num_frames": 2})
    close(single.encoder(fixture.clip.expand(-1, -1, 2, -1, -1)), image.encoder(fixture.clip))


# transformers' VideoMAE, at random -----------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "num_frames": 8, "tubelet_size": 2, "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 96, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64, "num_labels": 5,
}  # fmt: skip


def transformers_model(kind: str, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    made = getattr(transformers, kind)(transformers.VideoMAEConfig(**SIZES, **options)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("qv_bias", [True, False])
def test_pretraining_with_transformers(pooling, qv_bias):
    theirs = transformers_model("VideoMAEForPreTraining", use_mean_pooling=pooling, qv_bias=qv_bias)
    ours = load_reference(theirs.state_dict(), family="videomae_hf", config=theirs.config.to_dict())
    clip = torch.randn(2, 3, 8, 32, 32)
    hidden = torch.rand(2, 64).argsort(dim=1) < 58
    out = ours(clip, hidden=hidden)
    wanted = theirs(clip.transpose(1, 2), bool_masked_pos=hidden)
    close(out.prediction, wanted.logits)
    close(out.loss, wanted.loss)
    out.loss.backward()
    wanted.loss.backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in ours.named_parameters()}
    back = to_theirs(grads, ours.config, FAMILIES["videomae_hf"])
    for name, parameter in theirs.named_parameters():
        close(back[name], parameter.grad, max(parameter.grad.abs().max().item(), 1e-3))
    theirs.load_state_dict(save_reference(ours, family="videomae_hf"))
    close(theirs(clip.transpose(1, 2), bool_masked_pos=hidden).loss, wanted.loss)


def test_classification_with_transformers():
    theirs = transformers_model("VideoMAEForVideoClassification", use_mean_pooling=True)
    ours = load_reference(theirs.state_dict(), family="videomae_hf", config=theirs.config.to_dict())
    clip = torch.randn(2, 3, 8, 32, 32)
    close(ours(clip), theirs(clip.transpose(1, 2)).logits)
    check = save_reference(ours, family="videomae_hf")
    assert check.keys() == theirs.state_dict().keys()


def test_names_of_transformers_before_5():
    theirs = transformers_model("VideoMAEForPreTraining")
    state = theirs.state_dict()
    old = {name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value for name, value in state.items()}
    new = load_reference(state, family="videomae_hf", config=theirs.config.to_dict())
    assert old.keys() != state.keys()
    same = load_reference(old, family="videomae_hf", config=theirs.config.to_dict())
    assert all(torch.equal(a, b) for a, b in zip(new.state_dict().values(), same.state_dict().values(), strict=True))


def test_raw_pixels_of_videomae_are_refused_with_the_reason():
    theirs = transformers_model("VideoMAEForPreTraining", norm_pix_loss=False)
    with pytest.raises(UserError, match="pixels from 0 to 1"):
        load_reference(theirs.state_dict(), family="videomae_hf", config=theirs.config.to_dict())
