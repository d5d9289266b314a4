"""The sizes of the paper: parameters, and the multiply-adds of its Table 1."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stmae.errors import UserError
from stmae.model.config import MaeConfig
from stmae.model.mae import MaskedAutoencoder
from stmae.model.sizes import SIZES, create_model, mae_config, vit_giant


def on_meta(config: MaeConfig) -> MaskedAutoencoder:
    with torch.device("meta"):
        return MaskedAutoencoder(config)


def multiply_adds(config: MaeConfig) -> int:
    """Of one forward pass of one clip, as torch counts them (attention is counted rightly on the meta device)."""
    clip = config.encoder.clip
    video = torch.empty(1, clip.channels, *clip.shape, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        on_meta(config)(video)
    return counter.get_total_flops() // 2


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "name, millions",
    [("vit_base", 86.4), ("vit_large", 304.1), ("vit_huge", 631.9), ("vit_tiny", 5.7), ("vit_small", 22.0)],
)
def test_parameters_of_the_encoder(name, millions):
    assert round(count(on_meta(mae_config(name)).encoder) / 1e6, 1) == millions


def test_parameters_of_the_decoder():
    """About 13.6 M (paper.md, 1.5); the part that depends on the encoder is the first linear layer."""
    decoder = on_meta(mae_config("vit_large")).decoder
    blocks = 4 * (12 * 512 * 512 + 13 * 512)
    rest = (
        (1024 + 1) * 512 + 3 * 512 + (196 + 8) * 512 + 2 * 512 + (512 + 1) * 768
    )  # embed, tokens, positions, norm, head
    assert count(decoder) == blocks + rest
    assert count(decoder) / 1e6 == pytest.approx(13.6, abs=0.05)


def test_the_giant_is_videomae_v2s():
    blocks = vit_giant()
    assert (blocks.width, blocks.depth, blocks.heads, blocks.mlp_width) == (1408, 40, 16, 6144)
    assert count(on_meta(mae_config("vit_giant")).encoder) / 1e9 == pytest.approx(1.01, abs=0.005)


def test_multiply_adds_of_table_1_without_mask_tokens():
    """Paper: 81.0 G. Ours are fewer, by what the paper's code computes and throws away; the sum is the same."""
    N, V, M = 1568, 156, 1412  # tokens: all, visible, hidden
    P, D, d = 1536, 1024, 512  # values in a patch, widths of encoder and decoder

    def block(tokens: int, width: int) -> int:
        return 12 * width * width * tokens + 2 * width * tokens * tokens

    L = 1 + N
    tail = 2 * d * d * L + 10 * d * d * M + 2 * d * L * M  # keys and values of all, the rest of hidden tokens only
    expected = P * D * V + 24 * block(1 + V, D) + D * d * V + 3 * block(L, d) + tail + d * 768 * M
    ours = multiply_adds(mae_config("vit_large"))
    assert ours == expected
    assert ours / 1e9 == pytest.approx(78.67, abs=0.005)

    embedding_hidden_patches = P * D * (N - V)
    last_block_on_visible = block(L, d) - tail
    projecting_visible = d * 768 * (L - M)
    thrown_away = embedding_hidden_patches + last_block_on_visible + projecting_visible
    assert thrown_away / 1e9 == pytest.approx(2.2 + 0.7, abs=0.1)
    assert (ours + thrown_away) / 1e9 == pytest.approx(81.0, rel=0.01)


@pytest.mark.slow
def test_multiply_adds_of_table_1_with_mask_tokens():
    with_tokens = multiply_adds(mae_config("vit_large", mask_tokens_in_encoder=True))
    assert with_tokens / 1e9 == pytest.approx(627.5, rel=0.01)
    assert with_tokens / multiply_adds(mae_config("vit_large")) > 7.7  # the gain of the paper's Table 1


@pytest.mark.parametrize("name", SIZES)
def test_every_size_fits_together(name):
    blocks = SIZES[name]()
    assert blocks.width % blocks.heads == 0
    assert mae_config(name).encoder.blocks == blocks


def test_options_reach_the_model():
    model = create_model(
        "vit_tiny",
        frames=4,
        image_size=(32, 48),
        channels=1,
        patch=(1, 16, 16),
        mask_ratio=0.5,
        predict_frames="all",
        decoder_width=64,
        decoder_depth=1,
        decoder_heads=2,
        class_token=False,
        decoder_positions="joint",
    )
    out = model(torch.zeros(1, 1, 4, 32, 48, dtype=torch.uint8))
    assert model.config.encoder.clip.grid == (4, 2, 3)
    assert out.prediction.shape == (1, 12, 256)
    assert out.latent.shape == (1, 12, 192)
    assert model.encoder.class_token is None
    assert model.decoder.class_token is None
    assert model.config.encoder.positions == "separable"
    assert model.decoder.positions.layout == "joint"
    assert len(model.decoder.blocks) == 1


def test_an_unknown_size_names_the_nearest():
    with pytest.raises(UserError, match=r'unknown model "vit_lage".*"vit_large"'):
        create_model("vit_lage")
