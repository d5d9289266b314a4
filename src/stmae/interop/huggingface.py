"""Folders that transformers' VideoMAE classes load, written without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..model.config import ClassifierConfig, EncoderConfig, MaeConfig
from ..weights import write_atomic, write_tensors
from .reference import Model, save_reference


def write_folder(folder: Path, model: Model) -> Path:
    """Writes config.json, preprocessor_config.json and model.safetensors.

    Raises:
        UserError: transformers' VideoMAE would not compute this model as it is; an unwritable folder.
    """
    state = save_reference(model, family="videomae_hf")
    config = folder_config(model)
    clip = _encoder(model).clip
    channels = clip.channels
    preprocessor = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "image_mean": list(clip.mean) * (channels if len(clip.mean) == 1 else 1),
        "image_std": list(clip.std) * (channels if len(clip.std) == 1 else 1),
        "size": {"shortest_edge": clip.height},
        "crop_size": {"height": clip.height, "width": clip.width},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "model.safetensors", state, {"format": "pt"})
        write_atomic(folder / "preprocessor_config.json", json.dumps(preprocessor, indent=2) + "\n")
        write_atomic(folder / "config.json", json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise UserError(f'"{folder}" cannot be written: {error.strerror or error}.', "Choose another --out.") from None
    return folder


def folder_config(model: Model) -> dict[str, Any]:
    """config.json of a model: transformers' `VideoMAEConfig`."""
    config, encoder = model.config, _encoder(model)
    clip, blocks = encoder.clip, encoder.blocks
    values: dict[str, Any] = {
        "model_type": "videomae",
        "architectures": ["VideoMAEModel"],
        "image_size": clip.height if clip.height == clip.width else [clip.height, clip.width],
        "patch_size": clip.patch[1] if clip.patch[1] == clip.patch[2] else list(clip.patch[1:]),
        "num_channels": clip.channels,
        "num_frames": clip.frames,
        "tubelet_size": clip.patch[0],
        "hidden_size": blocks.width,
        "num_hidden_layers": blocks.depth,
        "num_attention_heads": blocks.heads,
        "intermediate_size": blocks.mlp_width,
        "layer_norm_eps": blocks.norm_eps,
        "qkv_bias": blocks.qkv_bias,
        "qv_bias": blocks.qkv_bias,
        "use_mean_pooling": not encoder.norm,
    }
    if isinstance(config, ClassifierConfig):
        values |= {"architectures": ["VideoMAEForVideoClassification"], "use_mean_pooling": True}
        names = config.class_names or [str(number) for number in range(config.classes)]
        values["id2label"] = {str(number): name for number, name in enumerate(names)}
    if isinstance(config, MaeConfig):
        decoder = config.decoder.blocks
        values |= {
            "architectures": ["VideoMAEForPreTraining"],
            "decoder_hidden_size": decoder.width,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": decoder.mlp_width,
            "norm_pix_loss": True,
        }
    return values


def _encoder(model: Model) -> EncoderConfig:
    return model.config if isinstance(model.config, EncoderConfig) else model.config.encoder
