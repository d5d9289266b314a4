"""How many clips fit at a time: what `--batch-size auto` and `--accumulate auto` stand for.

On a GPU whole training steps are tried, with a tenth of the memory kept free. Elsewhere running out of memory would
take other programs along, so what a step keeps is counted on the meta device, and half of the free memory may be taken;
more than `CPU_CLIPS` at a time gain nothing there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from stmae.engine.blocks import checkpoint_blocks
from stmae.engine.ema import Ema
from stmae.engine.optim import Groups, build_adamw
from stmae.engine.precision import computing
from stmae.errors import UserError
from stmae.model.config import ClipConfig
from stmae.tasks.training_options import TrainingOptions

O = TypeVar("O", bound=TrainingOptions)

CPU_CLIPS = 64
MOST_CLIPS = 4096
GPU_SHARE, HOST_SHARE = 0.9, 0.5  # of the memory


@dataclass(frozen=True)
class Trial:
    """The training step that has to fit.

    Attributes:
        build: makes the model, on the device that is torch's default then.
        loss: (model, uint8 clips (B, C, T, H, W) on its device, which may be meta) -> the loss of a forward pass.
        groups: the model's parameters for the optimiser.
        clip: what clips the model takes.
    """

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tensor], Tensor]
    groups: Callable[[nn.Module], Groups]
    clip: ClipConfig


def settle_batch(options: O, trial: Trial, device: torch.device, processes: int = 1) -> tuple[O, str]:
    """The options with numbers in place of "auto", and a line on where they come from (empty without any "auto").

    Raises:
        UserError: not even the clips of one video fit; or the batch does not divide into parts of whole videos.
    """
    if "auto" not in (options.batch_size, options.accumulate):
        return options, ""
    if device.type == "cuda":
        most, how = _tried(options, trial, device), "tried on this GPU"
        torch.cuda.empty_cache()
    else:
        most, how = _estimated(options, trial), "an estimate; half of the free memory"
    if most < options.repeats:
        raise UserError(
            f"not even the {options.repeats} clips of one video fit into memory at a time ({how}).",
            "Choose fewer --repeats, --checkpoint-activations or a smaller model.",
        )
    told = f"{most} clips fit at a time: {how}"
    if options.batch_size == "auto":
        return replace(options, batch_size=most * options.accumulate * processes), told
    videos, rest = divmod(options.batch_size, options.repeats * processes)
    if rest:
        raise UserError(
            f"batch_size {options.batch_size} is not a multiple of {options.repeats} repeats x {processes} processes.",
            f"Choose {options.batch_size + options.repeats * processes - rest}.",
        )
    parts = next(n for n in range(1, videos + 1) if videos % n == 0 and videos // n * options.repeats <= most)
    return replace(options, accumulate=parts), told


def largest(fits: Callable[[int], bool], unit: int, most: int) -> int:
    """The largest multiple of `unit` up to `most` that fits, to an eighth; 0 if not even one does."""
    if not fits(unit):
        return 0
    low = unit
    while 2 * low <= most and fits(2 * low):
        low *= 2
    high = min(2 * low, most + unit)
    while high - low > max(unit, low // 8):
        middle = (low + high) // 2 // unit * unit
        if middle == low:
            break
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _tried(options: TrainingOptions, trial: Trial, device: torch.device) -> int:
    """By training steps on the device, until its memory is full."""
    model = trial.build().to(device)
    if options.checkpoint_activations:
        checkpoint_blocks(model)
    average = Ema(model, options.ema) if options.ema else None
    optimizer = build_adamw(trial.groups(model), 0.0)
    clip = trial.clip

    def fits(count: int) -> bool:
        try:
            clips = torch.zeros(count, clip.channels, *clip.shape, dtype=torch.uint8, device=device)
            with computing(device, options.precision):
                loss = trial.loss(model, clips)
            loss.backward()
            optimizer.step()
            if average:
                average.update(1)
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    number = torch.cuda.current_device() if device.index is None else device.index  # PyTorch wants it named
    torch.cuda.set_per_process_memory_fraction(GPU_SHARE, number)
    try:
        return largest(fits, options.repeats, MOST_CLIPS)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, number)


def _estimated(options: TrainingOptions, trial: Trial) -> int:
    """By what a step keeps: weights, gradients, moments (and the average), and what the backward pass needs."""
    with torch.device("meta"):
        model = trial.build()
    if options.checkpoint_activations:
        checkpoint_blocks(model)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    fixed = 4 * numbers * (5 if options.ema else 4)
    two, one = (kept_bytes(model, trial, count) for count in (2, 1))
    room = HOST_SHARE * free_memory() - fixed
    return largest(lambda count: one + (two - one) * (count - 1) <= room, options.repeats, CPU_CLIPS)


def kept_bytes(model: nn.Module, trial: Trial, clips: int) -> int:
    """What the forward pass of a model on the meta device keeps for the backward pass of so many clips, in bytes."""
    clip = trial.clip
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            kept[storage._cdata] = storage.nbytes()
        return tensor

    pixels = torch.empty(clips, clip.channels, *clip.shape, dtype=torch.uint8, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trial.loss(model, pixels)
    del loss
    return sum(kept.values())


def free_memory() -> int:
    """Bytes of memory that this process may still take, as the system and its control group say."""
    rooms = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        rooms.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        group = Path("/sys/fs/cgroup")
        rooms.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    if not rooms:
        rooms.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return max(0, min(rooms))
