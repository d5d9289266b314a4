"""Parameter groups, layer decay, AdamW and the learning rate as a pure function of the step.

Every group carries `lr_scale`, with which the loop multiplies the scheduled learning rate, and the names of its
parameters (`param_names`), by which a checkpoint keeps the optimiser's state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Groups = list[dict[str, Any]]


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    no_decay: Iterable[str] = (),
    lr_scale: Callable[[str], float] | None = None,
) -> Groups:
    """Trainable parameters grouped by weight decay and learning-rate factor.

    Vectors and biases are not decayed; everything else is, position tables, class and mask tokens included, as in the
    paper's pre-training code, unless named in `no_decay` or in an attribute `no_decay` of the module that owns it.

    Args:
        model: its `named_parameters()`; frozen ones are left out.
        weight_decay: for the decayed ones.
        no_decay: further full parameter names without decay.
        lr_scale: full parameter name -> factor of the learning rate; 1 for all where not given.

    Returns:
        Groups for an optimiser, in the order of the first parameter of each.
    """
    spared = set(no_decay)
    for prefix, module in model.named_modules():
        spared |= {f"{prefix}.{name}".lstrip(".") for name in getattr(module, "no_decay", ())}
    parameters = dict(model.named_parameters())
    assert spared <= parameters.keys(), f"no such parameters: {sorted(spared - parameters.keys())}"
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        vector = parameter.ndim <= 1 or name.endswith(".bias")
        key = (0.0 if vector or name in spared else weight_decay, lr_scale(name) if lr_scale else 1.0)
        group = groups.setdefault(key, {"params": [], "weight_decay": key[0], "lr_scale": key[1]})
        group["params"].append((name, parameter))  # with names, torch fills group["param_names"] itself
    return list(groups.values())


def layer_decay_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay: float,
    depth: int,
    layer_id: Callable[[str], int],
    no_decay: Iterable[str] = (),
) -> Groups:
    """Groups whose learning rate falls towards the input: factor `decay ** (depth + 1 - layer_id(name))`.

    Args:
        model, weight_decay, no_decay: as in `parameter_groups`.
        decay: the factor from one layer to the one below it, for example 0.75.
        depth: number of blocks.
        layer_id: full parameter name -> 0 for patch embedding, class token and positions, i + 1 for block i,
            depth + 1 for the rest (BEiT, section A; the paper's fine-tuning code does the same).
    """

    def scale(name: str) -> float:
        layer = layer_id(name)
        assert 0 <= layer <= depth + 1, f"{name} is in layer {layer} of {depth + 1}"
        return decay ** (depth + 1 - layer)

    return parameter_groups(model, weight_decay, no_decay=no_decay, lr_scale=scale)


def build_adamw(
    groups: Groups, lr: float, *, betas: tuple[float, float] = (0.9, 0.95), fused: bool | None = None
) -> torch.optim.AdamW:
    """AdamW over the groups.

    Args:
        groups: of `parameter_groups` or `layer_decay_groups`.
        lr: the peak learning rate; the loop sets each step's own.
        betas: (0.9, 0.95) in the paper's pre-training, (0.9, 0.999) in fine-tuning.
        fused: one kernel for the whole update, which can also skip a non-finite step without the host looking; by
            default wherever it is not known to lack (that is, everywhere but MPS).
    """
    devices = {parameter.device.type for group in groups for _, parameter in group["params"]}
    return torch.optim.AdamW(
        groups, lr=lr, betas=betas, fused=devices <= {"cpu", "cuda", "xpu"} if fused is None else fused
    )


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up from 0, then half a cosine down to `end`; a pure function of the step.

    `schedule(step)` with the number of updates already done: 0 at step 0 where there is a warm-up, `peak` at
    `warmup_steps`, `end` at `steps` and beyond.
    """

    peak: float
    warmup_steps: int
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        assert 0 <= self.warmup_steps <= self.steps, f"a warm-up of {self.warmup_steps} in {self.steps} steps"

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.peak * step / self.warmup_steps
        if step >= self.steps:
            return self.end
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.end + (self.peak - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))
