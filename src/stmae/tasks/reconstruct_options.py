"""The options of `stmae reconstruct`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.checks import at_least, check_mask_ratio, check_seed, check_threads, check_writable
from stmae.tasks.options import SEVERAL, AnyPath, RunOptions, Source, SourceOptions, default
from stmae.tasks.places import check_source, exists


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions(SourceOptions, RunOptions):
    """Show what a model paints back: original | masked | painted back, as GIF, MP4 and PNG.

    Beside the model's picture stand two baselines, predicting nothing (the visible patches' mean) and copying the
    nearest visible patch in time, and the share of the hidden pixels' variance that each explains.

    Examples:

        stmae reconstruct clip.mp4 --model runs/first --mask-ratio 0.9 0.95 0.98
        stmae reconstruct clip.mp4 --model runs/first --mask over-this.png
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """A video, a folder, a list or shards; or a run: its held-out videos."""
    model: str
    """Run folder or weights file."""
    out: AnyPath = Path("reconstructions")
    """Folder for the pictures."""
    mask_ratio: Annotated[tuple[float, ...], default("the model's own")] = ()
    """Share of the tokens to hide; several stand side by side."""
    mask: Annotated[AnyPath | None, default("none: tokens drawn at random")] = None
    """Image whose white, or .npy array (rows, columns) or (time, rows, columns) whose values above 0, are painted anew;
    the painted clip is then also written by itself."""
    statistics: Literal["visible", "true"] = "visible"
    """For normalised targets: un-normalise with visible neighbours' statistics, or the hidden patch's own (a leak)."""
    start: Annotated[float | None, default("such that the clip is the middle of the video")] = None
    """Where the clip starts, in seconds."""
    seed: int = 0
    """Which tokens are hidden follows from this number."""
    clips: int = 8
    """From a folder, pictures of at most so many videos; scores are over all of these."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae reconstruct` can refuse before it looks into a file."""
        check_source(self, problems)
        exists("model", self.model, "Give a run's folder or a weights file", problems)
        check_writable("out", self.out, problems, folder=True)
        check_threads(self, problems)
        for ratio in self.mask_ratio:
            check_mask_ratio(ratio, problems)
        if self.mask is not None:
            exists("mask", self.mask, "Give an image or a .npy array of what to hide", problems)
            for name in ("mask_ratio", "seed"):
                problems.check(
                    name not in self.given, f"{name} has no meaning with a mask of your own.", "Leave one of them out."
                )
        if self.start is not None:
            problems.check(self.start >= 0, f"start {self.start:g} is before the video.", "Choose 0 or more seconds.")
        check_seed(self.seed, problems)
        at_least(self, ("clips",), 1, problems)
