"""What published sets of labelled videos have of their own, beyond the layouts of their lists (data/lists.py).

    Kinetics-400/600/700    annotations/train.csv                              train/<label>/<id>_<start>_<end>.mp4
    Something-Something v2  labels/train.json, labels.json                     20bn-something-something-v2/74225.webm
    UCF101                  ucfTrainTestlist/trainlist01.txt, classInd.txt     UCF-101/<class>/v_<class>_g01_c01.avi
    HMDB51                  testTrainMulti_7030_splits/<class>_test_split1.txt hmdb51_org/<class>/<name>.avi

Lists and videos lie in folders beside each other, so the videos are looked for there as well.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from stmae.data.lists import Listed, read_list

# Names of the folders of videos, as the sets unpack and as they are usually kept.
HOMES = frozenset({
    "hmdb51_org", "hmdb51", "UCF-101", "UCF101", "20bn-something-something-v2", "videos", "train", "val", "validate",
    "test", "k400", "k600", "k700-2020",
})  # fmt: skip
_HMDB = re.compile(r"(.+)_test_split([123])\.txt")
_HMDB_SPLIT = re.compile(r"\*_test_split([123])\.txt")


def hmdb_lists(path: Path) -> list[Path]:
    """HMDB51's lists of one split: of the folder that holds them (split 1), or of `folder/*_test_split2.txt`."""
    pattern = _HMDB_SPLIT.fullmatch(path.name)
    folder, number = (path.parent, pattern[1]) if pattern else (path, "1")
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    found = [match for name in names if (match := _HMDB.fullmatch(name)) is not None and match[2] == number]
    return [folder / match[0] for match in found]


def read_official(path: Path, *, subset: str = "train", label_map: str | Path | None = None) -> Listed:
    """`read_list`; and HMDB51's lists of a split as one, with each file in its class's folder.

    Raises:
        UserError: as `read_list`.
    """
    lists = hmdb_lists(path)
    if not lists:
        return read_list(path, subset=subset, label_map=label_map)
    paths: list[str] = []
    labels: list[str] = []
    left_out = 0
    for each in lists:
        listed = read_list(each, subset=subset)
        own = listed.labels or [""] * len(listed.paths)
        paths += [f"{label}/{name}" if label else name for name, label in zip(listed.paths, own, strict=True)]
        labels += own
        left_out += listed.left_out
    return Listed(paths, labels, left_out)


def class_names_beside(path: Path) -> Path | None:
    """UCF101's table of class names, where it lies beside a list that has numbers in their place."""
    table = path.parent / "classInd.txt"
    return table if table != path and path.name.startswith("trainlist") and table.is_file() else None


def folder_of(path: Path) -> Path:
    """The folder that holds a list, or lists."""
    return path if path.is_dir() else path.parent


def home(path: Path) -> Path | None:
    """Where a set's videos are: the one folder of such a name beside the list's own, or what holds several."""
    above = folder_of(path).parent
    try:
        found = sorted(name for name in os.listdir(above) if name in HOMES and (above / name).is_dir())
    except OSError:
        return None
    if not found:
        return None
    return above / found[0] if len(found) == 1 else above


# Sets that share videos ----------------------------------------------------------------------------------------------

_KINETICS = re.compile(r"(?:^|[^a-z0-9])(?:k|kinetics)[-_ ]?(400|600|700)", re.IGNORECASE)


def leak(learned_from: str, judged_on: str) -> str | None:
    """What to tell of a judgement on Kinetics-400 of weights that learned from Kinetics-700, by the paths' names.

    Source: the paper, section 5.3: 13.9k of the 19.9k validation videos of Kinetics-400 are in Kinetics-700's
    training set.
    """
    learned, judged = (set(_KINETICS.findall(text)) for text in (learned_from, judged_on))
    if "700" in learned and "400" in judged:
        return (
            "warning: these weights learned from Kinetics-700, whose training set holds 13.9k of the 19.9k validation"
            " videos of Kinetics-400: a score on Kinetics-400 says little."
        )
    return None
