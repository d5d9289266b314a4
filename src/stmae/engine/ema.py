"""A running average of the weights, which is often better than the last ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from stmae.engine.parallel import local


class Ema:
    """average <- d x average + (1 - d) x weights after every update, in float32, for trainable parameters.

    d is `decay`, and less in the beginning, (1 + step) / (10 + step), so that the first weights are soon forgotten. An
    update that was skipped leaves the weights as they were and counts like any other. `state` is a part of every
    checkpoint.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        assert 0 < decay < 1
        self.decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.state = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the update that makes `step` of them."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = ([local(t) for t in side] for side in (self.state.values(), self._parameters.values()))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """While open, the model has the average; afterwards its own weights again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.clone()
            parameter.copy_(self.state[name])
            self.state[name].copy_(kept)

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A model's state dict with the averages in place of its parameters."""
        return {**state, **{name: tensor for name, tensor in self.state.items() if name in state}}
