"""What can be wrong with the sources that a task is given, found without torch and without reading a video."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stmae.errors import Problems, UserError
from stmae.runs import RunFolder
from stmae.tasks.options import SourceOptions
from stmae.tasks.values import size_in_bytes

LONG_LIST = 2_000_000  # bytes: a longer list is read once, when all else is known to be right


def check_source(options: SourceOptions, problems: Problems) -> None:
    """The paths that are given, and what goes with them."""
    from stmae.data.opening import MISSING, check_reasons, paths_of  # bring NumPy, which --help has no need of

    videos = options.videos  # type: ignore[attr-defined]
    places = paths_of(videos)
    skip = MISSING in options.leave_out
    check_places(videos, problems, media=options.media, root=options.root, subset=options.subset, skip_missing=skip)
    if options.root is not None:
        if exists("root", options.root, "Give the folder that the list's entries are relative to", problems):
            problems.check(
                options.root.is_dir(), f'root "{options.root}" is a file.', "Give the folder that the list is about."
            )
        problems.check(
            any(Path(place).expanduser().is_file() or _lists(place) for place in places) or not places,
            f'root "{options.root}" goes with a list, and none is given.',
            "Leave it out, or give a list (.txt, .csv, .json, ...).",
        )
    try:
        size_in_bytes(options.cache_size)
    except UserError as error:
        problems.extend(error)
    if options.cache is not None and options.cache.is_file():
        problems.add(f'cache "{options.cache}" is a file.', "Give a folder; it is made if missing.")
    try:
        check_reasons(options.leave_out)
    except UserError as error:
        problems.extend(error)
    if options.checked is not None:
        exists("checked", options.checked, "Give the report of `stmae check`", problems)
        problems.check(
            bool(set(options.leave_out) - {"missing"}),
            f'checked "{options.checked}" leaves nothing out by itself.',
            "Say for which of its reasons, such as --leave-out unreadable static.",
        )
    elif set(options.leave_out) - {"missing"}:
        problems.add(
            f"leave_out {' '.join(options.leave_out)} needs to know which videos these are.",
            "Run `stmae check`, and give its report with --checked.",
        )


def _lists(place: str | os.PathLike[str]) -> bool:
    from stmae.data.official import hmdb_lists

    return bool(hmdb_lists(Path(place).expanduser().absolute()))


def check_places(
    videos: Any,
    problems: Problems,
    name: str = "videos",
    media: Sequence[str] = (),
    root: Path | None = None,
    **of_lists: Any,
) -> None:
    """Whether each of the paths can be a source. Folders are looked at up to the first file that will do.

    Args:
        videos: what was given.
        problems: gathers what is wrong.
        name: of the option.
        media, root, of_lists: as for `opening.open_source` and `opening.open_list`.
    """
    from stmae.data.index import require_media
    from stmae.data.lists import is_list
    from stmae.data.media import kind_of
    from stmae.data.opening import is_packed, open_list, paths_of
    from stmae.data.remote import is_url

    for place in paths_of(videos):
        path = Path(place).expanduser()
        whole_set = _lists(place)  # named by a folder of lists, or by a pattern that no file is
        if not whole_set and (
            is_url(str(place)) or not exists(name, place, "Give a folder, a list or a video", problems)
        ):
            continue
        if is_packed(path) or kind_of(path.name) is not None or RunFolder(path).exists:
            continue
        try:
            if whole_set:
                open_list(path.absolute(), root=root, **of_lists)
            elif path.is_dir():
                require_media(place, media)
            elif not is_list(path):
                problems.add(
                    f'"{place}" is neither a video nor a list by its ending.',
                    "Lists end in .txt, .csv, .tsv, .json or .jsonl.",
                )
            elif path.stat().st_size < LONG_LIST and (root is None or root.is_dir()):
                open_list(path.absolute(), root=root, **of_lists)
        except UserError as error:
            problems.extend(error)


def exists(name: str, value: str | os.PathLike[str], cure: str, problems: Problems) -> bool:
    """Whether the path exists; if not, the cure names the entry beside it that is spelt most like it."""
    path = Path(os.path.expanduser(value))
    if path.exists() or str(value).startswith("hf://"):  # what lies on the hub is asked for there
        return True
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)
    hint = f' Did you mean "{path.parent / near[0]}"?' if near else ""
    if name in ("model", "init") and not hint and re.fullmatch(r"[\w.-]+/[\w.-]+", str(value)):
        hint = f" Or, if you mean the hub: hf://{value}."
    problems.add(f'{name} "{value}" does not exist.', f"{cure}.{hint}")
    return False
