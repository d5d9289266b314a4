"""Fine-tuning is the same in any number of processes and parts: the gradient of the first step, in float64."""

from __future__ import annotations

import pytest
import torch
from labelled import SMALL, write_labelled, write_start
from torch import Tensor

from stmae.data.loader import ClipLoader
from stmae.engine.distributed import ALONE
from stmae.engine.log import Log
from stmae.runs import RunFolder, Verdicts
from stmae.tasks.finetune import Finetuning
from stmae.tasks.finetune_options import FinetuneOptions
from stmae.tasks.finetune_setup import FinetuneSetup
from stmae.tasks.task import bind
from stmae.tasks.training import Parts


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> FinetuneSetup:
    """The whole recipe: repeats, mixing, erasing, RandAugment, dropout, drop path, a mask, weighed classes."""
    videos = write_labelled(tmp_path_factory.mktemp("labelled"), each=5)
    start = write_start(tmp_path_factory.mktemp("start") / "mae")
    given = {
        **SMALL, "init": start, "preset": "recipe", "batch_size": 16, "repeats": 2, "mask_ratio": 0.5,
        "balance": "loss", "holdout": 0.0, "out": tmp_path_factory.mktemp("run") / "run",
    }  # fmt: skip
    return FinetuneSetup.of(bind(FinetuneOptions, (videos,), given))


def gradients(setup: FinetuneSetup, parts: int, ranks: int) -> tuple[dict[str, Tensor], float]:
    """Of the first step, computed in so many parts by so many processes, one after the other."""
    torch.manual_seed(0)
    model = setup.build_model().double()
    torch.nn.init.normal_(model.head.weight, std=0.02)
    run = RunFolder(setup.options.out)
    task = Finetuning(Parts(setup, model, model, run, Verdicts(run.verdicts), Log(), ALONE))
    task.weights = task.weights.double()
    weight, clips = 0.0, 0
    for rank in range(ranks):
        loader = ClipLoader(setup.training_clips(), batch_size=16 // (parts * ranks), rank=rank, world_size=ranks)
        for _ in range(parts):
            torch.manual_seed(1000 * rank + clips)  # whatever is drawn from torch's generator differs
            result = task.step(next(loader))
            result.loss_sum.backward()
            weight += result.weight.item()
            clips += result.clips
    assert clips == 16
    return {name: p.grad / weight for name, p in model.named_parameters() if p.grad is not None}, weight


@pytest.fixture(scope="module")
def alone(setup: FinetuneSetup) -> tuple[dict[str, Tensor], float]:
    return gradients(setup, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("parts, ranks", [(2, 1), (1, 2), (2, 2)])
def test_the_first_gradient_does_not_depend_on_processes_or_parts(
    setup: FinetuneSetup, alone: tuple[dict[str, Tensor], float], parts: int, ranks: int
) -> None:
    wanted, weight = alone
    found, found_weight = gradients(setup, parts, ranks)
    assert found_weight == pytest.approx(weight, rel=1e-6)
    assert len(found) > 20
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        largest = wanted[name].abs().max()
        assert largest > 0, name
        assert (gradient - wanted[name]).abs().max() <= 1e-9 * largest, name
