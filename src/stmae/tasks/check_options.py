"""The options of `stmae check`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.checks import at_least, check_writable, positive
from stmae.tasks.options import SEVERAL, AnyPath, ClipOptions, Source, SourceOptions, default
from stmae.tasks.places import check_places, check_source


@dataclass(frozen=True, kw_only=True)
class CheckOptions(SourceOptions, ClipOptions):
    """Look at every video before training: what they are, what is wrong with them, and what to do about it.

    Finds unreadable and damaged files, videos without motion, hard cuts, copies (re-encoded, resized, cropped or in
    part) and what is also in another set, and measures how fast clips load. Nothing is changed.

    Examples:

        stmae check videos/
        stmae check videos/ --against test-videos/ --out check.csv
        stmae check ours/ train.csv --root more/
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """Folder of videos, or what else `stmae pretrain` takes; several too, whose copies of each other are found."""
    against: Annotated[Source | None, default("none")] = None
    """Another set, such as the test videos: what is in both is a leak."""
    out: AnyPath = Path("check.csv")
    """File to write: a row per video, with its facts and flags."""
    repeats: int = 4
    """Clips taken from a video each time it is opened, for the loading speed."""
    look: float = 60.0
    """Seconds of each video that are decoded; of longer ones, windows of about 10 s spread over them."""
    patience: float = 120.0
    """Seconds that one file may take before it counts as unreadable."""
    speed_seconds: float = 6.0
    """How long to measure the loading speed."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae check` can refuse before it looks into the folder."""
        check_source(self, problems)
        if self.against is not None:
            check_places(self.against, problems, name="against")
        check_writable("out", self.out, problems, folder=False)
        at_least(self, ("frames", "image_size", "repeats"), 1, problems)
        positive("stride", self.stride, "Its unit is frames of a 30 fps clock; 4 is the paper's.", problems)
        for name in ("look", "patience", "speed_seconds"):
            positive(name, getattr(self, name), "Its unit is seconds.", problems)
        problems.check(
            self.workers is None or self.workers >= 1,
            f"workers {self.workers} is too small: files are looked at in processes of their own.",
            "Choose 1 or more, or leave it out.",
        )
