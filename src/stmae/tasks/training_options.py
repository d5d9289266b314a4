"""The options that every task has that trains, and what can be wrong with them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import Positional

from stmae.durations import parts
from stmae.engine.launch import find
from stmae.errors import Problems
from stmae.tasks.checks import (
    at_least,
    check_optimizer,
    check_seed,
    check_threads,
    check_workers,
    check_writable,
    in_range,
    nearest,
    positive,
)
from stmae.tasks.options import (
    SEVERAL,
    AnyPath,
    ClipOptions,
    Duration,
    OptimizerOptions,
    Options,
    RunOptions,
    RunPath,
    Source,
    SourceOptions,
    default,
)
from stmae.tasks.places import check_source


@dataclass(frozen=True, kw_only=True)
class ProgressOptions(Options):
    """What a run saves and tells, and what it puts up with."""

    max_bad_share: float = 0.1
    """Stop with an error when more than this share of the videos is unreadable."""
    file_timeout: float = 60.0
    """Seconds of waiting after which a worker is taken to hang in a video, and the video for bad; 0 waits for ever."""
    save_every: Duration = 500
    """Steps between checkpoints; or "1 epoch", "1M clips", "5%" of the run."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    milestone_every: Annotated[Duration | None, default("none")] = None
    """Steps between further checkpoints, which are kept for good; or another duration."""
    max_bad_steps: int = 20
    """Steps in a row whose loss may be not finite (each is skipped); then the run is rolled back, leaving them out."""
    log_every: Duration = 20
    """Steps between log lines; or another duration."""
    evaluate_every: Duration = 250
    """Steps between held-out losses and pictures; or another duration."""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """Where numbers and pictures go besides the run's own files."""

    def check(self, problems: Problems) -> None:
        """Intervals above 0, shares that are some, loggers that are installed."""
        at_least(self, ("keep", "max_bad_steps"), 1, problems)
        for name in ("save_every", "milestone_every", "log_every", "evaluate_every"):
            every = getattr(self, name)
            problems.check(
                every is None or parts(every, "")[0] > 0, f"{name} {every} is too small.", "Choose 1 or more."
            )
        problems.check(
            0 <= self.max_bad_share <= 1,
            f"max_bad_share {self.max_bad_share:g} is not a share.",
            "Choose one from 0 to 1.",
        )
        problems.check(
            0 <= self.file_timeout < float("inf"),
            f"file_timeout {self.file_timeout:g} is no number of seconds.",
            "Choose one from 1, or 0 to wait for ever.",
        )
        for logger in self.loggers:
            package = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}.get(logger)
            problems.check(
                package is None or importlib.util.find_spec(logger) is not None,
                f"loggers: {logger} is not installed.",
                f"pip install {package}",
            )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(SourceOptions, ClipOptions, OptimizerOptions, ProgressOptions, RunOptions):
    """A run: what it reads, where it lies and how it learns; a task that trains inherits from it."""

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """Folder, list, shards or their address; several too (from Python also a tensor of clips or a Dataset of them)."""
    out: RunPath
    """The run's folder: made if missing; holding this run, the run goes on. Or an address, such as s3://bucket/run."""
    config: Annotated[AnyPath | None, default("none")] = None
    """YAML file with options, such as another run's config.yaml; flags go before it."""
    order: Literal["global", "blocks"] = "global"
    """Order of a pass: everything mixed, or a few shards at a time (for shards that lie far away)."""
    seed: int = 0
    """Everything random follows from this number."""
    sampling: Literal["dense", "segments"] = "dense"
    """Frames a stride apart, or one from each of as many equal parts of the whole video."""
    value_range: Annotated[tuple[float, float] | None, default("all that the type holds; floats as they are")] = None
    """Values of arrays that stand for black and white."""
    repeats: int = 4
    """Clips taken from a video each time it is opened (repeated sampling)."""
    crop_area: tuple[float, float] = (0.5, 1.0)
    """Random crops: smallest and largest share of the frame's area."""
    crop_aspect: Annotated[tuple[float, float], default("0.75 1.333")] = (0.75, 4 / 3)
    """Random crops: narrowest and widest aspect ratio."""
    flip: bool = True
    """Mirror half of the clips left to right; switch it off where direction has a meaning."""
    holdout: float = 0.05
    """Share of the videos kept out of training, for the held-out loss and the pictures."""

    def check(self, problems: Problems) -> None:
        """Everything of a run that can be refused before its folder is looked into."""
        check_source(self, problems)
        check_writable("out", self.out, problems, folder=True)
        ProgressOptions.check(self, problems)
        at_least(self, ("frames", "image_size", "repeats"), 1, problems)
        check_seed(self.seed, problems)
        check_workers(self.workers, problems)
        check_threads(self, problems)
        positive("stride", self.stride, "Its unit is frames of a 30 fps clock; 4 is the paper's.", problems)
        problems.check(
            self.sampling == "dense" or self.stride == 4.0,
            f"stride {self.stride:g} has no meaning with sampling segments: they are spread over the whole video.",
            "Leave one of them out.",
        )
        if self.value_range is not None:
            low, high = self.value_range
            problems.check(
                low < high,
                f"value_range {low:g} {high:g} is not a range.",
                "Give the value of black, then that of white.",
            )
        check_optimizer(self, problems)
        _batch(self, problems)
        in_range("crop_area", self.crop_area, "0.5 1.0", problems, highest=1.0)
        in_range("crop_aspect", self.crop_aspect, "0.75 1.333", problems)
        problems.check(
            0 <= self.holdout < 1,
            f"holdout {self.holdout:g} is not a share that leaves videos to train on.",
            "Choose one from 0 (none kept out) to below 1, such as 0.05.",
        )


def _batch(options: TrainingOptions, problems: Problems) -> None:
    """A step is computed in equal parts, by processes with equal shares, and each takes all repeats of its videos."""
    if "auto" in (options.batch_size, options.accumulate):
        return  # settled once the device is known
    if min(options.batch_size, options.repeats, options.accumulate) < 1:
        return
    processes = find().size
    divisor = options.repeats * options.accumulate * processes
    factors = [f"{name} {getattr(options, name)}" for name in ("repeats", "accumulate") if getattr(options, name) > 1]
    factors += [f"{processes} processes"] if processes > 1 else []
    problems.check(
        options.batch_size % divisor == 0,
        f"batch_size {options.batch_size} is not a multiple of {' x '.join(factors)}.",
        f"Choose {nearest(options.batch_size, divisor)}{_other_processes(options, processes)}.",
    )


def _other_processes(options: TrainingOptions, processes: int) -> str:
    """For a run that goes on, and keeps its batch size: the nearest numbers of processes that share it evenly."""
    parts, rest = divmod(options.batch_size, options.repeats * options.accumulate)
    if processes == 1 or rest or not parts:
        return ""
    fewer = max(count for count in range(1, min(processes, parts) + 1) if parts % count == 0)
    more = min((count for count in range(processes, parts + 1) if parts % count == 0), default=fewer)
    return f", or start {fewer} processes" if fewer == more else f", or start {fewer} or {more} processes"
