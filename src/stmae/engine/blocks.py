"""Compilation and activation checkpointing, put around the blocks of a model from outside.

A block is a member of an `nn.ModuleList`. Neither changes modules, parameters or their names.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """Every block, in the model's order."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from module


def checkpoint_blocks(model: nn.Module) -> None:
    """Keeps a block's input alone, and computes the rest again for the backward pass: less memory, a third more time.

    Random numbers are drawn again as they were, so gradients are the same bit for bit.
    """
    for block in blocks_of(model):
        block.forward = _computed_again(block.forward)


def _computed_again(forward: Any) -> Any:
    def call(*args: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **keywords)
        return checkpoint(forward, *args, use_reentrant=False, **keywords)

    return call


def compile_blocks(model: nn.Module) -> None:
    """Compiles each block in place, at its first call: blocks of one kind share what was compiled."""
    # Training and evaluation, encoder and decoder, whole and cut sequences are compiled apart.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    # DDP would have each block cut again where its buckets end; between blocks it can send early enough.
    torch._dynamo.config.optimize_ddp = False
    for block in blocks_of(model):
        block.compile()


def pick_compile(asked: str, device: torch.device) -> tuple[bool, str]:
    """Whether to compile, and the reason: "auto" does on a GPU that the compiler knows."""
    if asked != "auto":
        return asked == "on", "as asked"
    if device.type != "cuda":
        return False, f"not worth the wait on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    fine = torch.cuda.get_device_capability(device) >= (7, 0)
    return fine, "a GPU" if fine else "this GPU is too old for triton"
