"""Lists of files: text, CSV, TSV, JSON and JSON lines, in the layouts that people have.

    mae_st, VideoMAE       path label                  separated by a blank, a comma, a tab, a semicolon or a bar
    PySlowFast             path,label  or  path label
    UCF101                 class/file.avi 1            trainlist01.txt; testlist01.txt has no labels
    HMDB51                 file.avi 1                  brush_hair_test_split1.txt: 1 training, 2 test, 0 neither
    Something-Something    [{"id": "74225", "template": "Holding [something]"}, ...]
    Kinetics               label,youtube_id,time_start,time_end,split
    anything with a header or with keys: path, video, file, id, ...; label, class, ...; split or subset

Which column holds the paths is told by their endings, so paths may hold blanks, and a list may have no labels.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae.data.media import kind_of
from stmae.errors import UserError, did_you_mean

LIST_EXTENSIONS = frozenset("csv json jsonl list lst ndjson tsv txt".split())  # noqa: SIM905 (a table, as in media.py)

PATHS = ("path", "video_path", "filepath", "file_path", "filename", "file_name", "file", "video", "video_name", "name",
         "clip", "clip_path", "relpath", "url", "video_id", "youtube_id", "id")  # fmt: skip
LABELS = ("label", "labels", "class", "class_name", "category", "action", "target", "template", "label_name",
          "label_id", "class_id", "label_idx")  # fmt: skip
SUBSETS = ("split", "subset", "partition")
SUBSET_NAMES = {"training": "train", "validation": "val", "valid": "val", "validate": "val", "testing": "test"}

_SAMPLE = 500  # lines that a layout is told by
_HMDB = re.compile(r"(.+)_test_split[123]\.txt$")
_HMDB_SUBSETS = {"0": "neither", "1": "train", "2": "test"}

Row = tuple[str, str, str]  # path, label, subset; the last two may be empty


@dataclass(frozen=True)
class Listed:
    """What a list says.

    Attributes:
        paths: as they stand there.
        labels: one per path, an empty one for none; None where the list has no labels.
        left_out: rows of other subsets.
    """

    paths: list[str]
    labels: list[str] | None
    left_out: int = 0


def is_list(path: Path) -> bool:
    """Whether a file is a list by its name."""
    return path.suffix.lower()[1:] in LIST_EXTENSIONS


def read_list(path: str | Path, *, subset: str = "train", label_map: str | Path | None = None) -> Listed:
    """Reads a list of any of the kinds above.

    Args:
        path: of the list.
        subset: the rows that are taken where the list tells rows apart: "train", "val", "test" or as it calls them;
            "all" for all.
        label_map: a file that gives labels other names: `{"Holding something": "41"}` as JSON, or lines such as
            UCF101's `1 ApplyEyeMakeup`.

    Raises:
        UserError: it cannot be read, has no rows, or none of the subset.
    """
    path = Path(path)
    rows = _rows(path, _text(path))
    if not rows:
        raise UserError(f'the list "{path}" is empty.', "Give one with a path in each line.")
    chosen = _of_subset(path, rows, subset)
    labels = [label for _, label, _ in chosen]
    if label_map is not None:
        names = read_label_map(label_map)
        labels = [names.get(label, label) for label in labels]
    return Listed([name for name, _, _ in chosen], labels if any(labels) else None, len(rows) - len(chosen))


def subsets_of(path: str | Path) -> list[str]:
    """The subsets that a list tells its rows apart by, as it calls them, sorted; none where it does not.

    Raises:
        UserError: it cannot be read.
    """
    return sorted({part for _, _, part in _rows(Path(path), _text(Path(path))) if part})


def read_label_map(path: str | Path) -> dict[str, str]:
    """Labels and what they are to be called (see `read_list`).

    Raises:
        UserError: it cannot be read or is no such map.
    """
    path = Path(path)
    text = _text(path)
    if path.suffix.lower() == ".json":
        found = _json(path, text)
        if not isinstance(found, Mapping):
            raise UserError(f'the label map "{path}" is no JSON object.', 'Write {"label": "name", ...}.')
        return {_plain(key): str(value) for key, value in found.items()}
    pairs = [re.split(r"[,;\t ]\s*", line.strip(), maxsplit=1) for line in text.splitlines() if line.strip()]
    if not all(len(pair) == 2 for pair in pairs):
        raise UserError(f'the label map "{path}" has lines without a name.', "Write a label and its name in each.")
    return {label: name.strip() for label, name in pairs}


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f'the list "{path}" cannot be read: {error.strerror}.') from None
    if "\0" in text[:4096]:
        raise UserError(f'"{path}" is no text.', "Save it as UTF-8 text, CSV or JSON.")
    return text


def _rows(path: Path, text: str) -> list[Row]:
    ending = path.suffix.lower()
    if ending == ".json":
        return _from_json(path, _json(path, text))
    lines = [line for line in text.splitlines() if line.strip()]
    if ending in (".jsonl", ".ndjson"):
        return _from_json(path, [_json(path, line, f", line {n}") for n, line in enumerate(lines, 1)])
    hmdb = _HMDB.match(path.name)
    if hmdb is not None and all(line.split()[-1] in _HMDB_SUBSETS for line in lines):
        pairs = [line.rsplit(None, 1) for line in lines]
        return [(name.strip(), hmdb[1], _HMDB_SUBSETS[part]) for name, part in pairs]
    try:
        return _from_lines(path, lines)
    except csv.Error as error:
        raise UserError(f'the list "{path}" is no table: {error}.', "See whether every quote is closed.") from None


# JSON ----------------------------------------------------------------------------------------------------------------


def _json(path: Path, text: str, where: str = "") -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f'"{path}"{where} is no valid JSON: {error}.') from None


def _from_json(path: Path, found: Any) -> list[Row]:
    if isinstance(found, Mapping):
        found = found.get("database", found)  # ActivityNet's
        found = [_with_id(name, value) for name, value in found.items()]
    if not isinstance(found, list):
        raise UserError(f'"{path}" holds {json.dumps(found)[:100]} and no list.', "Write a list of paths or objects.")
    return [_from_entry(path, number, entry) for number, entry in enumerate(found, 1)]


def _with_id(name: str, value: Any) -> Any:
    return {"id": name, **value} if isinstance(value, Mapping) else [name, value]


def _from_entry(path: Path, number: int, entry: Any) -> Row:
    if isinstance(entry, str):
        return entry, "", ""
    if isinstance(entry, Sequence) and entry and all(isinstance(each, str | int) for each in entry):
        return str(entry[0]), str(entry[-1]) if len(entry) > 1 else "", ""
    if isinstance(entry, Mapping):
        row = _checked(path, f"entry {number}", {str(key).lower(): value for key, value in entry.items()})
        if row is not None:
            return row
    raise UserError(
        f'"{path}", entry {number} has no path: {json.dumps(entry)[:100]}.', f"Name it by one of: {', '.join(PATHS)}."
    )


def _checked(path: Path, where: str, record: Mapping[str, Any]) -> Row | None:
    """`_from_record`, of which the mistakes are told by their place."""
    try:
        return _from_record(record)
    except (ValueError, TypeError) as error:
        raise UserError(f'"{path}", {where} cannot be read: {error}.', "Mend it, or take it out.") from None


def _from_record(record: Mapping[str, Any]) -> Row | None:
    """A row by the names of its columns."""
    if isinstance(record.get("annotations"), Mapping):  # Kinetics' JSON: label and segment lie deeper
        deeper = record["annotations"]
        start, end = (deeper.get("segment") or ("", ""))[:2]
        record = {**record, "youtube_id": record.get("id"), "label": deeper.get("label"), "url": None}
        record |= {"time_start": start, "time_end": end} if start != "" else {}
    path = next((str(record[key]) for key in PATHS if record.get(key) not in (None, "")), None)
    if path is None:
        return None
    if "youtube_id" in record and "time_start" in record and "time_end" in record:  # how Kinetics' files are named
        start, end = (round(float(record[key])) for key in ("time_start", "time_end"))
        path = f"{record['youtube_id']}_{start:06d}_{end:06d}"
    # Something-Something has both: the template is the class, the label a sentence about this video.
    keys = ("template", *LABELS) if "template" in record else LABELS
    label = next((_plain(record[key]) for key in keys if record.get(key) not in (None, "")), "")
    return path, label, next((str(record[key]) for key in SUBSETS if record.get(key) not in (None, "")), "")


def _plain(label: Any) -> str:
    """`Putting [something] on [something]` as the label map has it; several labels in one cell (data/labels.py)."""
    if isinstance(label, list):
        return ";".join(map(_plain, label)) or "-"
    return re.sub(r"\[(.*?)\]", r"\1", str(label))


# Lines ---------------------------------------------------------------------------------------------------------------

Cut = Callable[[str], list[str]]
_NUMBER = re.compile(r"-?\d+(\.\d*)?")


def _csv(separator: str) -> Cut:
    return lambda line: [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


CUTS: dict[str, Cut] = {
    "line": lambda line: [line.strip().strip('"')],
    "tab": _csv("\t"),
    "comma": _csv(","),
    "semicolon": _csv(";"),
    "bar": _csv("|"),
    "last blank": lambda line: line.strip().rsplit(None, 1),  # a path with blanks, then a label
    "last blanks": lambda line: line.strip().rsplit(None, 2),  # a path, frames, a label
    "blanks": str.split,
}


def _from_lines(path: Path, lines: list[str]) -> list[Row]:
    headed = _headed(path, lines)
    if headed is not None:
        return headed
    cut, column = _layout(path, lines[:_SAMPLE])
    rows = []
    for number, line in enumerate(lines, 1):
        cells = CUTS[cut](line)
        if len(cells) <= column:
            raise UserError(
                f'"{path}", line {number} has no path: {line.strip()[:100]}', "Write every line in the same way."
            )
        others = [*cells[:column], *cells[column + 1 :]]
        if cut.endswith(("blank", "blanks")):  # frames or times, then a label, which may be several words
            label = itertools.dropwhile(_NUMBER.fullmatch, others[:-1])
            others = [" ".join([*label, *others[-1:]])]
        rows.append((cells[column], others[-1] if others else "", ""))
    return rows


def _headed(path: Path, lines: list[str]) -> list[Row] | None:
    """The rows of a table with a line of names on top; None where there is none."""
    for separator in (",", "\t", ";", "|"):
        names = [name.lower().replace(" ", "_").lstrip("#") for name in _csv(separator)(lines[0])] if lines else []
        if not set(names) & set(PATHS) or (len(names) < 2 and kind_of(lines[0]) is not None):
            continue
        text = io.StringIO("\n".join(lines[1:]))
        rows = []
        for number, cells in enumerate(csv.reader(text, delimiter=separator, skipinitialspace=True), 2):
            row = _checked(path, f"line {number}", dict(zip(names, map(str.strip, cells), strict=False)))
            if row is not None and any("\n" in text for text in row):
                raise UserError(f'"{path}", line {number} has a quote that is not closed.', "Close it, or double it.")
            rows.append(row)
        empty = next((number for number, row in enumerate(rows, 2) if row is None), None)
        if empty is not None:
            raise UserError(f'"{path}", line {empty} has no path.', "Fill it in, or take the line out.")
        return [row for row in rows if row is not None]
    return None


def _layout(path: Path, sample: list[str]) -> tuple[str, int]:
    """How lines are cut, and which column holds the paths: where most cells end like files that we read.

    Between equals the first cut that gives paths that exist, else the one that leaves lines whole.
    """
    scores: dict[tuple[str, int], int] = {}
    for cut, into in CUTS.items():
        counts: Counter[int] = Counter()
        for line in sample:
            counts.update(column for column, cell in enumerate(into(line)) if kind_of(cell) is not None)
        if counts:
            column = min(counts, key=lambda each: (-counts[each], each))
            scores[cut, column] = counts[column]
    if scores:
        best = [layout for layout, score in scores.items() if score == max(scores.values())]
        for cut, column in best if len(best) > 1 else []:
            if any(os.path.exists(path.parent / CUTS[cut](line)[column]) for line in sample[:5]):
                return cut, column
        return best[0]
    # Names without endings: the first column of the first cut that gives all lines equally many.
    for cut in ("tab", "comma", "semicolon", "bar", "blanks"):
        widths = {len(CUTS[cut](line)) for line in sample}
        if len(widths) == 1 and widths != {1}:
            return cut, 0
    return "line", 0


# Subsets -------------------------------------------------------------------------------------------------------------


def _usual(subset: str) -> str:
    return SUBSET_NAMES.get(subset.lower(), subset.lower())


def _of_subset(path: Path, rows: list[Row], subset: str) -> list[Row]:
    there = {part for _, _, part in rows}
    if subset == "all" or there == {""}:
        return rows
    called = {part for part in there if _usual(part) == _usual(subset)}
    if not called:
        known = sorted(part for part in there if part)
        raise UserError(
            f'the list "{path}" has no rows of the subset "{subset}", only: {", ".join(known[:10])}.',
            f"{did_you_mean(subset, known)} Choose one with --subset, or all.".strip(),
        )
    return [row for row in rows if row[2] in called]


# Finding the files ---------------------------------------------------------------------------------------------------


def locate(root: Path, entries: Sequence[str], below: Callable[[Path], Sequence[str]]) -> tuple[list[str], list[int]]:
    """Where the entries of a list lie below a folder.

    An entry is a path relative to `root`, with or without its ending; or a folder of frames, which gets a slash; or a
    file's name, with or without its ending, that only one file below `root` has.

    Args:
        root: the folder, absolute.
        entries: relative paths.
        below: lists the files of a folder, at any depth; asked only where entries do not lie where they say.

    Returns:
        The relative paths of files (of those that are missing, the entry), and the numbers of the missing ones.
    """
    missing = [i for i, there in enumerate(_exist(root, entries)) if not there]
    found = list(entries)
    if any(os.path.isdir(root / entries[i]) for i in missing[:20]):  # folders with the frames of each video
        for i in missing:
            found[i] = f"{entries[i].rstrip('/')}/" if os.path.isdir(root / entries[i]) else entries[i]
        missing = [i for i in missing if not found[i].endswith("/")]
    if not missing:
        return found, []
    exact: dict[str, str] = {}
    alone: dict[str, str | None] = {}
    for path in below(root):
        if kind_of(path) is None:
            continue
        name = path.rpartition("/")[2]
        exact.setdefault(os.path.splitext(path)[0], path)
        for key in {name, os.path.splitext(name)[0]}:
            alone[key] = None if key in alone else path
    for i in missing:
        entry = entries[i]
        found[i] = exact.get(entry) or alone.get(entry.rpartition("/")[2]) or entry
    return found, [i for i in missing if found[i] == entries[i]]


def _exist(root: Path, entries: Sequence[str]) -> list[bool]:
    """Whether each path is a file; folders with many entries are listed rather than asked file by file."""
    folders = Counter(entry.rpartition("/")[0] for entry in entries)
    listed: dict[str, set[str]] = {}
    for folder, count in folders.items():
        if count >= 100:
            try:
                with os.scandir(root / folder) as inside:
                    listed[folder] = {entry.name for entry in inside if not entry.is_dir()}
            except OSError:
                listed[folder] = set()
    prefix = os.fspath(root)

    def there(entry: str) -> bool:
        folder, _, name = entry.rpartition("/")
        return name in listed[folder] if folder in listed else os.path.isfile(f"{prefix}/{entry}")

    return [there(entry.partition("::")[0]) if "::" in entry else there(entry) for entry in entries]
