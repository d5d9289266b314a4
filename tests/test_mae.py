"""The method as a whole: what it may see, what it computes, that it learns, that it is the same every time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import references
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import changed, random_clip, tiny, tiny_config
from torch import nn

from stmae.model.config import ClassifierConfig, MaeConfig
from stmae.model.heads import Classifier
from stmae.model.mae import MaskedAutoencoder
from stmae.model.patches import patchify, unpatchify
from stmae.model.sizes import create_model
from stmae.model.transformer import Block

KEYS = torch.tensor([3, -4])

# Every switch at least once in every value; the paper's defaults first.
VARIANTS = {
    "default": {},
    "mae_st": {"predict_frames": "linspace", "visible_count": "float"},
    "all frames, pixels": {"predict_frames": "all", "target": "pixels"},
    "no class token": {"class_token": False},
    "class token of the encoder": {"decoder_class_token": "encoder"},
    "class token in the encoder only": {"decoder_class_token": "none"},
    "class token in the decoder only": {"class_token": False, "decoder_class_token": "own"},
    "joint": {"positions": "joint"},
    "joint, no class token": {"positions": "joint", "class_token": False},
    "sincos": {"position_values": "sincos"},
    "joint sincos": {"positions": "joint", "position_values": "sincos"},
    "learned from sincos": {"position_values": "learned_from_sincos"},
    "mask tokens in the encoder": {"mask_tokens_in_encoder": True},
    "mask tokens, class token of the encoder": {"mask_tokens_in_encoder": True, "decoder_class_token": "encoder"},
    "mask tokens, no class token": {"mask_tokens_in_encoder": True, "class_token": False},
    "linear head": {"mask_tokens_in_encoder": True, "decoder": "linear"},
    "cross-attention": {"decoder": "cross_attention"},
    "cross-attention, no class token, half": {
        "decoder": "cross_attention", "class_token": False, "decode": "random", "decode_share": 0.5,
    },
    "running cell": {"decode": "running_cell", "decode_share": 0.3},
    "mask tokens, random share": {"mask_tokens_in_encoder": True, "decode": "random", "decode_share": 0.7},
    "linear head, random share": {"mask_tokens_in_encoder": True, "decoder": "linear", "decode": "random"},
    "tubes": {"mask": "space"},
    "whole time steps": {"mask": "time"},
    "boxes": {"mask": "block"},
    "one channel": {"channels": 1},
    "five channels, linspace": {"channels": 5, "predict_frames": "linspace"},
    "flat patches": {"patch": (1, 8, 8)},
    "odd patches": {"patch": (4, 4, 6), "shape": (8, 12, 18), "predict_frames": "all"},
}  # fmt: skip
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


def normalised(clip: torch.Tensor, config: MaeConfig) -> np.ndarray:
    return references.normalise(clip.numpy(), config.encoder.clip.mean, config.encoder.clip.std)


def check_against_slow(model: MaskedAutoencoder, clip: torch.Tensor) -> None:
    config = model.config
    floats = normalised(clip, config)
    out = model(torch.from_numpy(floats), keys=torch.arange(len(clip)))
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    hidden, decoded = out.hidden.numpy(), out.decoded.numpy()
    patches, targets = references.patchify(floats, config.encoder.clip.patch), references.targets(floats, config)
    errors = []
    for b in range(len(clip)):
        slow = references.autoencode(weights, patches[b], hidden[b], config, decoded[b])
        target = targets[b][decoded[b]]
        np.testing.assert_allclose(out.latent[b].detach().numpy(), slow["latent"], atol=1e-9)
        np.testing.assert_allclose(out.prediction[b].detach().numpy(), slow["prediction"], atol=1e-9)
        np.testing.assert_allclose(out.target[b].numpy(), target, atol=1e-9)
        errors.append([np.mean((row - want) ** 2) for row, want in zip(slow["prediction"], target, strict=True)])
    assert out.loss.item() == pytest.approx(np.mean(errors), rel=1e-9)


@variants
def test_the_whole_model_is_the_slow_one(options):
    """Proves that what the fast one leaves out is not needed: token order, visible tokens in the last block."""
    model = tiny(**options)
    check_against_slow(model, random_clip(model.config))


@pytest.mark.parametrize("class_token", [True, False])
def test_features_and_classifier_are_the_slow_ones(class_token):
    """The encoder's features are normed token by token; the classifier averages first, then norms (paper.md, 1.3)."""
    base = tiny(class_token=class_token)
    clip = normalised(random_clip(base.config), base.config)
    model = Classifier(ClassifierConfig(encoder=base.config.encoder, classes=5)).double()
    model.encoder.load_state_dict(base.encoder.state_dict())
    enc = {name: value.numpy() for name, value in base.encoder.state_dict().items()}
    head = model.head.weight.detach().numpy()
    features, logits = base.encoder(torch.from_numpy(clip)).detach(), model(torch.from_numpy(clip)).detach()
    for b, patches in enumerate(references.patchify(clip, (2, 8, 8))):
        tokens = references.encode_all(enc, patches, base.config.encoder)
        norm = enc["norm.weight"], enc["norm.bias"]
        np.testing.assert_allclose(features[b], references.layer_norm(tokens, *norm).mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(logits[b], references.layer_norm(tokens.mean(axis=0), *norm) @ head.T, atol=1e-11)


@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)).filter(lambda grid: np.prod(grid) > 1),
    patch=st.tuples(st.integers(1, 3), st.integers(2, 4), st.integers(1, 4)),
    channels=st.integers(1, 4),
    ratio=st.sampled_from([0.2, 0.5, 0.75, 0.9, 0.99]),
    frames=st.sampled_from(["strided", "linspace", "all"]),
    class_token=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_clip_any_patch_any_ratio(grid, patch, channels, ratio, frames, class_token):
    shape = tuple(n * p for n, p in zip(grid, patch, strict=True))
    options = {"shape": shape, "patch": patch, "channels": channels, "mask_ratio": ratio, "depth": 1}
    model = tiny(**options, predict_frames=frames, class_token=class_token, target="pixels")
    check_against_slow(model, random_clip(model.config, batch=1))


# What the encoder may see --------------------------------------------------------------------------------------------


@variants
def test_hidden_pixels_never_reach_the_encoder(options):
    model = tiny(**options)
    clip, patch = random_clip(model.config), model.config.encoder.clip.patch
    first = model(clip, keys=KEYS)
    patches = patchify(clip, patch)
    other = torch.where(first.hidden[..., None], 255 - patches, patches)
    second = model(unpatchify(other, model.config.encoder.clip.grid, patch), keys=KEYS)
    assert torch.equal(first.latent, second.latent)
    assert torch.equal(first.prediction, second.prediction)
    assert not torch.equal(first.target, second.target)
    assert first.loss != second.loss


def test_every_visible_pixel_does():
    model = tiny()
    clip = torch.from_numpy(normalised(random_clip(model.config), model.config)).requires_grad_()
    out = model(clip, keys=KEYS)
    out.latent.square().sum().backward()
    reached = patchify(clip.grad, (2, 8, 8)) != 0
    assert torch.equal(reached.all(dim=2), ~out.hidden)
    assert torch.equal(reached.any(dim=2), ~out.hidden)


def test_the_encoder_is_given_visible_tokens_only():
    model, lengths = tiny(), []
    for block in model.encoder.blocks:
        block.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape))
    model.encoder.patch_embed.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape))
    model(random_clip(model.config), keys=KEYS)
    assert lengths == [(2, 6, 2 * 8 * 8 * 3), (2, 1 + 6, 16), (2, 1 + 6, 16)]
    with_mask_tokens, seen = tiny(mask_tokens_in_encoder=True), []
    with_mask_tokens.encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    out = with_mask_tokens(random_clip(model.config), keys=KEYS)
    assert seen == [(2, 1 + 24, 16)]
    assert out.latent.shape == (2, 6, 16)


def test_the_last_projection_works_on_hidden_tokens_only():
    model, shapes = tiny(), []
    model.decoder.head.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    model.decoder.blocks[-1].mlp.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    model(random_clip(model.config), keys=KEYS)
    assert shapes == [(2, 18, 24), (2, 18, 24)]


# Equal ways to the same numbers --------------------------------------------------------------------------------------


@variants
def test_uint8_is_the_same_as_normalised_floats(options):
    model = tiny(**options).float()
    clip = random_clip(model.config)
    floats = torch.from_numpy(normalised(clip, model.config)).float()
    first, second = model(clip, keys=KEYS), model(floats, keys=KEYS)
    torch.testing.assert_close(first.prediction, second.prediction, rtol=0, atol=1e-5)
    torch.testing.assert_close(first.target, second.target, rtol=0, atol=1e-4)
    torch.testing.assert_close(first.loss, second.loss, rtol=1e-5, atol=0)


def test_a_mean_and_deviation_per_channel_are_taken_per_channel():
    options = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "target": "pixels"}
    model = tiny(**options).float()
    clip = random_clip(model.config)
    floats = torch.from_numpy(normalised(clip, model.config)).float()
    torch.testing.assert_close(model(clip, keys=KEYS).loss, model(floats, keys=KEYS).loss)
    assert not torch.allclose(tiny(target="pixels").float()(clip, keys=KEYS).target, model(clip, keys=KEYS).target)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tail", [1, 5, 9])
def test_a_block_on_its_tail_is_the_end_of_the_whole_block(tail, bias):
    torch.manual_seed(0)
    block = Block(changed(tiny_config().encoder.blocks, qkv_bias=bias)).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x, tail=tail), block(x)[:, -tail:], rtol=0, atol=1e-12)


def test_clips_of_a_batch_do_not_mix():
    model = tiny()
    clip = random_clip(model.config)
    together = model(clip, keys=KEYS)
    for b in range(2):
        alone = model(clip[b : b + 1], keys=KEYS[b : b + 1])
        torch.testing.assert_close(alone.prediction[0], together.prediction[b], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"positions": "joint"}], ids=["separable", "joint"])
def test_other_sizes_than_the_models_own(options):
    model = tiny(**options)
    out = model(torch.randint(0, 256, (2, 3, 12, 24, 8), dtype=torch.uint8), keys=KEYS)
    assert out.hidden.shape == (2, 6 * 3 * 1)
    assert (~out.hidden).sum(dim=1).tolist() == [4, 4]
    assert out.loss.isfinite()


def test_autocast_keeps_norms_and_loss_in_float32():
    model, kinds = tiny().float(), set()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _, __, out: kinds.add(out.dtype))
    clip = random_clip(model.config)
    exact = model(clip, keys=KEYS)
    kinds.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(clip, keys=KEYS)
    assert kinds == {torch.float32}
    assert rough.loss.dtype == rough.target.dtype == torch.float32
    assert rough.prediction.dtype == torch.bfloat16
    assert torch.equal(rough.target, exact.target)
    torch.testing.assert_close(rough.loss, exact.loss, rtol=2e-2, atol=0)


@pytest.mark.parametrize("floats", [False, True], ids=["uint8", "floats"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_models_of_other_precisions(dtype, floats):
    model = tiny().float()
    clip = random_clip(model.config)
    exact = model(clip, keys=KEYS)
    given = torch.from_numpy(normalised(clip, model.config)).float() if floats else clip
    out = model.to(dtype)(given, keys=KEYS)
    assert out.latent.dtype == out.prediction.dtype == dtype
    torch.testing.assert_close(out.loss, exact.loss, rtol=5e-2, atol=0, check_dtype=False)


# Training ------------------------------------------------------------------------------------------------------------


@variants
def test_the_gradient_reaches_every_parameter(options):
    model = tiny(**options)
    model(random_clip(model.config), keys=KEYS).loss.backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert "sincos" in model.config.encoder.position_values
            continue
        assert parameter.grad is not None, name
        parts = parameter.grad.chunk(3) if name.endswith("qkv.bias") else [parameter.grad]
        for i, part in enumerate(parts):
            if len(parts) == 3 and i == 1:  # a key's bias adds the same to all scores of a query: no gradient
                assert part.abs().max() < 1e-12, name
            elif name.endswith("class_token") or "positions" in name or "mask_token" in name:
                assert part.abs().max() > 1e-9, name
            else:
                assert (part != 0).float().mean() > 0.9, (name, i)


def moving_square(config: MaeConfig) -> torch.Tensor:
    """A soft bright square that moves over a gradient, (1, C, T, H, W) uint8."""
    clip = config.encoder.clip
    T, H, W = clip.shape
    t, y, x = np.meshgrid(*(np.arange(n) for n in (T, H, W)), indexing="ij")
    far = np.maximum(np.abs(y - H / 2), np.abs(x - 4 - 2 * t))
    picture = 60 + 80 * x / W + 100 / (1 + np.exp(far - 5))
    return torch.from_numpy(np.stack([picture, picture * 0.7, 255 - picture]).astype(np.uint8))[None]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"target": "pixels"}], ids=["normalised", "pixels"])
def test_one_clip_can_be_learned_by_heart(options):
    torch.manual_seed(0)
    model = MaskedAutoencoder(tiny_config(shape=(8, 32, 32), width=48, **options))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    clip, losses = moving_square(model.config), []
    for _ in range(120):
        loss = model(clip, keys=KEYS[:1]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def train(threads: int, steps: int = 2) -> tuple[list[float], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = create_model("vit_tiny", frames=8, image_size=96, decoder_width=128, decoder_depth=2)
        model.encoder.blocks = model.encoder.blocks[:2]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for step in range(steps):
            out = model(random_clip(model.config, batch=4, seed=step), keys=torch.arange(4) + 4 * step)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            losses.append(out.loss.item())
        return losses, model.state_dict()
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_two_runs_are_equal_bit_for_bit():
    """On two threads, at sizes where operations are split over them; no operation without a deterministic version."""
    demanded = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        (first, weights), (second, again) = train(threads=2), train(threads=2)
    finally:
        torch.use_deterministic_algorithms(demanded)
    assert first == second
    assert all(torch.equal(weights[name], again[name]) for name in weights)


# Making models -------------------------------------------------------------------------------------------------------


@variants
def test_a_model_made_without_memory_is_sane_once_its_parameters_are_reset(options):
    config = tiny_config(width=64, **options)
    torch.manual_seed(0)
    model = MaskedAutoencoder(config)
    with torch.device("meta"):
        made = MaskedAutoencoder(config)
    made.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in itertools.chain(made.parameters(), made.buffers()):
            tensor.fill_(float("nan"))  # the worst garbage that memory can hold
    for module in made.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, made.get_buffer(name)), name
    for name, parameter in model.named_parameters():
        other = made.get_parameter(name)
        assert other.requires_grad == parameter.requires_grad, name
        assert other.isfinite().all(), name
        if parameter.numel() < 200:
            same = (other == 0).all() == (parameter == 0).all() and (other == 1).all() == (parameter == 1).all()
            assert same, name
        else:
            assert other.std().item() == pytest.approx(parameter.std().item(), rel=0.3), name
    loss = made(random_clip(config), keys=KEYS).loss
    assert loss.item() == pytest.approx(model(random_clip(config), keys=KEYS).loss.item(), rel=0.2)


def test_classifier_on_meta_resets_too():
    config = tiny_config()
    with torch.device("meta"):
        made = Classifier(ClassifierConfig(encoder=config.encoder, classes=5))
    made.to_empty(device="cpu")
    for module in made.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    logits = made(random_clip(config))
    assert logits.shape == (2, 5)
    assert logits.abs().max() < 1e-3  # a new head starts almost silent


def test_initial_weights_are_the_references():
    """Xavier-uniform linear layers, q, k and v each for itself; zero biases; unit norms (paper.md, 1.10)."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(tiny_config(width=96))
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight") or ".norm1.weight" in name or ".norm2.weight" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias") or name == "decoder.class_token":
            assert (parameter == 0).all(), name
        elif parameter.ndim == 2 and name.endswith(".weight"):
            rows, columns = parameter.shape
            rows = rows // 3 if ".qkv." in name else rows
            bound = (6 / (rows + columns)) ** 0.5
            assert 0.98 * bound < parameter.abs().max() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name
        else:
            assert 0.015 < parameter.std() < 0.025, name
            assert parameter.abs().max() < 0.1, name
