"""Secondary to benchmarks/transfer.py: real labels, in 5 folds by source, pre-trained without any of their footage.

    python benchmarks/transfer_real.py --unlabelled DIR --labelled DIR DIR --run 60

Each of `--labelled` has class folders at any depth (the folder of a file is its class); a table in it (path, group)
says which videos stem from one source, and what looks alike is one source too (footage.py). Unlabelled videos that
share a source or footage with any labelled one are left out. A clip is 16 frames over up to 2 s of a video, the whole
picture at 64 pixels. Settings are those that motion-8's validation part chose, so that nothing is chosen here; every
labelled clip is tested once, in the fold that leaves its source out, and once more backwards: does the answer follow
the order of time? Cells go on like transfer.py's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import footage as videos
import numpy as np
import torch
import transfer_arms as arms
from footage import FRAME, Footage
from motion8 import CROP, FRAMES
from torch import Tensor
from transfer import Cell, run_missing
from transfer_arms import OutOfTime, Place

from stmae.engine.optim import parameter_groups

FOLDS = 5
STRIDES = (1, 2, 3, 4)  # frames, in pre-training


def clips(footage: Footage, which: np.ndarray, starts: np.ndarray, strides: np.ndarray) -> Tensor:
    """Whole pictures at half their size: uint8 (n, 3, FRAMES, CROP, CROP)."""
    rows = (footage.firsts[which] + starts)[:, None] + strides[:, None] * np.arange(FRAMES)
    small = footage.frames[rows].reshape(*rows.shape, CROP, FRAME // CROP, CROP, FRAME // CROP, 3).mean(axis=(3, 5))
    return torch.from_numpy(small.round().astype(np.uint8)).permute(0, 4, 1, 2, 3).contiguous()


@dataclass(frozen=True)
class Labelled:
    """A labelled set within the footage.

    Attributes:
        name: of its folder.
        which: numbers of its videos (n,).
        labels: the number of each one's class (n,).
        classes: names.
    """

    name: str
    footage: Footage
    which: np.ndarray
    labels: np.ndarray
    classes: list[str]

    def clips(self) -> Tensor:
        """The middle clip of each video."""
        counts = self.footage.counts[self.which]
        strides = np.minimum(STRIDES[-1], (counts - 1) // (FRAMES - 1))
        return clips(self.footage, self.which, (counts - 1 - strides * (FRAMES - 1)) // 2, strides)


def labelled(footage: Footage, name: str) -> Labelled:
    which = np.array([v for v, path in enumerate(footage.names) if path.startswith(f"{name}/")])
    own = [footage.names[v].split("/")[-2] for v in which]
    classes = sorted(set(own))
    return Labelled(name, footage, which, np.array([classes.index(each) for each in own]), classes)


def unlabelled(footage: Footage, sets: Sequence[Labelled]) -> np.ndarray:
    """The numbers of the other videos, without those that share a source or footage with a labelled one."""
    known = np.concatenate([each.which for each in sets])
    taken = np.isin(footage.clusters, footage.clusters[known])
    return np.flatnonzero(~taken)


def folds(given: Labelled) -> np.ndarray:
    """The fold of each video: whole clusters, dealt out by size so that the folds are about as large."""
    _, clusters = np.unique(given.footage.clusters[given.which], return_inverse=True)
    sizes = np.bincount(clusters)
    loads, of_cluster = np.zeros(FOLDS, int), np.zeros(len(sizes), int)
    for cluster in np.argsort(-sizes, kind="stable"):
        of_cluster[cluster] = loads.argmin()
        loads[of_cluster[cluster]] += sizes[cluster]
    return of_cluster[clusters]


def pretrain(place: Place, sets: Sequence[Labelled]) -> dict[str, Any]:
    """On the unlabelled footage, left and right exchanged in half of the clips."""
    size, footage = place.size, place.footage
    videos = unlabelled(footage, sets)
    torch.manual_seed(0)
    model = arms.autoencoder(size)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([21, step])
        which = rng.choice(videos, size.pretrain_batch)
        most = np.minimum(STRIDES[-1], (footage.counts[which] - 1) // (FRAMES - 1))
        strides = rng.integers(1, most + 1)
        clip = clips(footage, which, rng.integers(0, footage.counts[which] - strides * (FRAMES - 1)), strides)
        turned = torch.from_numpy(rng.random(len(which)) < 0.5)
        clip[turned] = clip[turned].flip(4)
        return model(clip, keys=arms.keys_of(21, step, len(which))).loss

    groups = parameter_groups(model, 0.05)
    found = arms.fit(place, "real-pretrain", model, groups, size.pretrain_lr, size.pretrain_steps, (0.9, 0.95), loss)
    left_out = len(footage.names) - len(videos) - sum(len(each.which) for each in sets)
    return found | {"videos": len(videos), "left_out": left_out}


def fold(place: Place, given: Labelled, arm: str, number: int, tuned: tuple[float, float]) -> dict[str, Any]:
    """One arm trained without one fold and tested on it."""
    start = None
    if arm == "mae":
        start = arms.autoencoder(place.size)
        start.load_state_dict(torch.load(place.state("real-pretrain"), weights_only=True)["model"])
    known, labels = given.clips(), given.labels
    out = folds(given) == number
    targets = torch.from_numpy(labels)
    # Whatever is left and right has the same label, so each clip is learned from both ways round.
    train = torch.cat([known[~out], known[~out].flip(4)])
    steps = place.size.finetune_steps[0]
    cell = f"real-{given.name}-{arm}-f{number}"
    model, found = arms.train_classifier(place, cell, start, train, targets[~out].repeat(2), number, tuned, steps)

    @torch.no_grad()
    def told(clip: Tensor) -> np.ndarray:
        return torch.cat([model(part).argmax(dim=1) for part in clip.split(32)]).numpy()

    answers = told(known[out])
    return found | {
        "set": given.name, "accuracy": round(float((answers == labels[out]).mean()), 4),
        "train_accuracy": round(float((told(known[~out]) == labels[~out]).mean()), 4),
        "predictions": arms.digits(answers), "backwards": arms.digits(told(known[out].flip(2))),
        "labels": arms.digits(labels[out]),
        "clusters": given.footage.clusters[given.which[out]].tolist(), "classes": given.classes,
    }  # fmt: skip


def cells(sets: Sequence[Labelled], tuned: dict[str, tuple[float, float]]) -> dict[str, Cell]:
    found = {"real-pretrain": Cell(lambda place: pretrain(place, sets))}

    def add(given: Labelled, arm: str, number: int) -> None:
        needs = ("real-pretrain",) if arm == "mae" else ()
        found[f"real-{given.name}-{arm}-f{number}"] = Cell(
            lambda place: fold(place, given, arm, number, tuned[arm]), needs
        )

    for given in sets:
        for number in range(FOLDS):
            for arm in ("scratch", "mae"):
                add(given, arm, number)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unlabelled", nargs="+", required=True, metavar="DIR", help="footage for pre-training")
    parser.add_argument("--labelled", nargs="+", required=True, metavar="DIR", help="class folders, each a set")
    parser.add_argument("--run", type=float, required=True, metavar="MINUTES", help="run what is missing for so long")
    parser.add_argument("--smoke", action="store_true", help="tiny: whether everything works, in seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/results/transfer"))
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/stmae/transfer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = arms.SMOKE if options.smoke else arms.FULL
    work = options.work / ("smoke" if options.smoke else "full")
    names = [Path(folder).name for folder in (*options.unlabelled, *options.labelled)]
    if len(set(names)) < len(names):
        parser.error(f"folders are told apart by their names, and two are called alike: {', '.join(sorted(names))}")
    footage = videos.prepare([*options.unlabelled, *options.labelled], work, synthetic=size.synthetic)
    sets = [labelled(footage, Path(folder).name) for folder in options.labelled]
    for each in sets:
        if (sources := len(np.unique(footage.clusters[each.which]))) < FOLDS:
            parser.error(f"{each.name} has videos of {sources} sources; {FOLDS} folds by source take {FOLDS} or more")
        if len(each.classes) > 10:
            parser.error(f"{each.name} has {len(each.classes)} classes; up to 10 fit into a result")
    if not len(unlabelled(footage, sets)):
        parser.error("every unlabelled video shares a source with a labelled one")
    state = work / f"real-{footage.identity}"
    state.mkdir(parents=True, exist_ok=True)
    for path in options.out.glob("real-*.json"):
        if json.loads(path.read_text())["footage_identity"] != footage.identity:
            parser.error(f"{path} is of other footage; give another --out")
    task = options.out / "task.json"
    if task.exists() and not size.is_that_of(json.loads(task.read_text())):
        parser.error(f"{options.out} holds results of another size; give another --out")
    place = Place(footage, size, options.out, state, time.monotonic() + 60 * options.run)
    tuned = {}
    for arm in arms.TUNING:
        lacks = [name for n in range(len(arms.TUNING[arm])) if place.result(name := f"tune-{arm}-{n}") is None]
        if lacks:
            parser.error(f"settings are chosen by transfer.py's cells {' '.join(lacks)}: run these first")
        tuned[arm] = arms.tuned(place, arm)
    try:
        run_missing(place, cells(sets, tuned))
    except OutOfTime:
        print("out of time; the next --run goes on from here", flush=True)


if __name__ == "__main__":
    main()
