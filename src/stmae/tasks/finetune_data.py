"""The videos of `stmae finetune`: those to train on and those to validate on, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from stmae.data.labels import Labels, read_labels
from stmae.data.opening import Say, paths_of
from stmae.data.sources import Mixture, Source, TensorSource, names_of, parts_of, rank_of
from stmae.engine.launch import find
from stmae.errors import UserError
from stmae.runs import RunFolder, read_config
from stmae.tasks.finetune_options import FinetuneOptions
from stmae.tasks.labelled import TRAIN, VAL, Part, own_parts
from stmae.tasks.videos import open_given

Kind = Literal["auto", "single", "multi", "regression"]


def open_both(options: FinetuneOptions, given: FinetuneOptions, say: Say) -> tuple[Part, Part | None]:
    """The labelled videos, and those to validate on where they are a source of their own.

    Args:
        options: settled as far as can be; `given`: as the caller gave them.

    Raises:
        UserError: nothing to read; labels that are missing or disagree; a share besides videos to validate on.
    """
    _check_tensors(options)
    own = own_parts(given) if options.val is None else {}
    training = open_part(replace(options, **own.get(TRAIN, {})), say, classes=_begun_with(options))
    if options.val is None and VAL not in own:
        return training, None
    if "holdout" in given.given and options.holdout:
        what = "val" if options.val is not None else "the part called val"
        raise UserError(
            f"holdout {options.holdout:g} and {what} exclude each other: both are to validate on.",
            "Leave out --holdout.",
        )
    if options.val is None:
        say("validation: the part of the videos that is called val.")
        there = replace(options, **own[VAL])
    else:
        there = replace(options, videos=options.val, subset=options.subset if "subset" in given.given else "val")
    problem, classes = training.labels.problem, training.labels.classes
    return training, open_part(there, say, classes=classes, problem=problem)


def open_part(
    options: FinetuneOptions, say: Say, *, classes: Sequence[str] | None = None, problem: Kind | None = None
) -> Part:
    """The videos that the options name, with their labels: files, lists, shards, or a dataset of (clip, label).

    Raises:
        UserError: nothing to read, or labels that are missing or disagree.
    """
    source = open_given(options, say)
    if isinstance(source, TensorSource) and source.label(0) is None:
        raise UserError(
            "the clips from Python have no labels.",
            "Give a dataset, or a list, of tuples (clip, label): label 3 or jump.",
        )
    kind = problem or options.problem
    return Part(source, read_labels(source, problem=kind, classes=classes, label_map=options.label_map))


def _begun_with(options: FinetuneOptions) -> list[str] | None:
    """The classes of the run that is there, whose outputs keep their order."""
    run = RunFolder(options.out)
    return read_config(run.config).get("derived", {}).get("classes") if run.exists else None


def _check_tensors(options: FinetuneOptions) -> None:
    tensors = not paths_of(options.videos) or (options.val is not None and not paths_of(options.val))
    if tensors and find().size > 1:
        raise UserError("clips from Python train in a single process.", "Write them as files, or start one process.")
    if tensors and options.balance == "sampling":
        raise UserError("balance sampling goes with files, not with clips from Python.", "Use balance loss.")


def labels_of(part: Source, whole: Part) -> Labels:
    """The labels of some items of a labelled source, in their order."""
    if isinstance(part, TensorSource):
        found = whole.labels
        return read_labels(part, problem=found.problem, classes=found.classes)
    rows = {name: row for row, name in enumerate(names_of(whole.source))}
    # A file that a run was begun with and that is gone is unreadable: its label is never asked for.
    return replace(whole.labels, targets=whole.labels.targets[[rows.get(name, 0) for name in names_of(part)]])


def part_by_class(whole: Source, labels: Labels, share: float) -> tuple[Source, Source | None]:
    """The videos to train on, and a share of every class to validate on; a class of one video is trained on.

    A hash of a video's name decides (`sources.split`), so that what was segments of one video stays together.
    """
    classes = labels.targets if labels.problem == "single" else np.zeros(len(whole), np.int64)
    ranks = np.fromiter(map(rank_of, names_of(whole)), np.float64, len(whole))
    held = np.zeros(len(whole), bool)
    for number in np.unique(classes):
        rows = np.flatnonzero(classes == number)
        count = min(round(share * len(rows)) or int(share > 0 and len(rows) > 4), len(rows) - 1)
        if count > 0:
            chosen = ranks[rows] <= np.sort(ranks[rows])[count - 1]
            held[rows] = chosen & ~chosen.all()
    kept = whole.part(np.flatnonzero(held))
    return whole.part(np.flatnonzero(~held)), kept if len(kept) else None


def by_class(source: Source, labels: Labels) -> tuple[Source, np.ndarray]:
    """The same items in another order, of which a pass takes equally many of each class, and their places in `source`.

    As a mixture of classes it is exact over any number of passes, and what stands in for an unreadable video is of its
    class.
    """
    pieces: list[Source] = []
    weights: list[float] = []
    order: list[np.ndarray] = []
    counts, first = labels.counts, 0
    there = int((counts > 0).sum())
    for each in parts_of(source):
        own = labels.targets[first : first + len(each)]
        for number in np.unique(own):
            rows = np.flatnonzero(own == number)
            pieces.append(each.part(rows))
            weights.append(len(labels.targets) / (there * counts[number]))
            order.append(first + rows)
        first += len(each)
    return Mixture(pieces, weights), np.concatenate(order)
