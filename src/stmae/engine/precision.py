"""The arithmetic of matrix products, and the loss scale that half precision needs.

| name | products | where |
| --- | --- | --- |
| fp32 | float32 | everywhere |
| tf32 | float32 with 10 bits of mantissa | NVIDIA GPUs since 2020 |
| bf16 | bfloat16: the range of float32 | recent GPUs and CPUs |
| fp16 | float16: a small range, so gradients are scaled (`LossScale`) | GPUs before 2020 |

Parameters, norms, the loss, the sums of a softmax and the optimiser stay float32 with all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from stmae.engine.distributed import ALONE, World

AUTOCAST: dict[str, torch.dtype | None] = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """While open, products of float32 matrices are what `precision` says: shortened for tf32, exact otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Forward passes in `precision`: for everything but training, where the loop does it."""
    dtype = AUTOCAST[precision]
    with float32_products(precision), torch.autocast(device.type, dtype, enabled=dtype is not None):
        yield


class LossScale:
    """A power of two by which a float16 loss is multiplied, so that small gradients do not vanish.

    It is halved with every update whose gradients overflow (which is skipped), and doubled after `PATIENCE` good ones.
    It lives on the device and is never read there; `state` is a part of every checkpoint, so that a resumed run has the
    scale of the uninterrupted one. The loss of a step is a sum, so the first scale is `FIRST` over the first weight (of
    all micro-batches and processes), rounded to a power of two: `FIRST` for the mean.
    """

    FIRST, LEAST, MOST = 2.0**16, 2.0**-40, 2.0**40
    PATIENCE = 2000.0

    def __init__(self, device: torch.device) -> None:
        self.state = {"scale": torch.zeros((), device=device), "good": torch.zeros((), device=device)}
        self._begun = False

    @property
    def scale(self) -> Tensor:
        return self.state["scale"]

    def scaled(self, loss_sum: Tensor, weight: Tensor, world: World = ALONE, parts: int = 1) -> Tensor:
        """The loss to call `backward` on: that of one of `parts` micro-batches of an update, in each process."""
        if not self._begun:  # all processes begin together, with one scale, and so that it does not tell how many
            whole = world.sum_(weight.detach().float().clone()) * parts
            first = torch.exp2((self.FIRST / whole.clamp(min=1.0)).log2().round())
            self.scale.copy_(torch.where(self.scale == 0, first, self.scale))
            self._begun = True
        return loss_sum * self.scale

    def update(self, finite: Tensor) -> None:
        """After an update whose gradients were finite, or not (bool, on the device)."""
        scale, good = self.state["scale"], self.state["good"]
        good.add_(1).mul_(finite)
        grown = good >= self.PATIENCE
        scale.mul_(torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5)).clamp_(self.LEAST, self.MOST)
        good.mul_(~grown)

    @property
    def blameless(self) -> Tensor:
        """Whether an overflow can no longer be the scale's fault: it is as small as it gets (bool, on the device)."""
        return self.scale <= self.LEAST
