"""Labelled videos of a task: opened with their labels, and parted into those to learn from, to choose by and to judge.

    a folder with train/, val/ and test/        its own parts (also training, validation, valid, testing)
    a list that tells rows apart                its own parts; HMDB51's folder of lists too
    anything else                               a share of the videos each, by a hash of their names (`sources.split`)

What has a train and a test part but no val part, or a val part but no test part (as Kinetics is used), gives a share of
its training part as val. `--val` and `--test` go before all of this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stmae.data.labels import Labels, read_labels
from stmae.data.lists import SUBSET_NAMES, is_list, subsets_of
from stmae.data.official import hmdb_lists
from stmae.data.opening import Say, is_packed, paths_of
from stmae.data.remote import is_url
from stmae.data.sources import Source, names_of, split
from stmae.errors import Problems, UserError
from stmae.tasks.labelled_options import SHARE, LabelledOptions, PartsOptions, part_of
from stmae.tasks.videos import open_given

TRAIN, VAL, TEST = "train", "val", "test"
FEW = 20  # videos, from which little can be told


@dataclass(frozen=True)
class Part:
    """Some videos and their labels, in the same order."""

    source: Source
    labels: Labels

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Parts:
    """The three parts of a labelled set, with the same classes, and in words where they are from."""

    train: Part
    val: Part
    test: Part
    origin: str


def open_labelled(
    options: LabelledOptions,
    say: Say,
    *,
    classes: Sequence[str] | None = None,
    problem: Literal["auto", "single", "multi", "regression"] | None = None,
) -> Part:
    """All videos that the options name, with their labels.

    Args:
        classes: that there may be, in the order of the outputs, such as a trained model's; None for those met.
        problem: what the labels are, where the options do not say so.

    Raises:
        UserError: nothing to read, or labels that are missing or disagree (`data.labels.read_labels`).
    """
    if not paths_of(options.videos):  # type: ignore[attr-defined]
        raise UserError("clips from Python have no labels.", "Give class folders, a list with labels, or shards.")
    # Rows of other parts are not lost, so there is nothing to say of them.
    source = open_given(options, lambda text: None if "(--subset)" in text and "subset" in options.given else say(text))
    kind = options.problem if options.problem != "auto" else problem or "auto"
    return Part(source, read_labels(source, problem=kind, classes=classes, label_map=options.label_map))


def own_parts(options: LabelledOptions) -> dict[str, dict[str, Any]]:
    """The parts that a folder or a list has itself: by "train", "val" and "test", the options that name each."""
    places = paths_of(options.videos)  # type: ignore[attr-defined]
    if len(places) != 1 or is_url(str(places[0])) or "subset" in options.given:
        return {}
    path = Path(places[0]).expanduser()
    if hmdb_lists(path.absolute()):
        return {name: {"subset": name} for name in (TRAIN, TEST)}
    if path.is_dir() and not is_packed(path):
        inside = {entry.name.lower(): entry for entry in path.iterdir() if entry.is_dir()}
        found: dict[str, dict[str, Any]] = {_called(name): {"videos": inside[name]} for name in sorted(inside)}
    elif path.is_file() and is_list(path):
        found = {_called(name): {"subset": _called(name)} for name in subsets_of(path)}
    else:
        return {}
    found = {name: found[name] for name in (TRAIN, VAL, TEST) if name in found}
    return found if TRAIN in found and len(found) > 1 else {}


def _called(name: str) -> str:
    return SUBSET_NAMES.get(name.lower(), name.lower())


def open_parts(options: PartsOptions, say: Say) -> Parts:
    """The training, validation and test part of what the options name.

    Raises:
        UserError: as `open_labelled`; or a part that has no videos.
    """
    own = own_parts(options)
    _tell_left_out(own, say)
    asked = {name: part_of(name, getattr(options, name)) for name in (VAL, TEST)}
    words: dict[str, str] = {}
    whole = open_labelled(dataclasses.replace(options, **own.get(TRAIN, {})), say)
    found: dict[str, Part] = {}
    for name in (VAL, TEST):
        given = asked[name]
        if isinstance(given, str | Path):
            source: dict[str, Any] = {"videos": given, "subset": _subset(given, name)}
            found[name] = _as_whole(dataclasses.replace(options, **source), whole, say)
            words[name] = str(given)
        elif given is None and name in own:
            found[name] = _as_whole(dataclasses.replace(options, **own[name]), whole, say)
            words[name] = "its own part"
    if VAL in found and TEST not in found and asked[TEST] is None and asked[VAL] is None:
        found[TEST], words[TEST] = found.pop(VAL), "its val part"
    shares = {name: _share(asked[name]) for name in (VAL, TEST) if name not in found}
    train, rest = _split(whole, sum(shares.values()))
    for name, share in shares.items():
        words[name] = f"{share:.0%} of the videos"
        if len(shares) == 1:
            found[name] = rest
    if len(shares) == 2:
        found[VAL], found[TEST] = _split(rest, shares[TEST])
    problems = Problems()
    for name, part in (("train", train), *found.items()):
        problems.check(len(part) > 0, f"the {name} part has no videos.", "Give more, or name it a source of its own.")
    problems.raise_any()
    few = [f"{name} has {len(found[name])}" for name in (VAL, TEST) if len(found[name]) < FEW]
    if few:
        say(f"{' and '.join(few)} videos: what so few say is mostly luck. Give more, or a larger share.")
    origin = ", ".join(f"{name}: {len(found[name])} ({words[name]})" for name in (VAL, TEST))
    return Parts(train, found[VAL], found[TEST], f"train: {len(train)}, {origin}")


def _tell_left_out(own: dict[str, dict[str, Any]], say: Say) -> None:
    """Says which folders beside those of the parts are not looked at."""
    folders = [each["videos"] for each in own.values() if "videos" in each]
    if folders:
        beside = sorted(entry.name for entry in folders[0].parent.iterdir() if entry.is_dir() and entry not in folders)
        if beside:
            say(f"left out, as no part to learn from, choose by or judge: {', '.join(beside)}")


def _share(given: Any) -> float:
    return given if isinstance(given, float) else SHARE


def _subset(given: str | Path, name: str) -> str:
    """Of a list that tells rows apart, a source of its own means the part of that name."""
    path = Path(given).expanduser()
    parted = path.is_file() and is_list(path) and name in map(_called, subsets_of(path))
    return name if parted else "all"


def _as_whole(options: PartsOptions, whole: Part, say: Say) -> Part:
    """A part with the classes of the training videos."""
    return open_labelled(options, say, classes=whole.labels.classes, problem=whole.labels.problem)


def _split(whole: Part, share: float) -> tuple[Part, Part]:
    """By the rule that every split follows; labels go along by the videos' names."""
    rows = {name: row for row, name in enumerate(names_of(whole.source))}

    def part(source: Source) -> Part:
        targets = whole.labels.targets[[rows[name] for name in names_of(source)]]
        return Part(source, dataclasses.replace(whole.labels, targets=targets))

    if not share:
        return whole, part(whole.source.part([]))
    kept, held = split(whole.source, share)
    return part(kept), part(held)
