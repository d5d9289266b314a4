"""The running average of the weights."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from toy import assert_same, toy_model, toy_run

from stmae.engine.ema import Ema
from stmae.errors import UserError


def test_it_is_the_recursion() -> None:
    model = toy_model()
    ema = Ema(model, decay=0.6)
    expected = {name: p.detach().clone().double() for name, p in model.named_parameters()}
    for step in range(1, 30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        ema.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
    for name, value in expected.items():
        torch.testing.assert_close(ema.state[name].double(), value, rtol=1e-5, atol=1e-9)


def test_it_is_put_in_and_taken_out_bit_for_bit() -> None:
    model = toy_model()
    ema = Ema(model, decay=0.9)
    with torch.no_grad():
        model[0].weight.add_(1)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = {name: tensor.clone() for name, tensor in ema.state.items()}
    with contextlib.suppress(KeyError), ema.applied():
        assert_same(model.state_dict(), ema.weights(own) | average)
        assert not torch.equal(model[0].weight, own["0.weight"])
        raise KeyError
    assert_same(model.state_dict(), own)
    assert_same(ema.state, average)


def test_it_resumes_exactly(tmp_path: Path) -> None:
    straight = toy_run(tmp_path / "straight", steps=6, ema=0.9)
    toy_run(tmp_path / "parts", steps=3, ema=0.9, end=6)
    resumed = toy_run(tmp_path / "parts", steps=6, ema=0.9)
    assert resumed.start.step == 3
    assert_same(resumed.more, straight.more)
    assert_same(resumed.tensors(), straight.tensors())
    assert not torch.equal(resumed.more["ema/0.weight"], resumed.model[0].weight)


def test_a_checkpoint_without_it_is_refused(tmp_path: Path) -> None:
    toy_run(tmp_path, steps=2)
    with pytest.raises(UserError, match=r"(?s)state of training .* does not fit.*missing \(6\): ema/0.weight"):
        toy_run(tmp_path, steps=4, ema=0.9)
