"""Secondary to benchmarks/transfer.py: real labels, in 5 folds by source, pre-trained without any of their footage.

    python benchmarks/transfer_real.py --unlabelled DIR --labelled DIR --run 60

`--labelled` has class folders at any depth (the folder of a file is its class); a table in it (path, group) says which
videos stem from one source, and what looks alike is one source too (footage.py). A clip is 16 frames over up to 2 s of
a video, the whole picture at 64 pixels. Settings are those that motion-8's validation part chose, so that nothing is
chosen here; every labelled clip is tested once, in the fold that leaves its source out. Cells go on like transfer.py's.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
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


def labelled(footage: Footage) -> tuple[Tensor, np.ndarray, list[str]]:
    """The middle clip of each video, its class's number, and the classes."""
    classes = sorted({name.split("/")[-2] for name in footage.names})
    labels = np.array([classes.index(name.split("/")[-2]) for name in footage.names])
    strides = np.minimum(STRIDES[-1], (footage.counts - 1) // (FRAMES - 1))
    starts = (footage.counts - 1 - strides * (FRAMES - 1)) // 2
    return clips(footage, np.arange(len(labels)), starts, strides), labels, classes


def folds(footage: Footage) -> np.ndarray:
    """The fold of each video: whole clusters, dealt out by size so that the folds are about as large."""
    sizes = np.bincount(footage.clusters)
    loads, of_cluster = np.zeros(FOLDS, int), np.zeros(len(sizes), int)
    for cluster in np.argsort(-sizes, kind="stable"):
        of_cluster[cluster] = loads.argmin()
        loads[of_cluster[cluster]] += sizes[cluster]
    return of_cluster[footage.clusters]


def pretrain(place: Place) -> dict[str, Any]:
    """On all of the unlabelled footage, left and right exchanged in half of the clips."""
    size, footage = place.size, place.footage
    torch.manual_seed(0)
    model = arms.autoencoder(size)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([21, step])
        which = rng.choice(len(footage.names), size.pretrain_batch)
        most = np.minimum(STRIDES[-1], (footage.counts[which] - 1) // (FRAMES - 1))
        strides = rng.integers(1, most + 1)
        clip = clips(footage, which, rng.integers(0, footage.counts[which] - strides * (FRAMES - 1)), strides)
        turned = torch.from_numpy(rng.random(len(which)) < 0.5)
        clip[turned] = clip[turned].flip(4)
        return model(clip, keys=arms.keys_of(21, step, len(which))).loss

    groups = parameter_groups(model, 0.05)
    return arms.fit(place, "real-pretrain", model, groups, size.pretrain_lr, size.pretrain_steps, (0.9, 0.95), loss)


def fold(place: Place, arm: str, number: int, tuned: tuple[float, float]) -> dict[str, Any]:
    """One arm trained without one fold and tested on it."""
    start = None
    if arm == "mae":
        start = arms.autoencoder(place.size)
        start.load_state_dict(torch.load(place.state("real-pretrain"), weights_only=True)["model"])
    known, labels, classes = labelled(place.footage)
    out = folds(place.footage) == number
    targets = torch.from_numpy(labels)
    # Whatever is left and right has the same label, so each clip is learned from both ways round.
    train = torch.cat([known[~out], known[~out].flip(4)])
    steps = place.size.finetune_steps[0]
    model, found = arms.train_classifier(
        place, f"real-{arm}-f{number}", start, train, targets[~out].repeat(2), number, tuned, steps
    )
    with torch.no_grad():
        told = torch.cat([model(part).argmax(dim=1) for part in known[out].split(32)]).numpy()
    return found | {
        "accuracy": round(float((told == labels[out]).mean()), 4), "predictions": arms.digits(told),
        "labels": arms.digits(labels[out]), "clusters": place.footage.clusters[out].tolist(), "classes": classes,
    }  # fmt: skip


def cells(on: Callable[[str], Place], tuned: dict[str, tuple[float, float]]) -> dict[str, Cell]:
    """The cells; `on` gives the place with the unlabelled or the labelled footage."""
    found = {"real-pretrain": Cell(lambda place: pretrain(on("unlabelled")))}

    def add(arm: str, number: int) -> None:
        needs = ("real-pretrain",) if arm == "mae" else ()
        found[f"real-{arm}-f{number}"] = Cell(lambda place: fold(on("labelled"), arm, number, tuned[arm]), needs)

    for number in range(FOLDS):
        for arm in ("scratch", "mae"):
            add(arm, number)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unlabelled", nargs="+", required=True, metavar="DIR", help="footage for pre-training")
    parser.add_argument("--labelled", required=True, metavar="DIR", help="class folders")
    parser.add_argument("--run", type=float, required=True, metavar="MINUTES", help="run what is missing for so long")
    parser.add_argument("--smoke", action="store_true", help="tiny: whether everything works, in seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/results/transfer"))
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/stmae/transfer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = arms.SMOKE if options.smoke else arms.FULL
    work = options.work / ("smoke" if options.smoke else "full")
    given = {"unlabelled": options.unlabelled, "labelled": [options.labelled]}
    footage = {name: videos.prepare(each, work, synthetic=size.synthetic) for name, each in given.items()}
    state = work / f"real-{footage['unlabelled'].identity}-{footage['labelled'].identity}"
    state.mkdir(parents=True, exist_ok=True)
    place = Place(footage["labelled"], size, options.out, state, time.monotonic() + 60 * options.run)
    if (sources := len(set(footage["labelled"].clusters.tolist()))) < FOLDS:
        parser.error(f"the labelled videos stem from {sources} sources; {FOLDS} folds by source take {FOLDS} or more")
    tuned = {}
    for arm in arms.TUNING:
        lacks = [name for n in range(len(arms.TUNING[arm])) if place.result(name := f"tune-{arm}-{n}") is None]
        if lacks:
            parser.error(f"settings are chosen by transfer.py's cells {' '.join(lacks)}: run these first")
        tuned[arm] = arms.tuned(place, arm)
    try:
        run_missing(place, cells(lambda name: dataclasses.replace(place, footage=footage[name]), tuned))
    except OutOfTime:
        print("out of time; the next --run goes on from here", flush=True)


if __name__ == "__main__":
    main()
