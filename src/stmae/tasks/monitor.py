"""A score of the features while they are being learnt: kNN on a small labelled set.

The set lies in class folders, `labelled/<class>/...`: each video is then classified by all others. Or it is parted,
`labelled/train/<class>/...` and `labelled/val/<class>/...`: then those of val are classified by those of train, and
`labelled/test/` is left alone: what is looked at while one trains is no test any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stmae.data.dataset import FixedClips, Sample
from stmae.data.index import Index, scan
from stmae.engine.distributed import World
from stmae.errors import UserError
from stmae.metrics import knn_score

MOST_VIDEOS = 1000  # their clips stay in memory
CLIPS_AT_ONCE = 8
TRAIN, VALIDATION, TEST = {"train", "training"}, {"val", "valid", "validation"}, {"test"}


class Monitor:
    """Reads a clip from the middle of every video, once, and scores an encoder on them as often as it is asked.

    Several processes share the videos, and all call the same methods.

    Args:
        folder: see above.
        clips_of: an index -> the clips of its videos, as training reads them.
        read: these and items -> their samples, in order.
        warn: told of videos that cannot be read, which are left out.

    Raises:
        UserError: fewer than two classes, videos outside of class folders, or too few videos to score on.
    """

    def __init__(
        self,
        folder: str | Path,
        clips_of: Callable[[Index], FixedClips],
        read: Callable[[FixedClips, Sequence[int]], Iterable[Sample]],
        world: World,
        warn: Callable[[str], None],
    ) -> None:
        index = world.first(lambda: _without_test(scan(folder)))
        index = index.part(np.linspace(0, len(index) - 1, min(len(index), MOST_VIDEOS)).round().astype(int))
        self.world, self.warn, self._reading = world, warn, read
        self.labels, self.validation = _labels(index)
        self.classes = sorted(set(self.labels))
        if len(self.classes) < 2:
            raise UserError(
                f'monitor "{folder}" has {len(self.classes)} class ({", ".join(self.classes)}).',
                "Give a folder with a folder of videos for each of two classes or more.",
            )
        self._videos = clips_of(index)
        self._read: list[tuple[int, Tensor]] | None = None  # of this process: item, clip (1, C, T, H, W)

    @property
    def about(self) -> str:
        """What is scored, in a line."""
        how = f"{self.validation.sum()} of them by the others" if self.validation.any() else "each by all others"
        return f"{len(self.labels)} videos of {len(self.classes)} classes, {how}"

    def score(
        self, encode: Callable[[Tensor], Tensor], device: torch.device, limit: int | None = None
    ) -> dict[str, float]:
        """The share of videos whose class the nearest features tell, and what always saying the largest class gives.

        `encode` gives the features (B, D) of clips on the device; all processes call it equally often.

        With a limit so many videos are read and encoded, and nothing is scored: to fail early if that is not possible.
        """
        mine = range(self.world.rank, len(self.labels), self.world.size)
        if limit is not None:
            self._features(self._clips(mine[:limit]), encode, device)
            return {}
        if self._read is None:
            self._read = self._clips(mine)
        parts = self.world.gather(self._features(self._read, encode, device))
        found = dict(pair for part in parts for pair in part)
        items = sorted(found)
        numbers = np.array([self.classes.index(self.labels[item]) for item in items])
        asked = self.validation[items]
        if len(items) < 2 or asked.all():
            raise UserError(
                f"of the {len(self.labels)} videos of the monitor too few can be read to score on.",
                "Mend them, give other ones, or go on without --monitor.",
            )
        features = np.stack([found[item] for item in items])
        if asked.any():
            share = knn_score(features[~asked], numbers[~asked], features[asked], numbers[asked])
        else:
            share = knn_score(features, numbers)
        judged = numbers[asked] if asked.any() else numbers
        return {"monitor_knn": share, "monitor_chance": float(np.bincount(judged).max() / len(judged))}

    def _clips(self, items: Sequence[int]) -> list[tuple[int, Tensor]]:
        found = []
        for sample in self._reading(self._videos, items):
            for bad in sample.bad:
                self.warn(f"monitor: unreadable: {bad.path}: {bad.reason}")
            if len(sample.clips):
                found.append((sample.item, sample.clips))
        return found

    @torch.no_grad()
    def _features(
        self, clips: Sequence[tuple[int, Tensor]], encode: Callable[[Tensor], Tensor], device: torch.device
    ) -> list[tuple[int, np.ndarray]]:
        features: list[tuple[int, np.ndarray]] = []
        kinds = self.world.gather((clips[0][1].shape[1:], clips[0][1].dtype) if clips else None)
        idle = next((torch.zeros(1, *kind[0], dtype=kind[1]) for kind in kinds if kind is not None), None)
        # As often in each process: a model in parts needs all of them.
        for number in range(max(self.world.gather(math.ceil(len(clips) / CLIPS_AT_ONCE)))):
            part = clips[number * CLIPS_AT_ONCE : (number + 1) * CLIPS_AT_ONCE]
            batch = torch.cat([clip for _, clip in part]) if part else idle
            assert batch is not None  # somebody has clips, else there were no rounds
            rows = encode(batch.to(device)).float().cpu().numpy()
            features += [(item, row) for (item, _), row in zip(part, rows, strict=False)]
        return features


def _top(name: str) -> str:
    return name.split("/")[0].lower()


def _parts(index: Index) -> set[str]:
    """The parts that a set lies in, "train" and others; empty where it has none."""
    tops = {_top(index.name(item)) for item in range(len(index))}
    return tops if tops & TRAIN and tops <= TRAIN | VALIDATION | TEST else set()


def _without_test(index: Index) -> Index:
    if not _parts(index) & TEST:
        return index
    return index.part([item for item in range(len(index)) if _top(index.name(item)) not in TEST])


def _labels(index: Index) -> tuple[list[str], np.ndarray]:
    """Each video's class, and whether it is one of those to be classified (bool; all False where none is set apart)."""
    names, parts = [index.name(item) for item in range(len(index))], _parts(index)
    if parts:
        labels = [name.split("/")[1] if name.count("/") > 1 else "" for name in names]
    else:
        labels = [index.label(item) or "" for item in range(len(index))]
    outside = [name for name, label in zip(names, labels, strict=True) if not label]
    if outside:
        more = f", and {len(outside) - 1} more" if len(outside) > 1 else ""
        raise UserError(
            f'monitor "{index.root}": {outside[0]} lies in no class folder{more}.',
            "Put each video into a folder that is called like its class.",
        )
    return labels, np.array([bool(parts) and _top(name) in VALIDATION for name in names], dtype=bool)
