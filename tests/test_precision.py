"""Arithmetic: what stays float32, and the loss scale of float16, on the device and through a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import random_clip, tiny
from toy import Toy, ToyBatch, assert_same, toy_run

from stmae.engine.loop import StepResult
from stmae.engine.precision import LossScale, computing, float32_products
from stmae.errors import UserError
from stmae.model.transformer import LayerNorm
from stmae.tasks.build import pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_norms_loss_and_gradients_are_float32(precision: str) -> None:
    model = tiny().float()
    norms: list[torch.dtype] = []
    for module in model.modules():
        if isinstance(module, LayerNorm):
            module.register_forward_hook(lambda module, args, out: norms.append(out.dtype))
    with computing(CPU, precision):
        output = model(random_clip(model.config))
    output.loss.backward()
    assert len(norms) == 4 * 2 + 2
    assert set(norms) == {torch.float32}
    assert output.loss.dtype == output.target.dtype == torch.float32
    assert output.prediction.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_softmax_is_summed_in_float32(dtype: torch.dtype) -> None:
    # 5000 equal weights: summed in bfloat16 they would stop growing at 256, in float16 at 2048.
    q, v = torch.zeros(1, 1, 5000, 8, dtype=dtype), torch.ones(1, 1, 5000, 8, dtype=dtype)
    assert (F.scaled_dot_product_attention(q, q, v) - 1).abs().max() < 0.01


def test_tf32_is_set_while_it_is_asked_for_and_refused_on_a_cpu() -> None:
    before = torch.get_float32_matmul_precision()
    with float32_products("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        with computing(CPU, "fp32"):
            assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(UserError, match="tf32 is arithmetic of NVIDIA GPUs"):
        pick_precision("tf32", CPU)
    assert pick_precision("fp16", CPU) == ("fp16", "as asked")


def test_the_scale_falls_with_an_overflow_and_grows_with_patience() -> None:
    scale = LossScale(CPU)
    loss = scale.scaled(torch.tensor(3.0), torch.tensor(1000.0))
    assert scale.scale == 64  # 2^16 / 1000, to a power of two
    assert loss == 3 * 64
    for finite, expected in ((False, 32), (False, 16), (True, 16)):
        scale.update(torch.tensor(finite))
        assert scale.scale == expected
    scale.state["good"].fill_(LossScale.PATIENCE - 1)
    scale.update(torch.tensor(True))
    assert scale.scale == 32
    assert scale.state["good"] == 0
    assert not scale.blameless
    for _ in range(60):
        scale.update(torch.tensor(False))
    assert scale.scale == LossScale.LEAST
    assert scale.blameless


class Overflowing(Toy):
    """Gradients overflow as long as the scale is above 2^8."""

    def step(self, batch: ToyBatch) -> StepResult:
        result = super().step(batch)
        first = next(self.model.parameters())
        if first.requires_grad and not hasattr(self, "hooked"):
            self.hooked = first.register_hook(lambda grad: torch.where(grad.abs().max() > 100, torch.inf, 1.0) * grad)
        return result


def test_an_overflow_is_skipped_and_is_no_streak() -> None:
    trained = toy_run(task=Overflowing, steps=8, fp16=True, dropout=0.0, warmup=0, log_every=8)
    (line,) = [values for _, values in trained.memory.lines]
    assert 0 < line["skipped_steps"] < 8
    assert trained.end.counters["interval/streak"] == 0
    assert all(tensor.isfinite().all() for tensor in trained.tensors().values())
    scaled = toy_run(steps=8, fp16=True, dropout=0.0, warmup=0)
    plain = toy_run(steps=8, dropout=0.0, warmup=0)
    for name, tensor in plain.model.state_dict().items():  # the scale itself cancels
        torch.testing.assert_close(scaled.model.state_dict()[name], tensor, atol=2e-3, rtol=1e-2)


@pytest.mark.slow
def test_the_scale_goes_on_where_it_was(tmp_path: Path) -> None:
    straight = toy_run(tmp_path / "straight", task=Overflowing, steps=12, fp16=True, ema=0.9, save_every=100)
    first = toy_run(tmp_path / "parts", task=Overflowing, steps=5, fp16=True, ema=0.9, warmup=2, end=12)
    resumed = toy_run(tmp_path / "parts", task=Overflowing, steps=12, fp16=True, ema=0.9)
    assert resumed.start.step == 5
    assert 0 < first.more["loss_scale/scale"] < 2**16
    assert_same(resumed.tensors(), straight.tensors())
    assert_same(resumed.more, straight.more)
