"""Numbers computed by the reference implementations: outputs, gradients and checkpoints must agree.

`tests/fixtures` holds one file (Apache-2.0 has no say over numbers): `pretrain_all_frames`, without the gradients of
its larger matrices. The others are in the shared folder, where there is one.
"""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stmae.errors import UserError
from stmae.interop import load_reference, save_reference
from stmae.interop.families import FAMILIES
from stmae.interop.naming import to_theirs
from stmae.model.heads import Classifier
from stmae.model.mae import MaeOutput, MaskedAutoencoder
from stmae.model.patches import Positions

HERE = Path(__file__).parent / "fixtures"
PRETRAIN = ["pretrain_default", "pretrain_all_frames", "pretrain_joint_pos_no_cls", "pretrain_pixels"]
TOLERANCE = 1e-5


class Fixture:
    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(str(path), framework="pt") as file:
            self.config: dict[str, Any] = json.loads(file.metadata()["config"])
            self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.weights = self._under("weights.")
        self.grads = self._under("grads.")

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def load(self) -> Any:
        return load_reference(self.weights, family="mae_st", config=self.config)


@pytest.fixture(params=["own copy", *PRETRAIN])
def pretrained(request: pytest.FixtureRequest) -> Fixture:
    if request.param == "own copy":
        return Fixture(HERE / "pretrain_all_frames.safetensors")
    return Fixture(request.getfixturevalue("shared") / "parity" / f"{request.param}.safetensors")


@pytest.fixture
def own() -> Fixture:
    return Fixture(HERE / "pretrain_all_frames.safetensors")


@pytest.fixture
def finetuned(shared: Path) -> Fixture:
    return Fixture(shared / "parity" / "finetune_default.safetensors")


def close(ours: Tensor, theirs: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE * scale)


def run(fixture: Fixture) -> tuple[MaskedAutoencoder, MaeOutput]:
    model = fixture.load()
    return model, model(fixture["input"], noise=fixture["noise"])


def test_forward(pretrained):
    _, out = run(pretrained)
    assert torch.equal(out.hidden.float(), pretrained["mask"])
    # Theirs are in the order of ascending noise, ours in token order.
    kept = pretrained["noise"].argsort(dim=1)[:, : out.visible.shape[1]]
    by_token, order = kept.sort(dim=1)
    assert torch.equal(by_token, out.visible)
    close(out.latent, torch.take_along_dim(pretrained["latent"], order[..., None], dim=1))
    close(out.prediction, torch.take_along_dim(pretrained["pred"], out.hidden_ids[..., None], dim=1))
    close(out.loss, pretrained["loss"].reshape(()))


def test_gradients(pretrained):
    model, out = run(pretrained)
    out.loss.backward()
    ours = to_theirs({name: p.grad for name, p in model.named_parameters()}, model.config, FAMILIES["mae_st"])
    assert set(ours) == set(pretrained.weights)
    assert set(pretrained.grads) <= set(ours)
    assert len(pretrained.grads) >= 60
    for name, theirs in pretrained.grads.items():
        # A key's bias cannot change a softmax: its gradient is rounding, so it is compared as it is.
        close(ours[name], theirs, 1.0 if name.endswith("attn.k.bias") else theirs.abs().max().item())


def test_classifier(finetuned):
    model = finetuned.load()
    assert isinstance(model, Classifier)
    close(model(finetuned["input"]), finetuned["logits"])
    check_round_trip(model, finetuned.weights)


def check_round_trip(model: Any, weights: dict[str, Tensor]) -> None:
    back = save_reference(model, family="mae_st")
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        assert back[name].dtype == value.dtype, name
        assert torch.equal(back[name], value), name


def test_checkpoints_go_in_and_out_bit_for_bit(pretrained):
    model = pretrained.load()
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    check_round_trip(model, pretrained.weights)


def test_weights_are_copied_not_shared(own):
    model = own.load()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert own.weights["blocks.0.mlp.fc1.weight"].abs().sum() > 0


@pytest.mark.parametrize("wrap", ["model", "model_state", "module", None])
def test_checkpoints_from_disk(own, tmp_path, wrap):
    """The official files hold the training script's command line, an `argparse.Namespace`."""
    path = tmp_path / "checkpoint.pth"
    args = argparse.Namespace(lr=1e-4, output_dir="runs", nested=argparse.Namespace(x=[1, 2]))
    whole = {wrap: own.weights, "args": args, "epoch": 3} if wrap else own.weights
    torch.save(whole, path)
    model = load_reference(path, family="mae_st", config=own.config)
    check_round_trip(model, own.weights)
    safe = tmp_path / "checkpoint.safetensors"
    save_file(own.weights, safe, metadata={"config": json.dumps(own.config)})
    check_round_trip(load_reference(safe, family="mae_st"), own.weights)
    check_round_trip(load_reference(own.path, family="mae_st"), own.weights)


def test_heads_are_asked_for_where_nothing_tells_them(own):
    options = {name: value for name, value in own.config.items() if name != "num_heads"}
    with pytest.raises(UserError, match=r'width of 48.*config=."num_heads"'):
        load_reference(own.weights, family="mae_st", config=options)
    options = {name: value for name, value in own.config.items() if name != "decoder_num_heads"}
    with pytest.raises(UserError, match=r'width of 32.*config=."decoder_num_heads"'):
        load_reference(own.weights, family="mae_st", config=options)


def test_what_does_not_fit_is_listed_whole(own):
    weights = dict(own.weights)
    del weights["decoder_blocks.1.mlp.fc2.bias"], weights["mask_token"]
    weights["blocks.0.norm1.weight"] = torch.ones(47)
    weights["blocks.0.gamma"] = torch.ones(3)
    weights["surprise"] = torch.ones(2, 2)
    with pytest.raises(UserError) as caught:
        load_reference(weights, family="mae_st", config=own.config)
    lines = [" ".join(line.split()) for line in str(caught.value).splitlines()]
    for line in (
        "missing decoder.blocks.1.mlp.fc2.bias (32,)",
        "missing decoder.mask_token (1, 32)",
        "left over encoder.blocks.0.gamma (3,)",
        "left over surprise (2, 2)",
        "misshaped encoder.blocks.0.norm1.weight: the file has (47,), the model (48,)",
    ):
        assert line in lines, str(caught.value)


ANY = [
    "patch_embed.proj.weight",
    "pos_embed_temporal",
    "pos_embed_spatial",
    "blocks.0.mlp.fc1.weight",
    "blocks.1.attn.q.weight",
    "blocks.1.attn.k.weight",
    "blocks.0.attn.v.bias",
    "decoder_pos_embed_temporal",
    "decoder_blocks.0.mlp.fc1.weight",
    "decoder_blocks.1.attn.k.bias",
    "decoder_pred.weight",
    "decoder_embed.weight",
    "norm.weight",
]


@pytest.mark.parametrize("name", ANY)
def test_a_missing_name_is_an_error_a_person_understands(own, name):
    weights = {key: value for key, value in own.weights.items() if key != name}
    with pytest.raises(UserError):
        load_reference(weights, family="mae_st", config=own.config)


@pytest.mark.parametrize("name", ANY)
def test_a_misshaped_tensor_is_an_error_a_person_understands(own, name):
    with pytest.raises(UserError):
        load_reference({**own.weights, name: torch.ones(5)}, family="mae_st", config=own.config)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_hostile_pickle_is_not_run(tmp_path):
    trace = tmp_path / "trace"

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (trace,)

    for name, write in (
        ("raw.pth", lambda f: pickle.dump(Hostile(), f)),
        ("zip.pth", lambda f: torch.save(Hostile(), f)),
    ):
        with open(tmp_path / name, "wb") as file:
            write(file)
        with pytest.raises(UserError, match="cannot be read safely"):
            load_reference(tmp_path / name, family="mae_st")
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {"model": 3}, {}], ids=str)
def test_a_file_that_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "strange.pth")
    with pytest.raises(UserError):
        load_reference(tmp_path / "strange.pth", family="mae_st")


def test_files_that_cannot_be_read(tmp_path, own):
    with pytest.raises(UserError, match="there is no file"):
        load_reference(tmp_path / "nothing.pth", family="mae_st")
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(own.path.read_bytes()[:1000])
        with pytest.raises(UserError, match=r"cut\."):
            load_reference(tmp_path / name, family="mae_st")
    with pytest.raises(UserError, match='unknown family "mae-st"'):
        load_reference(own.weights, family="mae-st")


@pytest.mark.parametrize("side, width", [("encoder_pos", 48), ("decoder_pos", 32)])
def test_position_table_of_videomae(shared, side, width):
    theirs = Fixture(shared / "parity" / "videomae_pretrain_default.safetensors")[f"table.{side}"][0]
    ours = Positions((8, 4, 4), width, "joint", "sincos", class_token=False)()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
