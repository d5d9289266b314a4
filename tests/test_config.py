"""Configurations: they survive JSON, and every mistake is named at once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import changed, tiny_config

from stmae.errors import UserError
from stmae.model.config import (
    BlocksConfig,
    ClassifierConfig,
    ClipConfig,
    DecoderConfig,
    EncoderConfig,
    MaeConfig,
    as_dict,
    from_dict,
)
from stmae.model.sizes import SIZES, mae_config


@st.composite
def clips(draw):
    patch = tuple(draw(st.integers(1, 16)) for _ in range(3))
    frames, height, width = (step * draw(st.integers(2, 20)) for step in patch)
    channels = draw(st.integers(1, 5))
    values = st.floats(0.01, 1)
    mean = tuple(draw(st.lists(values, min_size=channels, max_size=channels)))
    std = (draw(values),)
    return ClipConfig(frames=frames, height=height, width=width, channels=channels, patch=patch, mean=mean, std=std)


@st.composite
def blocks(draw):
    heads = draw(st.integers(1, 16))
    sizes = {"depth": draw(st.integers(1, 40)), "mlp_width": draw(st.integers(1, 9999))}
    return BlocksConfig(
        width=heads * draw(st.integers(1, 64)), heads=heads, qkv_bias=draw(st.booleans()), norm_eps=1e-5, **sizes
    )


layouts = {
    "positions": st.sampled_from(["separable", "joint"]),
    "position_values": st.sampled_from(["learned", "learned_from_sincos", "sincos"]),
}
encoders = st.builds(EncoderConfig, clip=clips(), blocks=blocks(), class_token=st.booleans(), **layouts)
decoders = st.builds(DecoderConfig, blocks=blocks(), class_token=st.sampled_from(["own", "none"]), **layouts)
maes = st.builds(
    MaeConfig,
    encoder=encoders,
    decoder=decoders,
    mask_ratio=st.floats(0.1, 0.5),
    visible_count=st.sampled_from(["exact", "float"]),
    target=st.sampled_from(["normalized_pixels", "pixels"]),
    predict_frames=st.sampled_from(["strided", "linspace", "all"]),
    mask_tokens_in_encoder=st.booleans(),
)
classifiers = st.builds(ClassifierConfig, encoder=encoders, classes=st.integers(1, 999), dropout=st.floats(0, 0.9))


@given(config=st.one_of(encoders, maes, classifiers))
@settings(max_examples=60, deadline=None)
def test_a_configuration_survives_json(config):
    again = from_dict(json.loads(json.dumps(as_dict(config))))
    assert again == config
    assert type(again) is type(config)
    assert hash(again) == hash(config)  # tuples are tuples again, at every depth


@pytest.mark.parametrize("size", SIZES)
def test_every_size_survives_json(size):
    assert from_dict(json.loads(json.dumps(as_dict(mae_config(size))))) == mae_config(size)


def mistakes(make, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    text = str(caught.value)
    for part in parts:
        assert part in text, text
    assert len(caught.value.problems) == len(parts), text


def test_all_mistakes_of_a_clip_are_named_at_once():
    mistakes(
        lambda: ClipConfig(frames=15, height=220, width=5, channels=3, mean=(0.1, 0.2), std=(0.0,)),
        "frames 15 is not a multiple of the patch's 2. Choose 14 or 16.",
        "height 220 is not a multiple of the patch's 16. Choose 208 or 224.",
        "width 5 is not a multiple of the patch's 16. Choose 16.",
        "mean has 2 values for 3 channels. Give 1 or 3.",
        "std is (0.0,). Every value must be above 0.",
    )


def test_all_mistakes_of_blocks_are_named_at_once():
    mistakes(
        lambda: BlocksConfig(width=100, depth=0, heads=3, mlp_width=-1),
        "depth is 0.",
        "mlp_width is -1.",
        "width 100 cannot be split over 3 heads.",
    )


def test_all_mistakes_of_an_autoencoder_are_named_at_once():
    one_token = ClipConfig(frames=2, height=8, width=8, patch=(2, 8, 8))
    stack = BlocksConfig(width=8, depth=1, heads=1, mlp_width=8)
    mistakes(
        lambda: MaeConfig(
            encoder=EncoderConfig(clip=one_token, blocks=stack, class_token=False),
            decoder=DecoderConfig(blocks=stack, class_token="encoder"),
            mask_ratio=1.0,
        ),
        "mask ratio 1.0 leaves nothing visible.",
        "the clip has a single token.",
        "the decoder takes the class token from an encoder that has none",
    )


@pytest.mark.parametrize("ratio, what", [(0, "hidden"), (-0.5, "hidden"), (1, "visible"), (1.5, "visible")])
def test_ratios_that_leave_nothing(ratio, what):
    with pytest.raises(UserError, match=f"mask ratio {ratio} leaves nothing {what}"):
        tiny_config(mask_ratio=ratio)


@pytest.mark.parametrize("name", ["frames", "height", "width", "channels"])
def test_nothing_may_be_empty(name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        ClipConfig(**{name: 0})
    with pytest.raises(UserError, match="patch of 0"):
        ClipConfig(patch=(2, 0, 16))


@pytest.mark.parametrize(
    "option, value, meant",
    [
        ("positions", "seperable", "separable"),
        ("position_values", "sincoss", "sincos"),
        ("decoder_class_token", "owned", "own"),
        ("target", "pixel", "pixels"),
        ("predict_frames", "lin-space", "linspace"),
        ("visible_count", "exactly", "exact"),
    ],
)
def test_a_misspelt_choice_is_refused_and_the_right_one_named(option, value, meant):
    """Each of these would otherwise be some other choice in silence."""
    with pytest.raises(UserError, match=f'"{value}".*"{meant}"'):
        tiny_config(**{option: value})


def test_a_classifier_needs_classes_and_a_share_to_drop():
    with pytest.raises(UserError, match="classes"):
        ClassifierConfig(encoder=tiny_config().encoder, classes=0)
    with pytest.raises(UserError, match="dropout"):
        ClassifierConfig(encoder=tiny_config().encoder, classes=2, dropout=1.5)


def test_what_from_dict_refuses():
    good = as_dict(tiny_config())
    with pytest.raises(UserError, match='model kind "mea" is unknown'):
        from_dict({**good, "kind": "mea"})
    with pytest.raises(UserError, match="kind"):
        from_dict({name: value for name, value in good.items() if name != "kind"})
    with pytest.raises(UserError, match="MaeConfig has no color, flavour"):
        from_dict({**good, "flavour": 1, "color": 2})
    with pytest.raises(UserError, match="BlocksConfig has no window"):
        from_dict({**good, "decoder": {**good["decoder"], "blocks": {**good["decoder"]["blocks"], "window": 7}}})
    with pytest.raises(UserError, match=r"MaeConfig.*decoder"):
        from_dict({name: value for name, value in good.items() if name != "decoder"})
    with pytest.raises(UserError, match="DecoderConfig cannot be made of 3"):
        from_dict({**good, "decoder": 3})
    with pytest.raises(UserError, match="mask ratio 2"):
        from_dict({**good, "mask_ratio": 2})


def test_derived_numbers_of_the_paper():
    config = mae_config("vit_large")
    clip = config.encoder.clip
    assert (clip.grid, clip.tokens, clip.patch_values) == ((8, 14, 14), 1568, 1536)
    assert (config.target_frames, config.target_values) == (1, 768)
    everything = changed(config, predict_frames="all")
    assert (everything.target_frames, everything.target_values) == (2, 1536)
