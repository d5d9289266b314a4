"""Is `few_videos` good as it is? `stmae finetune` with nothing chosen, against 12 ways of choosing something.

    python benchmarks/untuned.py --footage DIR DIR --run-for 60      # goes on for an hour with what is missing
    python benchmarks/untuned.py --footage synthetic --run-for 600   # the same on generated videos, for anyone
    python benchmarks/untuned.py --list                              # cells, and how far they are
    python benchmarks/untuned.py --report                            # docs/results/untuned.md

An encoder is pre-trained on windows moving over footage (motion8.py, at half its size in pixels and frames), and
fine-tuned with 256 labelled clips to tell the direction; the validation part judges. The best of 12 is flattered by
having been picked on the clips that judge it, so that both are told: its lead on all of them, and its lead on one half
of the clusters where the other half picked it. A cell's result is a JSON file in `--out`; several processes may run at
once, and a stopped one goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import motion8
from ablations import Windows
from footage import Footage
from sweeping import add_options, footage_of, work_through
from torch import Tensor

import stmae
from stmae.model.heads import Classifier
from stmae.runs import RunFolder
from stmae.tasks.sweep import Sweep, Unit
from stmae.tasks.sweep_runs import about_run, brief

AIM = 2.0  # points
# What a person would try, each alone: the default of few_videos stands in the names where it is a number.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "learning rate / 4": {"base_lr": 2e-3},
    "learning rate / 2": {"base_lr": 4e-3},
    "learning rate x 2": {"base_lr": 1.6e-2},
    "layer decay 0.65, not 0.75": {"layer_decay": 0.65},
    "layer decay 0.9": {"layer_decay": 0.9},
    "layer decay 1": {"layer_decay": 1.0},
    "half as long": {"epochs": "15000 clips"},
    "twice as long": {"epochs": "60000 clips"},
    "batch 32, not 16": {"batch_size": 32},
    "no dropout, no drop path": {"dropout": 0.0, "drop_path": 0.0},
    "weight decay 0.2, not 0.05": {"weight_decay": 0.2},
    "mixup and cutmix": {"mixup": 0.8, "cutmix": 1.0},
}


def small(clips: Tensor) -> Tensor:
    """Every second frame at half the size: uint8 (..., 3, 8, 32, 32)."""
    even = clips[..., ::2, :, :].float()
    pooled = torch.nn.functional.avg_pool2d(even.flatten(0, -3), 2)
    return pooled.round().to(torch.uint8).unflatten(0, even.shape[:-2])


class SmallWindows(Windows):
    """Unlabelled clips of the training part."""

    def __getitem__(self, item: int) -> Tensor:
        return small(super().__getitem__(item)[None])[0]


def labelled(footage: Footage, part: str, count: int, seed: int) -> tuple[list[tuple[Tensor, int]], motion8.Clips]:
    clips = motion8.draw(footage, part, count, seed)
    pixels = small(motion8.pixels(footage, clips))
    return list(zip(pixels, clips.labels.tolist(), strict=True)), clips


class Place:
    """Where everything is, and how much is done. `footage` is None where nothing is to be trained."""

    def __init__(self, options: argparse.Namespace, footage: Footage | None) -> None:
        self.options, self.footage = options, footage
        self.count, self.held_out = (16, 16) if options.smoke else (256, 560)

    def sweep(self) -> Sweep:
        units = [Unit("pretrain", self.pretrain)]
        for number, (name, setting) in enumerate(SETTINGS.items()):
            units.append(Unit(f"setting-{number}", partial(self.finetune, number, name, setting), needs=("pretrain",)))
        return Sweep(self.options.work, units, self.options.out)

    def pretrain(self) -> dict[str, Any]:
        assert self.footage is not None
        clips = 64 if self.options.smoke else 60_000
        with brief():
            stmae.pretrain(
                SmallWindows(self.footage, clips), out=self.options.work / "runs/pretrain", preset="small",
                model="vit_mini", image_size=32, epochs=f"{clips} clips", repeats=1, holdout=0.01, precision="fp32",
                loggers=(), keep=1, save_every="5%", evaluate_every="50%", threads=self.options.threads,
            )  # fmt: skip
        found = about_run(RunFolder(self.options.work / "runs/pretrain"))
        return found | {"told": f"held-out loss {found['held_out_loss']:.4f}"}

    def finetune(self, number: int, name: str, setting: dict[str, Any]) -> dict[str, Any]:
        assert self.footage is not None
        out = self.options.work / f"runs/setting-{number}"
        train, _ = labelled(self.footage, "train", self.count, 300)
        val, clips = labelled(self.footage, "val", self.held_out, 0)
        smoke = {"epochs": "64 clips"} if self.options.smoke else {}
        with brief():
            stmae.finetune(
                train, val=val, init=self.options.work / "runs/pretrain", out=out, preset="few_videos", flip=False,
                precision="fp32", loggers=(), keep=1, threads=self.options.threads, **(setting | smoke),
            )  # fmt: skip
        torch.set_num_threads(self.options.threads)
        model = stmae.load(out)
        assert isinstance(model, Classifier)
        with torch.no_grad():
            pixels = torch.stack([clip for clip, _ in val])
            told = torch.cat([model(part).argmax(dim=1) for part in pixels.split(64)])
        right = told.numpy() == clips.labels
        return {
            "name": name, "setting": setting, "accuracy": round(float(right.mean()), 4),
            "right": "".join("1" if each else "0" for each in right),
            "clusters": self.footage.clusters[clips.videos].tolist(), "footage": self.footage.identity,
            "told": f"{name}: accuracy {right.mean():.3f}",
        }  # fmt: skip


def leads(default: np.ndarray, others: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """By how many points the best of the others leads: picked and judged on all clips, and picked on one half of the
    clusters and judged on the other, both ways round.

    Args:
        default: whether each clip was told rightly, (n,).
        others: of each setting, (settings, n).
    """
    first = np.isin(clusters, np.unique(clusters)[::2])
    picked = 0.0
    for half in (first, ~first):
        best = others[:, half].mean(axis=1).argmax()
        picked += float((others[best, ~half].astype(float) - default[~half]).sum())
    return 100 * float(others.mean(axis=1).max() - default.mean()), 100 * picked / len(default)


def report(place: Place) -> str:
    sweep = place.sweep()
    found = [result for unit in sweep.units if (result := sweep.result(unit.name)) and "right" in result]
    command = "python benchmarks/untuned.py --footage DIR --run-for 600"
    done = sum(sweep.result(unit.name) is not None for unit in sweep.units)
    lines = [
        "# Fine-tuning on few videos with nothing chosen", "",
        f"`{command}`. {done} of {len(sweep.units)} cells are done.", "",
        f"`stmae.finetune` with the preset few_videos of a pre-trained vit_mini on {place.count} clips of 8 x 32 x 32"
        f" pixels that tell 8 directions of motion over footage (chance 12.5 %), {place.held_out} validation clips of"
        " other footage; no flips, since they change labels.", "",
        "| setting | validation accuracy, % |", "|---|---|",
        *(f"| {each['name']} | {100 * each['accuracy']:.1f} |" for each in found),
    ]  # fmt: skip
    if len(found) == len(SETTINGS):
        right = np.array([[digit == "1" for digit in each["right"]] for each in found])
        every, other = leads(right[0], right[1:], np.array(found[0]["clusters"]))
        word = "within" if every <= AIM else "not within"
        lines += [
            "",
            f"The best of the 12 leads by {every:+.1f} points where it was picked, by {other:+.1f} on clips that had no"
            f" part in picking it: the default is {word} {AIM:g} points of the best.",
        ]
    path = place.options.out.with_suffix(".md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return f"report: {path}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "untuned")
    options = parser.parse_args()
    options.work /= "smoke" if options.smoke else "full"
    footage = footage_of(parser, options)
    place = Place(options, footage)
    sweep = place.sweep()
    for unit in sweep.units if footage is not None else ():
        if len((sweep.result(unit.name) or {}).get("right", place.held_out * "1")) != place.held_out:
            parser.error(f"{options.out} holds results of another size ({unit.name}); give another --out")
    work_through(parser, options, sweep, footage, lambda: report(place))


if __name__ == "__main__":
    main()
