"""Mask ratio (the paper's Figure 6), mask kind (Table 2a) and dual masking, small: judged by motion over real footage.

    python benchmarks/ablations.py --footage DIR DIR --run-for 60      # goes on for an hour with what is missing
    python benchmarks/ablations.py --footage synthetic --run-for 600   # the same on generated videos, for anyone
    python benchmarks/ablations.py --list                              # cells, and how far they are
    python benchmarks/ablations.py --report                            # docs/results/ablations.md, its plots and csv

A cell is a small autoencoder that `stmae.pretrain` trains on windows moving over the training part of the footage,
equally many clips for every cell, and then an attentive probe on its frozen features: motion8.judge, on the validation
part. The first seed of everything comes first. A cell's result is a JSON file in `--out`; what is under way lies in
`--work`. Several processes may run at once, and a stopped one goes on where it was. What a person makes of the numbers
stands in `<out>/reading.md`, which the report takes in.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import motion8
from footage import Footage
from sweeping import add_options, footage_of, work_through

import stmae
from stmae import paper
from stmae.model.config import EncoderConfig
from stmae.model.encoder import VideoViT
from stmae.model.sizes import create_model
from stmae.runs import RunFolder
from stmae.tasks.ablate_report import Row, csv_of, plot, table
from stmae.tasks.sweep import Sweep, Unit
from stmae.tasks.sweep_runs import about_run, brief

JUDGE = "attentive probe"
UNTRAINED = "untrained"
SMOKE_LIMITS = {"labels": 16, "held_out": 16, "seeds": (0,)}


@dataclass(frozen=True)
class Cell:
    """Attributes: its label on each axis that it belongs to, the paper's setting, and its options."""

    labels: dict[str, str]
    settings: dict[str, Any]
    paper: str = ""


CELLS = {
    "agnostic-90": Cell(
        {"mask-ratio": "90 %", "mask-kind": "agnostic 90 %", "decoded": "all hidden tokens"}, {}, "agnostic 90"
    ),
    "agnostic-75": Cell({"mask-ratio": "75 %"}, {"mask_ratio": 0.75}),
    "agnostic-95": Cell({"mask-ratio": "95 %"}, {"mask_ratio": 0.95}),
    "space-90": Cell({"mask-kind": "space 90 %"}, {"mask": "space"}, "space 90"),
    "time-75": Cell({"mask-kind": "time 75 %"}, {"mask": "time", "mask_ratio": 0.75}, "time 75"),
    "block-75": Cell({"mask-kind": "block 75 %"}, {"mask": "block", "mask_ratio": 0.75}, "block 75"),
    "agnostic-50": Cell({"mask-ratio": "50 %"}, {"mask_ratio": 0.5}),
    "half-decoded": Cell({"decoded": "half of them, running cells"}, {"decode": "running_cell", "decode_share": 0.5}),
}
ORDER = {"mask-ratio": ["agnostic-50", "agnostic-75", "agnostic-90", "agnostic-95"],
         "mask-kind": ["agnostic-90", "space-90", "time-75", "block-75"],
         "decoded": ["agnostic-90", "half-decoded"]}  # fmt: skip
# What the paper found, as comparisons of two cells: the first scores higher.
FINDINGS = [
    ("90 % is better than 75 % (Figure 6)", "agnostic-90", "agnostic-75"),
    ("90 % is better than 50 % (Figure 6)", "agnostic-90", "agnostic-50"),
    ("90 % is better than 95 %, where training is not very long (Figure 6)", "agnostic-90", "agnostic-95"),
    ("agnostic is better than space-only (Table 2a: 84.4, 83.5)", "agnostic-90", "space-90"),
    ("agnostic is better than block (Table 2a: 84.4, 83.2)", "agnostic-90", "block-75"),
    ("agnostic is better than time-only (Table 2a: 84.4, 79.1)", "agnostic-90", "time-75"),
    ("time-only is the worst: block is better (Table 2a: 83.2, 79.1)", "block-75", "time-75"),
]
NOISE = 0.05  # accuracy
BASE: dict[str, Any] = {
    "preset": "paper", "model": "vit_mini", "patch": (2, 8, 8), "decoder_width": 96, "decoder_depth": 2,
    "decoder_heads": 3, "class_token": False, "position_values": "learned_from_sincos", "predict_frames": "all",
    "mask_ratio": 0.9, "batch_size": 8, "repeats": 1, "lr": 1e-3, "clip_grad": 1.0, "warmup": "10%", "holdout": 0.01,
    "precision": "fp32", "loggers": (), "keep": 1, "log_every": "2%", "save_every": "2%", "evaluate_every": "50%",
}  # fmt: skip


class Windows(torch.utils.data.Dataset[torch.Tensor]):
    """Clips of the training part under windows that move at random velocities, by their numbers."""

    def __init__(self, footage: Footage, count: int) -> None:
        self.footage, self.count = footage, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> torch.Tensor:
        return motion8.pixels(self.footage, motion8.draw_unlabelled(self.footage, "train", 1, [1, item]))[0]


@dataclass(frozen=True)
class Place:
    """Where everything is, and how much is done. `footage` is None where nothing is to be trained."""

    options: argparse.Namespace
    footage: Footage | None

    def sweep(self) -> Sweep:
        """The first seed of everything, then the second; encoders that were never trained at the end."""
        units = []
        for seed in range(self.options.seeds):
            for name, cell in CELLS.items():
                run = f"{name}-s{seed}"
                units.append(Unit(run, partial(self.pretrain, run, cell, seed)))
                units.append(Unit(f"{run}--probe", partial(self.judge, run), needs=(run,)))
            units.append(Unit(f"{UNTRAINED}-s{seed}--probe", partial(self.judge_untrained, seed)))
        return Sweep(self.options.work, units, self.options.out)

    def pretrain(self, run: str, cell: Cell, seed: int) -> dict[str, Any]:
        assert self.footage is not None
        clips, out = self.options.clips, self.options.work / "runs" / run
        data = Windows(self.footage, max(200, clips))
        with brief():
            stmae.pretrain(data, out=out, epochs=f"{clips} clips", seed=seed, threads=self.options.threads,
                           **(BASE | cell.settings))  # fmt: skip
        shutil.rmtree(RunFolder(out).checkpoints, ignore_errors=True)
        found = about_run(RunFolder(out))
        return found | self.about() | {"told": f"held-out loss {found['held_out_loss']:.4f}"}

    def judge(self, run: str) -> dict[str, Any]:
        model = stmae.load(self.options.work / "runs" / run)
        return self._judge(model if isinstance(model, VideoViT) else model.encoder)

    def judge_untrained(self, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        config = create_model("vit_mini", **_shape()).encoder.config
        assert isinstance(config, EncoderConfig)
        torch.manual_seed(seed)
        return self._judge(VideoViT(config))

    def _judge(self, encoder: VideoViT) -> dict[str, Any]:
        assert self.footage is not None
        began = time.monotonic()
        torch.set_num_threads(self.options.threads)
        limits: Any = SMOKE_LIMITS if self.options.smoke else {}
        found = motion8.judge(encoder.eval(), self.footage, **limits)
        seconds = round(time.monotonic() - began, 1)
        return found | self.about() | {"judge_seconds": seconds, "told": f"accuracy {found['accuracy']:.3f}"}

    def about(self) -> dict[str, Any]:
        assert self.footage is not None
        return {"footage": self.footage.identity, "date": str(date.today()), "machine": platform.machine(),
                "threads": self.options.threads, "torch": torch.__version__}  # fmt: skip


def _shape() -> dict[str, Any]:
    names = ("patch", "class_token", "position_values", "decoder_width", "decoder_depth", "decoder_heads")
    return {"frames": motion8.FRAMES, "image_size": motion8.CROP} | {name: BASE[name] for name in names}


# The report ----------------------------------------------------------------------------------------------------------


def report(place: Place) -> str:
    """docs/results/ablations.md, from the results there are; plots and csv beside them."""
    options, sweep = place.options, place.sweep()
    rows = {name: row_of(sweep, name, cell, options.seeds) for name, cell in CELLS.items()}
    done = sum(sweep.result(unit.name) is not None for unit in sweep.units)
    first = next((found for unit in sweep.units if (found := sweep.result(unit.name)) and "clips" in found), {})
    machine = f", {first['machine']}, {first['threads']} thread(s), torch {first['torch']}" if first else ""
    lines = [
        "# Ablations: mask ratio, mask kind, and decoding half", "",
        f"`{_command(options)}`{machine}. {done} of {len(sweep.units)} cells are done.", "",
        f"Each cell: `stmae.pretrain` of vit_mini (192 x 6) with a decoder of 96 x 2 on {options.clips} clips of"
        " 16 x 64 x 64 pixels, patch 2 x 8 x 8, of windows that move over the footage's training part. Score: accuracy"
        " of an attentive probe on frozen features in telling 8 directions of motion (chance 0.125), on the validation"
        f" part; {options.seeds} pre-training seeds, three probe seeds each, mean ± standard deviation over all. The"
        " test part is not touched. The settings are the paper's made small: compare orders, not heights.", "",
        *_floor(sweep, options.seeds),
    ]  # fmt: skip
    records: list[dict[str, Any]] = []
    for axis, names in ORDER.items():
        shown = [rows[name] for name in names]
        for row, name in zip(shown, names, strict=True):
            row.label = CELLS[name].labels[axis]
        known = paper.TABLES.get(axis)
        lines += ["", f"## {axis}", "", *table(shown, known)]
        if any(row.scores for row in shown):
            plot(shown, options.out / f"{axis}.png", title=axis, known=known)
            lines += ["", f"![{axis}]({options.out.name}/{axis}.png)"]
        records += [
            {"axis": axis, "cell": row.label, "seed": seed, "judge_seed": number, "accuracy": score,
             "clips_per_second": row.runs[seed]["clips_per_second"], "seconds": row.runs[seed]["seconds"],
             "held_out_loss": row.runs[seed]["held_out_loss"]}
            for row in shown for seed, scores in row.scores.get(JUDGE, {}).items()
            for number, score in enumerate(scores)
        ]  # fmt: skip
    lines += ["", "## The paper's findings, at this scale", "", *findings(rows)]
    reading = options.out / "reading.md"
    if reading.exists():
        lines += ["", "## Reading", "", reading.read_text().strip()]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ablations.csv").write_text(csv_of(records))
    path = options.out.with_suffix(".md")
    path.write_text("\n".join(lines) + "\n")
    return f"report: {path}"


def row_of(sweep: Sweep, name: str, cell: Cell, seeds: int) -> Row:
    """A cell's scores and what its pre-trainings say of themselves."""
    row = Row(name, {}, {}, {}, cell.paper)
    for seed in range(seeds):
        run, judged = sweep.result(f"{name}-s{seed}"), sweep.result(f"{name}-s{seed}--probe")
        if run is not None:
            row.runs[seed] = run
        if run is not None and judged is not None:
            row.scores.setdefault(JUDGE, {})[seed] = judged["by_seed"]
            row.chance[JUDGE] = judged["chance"]
    return row


def _floor(sweep: Sweep, seeds: int) -> list[str]:
    found = [sweep.result(f"{UNTRAINED}-s{seed}--probe") for seed in range(seeds)]
    scores = [score for result in found if result for score in result["by_seed"]]
    if not scores:
        return ["An encoder that was never trained: to do."]
    return [f"An encoder that was never trained scores {np.mean(scores):.3f}: what the probe alone can do."]


def findings(rows: dict[str, Row]) -> list[str]:
    """Differences of two cells, seed by seed: whether they have one sign, and how large they are."""
    lines = ["| the paper | difference here, of each pre-training seed | here |", "|---|---|---|"]
    for claim, better, worse in FINDINGS:
        one, other = (rows[name].scores.get(JUDGE, {}) for name in (better, worse))
        seeds = sorted(one.keys() & other.keys())
        means = [float(np.mean(one[seed]) - np.mean(other[seed])) for seed in seeds]
        lines.append(f"| {claim} | {', '.join(f'{mean:+.3f}' for mean in means) or 'to do'} | {_verdict(means)} |")
    return [
        *lines, "",
        f'"Shows" and "the other way round": the seeds agree, and the mean difference is above {NOISE:g}, about twice'
        " the standard error of the difference of two scores on 560 clips if these were independent. Clips of one"
        " cluster are not, so that this is the least to ask for; with two seeds nothing here is proof.",
    ]  # fmt: skip


def _verdict(means: Sequence[float]) -> str:
    if len(means) < 2:
        return "one seed only" if means else "to do"
    if all(mean > 0 for mean in means) and np.mean(means) > NOISE:
        return "shows"
    if all(mean < 0 for mean in means) and np.mean(means) < -NOISE:
        return "the other way round"
    return "not told apart"


def _command(options: argparse.Namespace) -> str:
    footage = " ".join("synthetic" if place == "synthetic" else "DIR" for place in options.footage or ["DIR"])
    size = f"--clips {options.clips} --seeds {options.seeds}"
    return f"python benchmarks/ablations.py --footage {footage} {size} --run-for 600"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "ablations")
    parser.add_argument("--clips", type=int, default=None, help="clips that each cell is trained on (20000)")
    parser.add_argument("--seeds", type=int, default=2, help="pre-trainings of each cell")
    options = parser.parse_args()
    options.clips = options.clips or (32 if options.smoke else 20_000)
    options.work = options.work / ("smoke" if options.smoke else f"clips-{options.clips}")
    footage = footage_of(parser, options)
    place = Place(options, footage)
    work_through(parser, options, place.sweep(), footage, lambda: report(place))


if __name__ == "__main__":
    main()
