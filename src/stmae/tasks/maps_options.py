"""The options of `stmae maps`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.checks import at_least, check_threads, check_writable
from stmae.tasks.options import SEVERAL, AnyPath, RunOptions, Source, SourceOptions, default
from stmae.tasks.places import check_source, exists


@dataclass(frozen=True, kw_only=True)
class MapsOptions(SourceOptions, RunOptions):
    """Show what an encoder sees in videos: where it attends to, and its features as colours, as GIF, MP4 and PNG.

    Attention is that of the class token, or what tokens receive from all others on average where there is none.
    Features are shown by their three largest principal components over the clip, as red, green and blue: places of
    like colour have like features.

    Examples:

        stmae maps clip.mp4 --model runs/first
        stmae maps videos/ --model runs/first --layer 6 --image-size 448 --out maps
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """A video, a folder, a list or shards; or a run: its held-out videos."""
    model: str
    """Run folder, weights file or another project's checkpoint."""
    out: AnyPath = Path("maps")
    """Folder for the pictures."""
    layer: Annotated[int | None, default("the last")] = None
    """Block that is looked at, counted from 1."""
    frames: Annotated[int | None, default("the model's own")] = None
    """Frames of the clip, a multiple of the patch's; positions are interpolated."""
    image_size: Annotated[int | None, default("the model's own")] = None
    """Height and width of the clip in pixels, a multiple of the patch's: more show finer maps."""
    start: Annotated[float | None, default("such that the clip is the middle of the video")] = None
    """Where the clip starts, in seconds."""
    clips: int = 8
    """From a folder, pictures of at most so many videos."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae maps` can refuse before it looks into a file."""
        check_source(self, problems)
        exists("model", self.model, "Give a run's folder or a weights file", problems)
        check_writable("out", self.out, problems, folder=True)
        check_threads(self, problems)
        for name in ("layer", "frames", "image_size"):
            if getattr(self, name) is not None:
                at_least(self, (name,), 1, problems)
        if self.start is not None:
            problems.check(self.start >= 0, f"start {self.start:g} is before the video.", "Choose 0 or more seconds.")
        at_least(self, ("clips",), 1, problems)
