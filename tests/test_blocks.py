"""Activation checkpointing and compilation from outside: names stay, results stay."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tiny import random_clip, tiny
from torch import Tensor, nn

from stmae.engine.blocks import blocks_of, checkpoint_blocks, compile_blocks, pick_compile
from stmae.model.mae import MaskedAutoencoder


class Dropped(nn.Module):
    """Drop path around a block: a generator decides for each clip."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.calls = 0

    def forward(self, x: Tensor, **keywords: Any) -> Tensor:
        self.calls += 1
        kept = torch.rand(len(x), 1, 1, dtype=x.dtype) < 0.5
        return self.block(x, **keywords) * kept * 2


def gradients(model: nn.Module, clips: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(5)
    model(clips, keys=torch.arange(len(clips))).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def with_drop_path() -> MaskedAutoencoder:
    model = tiny()
    for part in (model.encoder, model.decoder):
        part.blocks = nn.ModuleList(Dropped(block) for block in part.blocks)
    return model


def test_checkpointing_changes_no_bit_of_a_gradient() -> None:
    plain, checkpointed = with_drop_path(), with_drop_path()
    names = list(checkpointed.state_dict())
    checkpoint_blocks(checkpointed)
    assert list(checkpointed.state_dict()) == names
    clips = random_clip(plain.config, batch=4)
    expected, found = gradients(plain, clips), gradients(checkpointed, clips)
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name
    assert [block.calls for block in blocks_of(plain)] == [1] * 4
    assert [block.calls for block in blocks_of(checkpointed)] == [2] * 4
    with torch.no_grad():
        checkpointed(clips)
    assert [block.calls for block in blocks_of(checkpointed)] == [3] * 4, "nothing is computed twice for a mere look"


def test_checkpointing_keeps_less() -> None:
    def kept(model: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(random_clip(model.config, batch=8), keys=torch.arange(8))
        del output
        return sum(sizes.values())

    plain, checkpointed = tiny(depth=8), tiny(depth=8)
    checkpoint_blocks(checkpointed)
    assert kept(checkpointed) < 0.7 * kept(plain)


@pytest.mark.slow
def test_compiled_blocks_have_the_same_names_and_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of compilation but the C++: tracing, guards, recompilation, backward graphs."""
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, compiled = tiny().float(), tiny().float()
    names = list(compiled.state_dict())
    checkpoint_blocks(compiled)
    compile_blocks(compiled)
    assert list(compiled.state_dict()) == names
    clips = random_clip(plain.config, batch=4)
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters
    counted.clear()
    expected, found = gradients(plain, clips), gradients(compiled, clips)
    assert counted["frames"]["ok"] >= 2, "nothing was compiled"
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_a_block_in_compiled_code_gives_the_same() -> None:
    """As `--compile on` has it; one small block, since the C++ compiler takes its time."""
    plain, compiled = (tiny(width=16, depth=1).float().encoder for _ in range(2))
    compile_blocks(compiled)
    torch._dynamo.reset()
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for model in (plain, compiled):
        model.blocks[0](x).square().sum().backward()
    assert torch._dynamo.utils.counters["inductor"], "nothing was compiled"
    for (name, one), other in zip(plain.blocks.named_parameters(), compiled.blocks.parameters(), strict=True):
        assert one.grad.abs().max() > 0
        torch.testing.assert_close(other.grad, one.grad, atol=1e-5 * one.grad.abs().max().item(), rtol=1e-4, msg=name)


def test_compiling_is_for_gpus_unless_asked_for() -> None:
    assert pick_compile("auto", torch.device("cpu")) == (False, "not worth the wait on cpu")
    assert pick_compile("on", torch.device("cpu")) == (True, "as asked")
    assert pick_compile("off", torch.device("cuda")) == (False, "as asked")
