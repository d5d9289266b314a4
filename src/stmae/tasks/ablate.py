"""`stmae ablate`: vary one thing at a time, train each cell on equally many clips, judge it, write a report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from stmae.data.index import Index
from stmae.data.sources import TensorSource, rank_of, split
from stmae.engine.log import Console, Log
from stmae.errors import UserError
from stmae.runs import RunFolder, compare, disk_errors, read_config, write_config
from stmae.tasks import ablate_report, build
from stmae.tasks.ablate_axes import Variant
from stmae.tasks.ablate_options import AblateOptions
from stmae.tasks.judging import Number
from stmae.tasks.options import ClipOptions, SourceOptions
from stmae.tasks.pretrain import pretrain
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.sweep import Sweep, Unit
from stmae.tasks.sweep_runs import about_run, brief, write_list
from stmae.tasks.task import task
from stmae.tasks.videos import open_given
from stmae.weights import plain

PARTS = ("train", "val", "test")
TOKENIZER = "tokenizer"  # the piece of work that trains one


@task(AblateOptions)
def ablate(options: AblateOptions) -> Path:
    """Returns:
        The report, `<out>/report.md`; beside it report.csv and a plot for each axis.

    Raises:
        UserError: a mistake in the options, or cells that could not be trained or judged, when all others are done.
        Stopped: a signal ended it; the same call goes on.
    """
    options = options.settled()
    device = build.pick_device(options.device)
    with Log([Console()]) as log:
        cells = Cells.of(options, device.type)
        if options.list:
            _list(cells, log)
            return cells.out / "report.md"
        with disk_errors(cells.out):
            cells.begin()
            cells.settle_parts(log)
            if not options.report:
                try:
                    cells.sweep(cells.chosen()).run(log, options.run_for)
                finally:
                    ablate_report.write(cells, log)
            else:
                ablate_report.write(cells, log)
    return cells.out / "report.md"


@dataclass(frozen=True)
class Cells:
    """A sweep's cells and how each is trained and judged.

    Attributes:
        preset: of pre-training.
        shared: the options of pre-training that all have in common, resolved.
        variants: (axis, cell), in order.
    """

    options: AblateOptions
    preset: str
    shared: Mapping[str, Any]
    variants: tuple[tuple[str, Variant], ...]

    @classmethod
    def of(cls, options: AblateOptions, device: str) -> Cells:
        """Settles what depends on the device; a sweep that has begun keeps its preset.

        Raises:
            UserError: cells that cannot work here.
        """
        kept = options.out / "sweep.yaml"
        if kept.exists():
            preset = str(read_config(kept).get("preset", "paper"))
        else:
            presets = options.possible_presets()
            preset = presets[0] if device == "cpu" or len(presets) == 1 else presets[1]
        return cls(options, preset, options.shared(preset), options.cells(preset))

    @property
    def out(self) -> Path:
        return self.options.out

    def begin(self) -> None:
        """Makes the folder; refuses to go on with another sweep's.

        Raises:
            UserError: the sweep there has other videos, another budget or other shared options.
        """
        options = self.options
        videos = options.videos if isinstance(options.videos, str | Path | list | tuple) else "clips from Python"
        now = {
            "preset": self.preset, "videos": plain(videos), "labelled": str(options.labelled), "clips": options.clips,
            "shared": plain(options.shared_given()), "tuning": plain(options.tuning_given()), "smoke": options.smoke,
        }  # fmt: skip
        path = self.out / "sweep.yaml"
        if path.exists():
            lines = compare(read_config(path), now)
            if lines:
                raise UserError(
                    f'the sweep in "{self.out}" was begun otherwise:\n  ' + "\n  ".join(lines) + "\n",
                    "Give what it was begun with, or choose another --out.",
                )
            return
        self.out.mkdir(parents=True, exist_ok=True)
        write_config(path, now)

    # Pieces of work -------------------------------------------------------------------------------------------------

    def sweep(self, variants: Sequence[tuple[str, Variant]] | None = None) -> Sweep:
        """The pieces of all cells, or of some: the first seed of everything first, runs before their judges."""
        units: dict[str, Unit] = {}
        for seed in range(self.options.seeds):
            for _, variant in self.variants if variants is None else variants:
                name = self.name(variant, seed)
                run = _of(self.pretrain, variant, seed)
                needs = (TOKENIZER,) if self.options.wants_tokenizer(variant) else ()
                if needs:
                    units.setdefault(TOKENIZER, Unit(TOKENIZER, self.learn_tokenizer))
                units.setdefault(name, Unit(name, run, needs))
                for judge, number in self.judgings(variant):
                    judging = self.judged(variant, seed, judge, number)
                    work = _of(self.judge, variant, seed, judge, number)
                    units.setdefault(judging, Unit(judging, work, needs=(name,)))
        return Sweep(self.out, list(units.values()))

    def chosen(self) -> list[tuple[str, Variant]]:
        """The cells that are to be done."""
        only = self.options.cell
        return [(axis, v) for axis, v in self.variants if not only or v.run(self.shared) in only]

    def judgings(self, variant: Variant) -> list[tuple[str, int]]:
        """(judge, seed) of a cell. Neighbours are the same for every seed; fine-tuning alone tells its own options."""
        judges = ("finetune",) if variant.finetune else self.options.judges
        return [(j, s) for j in judges for s in range(1 if j == "knn" else self.options.judge_seeds)]

    def name(self, variant: Variant, seed: int) -> str:
        """Of a pre-training."""
        return f"{variant.run(self.shared)}-s{seed}"

    def judged(self, variant: Variant, seed: int, judge: str, number: int) -> str:
        """The name of a judging."""
        how = variant.tuning if judge == "finetune" else judge
        return f"{self.name(variant, seed)}--{how}-s{number}"

    def pretrain(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Trains a cell, or goes on with it."""
        options = self.pretraining(variant, seed)
        with brief():
            pretrain(**options.given)
        run = RunFolder(options.out)
        found = about_run(run)
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # a cell that is done needs its weights alone
        told = {"held-out loss": found["held_out_loss"], "clips/s": found["clips_per_second"]}
        return found | {"told": ", ".join(f"{name} {value:.4g}" for name, value in told.items() if value is not None)}

    def learn_tokenizer(self) -> dict[str, Any]:
        """The tokenizer of cells that predict tokens: one for all."""
        from stmae.tasks.tokenizer import tokenizer

        names = {*(f.name for f in fields(SourceOptions)), *(f.name for f in fields(ClipOptions)), "patch"}
        given: dict[str, Any] = {name: self.shared[name] for name in names - {"workers", "leave_out", "checked"}}
        given |= {"steps": 20, "codes": 64} if self.options.smoke else {}
        with brief():
            made = tokenizer(
                self.options.videos, out=self.options.tokenizer, **given, **self._machine("device", "threads")
            )
        return {"told": f"{made.used:.0%} of the codes used, {made.gain:.1f} dB over the mean patch"}

    def pretraining(self, variant: Variant, seed: int) -> PretrainOptions:
        """The options of a cell's pre-training."""
        options, own = self.options, dict[str, Any]()
        if variant.share != 1:
            own["videos"], own["root"] = self._share_of_videos(variant.share)
        machine = self._machine("device", "precision", "threads", "workers")
        out = self.out / "runs" / self.name(variant, seed)
        return options.pretraining(self.preset, variant, out=out, seed=seed, **machine, **own)

    def _machine(self, *names: str) -> dict[str, Any]:
        """Where and how to compute, as far as it is given."""
        return {name: self.options.given[name] for name in names if name in self.options.given}

    def _share_of_videos(self, share: float) -> tuple[Path, Path]:
        """A list of a share of the training videos and of all held-out ones, and the root of its names.

        Drawn by names, once: a larger share holds the smaller ones. As names stay, all cells hold out the same videos.
        """
        source = open_given(self.options.pretraining(self.preset, Variant("")), lambda text: None)
        if isinstance(source, TensorSource) or not isinstance(source, Index) or not isinstance(source.root, Path):
            raise UserError(
                "axis data takes a share of the videos, which needs a folder or a list of files.",
                "Give one, or compare sets of your own by an axis file with videos: in each cell.",
            )
        path = self.out / "lists" / f"share-{share:g}.csv"
        if not path.exists():
            training, held_out = (cast(Index, part) for part in split(source, self.shared["holdout"]))
            ranks = np.array([rank_of(f"share/{training.name(item)}") for item in range(len(training))])
            kept = np.sort(ranks.argsort(kind="stable")[: max(1, round(share * len(training)))])
            write_list(path, [training.part(kept), held_out], root=source.root)
        return path, source.root

    # Judges ---------------------------------------------------------------------------------------------------------

    def settle_parts(self, log: Log) -> None:
        """Writes down which labelled videos train the judges, choose their settings and score: once for all cells.

        Raises:
            UserError: no class folders and no list, or labels that disagree.
        """
        from stmae.tasks.knn_options import KnnOptions
        from stmae.tasks.labelled import open_parts

        paths = [self.out / "labels" / f"{part}.csv" for part in PARTS]
        if all(path.exists() for path in paths):
            return
        parts = open_parts(KnnOptions(self.options.labelled, model=""), log.message)
        for path, name in zip(paths, PARTS, strict=True):
            source = getattr(parts, name).source
            if not isinstance(source, Index):
                raise UserError(
                    f'labelled "{self.options.labelled}" is packed.', "Give class folders, or a list of files."
                )
            write_list(path, [source], labels=True)
        log.message(f"judged on {parts.origin}")

    def judge(self, variant: Variant, seed: int, judge: str, number: int) -> dict[str, Any]:
        """Judges a pre-training."""
        began = time.monotonic()
        model = str(self.out / "runs" / self.name(variant, seed))
        train, val, test = (self.out / "labels" / f"{part}.csv" for part in PARTS)
        machine = self._machine("device", "threads", "workers")
        with brief():
            if judge == "finetune":
                numbers = self._finetune(variant, model, self.judged(variant, seed, judge, number), number, machine)
            elif judge == "knn":
                from stmae.tasks.knn import knn

                numbers = knn(train, val=val, test=test, model=model, **machine)
            else:
                from stmae.tasks.probe import probe

                few: dict[str, Any] = {"lr": (1e-3,), "weight_decay": (0.0,), "epochs": 1} if self.options.smoke else {}
                kind = cast(Literal["linear", "attentive"], judge)
                numbers = probe(train, val=val, test=test, model=model, kind=kind, seed=number, **few, **machine)
        measure, best = next(iter(numbers.items()))
        return _scored(measure, best) | {"judge": judge, "seconds": round(time.monotonic() - began, 1)}

    def _finetune(
        self, variant: Variant, model: str, name: str, seed: int, machine: Mapping[str, Any]
    ) -> dict[str, Number]:
        from stmae.tasks.evaluate import evaluate
        from stmae.tasks.finetune import finetune

        train, val, test = (self.out / "labels" / f"{part}.csv" for part in PARTS)
        given = {**self.options.tuning_given(), **variant.finetune}
        out = self.out / "tuned" / name
        finetune(train, val=val, init=model, out=out, seed=seed, loggers=(), **given, **machine)
        numbers = evaluate(test, model=str(out), **machine)
        shutil.rmtree(out, ignore_errors=True)  # the score is what was wanted; the report tells how to have it again
        return numbers


def _of(work: Callable[..., dict[str, Any]], *which: Any) -> Callable[[], dict[str, Any]]:
    return lambda: work(*which)


def _scored(measure: str, number: Number) -> dict[str, Any]:
    low, high, chance = (
        None if value != value else round(value, 6) for value in (number.low, number.high, number.chance)
    )
    interval = "" if low is None else f" ({low:.3f} to {high:.3f})"
    return {
        "measure": measure, "score": round(number.value, 6), "low": low, "high": high, "chance": chance,
        "told": f"{measure} {number.value:.3f}{interval}",
    }  # fmt: skip


def _list(cells: Cells, log: Log) -> None:
    """A line for each piece of work: which axes want it, and how far it is."""
    sweep = cells.sweep(cells.chosen())
    wanted: dict[str, list[str]] = {}
    for axis, variant in cells.chosen():
        for seed in range(cells.options.seeds):
            wanted.setdefault(cells.name(variant, seed), []).append(f"{ablate_report.axis_name(axis)} {variant.label}")
    rows = []
    for unit in sweep.units:
        result = sweep.result(unit.name) or {}
        about = "; ".join(wanted.get(unit.name, []))
        rows.append((unit.name, sweep.state(unit), result.get("told", ""), about))
    done = sum(row[1] == "done" for row in rows)
    log.table(f"{done} of {len(rows)} done, in {cells.out}:", rows)
