"""The options of `stmae bench`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.checks import at_least, check_model, positive
from stmae.tasks.options import ClipOptions, ModelOptions, RunOptions, default
from stmae.tasks.places import check_places


@dataclass(frozen=True, kw_only=True)
class BenchOptions(ModelOptions, ClipOptions, RunOptions):
    """Measure what this machine can do with a model and some videos: what limits it, and what to change.

    Takes half a minute for small models and some minutes for large ones on a CPU. Takes the model's options as
    `stmae pretrain` does, so what is measured is what would be trained.

    Examples:

        stmae bench videos/
        stmae bench videos/ --model vit_large --repeats 2
        stmae bench --model vit_small --frames 8 --image-size 112
        stmae bench --decode random --out bench.json
    """

    videos: Annotated[Positional[str | None], default("none: only the model")] = field(default=None, kw_only=False)
    """Folder of videos, for the speed of loading."""
    repeats: int = 4
    """Clips taken from a video each time it is opened."""
    batches: Annotated[tuple[int, ...], default("1 2 4 ... until more gain nothing, or do not fit")] = ()
    """Clips per step to try."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model's blocks; auto does on a GPU."""
    seconds: float = 5.0
    """How long each measurement takes, and at least one step."""
    out: Annotated[Path | None, default("none")] = None
    """File for the numbers, as JSON."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae bench` can refuse before it measures."""
        if self.videos is not None:
            check_places(self.videos, problems)
        check_model(self, self.frames, self.image_size, problems)
        at_least(self, ("frames", "image_size", "repeats"), 1, problems)
        for count in self.batches:
            problems.check(count >= 1, f"batches has {count}.", "Give numbers of clips from 1.")
        positive("seconds", self.seconds, "Its unit is seconds.", problems)
        positive("stride", self.stride, "Its unit is frames of a 30 fps clock.", problems)
