"""Published models by name and shape, at full size on the meta device; small ones with numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published import FAMILIES, FILES, Size, by_formula, on_meta
from safetensors import safe_open
from safetensors.torch import save_file

from stmae.interop import load_reference, save_reference
from stmae.interop.families import FAMILIES as KNOWN
from stmae.interop.families import recognise
from stmae.model.config import EncoderConfig
from stmae.model.heads import Classifier
from stmae.model.mae import MaskedAutoencoder

# Full size -----------------------------------------------------------------------------------------------------------


QUICK = {"VIT_B_16x4_MAE_PT.pyth", "mae_pretrain_vit_base.pth", "vit_s_k710_dl_from_giant.pth"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
def test_names_and_shapes_at_full_size(name):
    family, size, millions = FILES[name]
    state = on_meta(FAMILIES[family](size))
    assert recognise(state) == family
    model = load_reference(state)
    config = model.config if isinstance(model.config, EncoderConfig) else model.config.encoder
    clip, blocks = config.clip, config.blocks
    assert clip.shape == (size.frames, size.image, size.image)
    assert clip.patch == (size.patch_frames, size.patch, size.patch)
    assert (blocks.width, blocks.depth, blocks.mlp_width) == (size.width, size.depth, size.mlp)
    assert blocks.heads == {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}[size.width]
    if size.decoder:
        assert isinstance(model, MaskedAutoencoder)
        decoder = model.config.decoder.blocks
        assert (decoder.width, decoder.depth, decoder.heads) == size.decoder
    elif size.classes:
        assert isinstance(model, Classifier)
        assert model.config.classes == size.classes
    encoder = model if config is model.config else model.encoder
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) / 1e6 == pytest.approx(millions, rel=0.025)
    back = save_reference(model, family=family)
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, sizes, decoder",
    [
        ("VideoMAEForVideoClassification", (384, 12, 6, 1536), (192, 3, 4)),
        ("VideoMAEModel", (768, 12, 12, 3072), (384, 6, 4)),
        ("VideoMAEForPreTraining", (1024, 24, 16, 4096), (512, 8, 12)),
    ],
    ids=["small", "base", "large"],
)
def test_the_published_sizes_of_transformers(kind, sizes, decoder):
    transformers = pytest.importorskip("transformers")
    width, depth, heads, mlp = sizes
    config = transformers.VideoMAEConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=mlp,
        decoder_hidden_size=decoder[0], decoder_num_attention_heads=decoder[1], decoder_num_hidden_layers=decoder[2],
        decoder_intermediate_size=4 * decoder[0], num_labels=400,
        use_mean_pooling=kind == "VideoMAEForVideoClassification",
    )  # fmt: skip
    with torch.device("meta"):
        theirs = getattr(transformers, kind)(config).state_dict()
    model = load_reference(theirs, config=config.to_dict())
    back = save_reference(model, family="videomae_hf")
    prefix = "videomae." if kind == "VideoMAEModel" else ""  # which transformers adds where it is missing
    assert {name: tensor.shape for name, tensor in back.items()} == {
        prefix + name: t.shape for name, t in theirs.items()
    }


# Small, with numbers -------------------------------------------------------------------------------------------------

HERE = Path(__file__).parent / "fixtures"
_SMALL: dict[str, Any] = {"width": 16, "depth": 2, "mlp": 24, "patch": 4, "frames": 4, "image": 12}
SMALL: dict[str, tuple[str, Size]] = {
    "mae_st_pretrain": ("mae_st", Size(**_SMALL, decoder=(8, 2, 2))),
    "mae_st_finetune": ("mae_st", Size(**_SMALL, classes=5)),
    "slowfast_pretrain": ("slowfast", Size(**_SMALL, decoder=(8, 2, 2))),
    "slowfast_finetune": ("slowfast", Size(**_SMALL, classes=5)),
    "videomae_pretrain": ("videomae", Size(**_SMALL, decoder=(8, 2, 2))),
    "videomae_finetune": ("videomae", Size(**_SMALL, classes=5)),
    "mae_image_pretrain": ("mae_image", Size(**{**_SMALL, "frames": 1}, patch_frames=1, decoder=(8, 2, 2))),
}


def computed(name: str) -> dict[str, torch.Tensor]:
    """What a model of weights by formula gives: outputs, loss and the length of every gradient, by their names."""
    family, size = SMALL[name]
    state = by_formula(FAMILIES[family](size))
    options = {"num_heads": 2, "decoder_num_heads": 2, "num_frames": size.frames, "img_size": size.image}
    model = load_reference(state, family=family, config=options)  # type: ignore[arg-type]
    B, (t, n) = 2, size.grid
    shape = (B, 3, size.frames, size.image, size.image)
    clip = torch.sin(0.9 * torch.arange(torch.Size(shape).numel(), dtype=torch.float64) ** 1.1).float().reshape(shape)
    if isinstance(model, Classifier):
        found = {"logits": model(clip)}
        loss = torch.nn.functional.cross_entropy(found["logits"], torch.tensor([1, 3]))
    else:
        assert isinstance(model, MaskedAutoencoder)
        noise = torch.sin(2.3 * torch.arange(B * t * n, dtype=torch.float64)).reshape(B, t * n)
        hidden = noise.argsort(dim=1).argsort(dim=1) >= t * n // 3
        out = model(clip, hidden=hidden)
        found, loss = {"latent": out.latent, "prediction": out.prediction}, out.loss
    loss.backward()
    for ours, parameter in model.named_parameters():
        length = torch.zeros(()) if parameter.grad is None else parameter.grad.norm()
        found[f"gradient.{ours}"] = length
    return {"loss": loss, **found}


@pytest.mark.parametrize("name", SMALL)
def test_numbers_of_small_models(name):
    """stmae wrote these files itself, while all numbers of the projects' own code agreed (test_parity, test_families):
    a clone without those sees here that nothing has changed since."""
    now = computed(name)
    with safe_open(str(HERE / f"{name}.safetensors"), framework="pt") as file:
        assert json.loads(file.metadata()["about"])["agreed_with"], "written after comparison with the projects' code"
        assert sorted(file.keys()) == sorted(now)
        for key, value in now.items():
            wanted = file.get_tensor(key)
            torch.testing.assert_close(
                value.detach(), wanted, rtol=1e-5, atol=1e-5 * max(1.0, wanted.abs().max().item())
            )


def test_the_small_models_are_told_apart():
    """The numbers would notice a mistake: every family computes another thing from like weights."""
    losses = {name: round(computed(name)["loss"].item(), 4) for name in SMALL}
    assert len(set(losses.values())) == len(losses)
    assert {family for family, _ in SMALL.values()} | {"videomae_hf"} == set(KNOWN)


if __name__ == "__main__":  # writes the files, once test_parity and test_families agree with the projects' numbers
    for each in SMALL:
        tensors = {key: value.detach().contiguous().clone() for key, value in computed(each).items()}
        about = {"agreed_with": "parity files of mae_st, SlowFast, VideoMAE and mae, to 1e-5"}
        save_file(tensors, HERE / f"{each}.safetensors", {"about": json.dumps(about)})
