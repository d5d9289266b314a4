"""Files from anywhere: what they claim is held against what they hold before memory or time is spent on it."""

from __future__ import annotations

import json
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_parity import HERE, Fixture
from tiny import tiny

from stmae.errors import UserError
from stmae.interop import load_reference
from stmae.interop.native import load_model
from stmae.model.config import as_dict
from stmae.weights import save_weights

OPTIONS = {"num_heads": 4, "decoder_num_heads": 4, "num_frames": 8}


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """A bomb that goes off fails its test, and not the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return dict(Fixture(HERE / "pretrain_all_frames.safetensors").weights)


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path):
    path = tmp_path / "bomb.pth"
    torch.save({"model": {}}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data/0", "w") as entry:
        for _ in range(64):
            entry.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"unpack to \d+"):
        load_reference(path)


def test_tensors_that_claim_more_than_there_is(tmp_path, weights):
    path = tmp_path / "claim.pth"
    weights["patch_embed.proj.weight"] = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save({"model": weights}, path)
    with pytest.raises(UserError, match="claim"):
        load_reference(path, config=OPTIONS)
    many = torch.zeros(1 << 18)
    torch.save({f"blocks.{n}.attn.q.weight": many for n in range(64)}, path)
    with pytest.raises(UserError, match="claim"):
        load_reference(path, config=OPTIONS)


@pytest.mark.parametrize(
    "strange",
    [torch.eye(48).to_sparse(), torch.zeros(48, 48, dtype=torch.complex64), torch.zeros(48, 48, dtype=torch.int64)],
    ids=["sparse", "complex", "integers"],
)
def test_tensors_that_are_no_dense_floats(tmp_path, weights, strange):
    weights["blocks.0.attn.q.weight"] = strange
    torch.save({"model": weights}, tmp_path / "strange.pth")
    with pytest.raises(UserError):
        load_reference(tmp_path / "strange.pth", config=OPTIONS)


def test_blocks_numbered_to_a_thousand_million(weights):
    weights["blocks.99999999.norm1.weight"] = torch.ones(48)
    with pytest.raises(UserError, match="numbered up to 99999999, and there are 3"):
        load_reference(weights, config=OPTIONS)


@pytest.mark.parametrize(
    "name, value",
    [("num_heads", "4"), ("num_heads", 0), ("num_heads", True), ("num_heads", None), ("num_frames", 1e9),
     ("decoder_num_heads", -1), ("mask_ratio", "x"), ("norm_eps", 7), ("img_size", [1]), ("img_size", "big")],
)  # fmt: skip
def test_options_that_are_no_numbers(weights, name, value):
    with pytest.raises(UserError, match=f"{name} is "):
        load_reference(weights, config={**OPTIONS, name: value})


def test_positions_of_more_tokens_than_memory_holds(tmp_path):
    """A folder of transformers has no position table that its configuration could contradict."""
    config = {"model_type": "videomae", "num_frames": 1 << 20, "image_size": 1 << 12, "tubelet_size": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    kernel = "videomae.embeddings.patch_embeddings.projection.weight"
    save_file({kernel: torch.zeros(8, 3, 2, 4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="too many tokens"):
        load_model(tmp_path)


def _set(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parts, last = path.split(".")
    inner = config
    for part in parts:
        inner = inner[part]
    inner[last] = value
    return config


@pytest.mark.parametrize(
    "path, value",
    [("encoder.blocks.depth", 10**9), ("encoder.blocks.depth", 2.5), ("encoder.blocks.width", "wide"),
     ("encoder.blocks.width", 10**12), ("encoder.clip.channels", 10**12), ("encoder.clip.frames", [8]),
     ("encoder.clip.mean", ["x", "y", "z"]), ("encoder.clip.patch", [0, 8, 8]), ("encoder.clip.patch", [2]),
     ("decoder.blocks.depth", 10**9), ("decoder", 3), ("encoder", None), ("mask_ratio", "most"), ("kind", "evil")],
)  # fmt: skip
def test_headers_of_our_own_that_lie(tmp_path, path, value):
    model = tiny()
    config = json.loads(json.dumps(as_dict(model.config)))
    save_weights(tmp_path / "lie.safetensors", model.state_dict(), {"model": _set(config, path, value)})
    with pytest.raises(UserError):
        load_model(tmp_path / "lie.safetensors")


def test_a_header_without_end(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "deep.safetensors", {"config": "[" * 100_000, "stmae_format": "1"})
    with pytest.raises(UserError):
        load_model(tmp_path / "deep.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "theirs.safetensors", {"config": "[" * 100_000})
    with pytest.raises(UserError):
        load_model(tmp_path / "theirs.safetensors")
