"""What a training step costs, counted and not timed: arithmetic, operations sent to the device, waiting for it.

A change that makes a step dearer shows here on any machine. Where one is meant, write the new numbers down: they are
those of torch's own counters on the meta device, so they follow from the code alone. (Attention counts as its parts
there, and AdamW, one fused operation on a real device, is left out.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from stmae.model.config import ClassifierConfig
from stmae.model.heads import Classifier
from stmae.model.mae import MaskedAutoencoder
from stmae.model.sizes import mae_config

VIEWS = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "split",
    "alias", "detach", "as_strided", "unbind", "_reshape_alias", "chunk",
}  # fmt: skip
WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select"}  # the host would wait for the device


class Operations(TorchDispatchMode):
    """Counts operations by name; those that only look at a tensor in another way cost nothing and are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        if name not in VIEWS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[tuple[Operations, FlopCounterMode]]:
    with FlopCounterMode(display=False) as flops, Operations() as operations:
        yield operations, flops


def pretraining() -> Callable[[], Tensor]:
    model = MaskedAutoencoder(mae_config("vit_base", mask_ratio=0.9))
    clips = torch.empty(2, 3, 16, 224, 224, dtype=torch.uint8)
    return lambda: model(clips, keys=torch.empty(2, dtype=torch.int64)).loss


def classifying() -> Callable[[], Tensor]:
    model = Classifier(ClassifierConfig(encoder=mae_config("vit_base").encoder, classes=400))
    clips, labels = torch.empty(2, 3, 16, 224, 224, dtype=torch.uint8), torch.empty(2, dtype=torch.int64)
    return lambda: torch.nn.functional.cross_entropy(model(clips), labels)


# GFLOP of a clip's forward and backward pass; operations of both, beyond views.
@pytest.mark.parametrize("work, gflop, launches", [(pretraining, 262.143, 822), (classifying, 1079.227, 573)])
def test_a_step_costs_what_it_did(work: Callable[[], Callable[[], Tensor]], gflop: float, launches: int) -> None:
    with torch.device("meta"):
        loss = work()
        with counting() as (operations, flops):
            loss().backward()
    assert not WAITS & operations.seen.keys(), "the host waits for the device in the middle of a step"
    assert flops.get_total_flops() / 2 / 1e9 == pytest.approx(gflop, rel=1e-5)
    assert sum(operations.seen.values()) <= launches, operations.seen.most_common(30)
