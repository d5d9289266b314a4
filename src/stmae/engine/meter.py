"""What the loop measures: sums on the device, times and clips on the host, and the numbers of a log line from both."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stmae.engine.distributed import ALONE, World
from stmae.engine.peaks import named_peak


@dataclass(frozen=True)
class StepResult:
    """What a task returns for one micro-batch; tensors are scalars on the device.

    Attributes:
        loss_sum: the loss summed over whatever it is averaged over (hidden tokens, clips), with its graph.
        weight: how many of those there were; the loss of an update is the sum of sums over the sum of weights.
        clips: clips in the micro-batch, for speed and epochs.
        numbers: further sums by name, logged divided by the weight; the same names in every step.
    """

    loss_sum: Tensor
    weight: Tensor
    clips: int
    numbers: dict[str, Tensor] = field(default_factory=dict)


class Meter:
    """What an interval measures: sums in one tensor on the device, times and clips on the host.

    The sums of an unfinished interval are part of a checkpoint, so that a resumed run logs the numbers that an
    uninterrupted one would. `recent` is no part of it: the latest updates one by one, for a diagnosis.
    """

    FIXED = ("streak", "skipped", "updates", "loss", "weight", "grad_norm")
    PEAKS = ("loss_max", "grad_norm_max")  # over the updates of the interval
    RECENT = 256

    def __init__(
        self,
        device: torch.device,
        counters: Mapping[str, float],
        clips_per_epoch: int | None = None,
        flops_per_clip: float | None = None,
        peak_flops: float | None = None,
        world: World = ALONE,
    ) -> None:
        self.device, self.saved, self.world = device, dict(counters), world
        self.clips = int(counters.get("clips", 0))
        self.skipped_before = int(counters.get("skipped", 0))  # in the intervals that are finished
        self.clips_per_epoch, self.flops_per_clip, self.peak_flops = clips_per_epoch, flops_per_clip, peak_flops
        self.names: tuple[str, ...] = ()  # of the task's own numbers, known after its first step
        self.sums = torch.empty(0)
        self.recent = torch.full((self.RECENT, 2), math.nan, device=device)  # loss and gradient norm, a ring
        self.updates = 0
        self.start_clock()

    def start_clock(self) -> None:
        self.began = time.perf_counter()
        self.interval_clips, self.interval_updates, self.wait_seconds = 0, 0, 0.0
        self._open_update()

    def _open_update(self) -> None:
        self.loss_sum = self.weight = torch.zeros((), device=self.device)
        self.numbers: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Time in here counts for no speed."""
        left = time.perf_counter()
        yield
        self.began += time.perf_counter() - left

    def add(self, result: StepResult, wait_seconds: float) -> None:
        """Takes one micro-batch into the update under way."""
        self.loss_sum = self.loss_sum + result.loss_sum.detach().float()
        self.weight = self.weight + result.weight.detach().float()
        for name, value in result.numbers.items():
            value = value.detach().float()
            self.numbers[name] = self.numbers[name] + value if name in self.numbers else value
        self.wait_seconds += wait_seconds
        self.clips += result.clips * self.world.size
        self.interval_clips += result.clips * self.world.size

    def sum_over_processes(self) -> None:
        """Makes the update under way that of all of them: one small tensor, for which the host does not wait."""
        if self.world.size == 1:
            return
        names = sorted(self.numbers)
        sums = torch.stack([self.loss_sum, self.weight, *(self.numbers[name] for name in names)])
        self.loss_sum, self.weight, *numbers = self.world.sum_(sums).unbind()
        self.numbers = dict(zip(names, numbers, strict=True))

    def close_update(self, norm: Tensor, finite: Tensor, excused: Tensor | None = None) -> None:
        """Takes the update into the interval, on the device; a skipped one adds nothing but itself.

        One that is `excused` (the loss scale was too large) does not count as one more in a row.
        """
        if not self.names:
            self._name(sorted(self.numbers))
        own = self._own()
        assert sorted(self.numbers) == list(own), "a task's numbers have the same names in every step"
        row = [torch.ones_like(norm), self.loss_sum, self.weight, norm, *(self.numbers[name] for name in own)]
        skipped = (~finite).float()
        in_row = 1.0 if excused is None else (~excused).float()
        self.sums[0].add_(in_row).mul_(skipped)  # how many in a row
        self.sums[1].add_(skipped)
        self.sums[2:-2].add_(torch.where(finite, torch.stack(row), 0.0))
        latest = torch.stack([self.loss_sum / self.weight, norm])
        self.sums[-2:] = torch.where(finite, torch.maximum(self.sums[-2:], latest), self.sums[-2:])
        self.recent[self.updates % self.RECENT] = latest
        self.updates += 1
        self.interval_updates += 1
        self._open_update()

    def leave_out(self) -> None:
        """Counts a step whose data is used up without an update."""
        self.interval_updates += 1
        if not self.names:
            before = [name.removeprefix("interval/") for name in self.saved if name.startswith("interval/")]
            known = (*self.FIXED, *self.PEAKS)
            if before:  # else the task has yet to say what its numbers are
                self._name([name for name in before if name not in known])

    def _name(self, own: Sequence[str]) -> None:
        self.names = (*self.FIXED, *own, *self.PEAKS)
        start = dict.fromkeys(self.PEAKS, -math.inf)
        sums = [self.saved.get(f"interval/{name}", start.get(name, 0.0)) for name in self.names]
        self.sums = torch.tensor(sums, device=self.device)

    def _own(self) -> tuple[str, ...]:
        return self.names[len(self.FIXED) : -len(self.PEAKS)]

    def history(self) -> list[tuple[float, float]]:
        """(Loss, gradient norm) of the latest updates, at most `RECENT`, the last one last. The host waits."""
        rows, at = self.recent.tolist(), self.updates % self.RECENT
        in_order = rows[at:] + rows[:at] if self.updates > self.RECENT else rows[: self.updates]
        return [(loss, norm) for loss, norm in in_order]

    def read(self) -> dict[str, float]:
        """The interval's sums by name: the one place where the host waits for the device."""
        return dict(zip(self.names, self.sums.tolist(), strict=True))

    def counters(self) -> dict[str, float]:
        """What a checkpoint keeps of all this."""
        sums = self.read()
        return {"clips": self.clips, "skipped": self.skipped_before} | {f"interval/{n}": v for n, v in sums.items()}

    def close_interval(self) -> tuple[dict[str, float], int, int]:
        """(Numbers to log, updates skipped in the interval, updates skipped in a row); then a new interval begins."""
        sums = dict.fromkeys(self.FIXED, 0.0) | dict.fromkeys(self.PEAKS, -math.inf) | self.read()
        seconds = max(time.perf_counter() - self.began, 1e-9)
        weight, speed = sums["weight"] or math.nan, self.interval_clips / seconds
        values = {"epoch": self.clips / self.clips_per_epoch} if self.clips_per_epoch else {}
        values |= {"loss": sums["loss"] / weight, "grad_norm": sums["grad_norm"] / (sums["updates"] or math.nan)}
        values |= {name: sums[name] for name in self.PEAKS}
        values |= {name: sums[name] / weight for name in self._own()}
        values |= {"clips": float(self.clips), "clips_per_second": speed}
        values |= self._worst(min(1.0, self.wait_seconds / seconds), memory_bytes(self.device) / 1e9)
        if self.flops_per_clip and self.peak_flops:
            values["mfu"] = speed * self.flops_per_clip / (self.peak_flops * self.world.size)
        skipped, streak = int(sums["skipped"]), int(sums["streak"])
        self.skipped_before += skipped
        values["skipped_steps"] = float(self.skipped_before)
        self.seconds_per_update = seconds / max(1, self.interval_updates)
        self.sums[1:-2].zero_()
        self.sums[-2:].fill_(-math.inf)
        self.start_clock()
        return values, skipped, streak

    def _worst(self, data_wait: float, memory_gb: float) -> dict[str, float]:
        """The longest wait and the fullest memory of all processes; of several, also whose wait it is."""
        if self.world.size == 1:
            return {"data_wait": data_wait, "memory_gb": memory_gb}
        waits, memories = zip(*self.world.gather((data_wait, memory_gb)), strict=True)
        longest = max(waits)
        return {
            "data_wait": longest,
            "data_wait_rank": float(waits.index(longest)),
            "memory_gb": max(memories),
        }


def memory_bytes(device: torch.device) -> int:
    """Memory in use: the device's peak so far, or, on the CPU, this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_flops(device: torch.device | str, autocast: torch.dtype | None) -> float | None:
    """The device's peak in FLOP/s for bfloat16 matrix products, or None where it is not known."""
    if torch.device(device).type != "cuda" or autocast is not torch.bfloat16:
        return None
    return named_peak(torch.cuda.get_device_name(device))
