"""The options of `stmae embed`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.checks import FEATURE_FILES, at_least, check_threads, check_workers, check_writable, positive
from stmae.tasks.options import SEVERAL, AnyPath, RunOptions, Source, SourceOptions, default
from stmae.tasks.places import check_source, exists


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(SourceOptions, RunOptions):
    """Write one row of features per video, or per window of it, as Parquet or NumPy file.

    Examples:

        stmae embed videos/ --model runs/first --out features.parquet
        stmae embed videos/ --model runs/first --out features.npz --window 2.0
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """Folder, list, shards or one video; or a run: its held-out videos."""
    model: str
    """Run folder or weights file."""
    out: AnyPath
    """File to write; its ending (.parquet or .npz) is the format."""
    window: Annotated[float | None, default("none: one row per video")] = None
    """Seconds between windows: a row per window, with its times."""
    views: int = 1
    """Clips spread over a video whose features are averaged, where there are no windows."""
    crops: int = 1
    """Parts of the picture whose features are averaged too: 1, its middle, or 3, both ends as well."""
    layer: Annotated[int | None, default("the last")] = None
    """Block whose features are taken, counted from 1; the norm follows."""
    batch_size: int = 8
    """Clips per step."""
    workers: Annotated[int | None, default("from the machine's cores")] = None
    """Threads that decode videos."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae embed` can refuse before it looks into a file."""
        check_source(self, problems)
        exists("model", self.model, "Give a run's folder or a weights file", problems)
        ending = self.out.suffix.lower()
        if ending not in FEATURE_FILES:
            said = f"ends in {ending}" if ending else "has no ending"
            nearest = self.out.with_suffix(FEATURE_FILES[0])
            problems.add(
                f'out "{self.out}" {said}, which names no format.', f"Give .parquet or .npz, such as {nearest}."
            )
        check_writable("out", self.out, problems, folder=False)
        if self.window is not None:
            positive("window", self.window, "Its unit is seconds.", problems)
            problems.check(
                self.views == 1,
                f"views {self.views} and window {self.window:g} exclude each other: a window is one view.",
                "Leave one of them out.",
            )
            problems.check(
                self.crops == 1,
                f"crops {self.crops} and window {self.window:g} exclude each other: a window is one view.",
                "Leave one of them out.",
            )
        check_threads(self, problems)
        at_least(self, ("views", "batch_size", *(("layer",) if self.layer is not None else ())), 1, problems)
        problems.check(
            self.crops in (1, 3),
            f"crops {self.crops} is neither 1 nor 3.",
            "Choose 1 (the middle) or 3 (both ends too).",
        )
        check_workers(self.workers, problems)
