"""What an encoder sees: layers, other sizes, attention, principal components; painting over a mask of one's own."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_run import save_run, small_model, write_clock
from tiny import random_clip, tiny

import stmae
from stmae.errors import UserError
from stmae.model.config import ClipConfig
from stmae.model.maps import attention_map, principal_maps
from stmae.tasks.inpaint import inpaint, read_mask


@pytest.mark.parametrize("class_token", [True, False])
def test_features_of_any_layer(class_token: bool) -> None:
    encoder = tiny(class_token=class_token, depth=3).encoder
    clip = random_clip(tiny(class_token=class_token).config)
    tokens = encoder.embed(*encoder.cut(clip))
    for layer in (1, 2, 3):
        tokens = encoder.blocks[layer - 1](tokens)
        expected = encoder.norm(tokens)[:, int(class_token) :]
        found = encoder(clip, features="grid", layer=layer)
        assert found.shape == (2, 4, 2, 3, 16)
        torch.testing.assert_close(found.flatten(1, 3), expected)
    torch.testing.assert_close(encoder(clip), encoder(clip, layer=3))
    with pytest.raises(UserError, match=r"no layer 4\. Choose 1 to 3"):
        encoder(clip, layer=4)
    with pytest.raises(UserError, match="no layer 0"):
        encoder(clip, layer=0)


def test_any_length_and_resolution() -> None:
    encoder = tiny().encoder
    for shape in ((2, 8, 8), (16, 40, 24), (6, 16, 24)):
        clip = torch.randint(0, 256, (1, 3, *shape), dtype=torch.uint8)
        grid = (shape[0] // 2, shape[1] // 8, shape[2] // 8)
        assert encoder(clip, features="grid").shape == (1, *grid, 16)
        assert attention_map(encoder, clip).shape == (1, 2, *grid)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("layer", [1, 2])
def test_attention_is_that_of_the_block(class_token: bool, layer: int) -> None:
    encoder = tiny(class_token=class_token).encoder.float()
    clip = random_clip(tiny().config)
    tokens = encoder.embed(*encoder.cut(clip))
    for block in encoder.blocks[: layer - 1]:
        tokens = block(tokens)
    attention = encoder.blocks[layer - 1].attn
    x = encoder.blocks[layer - 1].norm1(tokens)
    q, k, v = attention.qkv(x).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    table = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1)  # (B, heads, L, L)
    torch.testing.assert_close(table @ v, F.scaled_dot_product_attention(q, k, v))
    rows = table[:, :, 0, 1:] if class_token else table.mean(2)
    rows = rows / rows.sum(-1, keepdim=True)
    torch.testing.assert_close(attention_map(encoder, clip, layer).flatten(2), rows)


def test_principal_components_tell_regions_apart() -> None:
    torch.manual_seed(0)
    features = 0.05 * torch.randn(2, 2, 4, 5, 12)
    features[:, :, :, :2, 0] += 5
    features[:, 1, :, :, 3] += 2
    found = principal_maps(features)
    assert found.shape == (2, 2, 4, 5, 3)
    assert found.min() >= 0
    assert found.max() <= 1
    first = found[..., 0]
    assert first[:, :, :, :2].min() > 0.8  # the sign is the strongest feature's
    assert first[:, :, :, 2:].max() < 0.4
    assert (found[:, 1, :, :, 1] - found[:, 0, :, :, 1]).min() > 0.3
    flat = principal_maps(torch.ones(1, 1, 2, 2, 6))
    assert (flat == 0.5).all()


CLIP = ClipConfig(frames=8, height=32, width=32, patch=(2, 8, 8))  # a grid of 4 x 4 x 4


def saved(path: Path, mask: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, mask)
    else:
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path


def test_masks_hide_every_token_that_they_touch(tmp_path: Path) -> None:
    drawn = np.zeros((64, 64), bool)
    drawn[0:3, 17:33] = True  # in tokens of 16 pixels: row 0, columns 1 and 2
    expected = np.zeros((4, 4, 4), bool)
    expected[:, 0, 1:3] = True
    for name in ("a.png", "a.npy"):
        found = read_mask(saved(tmp_path / name, drawn), CLIP)
        np.testing.assert_array_equal(found.reshape(4, 4, 4), expected)
    wide = np.zeros((64, 128), bool)  # of a wide video the middle is shown
    wide[:, 32:64] = drawn[:, :32]
    wide[:, 64:96] = drawn[:, 32:]
    wide[:, :10] = True  # beside what is shown
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "w.png", wide), CLIP).reshape(4, 4, 4), expected)
    moving = np.zeros((2, 4, 4))
    moving[1, 2, 3] = 0.5
    found = read_mask(saved(tmp_path / "m.npy", moving), CLIP).reshape(4, 4, 4)
    assert np.argwhere(found).tolist() == [[2, 2, 3], [3, 2, 3]]
    fewer = np.zeros((3, 3), bool)  # coarser than the grid
    fewer[1, 1] = True
    found = read_mask(saved(tmp_path / "f.npy", fewer), CLIP).reshape(4, 4, 4)
    assert found[0].tolist() == found[3].tolist()
    assert np.argwhere(found[0]).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for path, words in (
        (saved(tmp_path / "none.png", np.zeros((8, 8), bool)), "hides nothing"),
        (saved(tmp_path / "all.npy", np.ones((8, 8))), "hides everything"),
        (saved(tmp_path / "line.npy", np.ones(8)), r"shape \(8,\)"),
        (tmp_path / "text.png", "cannot be read"),
    ):
        with pytest.raises(UserError, match=words):
            read_mask(path, CLIP)


@pytest.mark.parametrize("decode", ["all", "random"])
def test_what_is_not_hidden_stays(decode: str) -> None:
    model = small_model(decode=decode)  # in training a share of the hidden tokens, here all of them
    hidden = np.zeros((4, 4, 4), bool)
    hidden[:, 1:3, 1:3] = True
    clip = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    painting = inpaint(model, clip, hidden.reshape(-1), "visible")
    inside = painting.hidden.expand_as(painting.original)
    assert inside.float().mean() == 0.25
    assert inside[:, :, :, 8:24, 8:24].all()
    assert torch.equal(painting.painted[~inside], painting.original[~inside])
    assert not torch.equal(painting.painted[inside], painting.original[inside])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("maps") / "run", small_model())


@pytest.mark.slow
def test_maps_of_videos(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clock(tmp_path / "videos" / "clock.mp4", seconds=2.0)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"\0" * 1000)
    made = stmae.maps(
        tmp_path / "videos", model=str(run), out=tmp_path / "out", image_size=64, frames=12, layer=3, precision="fp32"
    )
    assert made.videos == ["clock.mp4"]
    assert list(made.bad) == ["broken.mp4"]
    assert {path.name for path in made.pictures} == {"clock.gif", "clock.mp4", "clock.png"}
    with Image.open(tmp_path / "out" / "clock.gif") as image:
        assert getattr(image, "n_frames", 1) == 6  # a step of the grid each
    assert "broken.mp4" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"frames 7 is not a multiple of the patch's 2\. Choose 6 or 8"):
        stmae.maps(tmp_path / "videos", model=str(run), frames=7)


@pytest.mark.slow
def test_a_mask_of_one_s_own(run: Path, tmp_path: Path) -> None:
    write_clock(tmp_path / "clock.mp4", seconds=2.0)
    drawn = np.zeros((48, 64), bool)
    drawn[24:, 32:] = True
    mask = saved(tmp_path / "mask.png", drawn)
    made = stmae.reconstruct(tmp_path / "clock.mp4", model=str(run), mask=mask, out=tmp_path / "out", precision="fp32")
    assert list(made.scores) == [0.25]
    assert {path.name for path in made.pictures} == {"clock.gif", "clock.mp4", "clock.png", "clock-painted.mp4"}
    with av.open(str(tmp_path / "out" / "clock-painted.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 4
    assert frames[0].shape == (32, 32, 3)
    with pytest.raises(UserError, match="mask_ratio has no meaning with a mask of your own"):
        stmae.reconstruct(tmp_path / "clock.mp4", model=str(run), mask=mask, mask_ratio=(0.9,))
