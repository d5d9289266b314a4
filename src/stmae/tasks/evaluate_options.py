"""The options of `stmae evaluate`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.checks import check_threads, check_writable
from stmae.tasks.labelled_options import LabelledOptions, check_views
from stmae.tasks.options import SEVERAL, AnyPath, RunOptions, Source, default
from stmae.tasks.places import exists


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(LabelledOptions, RunOptions):
    """Judge a classifier on labelled videos: several clips and crops of each, averaged, always the same ones.

    Prints accuracies (or mAP, or errors) with intervals and chance, and a row per class. With --out also writes every
    view's scores, the confusion matrix, the calibration, and the protocol by which it was done.

    Examples:

        stmae evaluate labelled/ --model runs/tuned --out results/tuned
        stmae evaluate val.csv --root videos/ --model runs/tuned --views 5
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """Class folders, a list with labels or labelled shards; of what has train, val and test parts, test."""
    model: str
    """Run of `stmae finetune`, its weights file, or another project's classifier."""
    part: Literal["auto", "train", "val", "test"] = "auto"
    """Of videos that are parted, the part to judge; auto takes test, or val where there is no test."""
    views: Annotated[int | None, default("7, or 1 of a model that sees frames from whole videos")] = None
    """Clips spread over each video."""
    crops: int = 3
    """Parts of the picture in each of them: 1, its middle, or 3, both ends as well."""
    batch_size: int = 8
    """Clips per step."""
    workers: Annotated[int | None, default("from the machine's cores")] = None
    """Threads that decode videos."""
    out: Annotated[AnyPath | None, default("none: print only")] = None
    """Folder for result.json, predictions.parquet, a table of the classes and pictures; made if missing."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae evaluate` can refuse before it looks into a file."""
        super().check(problems)
        exists("model", self.model, "Give a run's folder or a weights file", problems)
        check_views(self, problems)
        check_threads(self, problems)
        if self.out is not None:
            check_writable("out", self.out, problems, folder=True)
