"""Parameter groups, layer decay, AdamW and the learning rate as a pure function of the step.

Every group carries `lr_scale`, with which the loop multiplies the scheduled learning rate, and the names of its
parameters (`param_names`), by which a checkpoint keeps the optimiser's state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stmae.errors import UserError, did_you_mean

Groups = list[dict[str, Any]]


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    no_decay: Iterable[str] = (),
    lr_scale: Callable[[str], float] | None = None,
    decay: Callable[[str], float | None] | None = None,
) -> Groups:
    """Trainable parameters grouped by weight decay and learning-rate factor.

    Vectors and biases are not decayed; everything else is, position tables, class and mask tokens included, as in the
    paper's pre-training code, unless named in `no_decay` or in an attribute `no_decay` of the module that owns it.

    Args:
        model: its `named_parameters()`; frozen ones are left out.
        weight_decay: for the decayed ones.
        no_decay: further full parameter names without decay.
        lr_scale: full parameter name -> factor of the learning rate; 1 for all where not given.
        decay: full parameter name -> weight decay of its own, which vectors and spared ones take too, or None.

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
        own = decay(name) if decay else None
        if own is None:
            own = 0.0 if vector or name in spared else weight_decay
        key = (own, lr_scale(name) if lr_scale else 1.0)
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

    return parameter_groups(model, weight_decay, no_decay=no_decay, lr_scale=layer_scale(decay, depth, layer_id))


def layer_scale(decay: float, depth: int, layer_id: Callable[[str], int]) -> Callable[[str], float]:
    """Full parameter name -> its layer's factor of the learning rate; arguments as in `layer_decay_groups`."""

    def scale(name: str) -> float:
        layer = layer_id(name)
        assert 0 <= layer <= depth + 1, f"{name} is in layer {layer} of {depth + 1}"
        return decay ** (depth + 1 - layer)

    return scale


def by_prefix(values: Mapping[str, float], names: Iterable[str]) -> Callable[[str], float | None]:
    """Full parameter name -> the value of the longest prefix it has, in whole parts of the name, or None.

    >>> by_prefix({"decoder": 0.5, "decoder.head": 0.1}, names)("decoder.head.weight")
    0.1

    Raises:
        UserError: a prefix that none of `names` has.
    """
    heads = {".".join(parts[:n]) for name in names for parts in [name.split(".")] for n in range(1, len(parts) + 1)}
    for prefix in values:
        if prefix not in heads:
            tops = sorted({head for head in heads if head.count(".") <= 1})
            raise UserError(
                f'no parameter\'s name begins with "{prefix}".',
                f"{did_you_mean(prefix, heads)} Known: {', '.join(tops)}.",
            )

    def value(name: str) -> float | None:
        parts = name.split(".")
        found = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next((values[head] for head in found if head in values), None)

    return value


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
class Schedule:
    """The learning rate as a pure function of the number of updates already done: `schedule(step)`.

    Each rises in a straight line from 0 over `warmup_steps` (at step 0 it is `peak` where there is no warm-up) and is
    `end` at `steps` and beyond.
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
        return self.end + (self.peak - self.end) * self.share(step - self.warmup_steps, self.steps - self.warmup_steps)

    def share(self, done: int, of: int) -> float:
        """From 1, right after the warm-up (none done of the steps that follow it), to 0, at the end (all done)."""
        raise NotImplementedError


class CosineSchedule(Schedule):
    """Half a cosine: the paper's."""

    def share(self, done: int, of: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * (done / of)))


class LinearSchedule(Schedule):
    """A straight line."""

    def share(self, done: int, of: int) -> float:
        return 1.0 - done / of


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """The peak, then a straight line down over the last `cooldown_steps` (warm-up, stable, decay).

    The part before the cool-down does not depend on where the run ends, so a run can be made longer from a checkpoint
    before it (Hägele et al., 2024, arXiv 2405.18392).
    """

    cooldown_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        assert 0 <= self.cooldown_steps <= self.steps - self.warmup_steps, "a cool-down that begins in the warm-up"

    def share(self, done: int, of: int) -> float:
        return min(1.0, (of - done) / self.cooldown_steps) if self.cooldown_steps else 1.0


SCHEDULES: dict[str, type[Schedule]] = {
    "cosine": CosineSchedule,
    "constant": ConstantSchedule,
    "linear": LinearSchedule,
}
