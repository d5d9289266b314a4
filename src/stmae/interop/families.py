"""Whose checkpoints are known: one table per project, facts of its file format and of its published models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ..errors import UserError
from .naming import Family

FamilyName = Literal["mae_st", "slowfast", "videomae", "videomae_hf", "mae_image"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}  # vit_small to vit_giant

_ENCODER = {
    "encoder.class_token": "cls_token",
    "encoder.positions.spatial": "pos_embed_spatial",
    "encoder.positions.temporal": "pos_embed_temporal",
    "encoder.positions.class_position": "pos_embed_class",
    "encoder.positions.joint": "pos_embed",
    "encoder.patch_embed.": "patch_embed.",
    "encoder.blocks.": "blocks.",
    "encoder.norm.": "norm.",
}
_DECODER = {
    "decoder.blocks.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.embed.": "decoder_embed.",
    "decoder.head.": "decoder_pred.",
    "decoder.mask_token": "mask_token",
    "decoder.positions.joint": "decoder_pos_embed",
}

MAE_ST = Family(
    project="facebookresearch/mae_st",
    licence="CC-BY-NC 4.0 (not for commercial use)",
    licence_id="cc-by-nc-4.0",
    names=_ENCODER
    | _DECODER
    | {
        "decoder.class_token": "decoder_cls_token",
        "decoder.positions.spatial": "decoder_pos_embed_spatial",
        "decoder.positions.temporal": "decoder_pos_embed_temporal",
        "decoder.positions.class_position": "decoder_pos_embed_class",
    },
    classifier_names=_ENCODER | {"head.": "head."},
    qkv="split",
    heads=VIT_HEADS,
    decoder_heads={512: 16},
    guessed_decoder_heads=True,
    one_frame="linspace",
)

SLOWFAST = Family(
    project="facebookresearch/SlowFast",
    licence="Apache-2.0, which is the repository's; the files state none",
    licence_id="apache-2.0",
    names=_ENCODER
    | {
        "decoder.blocks.": "pred_head.transforms.0.",
        "decoder.embed.": "decoder_embed.",
        "decoder.head.": "pred_head.projections.0.",
        "decoder.mask_token": "mask_token",
        "decoder.positions.joint": "decoder_pos_embed",
    },
    classifier_names=_ENCODER | {"head.": "head.projection."},
    qkv="fused",
    decoder_norm="pred_head.transforms.0",
    heads=VIT_HEADS,
    decoder_heads={width: width // 64 for width in range(64, 2049, 64)},  # its rule
    decoder_class_token="encoder",
)

VIDEOMAE = Family(
    project="MCG-NJU/VideoMAE or OpenGVLab/VideoMAEv2",
    licence="CC-BY-NC 4.0 (not for commercial use); v2's by each file's page on the hub",
    licence_id="cc-by-nc-4.0",
    names={
        "encoder.patch_embed.": "encoder.patch_embed.",
        "encoder.blocks.": "encoder.blocks.",
        "encoder.norm.": "encoder.norm.",
        "decoder.embed.": "encoder_to_decoder.",
        "decoder.mask_token": "mask_token",
        "decoder.blocks.": "decoder.blocks.",
        "decoder.norm.": "decoder.norm.",
        "decoder.head.": "decoder.head.",
    },
    classifier_names={
        "encoder.patch_embed.": "patch_embed.",
        "encoder.blocks.": "blocks.",
        "encoder.norm.": "fc_norm.",
        "head.": "head.",
    },
    qkv="fused_qv_bias",
    positions="sincos",
    heads=VIT_HEADS,
    decoder_heads={192: 3, 384: 6, 512: 8, 640: 8},
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    target="normalized_pixels_per_channel",
)

VIDEOMAE_HF = Family(
    project="transformers' VideoMAE",
    licence="said by each model's card",
    licence_id="",
    names={
        "encoder.patch_embed.proj.": "videomae.embeddings.patch_embeddings.projection.",
        "encoder.blocks.": "videomae.encoder.layer.",
        "encoder.norm.": "videomae.layernorm.",
        "decoder.embed.": "encoder_to_decoder.",
        "decoder.mask_token": "mask_token",
        "decoder.blocks.": "decoder.decoder_layers.",
        "decoder.norm.": "decoder.norm.",
        "decoder.head.": "decoder.head.",
    },
    classifier_names={
        "encoder.patch_embed.proj.": "videomae.embeddings.patch_embeddings.projection.",
        "encoder.blocks.": "videomae.encoder.layer.",
        "encoder.norm.": "fc_norm.",
        "head.": "classifier.",
    },
    block={
        "attn.q.": "attention.attention.query.",
        "attn.k.": "attention.attention.key.",
        "attn.v.": "attention.attention.value.",
        "attn.q_bias": "attention.attention.q_bias",  # before transformers 5
        "attn.v_bias": "attention.attention.v_bias",
        "attn.proj.": "attention.output.dense.",
        "mlp.fc1.": "intermediate.dense.",
        "mlp.fc2.": "output.dense.",
        "norm1.": "layernorm_before.",
        "norm2.": "layernorm_after.",
    },
    qkv="split_qv_bias",
    positions="sincos",
    options={
        "num_attention_heads": "num_heads",
        "decoder_num_attention_heads": "decoder_num_heads",
        "layer_norm_eps": "norm_eps",
        "image_size": "img_size",
        "tubelet_size": "t_patch_size",
    },
    heads=VIT_HEADS,
    norm_eps=1e-12,
    head_norm_eps=1e-5,
    prefix="videomae.",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    target="normalized_pixels_per_channel",
)

MAE_IMAGE = Family(
    project="facebookresearch/mae",
    licence="CC-BY-NC 4.0 (not for commercial use)",
    licence_id="cc-by-nc-4.0",
    names=_ENCODER | _DECODER,
    classifier_names=_ENCODER | {"encoder.norm.": "fc_norm.", "head.": "head."},
    qkv="fused",
    heads=VIT_HEADS,
    decoder_heads={512: 16},
    decoder_class_token="encoder",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    mask_ratio=0.75,
    image=True,
)

FAMILIES: dict[FamilyName, Family] = {
    "mae_st": MAE_ST,
    "slowfast": SLOWFAST,
    "videomae": VIDEOMAE,
    "videomae_hf": VIDEOMAE_HF,
    "mae_image": MAE_IMAGE,
}


def recognise(state: Mapping[str, Tensor]) -> FamilyName:
    """Whose checkpoint a state dict is of, by its names and shapes.

    Raises:
        UserError: nobody's that is known.
    """
    kernel = state.get("patch_embed.proj.weight", state.get("encoder.patch_embed.proj.weight"))
    if any("patch_embeddings.projection" in name for name in state):
        return "videomae_hf"
    if any(name.startswith(("pred_head.transforms.", "head.projection.")) for name in state):
        return "slowfast"
    if any(name.endswith(".attn.q_bias") for name in state) or "encoder_to_decoder.weight" in state:
        return "videomae"
    if any(name.endswith(".attn.q.weight") for name in state):
        return "mae_st"
    if kernel is not None and kernel.ndim == 4:
        return "mae_image"
    if "pos_embed_spatial" in state:
        return "slowfast"
    some = ", ".join(list(state)[:4]) or "none at all"
    raise UserError(
        f"the checkpoint's names are not those of a known family: {some}, ...",
        f"Known are {', '.join(FAMILIES)}; name one with family= if it is.",
    )
