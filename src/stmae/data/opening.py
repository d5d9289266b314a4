"""A source by just naming it: a folder, a file, a list, shards, an address, tensors, or several of these."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stmae.data.addresses import open_address, remote_index
from stmae.data.cache import Cache
from stmae.data.index import Index, absolute_folder, files_below, label_of, scan
from stmae.data.lists import is_list, locate
from stmae.data.media import kind_of
from stmae.data.names import Names
from stmae.data.official import class_names_beside, folder_of, hmdb_lists, home, read_official
from stmae.data.remote import NetworkError, is_url
from stmae.data.sources import Mixture, Source, TensorSource, check_weights, names_of, open_shards
from stmae.errors import Problems, UserError, did_you_mean

Say = Callable[[str], None]
MISSING = "missing"  # may be left out like what `stmae check` finds
REASONS = (
    MISSING, "unreadable", "audio", "damaged", "short", "static", "cuts", "duplicate", "overlap", "alike", "leak",
    "leak_alike", "variable_rate", "far_keys",
)  # fmt: skip


def paths_of(what: Any) -> tuple[str | Path, ...]:
    """The paths that name a source: one or several; none where clips from Python are given."""
    if isinstance(what, str | os.PathLike):
        return (Path(what) if not isinstance(what, str) else what,)
    if isinstance(what, list | tuple) and what and all(isinstance(each, str | os.PathLike) for each in what):
        return tuple(what)
    return ()


def open_source(
    what: Any,
    *,
    weights: Sequence[float] | None = None,
    root: str | Path | None = None,
    media: Sequence[str] = (),
    subset: str = "train",
    label_map: str | Path | None = None,
    checked: str | Path | None = None,
    leave_out: Sequence[str] = (),
    cache: Cache | None = None,
    say: Say = lambda text: None,
) -> Source:
    """Opens what there is to learn from; what it is, is told by looking.

    Args:
        what: a folder of any depth; a list (data/lists.py), or HMDB51's folder of lists; a video, image or array file;
            a folder of shards, a tar file or the address of either; several of these; or clips from Python
            (`TensorSource`).
        weights: for several: how many times each is gone through in a pass.
        root: the folder that the entries of lists are relative to; else the list's own.
        media: what to take from folders: "videos", "images", "arrays"; empty for the first of videos, arrays and
            images that is there.
        subset: of lists that tell rows apart: "train", "val", "test", or "all".
        label_map: a file that gives a list's labels other names.
        checked: the report of `stmae check` on this source.
        leave_out: the reasons in that report for which items are left out; "missing": entries of lists that do not
            exist.
        cache: for what lies on other machines; None for a folder of the user's.
        say: is told what else there is to know, such as files that were left out.

    Raises:
        UserError: nothing is there, or something is missing, damaged or contradicts itself.
    """
    places = paths_of(what)
    if not places:
        if weights is not None:
            raise UserError("weights go with several folders or lists, not with clips from Python.", "Leave them out.")
        return TensorSource(what)
    if weights is not None:
        check_weights(len(places), weights)
    problems = Problems()
    found: list[Source] = []
    for place in places:
        try:
            found.append(_open_one(place, root, media, subset, label_map, MISSING in leave_out, cache, say))
        except NetworkError:
            raise  # the others may be fine
        except UserError as error:
            problems.extend(error)
    problems.raise_any()
    if checked is not None:
        found = without(found, checked, [each for each in leave_out if each != MISSING], say)
    return found[0] if len(found) == 1 and weights is None else Mixture(found, weights)


def _open_one(
    place: str | Path,
    root: str | Path | None,
    media: Sequence[str],
    subset: str,
    label_map: str | Path | None,
    skip_missing: bool,
    cache: Cache | None,
    say: Say,
) -> Source:
    if is_url(str(place)):
        return open_address(str(place), cache=cache, media=media, subset=subset, label_map=label_map, say=say)
    path = Path(place).expanduser().absolute()
    if hmdb_lists(path):
        return open_list(path, root=root, subset=subset, skip_missing=skip_missing, say=say)
    if path.is_dir() and not is_packed(path):
        return scan(place, media, say)
    if is_packed(path):
        return open_shards(path)
    if path.is_file() and kind_of(path.name) is not None:
        return Index(path.parent, Names.of([path.name]))
    if path.is_file() and is_list(path):
        return open_list(
            path, root=root, subset=subset, label_map=label_map, skip_missing=skip_missing, cache=cache, say=say
        )
    absolute_folder(place)  # says what is wrong
    raise AssertionError(place)


def is_packed(path: Path) -> bool:
    """Whether a path is a tar file, a pack, or a folder of tar files without videos beside them."""
    if path.is_file():
        return path.suffix.lower() == ".tar"
    try:
        names = os.listdir(path)
    except OSError:
        return False
    if "stmae-pack.json" in names or ".packing" in names:
        return True
    return any(name.lower().endswith(".tar") for name in names) and not any(kind_of(name) == "video" for name in names)


def open_list(
    path: Path,
    *,
    root: str | Path | None = None,
    subset: str = "train",
    label_map: str | Path | None = None,
    skip_missing: bool = False,
    cache: Cache | None = None,
    say: Say = lambda text: None,
) -> Index:
    """The files that a list names; arguments as for `open_source`.

    Raises:
        UserError: it cannot be understood, or files are missing.
    """
    label_map = label_map if label_map is not None else class_names_beside(path)
    listed = read_official(path, subset=subset, label_map=label_map)
    if listed.left_out:
        say(f"{path}: {listed.left_out} rows are of other subsets than {subset} and left out (--subset).")
    elsewhere = sum(map(is_url, listed.paths))
    if elsewhere == len(listed.paths):
        return remote_index("", listed, cache)
    if elsewhere:
        raise UserError(
            f'the list "{path}" names {elsewhere} files on other machines and {len(listed.paths) - elsewhere} on this.',
            "Make two lists of it, and give both.",
        )
    folder, entries = relative(absolute_folder(root) if root is not None else folder_of(path), listed.paths)
    found, missing = locate(folder, entries, lambda below: _files_of(below, entries))
    beside = home(path) if root is None and len(missing) == len(found) else None
    if beside is not None:
        folder = beside
        say(f"{path}: its files lie below {folder}.")
        found, missing = locate(folder, entries, lambda below: _files_of(below, entries))
    if missing:
        _missing(path, folder, [entries[i] for i in missing], len(found), skip_missing, say)
    labels = listed.labels if listed.labels is not None or folder != Path("/") else [""] * len(found)
    if labels is None and found != entries and any(map(label_of, entries)):  # the list's folders, not those above them
        labels = [label_of(entry) or "" for entry in entries]
    index = Index(folder, Names.of(found), None if labels is None else Names.of(labels))
    return index.part(np.setdiff1d(np.arange(len(found)), missing)) if missing else index


def _files_of(folder: Path, entries: Sequence[str]) -> list[str]:
    """The files below a folder; of the root of the file system, those of the folders that the entries lie in."""
    if folder != Path("/"):
        return list(files_below(folder))
    folders = {os.path.dirname(entry) for entry in entries} - {""}
    return [f"{each}/{name}" for each in sorted(folders) for name in _listed(folder / each)]


def _listed(folder: Path) -> list[str]:
    """The files right in a folder; none of a folder that is not there."""
    try:
        with os.scandir(folder) as found:
            return [entry.name for entry in found if not entry.is_dir()]
    except OSError:
        return []


def _missing(path: Path, folder: Path, missing: list[str], total: int, skip: bool, say: Say) -> None:
    """Says which entries of a list do not exist; raises `UserError` unless some do and the others may be skipped."""
    some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    if len(missing) == total:
        raise UserError(
            f'none of the {total} entries of the list "{path}" exists below "{folder}": {some}.',
            "Give the folder that they are relative to with --root.",
        )
    told = f'{len(missing)} of the {total} entries of the list "{path}" do not exist below "{folder}"'
    if not skip:
        raise UserError(f"{told}: {some}.", "Mend the list, or go without them: --leave-out missing.")
    say(f"{told} and are left out: {some}")


def relative(folder: Path, entries: Sequence[str]) -> tuple[Path, list[str]]:
    """Entries as paths relative to `folder`; where one is not below it, to the root of the file system.

    (Not to the nearest folder that holds all: the names, by which items are held out, must not change with the list.)
    """
    entries = [entry.replace("\\", "/") if os.sep == "\\" else entry for entry in entries]
    odd = [entry for entry in entries if entry.startswith(("/", "~", "./")) or ".." in entry]
    if not odd:
        return folder, list(entries)
    prefix = os.fspath(folder)
    whole = [os.path.normpath(os.path.join(prefix, os.path.expanduser(entry))) for entry in entries]
    if all(path.startswith(f"{prefix}/") for path in whole):
        return folder, [path[len(prefix) + 1 :] for path in whole]
    return Path("/"), [path.lstrip("/") for path in whole]


# What `stmae check` found ------------------------------------------------------------------------------------------


def without(sources: Sequence[Source], checked: str | Path, leave_out: Sequence[str], say: Say) -> list[Source]:
    """The sources without the items to which a report of `stmae check` gives one of these reasons.

    Args:
        sources: any.
        checked: a CSV with the columns path and flags; flags holds reasons, separated by blanks.
        leave_out: reasons.
        say: is told how many were left out.

    Raises:
        UserError: it is no such report, or it leaves nothing.
    """
    flags = read_report(checked)
    wanted = set(leave_out)
    dropped = {path for path, reasons in flags.items() if reasons & wanted}
    kept, unknown, total = [], 0, 0
    for source in sources:
        names = list(names_of(source))
        prefix = f"{source.root}/" if len(sources) > 1 else ""
        fine = np.array([name not in dropped and prefix + name not in dropped for name in names], bool)
        unknown += sum(name not in flags and prefix + name not in flags for name in names)
        total += len(names) - int(fine.sum())
        kept.append(source if fine.all() else source.part(np.flatnonzero(fine)))
    if not sum(map(len, kept)):
        raise UserError(f'"{checked}" leaves nothing: every item is {" or ".join(leave_out)}.', "Leave out less.")
    say(f"{total} items left out as {', '.join(leave_out)}, by {checked}.")
    if unknown:
        say(f"{unknown} items are not in {checked} and stay: check them as well.")
    return kept


def read_report(path: str | Path) -> dict[str, set[str]]:
    """The reasons that a report of `stmae check` gives, by path.

    Raises:
        UserError: it cannot be read, or is no such report.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.reader(file)
            head = next(table, [])
            if not {"path", "flags"} <= set(head):
                raise UserError(
                    f'"{path}" does not have the columns path and flags.', "Write it with `stmae check --out`."
                )
            at, said = head.index("path"), head.index("flags")
            return {row[at]: set(row[said].split()) for row in table if len(row) > max(at, said)}
    except OSError as error:
        raise UserError(f'the report "{path}" cannot be read: {error.strerror}.') from None


def check_reasons(leave_out: Sequence[str]) -> None:
    """Raises `UserError` for a reason that no report gives."""
    for reason in leave_out:
        if reason not in REASONS:
            raise UserError(
                f'leave_out "{reason}" is no reason.', f"{did_you_mean(reason, REASONS)} Known: {', '.join(REASONS)}."
            )
