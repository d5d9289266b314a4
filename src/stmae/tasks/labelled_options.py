"""Options that tasks on labelled videos share, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from stmae.errors import Problems, UserError
from stmae.tasks.checks import at_least, check_threads, check_workers, check_writable
from stmae.tasks.options import AnyPath, Options, RunOptions, SourceOptions, default
from stmae.tasks.places import check_places, check_source, exists
from stmae.tasks.values import from_text

SHARE = 0.2  # of the videos, where neither they nor the user say what is set apart

Part = Annotated[Any, arg(constructor=str, metavar="SOURCE|SHARE")]


@dataclass(frozen=True, kw_only=True)
class LabelledOptions(SourceOptions):
    """Labelled videos."""

    problem: Literal["auto", "single", "multi", "regression"] = "auto"
    """One class each, several each, or numbers; auto tells by the labels."""
    label_map: Annotated[AnyPath | None, default("none")] = None
    """File that numbers the classes, such as Something-Something's labels.json or UCF101's classInd.txt."""

    def check(self, problems: Problems) -> None:
        """The videos and their labels."""
        check_source(self, problems)
        if self.label_map is not None:
            exists("label_map", self.label_map, "Give a file of class names and their numbers", problems)


@dataclass(frozen=True, kw_only=True)
class PartsOptions(LabelledOptions):
    """Labelled videos, and which of them choose settings and which judge."""

    val: Annotated[Part, default("the part called val there, else 0.2")] = "auto"
    """Videos that choose the settings: a source of their own, or a share of the others such as 0.2."""
    test: Annotated[Part, default("the part called test there, else 0.2")] = "auto"
    """Videos that are scored once, at the end: a source of their own, or a share of the others such as 0.2."""

    def check(self, problems: Problems) -> None:
        """The videos, their labels and their parts."""
        super().check(problems)
        shares = 0.0
        for name in ("val", "test"):
            try:
                value = part_of(name, getattr(self, name))
            except UserError as error:
                problems.extend(error)
                continue
            if isinstance(value, float):
                shares += value
            elif value is not None:
                check_places(value, problems, name=name, media=self.media, root=self.root)
        problems.check(
            shares < 1, f"val and test take {shares:g} of the videos.", "Leave some to learn from: such as 0.2 each."
        )


def part_of(name: str, value: Any) -> float | str | Path | None:
    """What is given as a part: a share, a path, or None for "auto".

    Raises:
        UserError: a number that is no share.
    """
    if value == "auto":
        return None
    number = from_text(value, float) if isinstance(value, str) and not Path(value).exists() else value
    if isinstance(number, int | float):
        if not 0 < number < 1:
            raise UserError(f"{name} {number:g} is no share of the videos.", "Choose one above 0 and below 1: 0.2.")
        return float(number)
    if not isinstance(number, str | Path):
        raise UserError(f"{name} is a {type(value).__name__}.", "Give a folder, a list, or a share such as 0.2.")
    return number


@dataclass(frozen=True, kw_only=True)
class FrozenOptions(RunOptions):
    """The encoder, whose weights stay as they are, and what it is shown."""

    model: str
    """Run folder, weights file or another project's checkpoint."""
    layer: Annotated[int | None, default("the last")] = None
    """Block whose features are taken, counted from 1; the norm follows."""
    views: int = 1
    """Clips spread over each video; the test averages over them."""
    crops: int = 1
    """Parts of the picture in each of them: 1, its middle, or 3, both ends as well."""
    batch_size: int = 8
    """Clips per step of the encoder."""
    workers: Annotated[int | None, default("from the machine's cores")] = None
    """Threads that decode videos."""
    out: Annotated[AnyPath | None, default("none: print only")] = None
    """Folder for result.json, predictions.parquet, a table of the classes and pictures; made if missing."""

    def check(self, problems: Problems) -> None:
        """The model and how it is run."""
        exists("model", self.model, "Give a run's folder or a weights file", problems)
        if self.layer is not None:
            at_least(self, ("layer",), 1, problems)
        check_views(self, problems)
        check_threads(self, problems)
        if self.out is not None:
            check_writable("out", self.out, problems, folder=True)


def check_views(options: Options, problems: Problems) -> None:
    """The options `views`, `crops`, `batch_size` and `workers`; views may be left to the model."""
    views, crops = options.views, options.crops  # type: ignore[attr-defined]
    at_least(options, ("batch_size", *(("views",) if views is not None else ())), 1, problems)
    problems.check(crops in (1, 3), f"crops {crops} is neither 1 nor 3.", "Choose 1 (the middle) or 3 (both ends too).")
    check_workers(options.workers, problems)  # type: ignore[attr-defined]
