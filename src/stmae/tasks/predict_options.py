"""The options of `stmae predict`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.checks import at_least, check_threads, check_writable, positive
from stmae.tasks.labelled_options import check_views
from stmae.tasks.options import SEVERAL, AnyPath, RunOptions, Source, SourceOptions, default
from stmae.tasks.places import check_source, exists

PREDICTION_FILES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(SourceOptions, RunOptions):
    """Say what videos show, with scores: of each as a whole, or of windows of it with their times.

    Examples:

        stmae predict clip.mp4 --model runs/tuned
        stmae predict videos/ --model runs/tuned --out predictions.csv
        stmae predict long.mp4 --model runs/tuned --window 2 --out timeline.parquet
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """A video, a folder, a list or shards."""
    model: str
    """Run of `stmae finetune`, its weights file, or another project's classifier."""
    out: Annotated[AnyPath | None, default("none: print only")] = None
    """File to write; its ending (.csv, .jsonl or .parquet) is the format."""
    top: int = 5
    """Labels for each video or window, those of highest score first."""
    window: Annotated[float | None, default("none: each video as a whole")] = None
    """Seconds between windows: a row for each, with its times; for videos of any length."""
    views: Annotated[int | None, default("3; 1 of windows, and of a model that sees whole videos")] = None
    """Clips spread over a video whose scores are averaged."""
    crops: int = 1
    """Parts of the picture whose scores are averaged too: 1, its middle, or 3, both ends as well."""
    batch_size: int = 8
    """Clips per step."""
    workers: Annotated[int | None, default("from the machine's cores")] = None
    """Threads that decode videos."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae predict` can refuse before it looks into a file."""
        check_source(self, problems)
        exists("model", self.model, "Give a run's folder or a weights file", problems)
        if self.out is not None:
            ending = self.out.suffix.lower()
            said = f"ends in {ending}" if ending else "has no ending"
            problems.check(
                ending in PREDICTION_FILES,
                f'out "{self.out}" {said}, which names no format.',
                f"Give .csv, .jsonl or .parquet, such as {self.out.with_suffix('.csv')}.",
            )
            check_writable("out", self.out, problems, folder=False)
        if self.window is not None:
            positive("window", self.window, "Its unit is seconds.", problems)
            for name, value in (("views", self.views), ("crops", self.crops)):
                problems.check(
                    value in (None, 1),
                    f"{name} {value} and window {self.window:g} exclude each other: a window is one view.",
                    "Leave one of them out.",
                )
        at_least(self, ("top",), 1, problems)
        check_views(self, problems)
        check_threads(self, problems)
