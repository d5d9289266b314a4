"""Labels of a source as targets: single-label, multi-label, regression. Disagreements are named, never guessed away.

single       jump                  one class per item: its class folder, or what a list or a shard says
multi        jump;wave  or  3 17   several in one cell, separated by semicolons, or numbers by blanks; "-" for none
regression   0.25  or  0.25 1.5    numbers: one output for each
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from stmae.data.index import Index
from stmae.data.lists import SUBSET_NAMES, read_label_map
from stmae.data.sources import Source, parts_of
from stmae.errors import Problems, did_you_mean, unknown

Problem = Literal["single", "multi", "regression"]
NONE = "-"  # the cell of a clip that shows none of the classes
_SPLITS = frozenset({*SUBSET_NAMES, *SUBSET_NAMES.values()})
_SHOWN = 5


@dataclass(frozen=True)
class Labels:
    """What the items of a source are to be recognised as.

    Attributes:
        problem: "single", "multi" or "regression".
        classes: names of the outputs, in the order of the logits.
        targets: of the items in their order: (N,) int64 for "single"; (N, C) float32 of 0 and 1 for "multi";
            (N, K) float32 for "regression".
    """

    problem: Problem
    classes: tuple[str, ...]
    targets: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Items of each class (C,) int64; of regression, all for each output."""
        if self.problem == "single":
            return np.bincount(self.targets, minlength=len(self.classes))
        shown = self.targets > 0 if self.problem == "multi" else np.ones_like(self.targets, bool)
        return shown.sum(axis=0).astype(np.int64)


def read_labels(
    source: Source,
    *,
    problem: Literal["auto", "single", "multi", "regression"] = "auto",
    classes: Sequence[str] | None = None,
    label_map: str | Path | Mapping[str, str] | None = None,
) -> Labels:
    """The labels of all items of a source.

    Args:
        source: files, a list, shards or several of these. Read the labels of the whole before it is split.
        problem: "auto" tells it by the labels of lists: several in one cell are "multi", numbers that are not whole
            "regression". Class folders are always "single" then.
        classes: the only names there may be, in the order of the logits: a trained model's. Without them: the label
            map's, else those met, sorted, numbers by their size.
        label_map: classes by number or numbers by class (`lists.read_label_map`): Something-Something's labels.json,
            UCF101's classInd.txt. Classes keep their names and are in the order of the numbers.

    Raises:
        UserError: an unknown problem; entries without a label or with one that is no number; classes that are not
            among `classes` or in the map; a folder without items among class folders; a single class; one file with
            two labels. Everything at once.
    """
    if problem not in ("auto", *get_args(Problem)):
        raise unknown("problem", problem, ("auto", *get_args(Problem)))
    problems = Problems()
    cells = [source.label(item) for item in range(len(source))]
    _check_there(source, cells, problems)
    problems.raise_any()
    known = [cell for cell in cells if cell is not None]
    kind = _kind(known, all(map(_by_folder, parts_of(source)))) if problem == "auto" else problem
    _check_twice(source, known, kind, problems)
    if kind == "regression":
        return _regression(source, known, classes, problems)
    names, order = _names(known, kind, label_map, problems)
    return _classes(source, names, kind, tuple(classes) if classes is not None else order, problems)


def _by_folder(source: Source) -> bool:
    return isinstance(source, Index) and source.labels is None


def _kind(cells: Sequence[str], folders: bool) -> Problem:
    if folders:
        return "single"
    if any(";" in cell for cell in cells):
        return "regression" if all(map(_numbers, cells)) and not _whole(cells) else "multi"
    if not all(_numbers(cell) or cell == NONE for cell in cells):
        return "single"
    if not _whole([cell for cell in cells if cell != NONE]):
        return "regression"
    return "multi" if any(len(cell.split()) > 1 or cell == NONE for cell in cells) else "single"


def _numbers(cell: str) -> list[float] | None:
    """The numbers in a cell, or None where it holds something else or nothing."""
    try:
        return [float(part) for part in cell.replace(";", " ").split()] or None
    except ValueError:
        return None


def _whole(cells: Sequence[str]) -> bool:
    return all(value.is_integer() for cell in cells for value in _numbers(cell) or ())


def _parts(cell: str, kind: Problem) -> list[str]:
    """The classes that a cell names."""
    if kind == "single":
        return [cell]
    if cell == NONE:
        return []
    if ";" not in cell and _numbers(cell):
        return cell.split()
    return [part.strip() for part in cell.split(";") if part.strip()]


# Checks --------------------------------------------------------------------------------------------------------------


def _some(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _check_there(source: Source, cells: Sequence[str | None], problems: Problems) -> None:
    without = [item for item, cell in enumerate(cells) if cell is None]
    if without:
        problems.add(
            f"{len(without)} of {len(cells)} items have no label: {_some([source.name(i) for i in without[:6]])}.",
            "Put each class into a folder of its own, or give a list with a label in each line"
            f' ("{NONE}" for a clip that shows none of several classes).',
        )
    for part in parts_of(source):
        if _by_folder(part) and isinstance(part.root, Path):
            there = {part.label(item) for item in range(len(part))}
            empty = sorted(
                entry.name
                for entry in os.scandir(part.root)
                if entry.is_dir() and not entry.name.startswith(".") and entry.name not in there
            )
            problems.check(
                not empty,
                f'in "{part.root}", {len(empty)} class folder{"s hold" if len(empty) > 1 else " holds"} nothing that'
                f" can be used: {_some(empty)}.",
                "Fill or remove what is empty, or move what is no class elsewhere.",
            )
            split = sorted(name for name in there if name)
            problems.check(
                not split or not {name.lower() for name in split} <= _SPLITS,
                f'the folders in "{part.root}" are parts of a set, not classes: {", ".join(split)}.',
                f'Give one of them: "{part.root}/{split[0] if split else ""}".',
            )


def _check_twice(source: Source, cells: Sequence[str], kind: Problem, problems: Problems) -> None:
    first: dict[str, str] = {}
    torn = [name for name, cell in zip(_names_of(source), cells, strict=True) if first.setdefault(name, cell) != cell]
    together = " Write the classes of one file into one cell: jump;wave." if kind != "regression" else ""
    problems.check(not torn, f"{len(torn)} files have two labels: {_some(torn)}.", f"Mend the list.{together}")


def _names_of(source: Source) -> list[str]:
    return [source.name(item) for item in range(len(source))]


# Targets -------------------------------------------------------------------------------------------------------------


def _regression(source: Source, cells: Sequence[str], classes: Sequence[str] | None, problems: Problems) -> Labels:
    rows = [_numbers(cell) for cell in cells]
    wrong = [i for i, row in enumerate(rows) if row is None or not all(map(math.isfinite, row))]
    told = [f"{source.name(i)}: {cells[i]}" for i in wrong[: _SHOWN + 1]]
    problems.check(not wrong, f"{len(wrong)} labels are no numbers: {_some(told)}.", "Regression needs numbers.")
    widths = Counter(len(row) for row in rows if row is not None)
    problems.check(
        len(widths) <= 1,
        f"items have different amounts of numbers: {', '.join(f'{count} have {n}' for n, count in widths.items())}.",
        "Give each item equally many.",
    )
    width = max(widths, default=0)
    problems.check(
        classes is None or len(widths) > 1 or len(classes) == width,
        f"the model has {len(classes or ())} outputs, the labels {width} numbers.",
        "Give as many as it was trained on.",
    )
    problems.raise_any()
    default = ("value",) if width == 1 else tuple(f"value {i}" for i in range(1, width + 1))
    return Labels("regression", tuple(classes) if classes is not None else default, np.array(rows, np.float32))


def _names(
    cells: Sequence[str], kind: Problem, label_map: str | Path | Mapping[str, str] | None, problems: Problems
) -> tuple[list[list[str]], tuple[str, ...]]:
    """The classes of each item by name, and the names in order."""
    parts = [_parts(cell, kind) for cell in cells]
    if label_map is None:
        return parts, tuple(sorted({name for row in parts for name in row}, key=_by_size))
    names, order = _mapped(label_map if isinstance(label_map, Mapping) else read_label_map(label_map))
    strange = sorted({name for row in parts for name in row if name not in names})
    problems.check(
        not strange,
        f"{len(strange)} labels are not in the label map: {_some(strange)}."
        + (f" {did_you_mean(strange[0], names)}" if strange else "").rstrip(),
        "Give the map that belongs to the list.",
    )
    problems.raise_any()
    return [[names[name] for name in row] for row in parts], order


def _by_size(name: str) -> tuple[float, str]:
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def _mapped(found: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """What each word of a map calls, whether it stands on its left or right, and the classes in their order."""
    if all(str(value).isdecimal() for value in found.values()):  # Something-Something's: numbers by class
        numbers = sorted((int(value), name) for name, value in found.items())
        return {**{str(n): name for n, name in numbers}, **{name: name for _, name in numbers}}, tuple(
            name for _, name in numbers
        )
    order = tuple(dict.fromkeys(found[key] for key in sorted(found, key=_by_size)))
    return {**{name: name for name in order}, **found}, order


def _classes(
    source: Source, names: Sequence[Sequence[str]], kind: Problem, classes: tuple[str, ...], problems: Problems
) -> Labels:
    number = {name: i for i, name in enumerate(classes)}
    met = Counter(name for row in names for name in row)
    strange = sorted(name for name in met if name not in number)
    near = f" {did_you_mean(strange[0], number)}".rstrip() if strange else ""
    problems.check(
        not strange,
        f"{len(strange)} classes are not among the {len(classes)} that the model knows: {_some(strange)}.{near}",
        f"It knows {_some(classes)}. Rename the classes, or map them with a label map.",
    )
    problems.check(
        len(number) == len(classes),
        f"classes are named twice: {_some(sorted(n for n, c in Counter(classes).items() if c > 1))}.",
    )
    problems.check(
        len(classes) > (kind == "single"),
        f"{source.root} has {'a single class' if classes else 'no class'}{f': {_some(classes)}' if classes else ''}.",
        "There must be two at least to tell apart.",
    )
    problems.raise_any()
    if kind == "single":
        return Labels("single", classes, np.array([number[row[0]] for row in names], np.int64))
    targets: np.ndarray = np.zeros((len(names), len(classes)), np.float32)
    for i, row in enumerate(names):
        targets[i, [number[name] for name in row]] = 1
    return Labels("multi", classes, targets)
