"""The options of `stmae plan`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from stmae.engine.peaks import PEAKS, named_peak
from stmae.errors import Problems, UserError
from stmae.tasks.checks import MODELS, at_least, check_known, positive
from stmae.tasks.options import Options, default
from stmae.tasks.places import check_places


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Options):
    """Work out what a pre-training will take: bytes, shards, cores, hours, and whether loading or computing limits it.

    What is not given is measured here and now, on one core and the best device, in about a minute; each number says
    where it came from.

    Examples:

        stmae plan videos/ --gpus 8 --cores 16 --step-rate 400
        stmae plan 10M --seconds 10 --gpus 64 --cores 12 --step-rate 400 --load-rate 40
    """

    videos: Positional[str] = field(kw_only=False)
    """Folder of videos, or how many there are: 250000, 1e6, 10M."""
    gpus: int = 8
    """GPUs that train together."""
    cores: Annotated[int | None, default("this machine's")] = None
    """Cores that load for each GPU."""
    step_rate: Annotated[float | None, default("measured on the GPU of this machine")] = None
    """Clips per second that one GPU trains on."""
    gpu: Annotated[str | None, default("this machine's")] = None
    """A GPU that is not here, such as A100: its step rate is then estimated. "this" measures what is here, if a CPU."""
    load_rate: Annotated[float | None, default("measured on one core")] = None
    """Clips per second that one core loads, at the given repeats, as `stmae check` measures it."""
    seconds: Annotated[float | None, default("measured; 10 without a folder")] = None
    """Mean duration of a video."""
    packed_kilobytes: Annotated[float | None, default("measured on a few of the videos")] = None
    """Kilobytes (1000 bytes) that a second of packed video takes."""
    shard_gigabytes: float = 0.256
    """Size of a shard, in gigabytes (10^9 bytes); `stmae pack` makes them of 0.256."""
    epochs: float = 800.0
    """Effective epochs: how many clips are taken from each video in all."""
    repeats: int = 4
    """Clips taken from a video each time it is opened."""
    frames: int = 16
    """Frames in a clip."""
    stride: float = 4.0
    """Distance between frames of a clip, in frames of a nominal 30 fps clock."""
    image_size: int = 224
    """Height and width of a clip, in pixels."""
    model: str = "vit_large"
    """Size of the encoder, for measuring the step rate."""
    measure_seconds: float = 3.0
    """How long each measurement of loading takes."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae plan` can refuse before it measures."""
        try:
            if count_of(self.videos) is None:
                check_places(self.videos, problems)
        except UserError as error:
            problems.extend(error)
        at_least(self, ("gpus", "repeats", "frames", "image_size"), 1, problems)
        if self.cores is not None:
            at_least(self, ("cores",), 1, problems)
        check_known("model", self.model, MODELS, problems)
        if self.gpu is not None and self.gpu != "this" and named_peak(self.gpu) is None:
            problems.add(
                f'gpu "{self.gpu}" is none whose peak is known.',
                f"Known: {', '.join(PEAKS)}, and this for what is here. Or give its --step-rate, which a run prints.",
            )
        units = {
            "step_rate": "clips per second",
            "load_rate": "clips per second",
            "seconds": "seconds",
            "packed_kilobytes": "kilobytes for a second of video",
            "shard_gigabytes": "10^9 bytes",
            "epochs": "clips from each video",
            "stride": "frames of a 30 fps clock",
            "measure_seconds": "seconds",
        }
        for name, unit in units.items():
            if getattr(self, name) is not None:
                positive(name, getattr(self, name), f"Its unit is {unit}.", problems)


def count_of(text: str) -> int | None:
    """A number of videos as people write it (250000, 1e6, 10M, 1_000_000); None for what is a path.

    Raises:
        UserError: a number that is none of videos.
    """
    digits = text.strip().replace("_", "").replace(",", "")
    factor = {"k": 1e3, "m": 1e6, "b": 1e9}.get(digits[-1:].lower(), 1.0)
    try:
        number = float(digits[:-1] if factor > 1 else digits) * factor
    except ValueError:
        return None
    if Path(text).expanduser().exists():
        return None
    if not (1 <= number < 1e12 and number == int(number)):
        raise UserError(f"videos {text} is no number of videos.", "Give one from 1, such as 250000, 1e6 or 10M.")
    return int(number)
