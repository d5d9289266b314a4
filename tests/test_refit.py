"""A model for other clips: what tokens stay, and that the configuration follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import changed, random_clip, tiny, tiny_config
from torch import Tensor

from stmae.errors import UserError
from stmae.model.config import ClassifierConfig, ClipConfig
from stmae.model.heads import Classifier
from stmae.model.mae import MaskedAutoencoder
from stmae.model.refit import refit


def stills(**options: Any) -> MaskedAutoencoder:
    return tiny(shape=(1, 16, 24), patch=(1, 8, 8), positions="joint", **options)


def first_tokens(model: MaskedAutoencoder, clip: Tensor) -> Tensor:
    """Tokens before the blocks, without the class token: (B, t, N, D)."""
    patches, grid = model.encoder.cut(clip)
    return model.encoder.embed(patches, grid)[:, int(model.config.encoder.class_token) :].unflatten(1, (grid[0], -1))


@pytest.mark.parametrize("positions", ["separable", "joint"])
@pytest.mark.parametrize("values", ["learned", "sincos"])
def test_length_and_resolution(positions, values):
    model = tiny(positions=positions, position_values=values)
    before = model.encoder.positions((8, 4, 4)).detach()
    assert refit(model, frames=16, image_size=(32, 32)) == []
    assert model.config.encoder.clip.shape == (16, 32, 32)
    assert model.encoder.config is model.config.encoder
    assert model.encoder.normalize.clip == model.config.encoder.clip
    torch.testing.assert_close(model.encoder.positions().detach(), before)
    out = model(random_clip(model.config), keys=torch.arange(2))
    assert out.prediction.shape[1] == 96  # three quarters of 8 x 4 x 4 tokens
    fresh = MaskedAutoencoder(model.config).double()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(random_clip(model.config), keys=torch.arange(2)).loss, out.loss), "what is saved loads"


def test_stills_to_videos_and_back():
    image = stills()
    clip = random_clip(image.config)
    expected = first_tokens(image, clip)
    video = stills()
    (told,) = refit(video, frames=6, patch_frames=3)
    assert "spread over the 3 frames" in told
    assert video.config.encoder.positions == video.config.decoder.positions == "separable"
    assert video.config.predict_frames == "strided"
    still = clip.expand(-1, -1, 6, -1, -1)
    torch.testing.assert_close(first_tokens(video, still), expected.expand(-1, 2, -1, -1))
    trained = {name for name, parameter in video.named_parameters() if parameter.requires_grad}
    assert {"encoder.positions.temporal", "encoder.positions.spatial", "decoder.positions.temporal"} <= trained
    video(still, keys=torch.arange(2)).loss.backward()
    rebuilt = MaskedAutoencoder(video.config).double()
    rebuilt.load_state_dict(video.state_dict())

    encoder = video.encoder
    (told,) = refit(encoder, frames=1, patch_frames=1)
    assert "summed over its 3 frames" in told
    torch.testing.assert_close(encoder(clip), image.encoder(clip))


def test_a_video_model_sees_an_image_as_it_saw_the_still_but_for_time():
    video = tiny()
    with torch.no_grad():
        video.encoder.positions.temporal.zero_()
    clip = random_clip(video.config)[:, :, :1]
    expected = first_tokens(video, clip.expand(-1, -1, 8, -1, -1))
    refit(video.encoder, frames=1, patch_frames=1)
    patches, grid = video.encoder.cut(clip)
    assert grid == (1, 2, 3)
    torch.testing.assert_close(video.encoder.embed(patches, grid)[:, 1:], expected[:, 0])


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("mean, std", [((0.45,), (0.225,)), ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))])
def test_channels(channels, mean, std):
    model = tiny(mean=mean, std=std)
    grey = random_clip(model.config)[:, :1]
    expected = first_tokens(model, grey.expand(-1, 3, -1, -1, -1))
    before = model(grey.expand(-1, 3, -1, -1, -1), keys=torch.arange(2)).prediction
    (told,) = refit(model, channels=channels)
    assert f"summed over 3 channels and spread over {channels}" in told
    clip = model.config.encoder.clip
    assert (clip.channels, len(clip.mean), len(clip.std)) == (channels, 1, 1)
    same = grey.expand(-1, channels, -1, -1, -1)
    torch.testing.assert_close(first_tokens(model, same), expected, rtol=0, atol=1e-5)
    out = model(same, keys=torch.arange(2))
    averaged = before.unflatten(2, (-1, 3)).mean(dim=3, keepdim=True).expand(-1, -1, -1, channels).flatten(2)
    torch.testing.assert_close(out.prediction, averaged, rtol=0, atol=1e-5)
    MaskedAutoencoder(model.config).double().load_state_dict(model.state_dict())


def test_a_classifier():
    config = tiny_config().encoder
    model = Classifier(ClassifierConfig(encoder=config, classes=4)).double()
    refit(model, frames=4, image_size=(24, 24), channels=1)
    assert model.config.encoder.clip == ClipConfig(frames=4, height=24, width=24, channels=1, patch=(2, 8, 8))
    assert model(torch.zeros(2, 1, 4, 24, 24, dtype=torch.uint8)).shape == (2, 4)
    assert model.config == replace(model.config, encoder=changed(config, clip=model.config.encoder.clip))


def test_what_has_no_meaning_is_refused():
    with pytest.raises(UserError, match="a patch of 2 frames cannot become one of 4"):
        refit(tiny(), patch_frames=4)
    with pytest.raises(UserError, match="a decoder of videos"):
        refit(tiny(), frames=1, patch_frames=1)
    with pytest.raises(UserError, match="frames 5 is not a multiple of the patch's 2"):
        refit(tiny(), frames=5)
