"""Probes: small heads on frozen features. Many of them, which differ in how they are trained, are computed at once.

Each is a module of its own, so that every one has its own learning rate and weight decay in the optimiser; what they
all look at is read once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformer import Linear

EPS = 1e-6  # of both normalisations; that of the batch norm is the public linear probe's


class LinearProbe(nn.Module):
    """Batch norm without affine, then a linear layer.

    The features are cached, so that the norm's statistics are those of the whole training set from the first step on,
    and not a running average over batches.

    Args:
        mean, deviation: of the training features, (D,).
        outputs: C.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.head = Linear(len(mean), outputs, std=0.01)

    @classmethod
    def on(cls, features: Tensor, outputs: int) -> LinearProbe:
        """For training features (N, D)."""
        variance, mean = torch.var_mean(features, dim=0, correction=0)
        return cls(mean, (variance + EPS).sqrt(), outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (B, C)."""
        return linear_probes([self], features)[0]

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of the one linear layer that does the same."""
        weight = self.head.weight / self.deviation
        return weight, self.head.bias - weight @ self.mean


def linear_probes(probes: Sequence[LinearProbe], features: Tensor) -> Tensor:
    """Outputs of probes on the same training set: (B, D) to (G, B, C)."""
    normal = (features - probes[0].mean) / probes[0].deviation
    weight = torch.stack([probe.head.weight for probe in probes])  # (G, C, D)
    return torch.einsum("bd,gcd->gbc", normal, weight) + torch.stack([probe.head.bias for probe in probes])[:, None]


class AttentiveProbe(nn.Module):
    """One learned query attends to all tokens; norm and a linear layer follow (as in V-JEPA's frozen evaluation).

        tokens ── norm ──┬─ keys ──── softmax(query keys / sqrt(d)) ─┐
                         └─ values ──────────────────────────────────┴─ mean ── projection ── norm ── linear

    With a single query, keys and values of tokens never have to be made: a head's score of token x is
    query · (K x) = (Kᵀ query) · x, and the mean of values is V times the mean of tokens. So a probe costs two products
    of width D per token and head instead of two matrices.

    Args:
        width: D, of the tokens.
        heads: of the attention; they divide D.
        outputs: C.
    """

    def __init__(self, width: int, heads: int, outputs: int) -> None:
        super().__init__()
        assert width % heads == 0, (width, heads)
        self.heads = heads
        self.query = nn.Parameter(torch.empty(heads, width // heads))
        # The bias of keys adds the same to every score, which a softmax does not see: there is none.
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width)
        self.proj = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = Linear(width, outputs, std=0.01)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) to (B, C)."""
        return attentive_probes([self], tokens)[0]

    def questions(self) -> Tensor:
        """What tokens are multiplied with for their scores, one for each head: (heads, D)."""
        key = self.key.weight.unflatten(0, (self.heads, -1))  # (heads, d, D)
        return torch.einsum("hd,hdw->hw", self.query, key) / math.sqrt(self.query.shape[1])

    def answer(self, means: Tensor) -> Tensor:
        """From each head's mean of tokens, (B, heads, D), to outputs (B, C)."""
        value = self.value.weight.unflatten(0, (self.heads, -1))
        found = torch.einsum("bhw,hdw->bhd", means, value).flatten(1) + self.value.bias
        return self.head(self.norm(self.proj(found)))


def attentive_probes(probes: Sequence[AttentiveProbe], tokens: Tensor) -> Tensor:
    """Outputs of probes with the same number of heads: tokens (B, N, D) to (G, B, C)."""
    tokens = F.layer_norm(tokens, tokens.shape[-1:], eps=EPS)
    questions = torch.cat([probe.questions() for probe in probes])  # (G heads, D)
    shares = (tokens @ questions.T).softmax(dim=1)  # over the tokens: (B, N, G heads)
    means = (shares.transpose(1, 2) @ tokens).unflatten(1, (len(probes), -1))  # (B, G, heads, D)
    return torch.stack([probe.answer(means[:, place]) for place, probe in enumerate(probes)])
