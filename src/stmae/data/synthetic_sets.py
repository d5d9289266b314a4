"""Published sets of labelled videos in miniature: their files, lists and quirks, with generated videos.

The classes are told by the direction in which a bright square moves, so that a classifier can learn them. What makes
each set's files special is kept: see `write_set`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from stmae.data.synthetic import write_video
from stmae.errors import unknown

SetName = Literal["kinetics400", "kinetics600", "kinetics700", "ssv2", "ucf101", "hmdb51"]

SIZE, LENGTH, RATE = (48, 64), 20, 12  # height and width; frames; frames per second
_MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))  # rows, columns


def write_set(folder: str | Path, name: SetName, *, videos: int = 4, seed: int = 0) -> Path:
    """Writes a set in miniature.

    kinetics400/600/700: `annotations/{train,val,test}.csv` (700 says `validate` for val, 400 has a column `is_cc`, test
        no labels), one label quoted with a comma, labels with blanks, ids that begin with "-" or "_", times below
        10 s, videos in folders named after their labels, and one listed video that is not there.
    ssv2: `labels/{train,validation,test,labels,test-answers}`: templates with [something], labels that are sentences,
        ids without endings, classes numbered in labels.json; videos are .webm.
    ucf101: `ucfTrainTestlist/` with CRLF line ends, numbers in trainlist01.txt, none in testlist01.txt, classInd.txt;
        one class whose folder and files are spelt differently.
    hmdb51: a list for each class and split, marks 0, 1 and 2, trailing blanks, file names with # and brackets.

    Args:
        folder: where the set goes.
        videos: of each class in training; half as many, at least one, in the others.
        seed: of the videos.

    Returns:
        The list of the training part, or the folder of lists.
    """
    folder = Path(folder)
    if name not in get_args(SetName):
        raise unknown("set", name, get_args(SetName))
    make = _Videos(seed)
    if name == "ssv2":
        return _something(folder, make, videos)
    if name == "ucf101":
        return _ucf(folder, make, videos)
    return _hmdb(folder, make, videos) if name == "hmdb51" else _kinetics(folder, make, videos, name[-3:])


class _Videos:
    """Writes one video after the other."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, path: Path, label: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = {".avi": "mpeg4", ".webm": "libvpx"}.get(path.suffix, "libx264")
        write_video(path, self._frames(label), RATE, codec=codec, options={"threads": "1"})

    def _frames(self, label: int) -> Iterator[np.ndarray]:
        (H, W), side = SIZE, 14
        colour = self._rng.integers(140, 256, 3)
        ground = self._rng.integers(0, 90, 3)
        start, move = self._rng.integers(0, (H, W)), np.array(_MOVES[label])
        for i in range(LENGTH):
            frame: np.ndarray = np.empty((H, W, 3), np.uint8)
            frame[:] = ground
            y, x = start + 3 * i * move
            frame[np.ix_((np.arange(y, y + side)) % H, (np.arange(x, x + side)) % W)] = colour
            yield frame


def _parts(videos: int) -> tuple[tuple[str, int], ...]:
    return ("train", videos), ("val", max(1, videos // 2)), ("test", max(1, videos // 2))


def _kinetics(folder: Path, make: _Videos, videos: int, version: str) -> Path:
    labels = ["abseiling", "massaging person's head", "passing American football (in game)", "tying knot, not tie"]
    words = {"train": "train", "val": "validate" if version == "700" else "val", "test": "test"}
    extra = version == "400"
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for part, count in _parts(videos):
        rows = [
            "youtube_id,time_start,time_end,split" if part == "test" else "label,youtube_id,time_start,time_end,split"
        ]
        rows[0] += ",is_cc" if extra else ""
        for number, label in enumerate(labels):
            for i in range(count):
                name, start = f"{'-_ab'[number]}{part[:2]}{version}x{number}{i:02d}", 7 * i
                quoted = f'"{label}"' if "," in label else label
                row = f"{name},{start},{start + 10},{words[part]}" + (",0" if extra else "")
                rows.append(row if part == "test" else f"{quoted},{row}")
                below = folder / part / ("" if part == "test" else label)
                make(below / f"{name}_{start:06d}_{start + 10:06d}.mp4", number)
        if part != "test":
            gone = f"gone{version}{part},3,13,{words[part]}" + (",0" if extra else "")
            rows.append(f"{labels[0]},{gone}")  # taken off the site since
        (folder / "annotations" / f"{words[part]}.csv").write_text("\n".join(rows) + "\n")
    return folder / "annotations" / "train.csv"


def _something(folder: Path, make: _Videos, videos: int) -> Path:
    templates = [
        "Pushing [something] from left to right", "Pushing [something] from right to left",
        "Moving [something] down", "Moving [something] up",
    ]  # fmt: skip
    numbers = {template.replace("[", "").replace("]", ""): str(30 - 9 * i) for i, template in enumerate(templates)}
    lists = folder / "labels"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "labels.json").write_text(json.dumps(numbers))
    number = 74000
    for part, count in _parts(videos):
        rows: list[dict[str, Any]] = []
        answers = []
        for label, template in enumerate(templates):
            for _ in range(count):
                number += 17
                make(folder / "20bn-something-something-v2" / f"{number}.webm", label)
                answers.append(f"{number};{list(numbers)[label]}")
                row: dict[str, Any] = {"id": str(number)}
                if part != "test":
                    row |= {"label": template.lower().replace("[something]", "a cup"), "template": template}
                    row |= {"placeholders": ["a cup"]}
                rows.append(row)
        (lists / {"val": "validation.json"}.get(part, f"{part}.json")).write_text(json.dumps(rows))
        if part == "test":
            (lists / "test-answers.csv").write_text("\n".join(answers) + "\n")
    return lists / "train.json"


def _ucf(folder: Path, make: _Videos, videos: int) -> Path:
    classes = ["ApplyEyeMakeup", "Archery", "HandstandPushups", "YoYo"]
    lists = folder / "ucfTrainTestlist"
    lists.mkdir(parents=True, exist_ok=True)

    def write(name: str, rows: list[str]) -> None:
        (lists / name).write_bytes("".join(f"{row}\r\n" for row in rows).encode())

    write("classInd.txt", [f"{i} {name}" for i, name in enumerate(classes, 1)])
    for split in (1, 2, 3):
        rows: dict[str, list[str]] = {"train": [], "test": []}
        for label, name in enumerate(classes):
            spelt = name.replace("Handstand", "HandStand")
            for i in range(videos + max(1, videos // 2)):
                path = f"{name}/v_{spelt}_g{i + 1:02d}_c01.avi"
                if split == 1:
                    make(folder / "UCF-101" / path, label)
                training = (i + split - 1) % (videos + max(1, videos // 2)) < videos
                rows["train" if training else "test"].append(f"{path} {label + 1}" if training else path)
        write(f"trainlist0{split}.txt", rows["train"])
        write(f"testlist0{split}.txt", rows["test"])
    return lists / "trainlist01.txt"


def _hmdb(folder: Path, make: _Videos, videos: int) -> Path:
    lists = folder / "testTrainMulti_7030_splits"
    lists.mkdir(parents=True, exist_ok=True)
    total = videos + max(1, videos // 2) + 1
    for label, name in enumerate(("brush_hair", "cartwheel", "shake_hands", "wave")):
        files = [f"{'#' * (i % 2)}Clip_{i}_({name})_{name}_f_cm_np1_ba_med_{i}.avi" for i in range(total)]
        for file in files:
            make(folder / "hmdb51_org" / name / file, label)
        for split in (1, 2, 3):
            marks = ["1"] * videos + ["2"] * max(1, videos // 2) + ["0"]
            turned = marks[split - 1 :] + marks[: split - 1]
            rows = [f"{file} {mark} " for file, mark in zip(files, turned, strict=True)]
            (lists / f"{name}_test_split{split}.txt").write_text("\n".join(rows) + "\n")
    return lists
