"""The classifier: what is random in training follows from the clips' keys, and its file says what its outputs mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import random_clip, tiny_config
from torch import Tensor, nn

import stmae
from stmae.errors import UserError
from stmae.model.config import ClassifierConfig, as_dict, from_dict
from stmae.model.heads import Classifier
from stmae.model.masking import key_noise, key_uniform
from stmae.weights import save_weights

KEYS = torch.tensor([3, -5, 2**62, 11, 12, 13])


def classifier(**options: Any) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(encoder=tiny_config(depth=3).encoder, **{"classes": 5, **options})).double()
    nn.init.normal_(model.head.weight)
    return model.train()


def test_class_names_and_the_problem_live_in_the_file(tmp_path: Path) -> None:
    model = classifier(classes=2, class_names=("left", "right"), problem="multi", dropout=0.3).float()
    extras = {"model": as_dict(model.config), "clip": {"stride": 2.0}}
    save_weights(tmp_path / "classifier.safetensors", model.state_dict(), extras)
    loaded = stmae.load(tmp_path)
    assert isinstance(loaded, Classifier)
    assert not loaded.training
    assert loaded.config == model.config
    clip = random_clip(tiny_config())
    assert torch.equal(loaded(clip), model.eval()(clip))
    with pytest.raises(UserError, match="1 class names for 2 outputs"):
        ClassifierConfig(encoder=tiny_config().encoder, classes=2, class_names=("left",))
    with pytest.raises(UserError, match="unknown problem"):
        ClassifierConfig(encoder=tiny_config().encoder, classes=2, problem="multilabel")  # type: ignore[arg-type]


def test_a_regression_gives_values_in_their_own_unit(tmp_path: Path) -> None:
    plain = classifier(classes=2, problem="regression").eval()
    scaled = classifier(classes=2, problem="regression", shift=(10.0, 0.0), scale=(2.0, 0.5)).eval()
    clip = random_clip(tiny_config())
    values = scaled(clip)
    assert torch.allclose(values, plain(clip) * torch.tensor([2.0, 0.5]) + torch.tensor([10.0, 0.0]))
    assert torch.equal(scaled.scores(values), values)
    assert from_dict(as_dict(scaled.config)) == scaled.config
    assert scaled.state_dict().keys() == plain.state_dict().keys(), "they follow from the configuration"
    save_weights(tmp_path / "classifier.safetensors", scaled.float().state_dict(), {"model": as_dict(scaled.config)})
    assert torch.allclose(stmae.load(tmp_path)(clip).double(), values, atol=1e-5)


def test_scores() -> None:
    logits = torch.tensor([[0.0, 0.0, 100.0]])
    assert torch.allclose(classifier(classes=3).scores(logits), torch.tensor([[0.0, 0.0, 1.0]]))
    assert torch.allclose(classifier(classes=3, problem="multi").scores(logits), torch.tensor([[0.5, 0.5, 1.0]]))


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"drop_path": 0.5}, {"mask_ratio": 0.5}])
def test_what_is_random_is_the_same_in_any_batch(options: dict[str, float]) -> None:
    ratio = options.pop("mask_ratio", 0.0)
    model, clips = classifier(**options), random_clip(tiny_config(), batch=6)
    torch.manual_seed(1)
    whole = model(clips, keys=KEYS, mask_ratio=ratio)
    torch.manual_seed(2)
    parts = [model(clips[i : i + 2], keys=KEYS[i : i + 2], mask_ratio=ratio) for i in (0, 2, 4)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-12)
    assert not torch.allclose(whole, model(clips, keys=KEYS + 1, mask_ratio=ratio), atol=1e-3), "other keys: otherwise"
    assert not torch.allclose(whole, model.eval()(clips), atol=1e-3)
    assert torch.equal(model(clips), model(clips, keys=KEYS)), "nothing is random once it is trained"


def test_without_keys_they_are_drawn() -> None:
    model, clips = classifier(dropout=0.5), random_clip(tiny_config())
    assert not torch.equal(model(clips), model(clips))
    with pytest.raises(UserError, match="keys"):
        model(clips, keys=KEYS)


def test_drop_path_rises_to_the_last_block_and_keeps_the_mean() -> None:
    model = classifier(drop_path=0.4)
    shares = model._shares(torch.arange(20_000))
    assert shares is not None
    assert shares.shape == (20_000, 3, 2)
    assert (shares[:, 0] == 1).all(), "nothing is left out of the first block"
    for block, rate in ((1, 0.2), (2, 0.4)):
        assert shares[:, block].unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
        assert (shares[:, block] == 0).double().mean(0).tolist() == pytest.approx([rate, rate], abs=0.01)
    both = ((shares[:, 2] == 0).all(1)).double().mean().item()
    assert both == pytest.approx(0.16, abs=0.01), "the two branches are drawn apart"


def test_a_clip_whose_branches_are_all_left_out_passes_unchanged() -> None:
    model, clips = classifier(), random_clip(tiny_config())
    tokens = model.encoder.embed(*model.encoder.cut(clips))
    nothing, ones = torch.zeros(2, 3, 2), torch.ones(2, 3, 2)
    assert torch.equal(model.encoder.encode(tokens, nothing), tokens)
    assert torch.allclose(model.encoder.encode(tokens, ones), model.encoder.encode(tokens))


def test_streams_of_a_key_are_uniform_and_independent() -> None:
    keys = torch.arange(4000) * 7919

    def correlation(a: Tensor, b: Tensor) -> float:
        return abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item())

    one, two = key_uniform(keys, 8, 1), key_uniform(keys, 8, 2)
    assert 0 <= one.min() < 1e-3 < 1 - 1e-3 < one.max() < 1
    assert one.mean().item() == pytest.approx(0.5, abs=0.01)
    assert correlation(one, two) < 0.02
    assert correlation(one, key_noise(keys, 8).double()) < 0.02
    assert correlation(one[:, 0], one[:, 1]) < 0.05
