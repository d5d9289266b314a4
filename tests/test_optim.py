"""Parameter groups, layer decay against the reference's own, and the schedule."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from stmae.engine.optim import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    build_adamw,
    by_prefix,
    layer_decay_groups,
    parameter_groups,
)
from stmae.errors import UserError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.scale = nn.Parameter(torch.ones(4))
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


class Spared(nn.Module):
    no_decay = ("cls_token",)

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))


def by_name(optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    return {
        name: (group["weight_decay"], group["lr_scale"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


def test_vectors_and_biases_are_not_decayed_and_tokens_are() -> None:
    found = by_name(build_adamw(parameter_groups(Small(), 0.05), 1e-3))
    decayed = {name for name, (decay, _) in found.items() if decay == 0.05}
    assert decayed == {"cls_token", "linear.weight"}
    assert found.keys() - decayed == {"scale", "linear.bias", "norm.weight", "norm.bias"}
    assert {decay for decay, _ in found.values()} == {0.0, 0.05}


def test_a_module_can_spare_its_own_parameters() -> None:
    model = nn.ModuleDict({"a": Spared(), "b": Small()})
    found = by_name(build_adamw(parameter_groups(model, 0.05, no_decay=["b.linear.weight"]), 1e-3))
    assert found["a.cls_token"][0] == found["b.linear.weight"][0] == 0.0
    assert found["b.cls_token"][0] == 0.05
    assert by_name(build_adamw(parameter_groups(Spared(), 0.05), 1e-3))["cls_token"][0] == 0.0
    with pytest.raises(AssertionError, match="nowhere"):
        parameter_groups(Small(), 0.05, no_decay=["nowhere"])


def holder(shapes: dict[str, torch.Size]) -> nn.Module:
    """A module whose parameters have these names and shapes."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.zeros(shape)))
    return root


def vit_layer(depth: int, name: str) -> int:
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith(("patch_embed", "cls_token", "pos_embed")) else depth + 1


@pytest.mark.parametrize("fixture", ["finetune_default", "slowfast_finetune_default", "videomae_finetune_default"])
def test_layer_decay_is_the_references(shared: Path, fixture: str) -> None:
    with safe_open(str(shared / f"parity/{fixture}.safetensors"), "pt") as file:
        config = json.loads(file.metadata()["config"])
        shapes = {name[8:]: file.get_tensor(name).shape for name in file.keys() if name.startswith("weights.")}  # noqa: SIM118
    expected = config["param_groups"]
    assert expected.keys() == shapes.keys()
    spared = [name for name in shapes if name.startswith(("cls_token", "pos_embed")) and fixture == "finetune_default"]
    groups = layer_decay_groups(
        holder(shapes),
        config["weight_decay"],
        decay=config["layer_decay"],
        depth=config["depth"],
        layer_id=lambda name: vit_layer(config["depth"], name),
        no_decay=spared,
    )
    found = by_name(build_adamw(groups, 1e-3))
    assert found == {name: (entry["weight_decay"], entry["lr_scale"]) for name, entry in expected.items()}


def test_a_layer_beyond_the_last_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="layer 5 of 3"):
        layer_decay_groups(Small(), 0.05, decay=0.75, depth=2, layer_id=lambda name: 5)


def test_adamw_is_the_papers_and_fused_where_it_can_be() -> None:
    optimizer = build_adamw(parameter_groups(Small(), 0.05), 1e-3)
    assert optimizer.defaults["betas"] == (0.9, 0.95)
    assert optimizer.defaults["fused"] is True
    meta = build_adamw(parameter_groups(Small().to("meta"), 0.05), 1e-3, betas=(0.9, 0.999))
    assert meta.defaults["fused"] is False
    assert meta.defaults["betas"] == (0.9, 0.999)
    assert build_adamw(parameter_groups(Small(), 0.05), 1e-3, fused=False).defaults["fused"] is False


def test_the_schedule_warms_up_from_zero_and_falls_as_half_a_cosine() -> None:
    schedule = CosineSchedule(1.6e-3, warmup_steps=10, steps=110, end=1e-6)
    assert [schedule(step) for step in (0, 5, 10, 110, 10**6)] == [0.0, 8e-4, 1.6e-3, 1e-6, 1e-6]
    assert schedule(60) == pytest.approx((1.6e-3 + 1e-6) / 2)
    assert schedule(35) == pytest.approx(1e-6 + (1.6e-3 - 1e-6) * (1 + math.cos(math.pi / 4)) / 2)
    rates = [schedule(step) for step in range(111)]
    assert max(rates) == rates[10]
    assert all(one < other for one, other in pairwise(rates[:11]))
    assert all(one > other for one, other in pairwise(rates[10:]))


def test_schedules_at_their_limits() -> None:
    assert CosineSchedule(1.0, 0, 4)(0) == 1.0
    assert CosineSchedule(1.0, 4, 4)(3) == 0.75
    assert CosineSchedule(1.0, 4, 4)(4) == 0.0
    assert CosineSchedule(1.0, 0, 0)(0) == 0.0
    with pytest.raises(AssertionError):
        CosineSchedule(1.0, 5, 4)


def test_a_line_and_a_constant_with_a_cooldown() -> None:
    line = LinearSchedule(2.0, warmup_steps=10, steps=110, end=1.0)
    assert [line(step) for step in (0, 5, 10, 60, 110)] == [0.0, 1.0, 2.0, 1.5, 1.0]
    stable = ConstantSchedule(2.0, warmup_steps=10, steps=110, end=0.5, cooldown_steps=20)
    assert [stable(step) for step in (5, 10, 50, 90, 110, 111)] == [1.0, 2.0, 2.0, 2.0, 0.5, 0.5]
    assert stable(100) == pytest.approx(1.25)
    longer = ConstantSchedule(2.0, warmup_steps=10, steps=500, end=0.5, cooldown_steps=20)
    assert [stable(step) for step in range(90)] == [longer(step) for step in range(90)]
    assert ConstantSchedule(2.0, 0, 10)(9) == 2.0
    with pytest.raises(AssertionError, match="begins in the warm-up"):
        ConstantSchedule(2.0, 60, 100, cooldown_steps=50)


def test_groups_by_the_beginning_of_names() -> None:
    names = [name for name, _ in Small().named_parameters()]
    factor = by_prefix({"linear": 0.5, "linear.bias": 0.1}, names)
    decay = by_prefix({"cls_token": 0.0, "norm": 0.2}, names)
    found = by_name(
        build_adamw(parameter_groups(Small(), 0.05, lr_scale=lambda name: factor(name) or 1.0, decay=decay), 1e-3)
    )
    assert found["linear.weight"] == (0.05, 0.5)
    assert found["linear.bias"] == (0.0, 0.1)
    assert found["cls_token"] == (0.0, 1.0)
    assert found["norm.weight"] == found["norm.bias"] == (0.2, 1.0)
    with pytest.raises(UserError, match=r'begins with "linea".*Did you mean "linear"'):
        by_prefix({"linea": 1.0}, names)
    assert by_prefix({"lin": 1.0} | {}, ["lin.a", "linear.b"])("linear.b") is None
