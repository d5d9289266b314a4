"""The report of a sweep: tables with spread, the paper's numbers beside, plots, commands, csv."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stmae import paper
from stmae.data.opening import paths_of
from stmae.engine.log import Log, duration
from stmae.tasks.ablate_axes import AXES, Variant, axis_name
from stmae.tasks.options import Options, RunOptions
from stmae.weights import write_atomic

if TYPE_CHECKING:
    from stmae.tasks.ablate import Cells

__all__ = ["Row", "axis_name", "command", "plot", "table", "write"]
MISSING = "not available"


@dataclass
class Row:
    """A cell of an axis, as the report shows it.

    Attributes:
        label: what differs.
        scores: of each judge: by the seed of pre-training, one for each seed of the judge.
        runs: what the pre-trainings say of themselves, by seed.
        chance: of each judge.
        paper: the paper's setting that it stands beside, or "".
    """

    label: str
    scores: dict[str, dict[int, list[float]]]
    runs: dict[int, Mapping[str, Any]]
    chance: dict[str, float]
    paper: str = ""

    def all(self, judge: str) -> list[float]:
        """Every score of a judge."""
        return [score for scores in self.scores.get(judge, {}).values() for score in scores]


def write(cells: Cells, log: Log) -> None:
    """Writes report.md, report.csv and plots/<axis>.png from the results there are."""
    out, axes = cells.out, list(dict.fromkeys(axis for axis, _ in cells.variants))
    lines = _head(cells)
    records: list[dict[str, Any]] = []
    for axis in axes:
        rows, own = rows_of(cells, axis)
        records += own
        name = axis_name(axis)
        lines += ["", f"## {name}", "", *_about(axis), *table(rows, paper.TABLES.get(name))]
        if any(row.scores for row in rows):
            (out / "plots").mkdir(exist_ok=True)
            plot(rows, out / "plots" / f"{name}.png", title=name, known=paper.TABLES.get(name))
            lines += ["", f"![{name}](plots/{name}.png)"]
    lines += _commands(cells)
    write_atomic(out / "report.md", "\n".join(lines) + "\n")
    write_atomic(out / "report.csv", csv_of(records))
    log.message(f"report: {out / 'report.md'}, {out / 'report.csv'}")


def rows_of(cells: Cells, axis: str) -> tuple[list[Row], list[dict[str, Any]]]:
    """An axis's rows, and for the csv a record of each score."""
    sweep, found, records = cells.sweep(), [], list[dict[str, Any]]()
    for variant in (v for a, v in cells.variants if a == axis):
        row = Row(variant.label, {}, {}, {}, variant.paper)
        for seed in range(cells.options.seeds):
            run = sweep.result(cells.name(variant, seed))
            if run is None:
                continue
            row.runs[seed] = run
            for judge, number in cells.judgings(variant):
                result = sweep.result(cells.judged(variant, seed, judge, number))
                if result is None:
                    continue
                row.scores.setdefault(judge, {}).setdefault(seed, []).append(result["score"])
                if variant.finetune:  # what differs is how long the judge takes
                    row.runs[seed] = {"seconds": result["seconds"]}
                if result["chance"] is not None:
                    row.chance[judge] = result["chance"]
                told = {key: result[key] for key in ("measure", "score", "low", "high", "chance")}
                about = {key: run.get(key) for key in ("clips", "seconds", "clips_per_second", "flops_per_clip")}
                records.append(
                    {"axis": axis_name(axis), "cell": variant.label, "run": cells.name(variant, seed), "seed": seed,
                     "judge": judge, "judge_seed": number, **told, **about}
                )  # fmt: skip
        found.append(row)
    return found, records


# Words ---------------------------------------------------------------------------------------------------------------


def _head(cells: Cells) -> list[str]:
    options, sweep = cells.options, cells.sweep()
    done = sum(sweep.result(unit.name) is not None for unit in sweep.units)
    runs = "1 pre-training" if options.seeds == 1 else f"{options.seeds} pre-trainings"
    lines = [
        "# Ablations", "",
        f"{options.clips} clips for each cell (preset {cells.preset}), {runs} of each, each judged"
        f" {options.judge_seeds} times with other seeds of the judge; a score is mean ± standard deviation over all of"
        " these. Two cells whose scores lie within their spread are not told apart.",
        f"{done} of {len(sweep.units)} pieces of work are done.",
    ]  # fmt: skip
    if options.smoke:
        lines += ["", "**A smoke run: it shows that everything works. Its scores mean nothing.**"]
    widths = [
        (result["high"] - result["low"]) / 2
        for unit in sweep.units
        if (result := sweep.result(unit.name)) and result.get("low") is not None
    ]
    if widths:
        lines += [
            "",
            "The test videos are what they are: whatever the seeds, one score's own 95 % interval is"
            f" ± {np.mean(widths):.3f} on average.",
        ]
    lines += ["", f"The paper's numbers are {paper.MEASURE}: beside ours to compare orders, not heights."]
    return lines


def _about(axis: str) -> list[str]:
    text = " ".join((AXES[axis].__doc__ or "").split()) if axis in AXES else f"From `{axis}`."
    return [text, ""]


def table(rows: Sequence[Row], known: paper.Table | None) -> list[str]:
    """An axis as a Markdown table."""
    judges = list(dict.fromkeys(judge for row in rows for judge in row.scores))
    beside = "paper" if known is None else f"paper, {known.where}"
    head = ["", *judges, "clips/s", "speed", "time", "GFLOPs/clip", beside]
    slowest = min((_speed(row) for row in rows if row.runs), default=float("nan"))
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.label, *(spread(row.all(judge)) for judge in judges)]
        if row.runs:
            speed = _speed(row)
            cells += [
                _number(_mean(row, "clips_per_second")),
                f"{speed / slowest:.2f}x",
                duration(_mean(row, "seconds")),
                _number(_mean(row, "flops_per_clip") / 1e9),
            ]
        else:
            cells += ["to do", "", "", ""]
        cells.append(_paper(row.paper, known))
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"chance: {', '.join(f'{judge} {value:.3f}' for judge, value in _chances(rows).items())}"]
    if known is not None and not any(row.paper in known.accuracy for row in rows):
        whole = "; ".join(f"{name}: {value:g}" for name, value in known.accuracy.items())
        notes.append(f"the paper's {known.where} varies other things: {whole}")
    if known is not None and known.note:
        notes.append(f"{known.where}: {known.note}")
    return [*lines, "", ". ".join(note[:1].upper() + note[1:] for note in notes if not note.endswith(": ")) + "."]


def spread(scores: Sequence[float]) -> str:
    """Mean ± standard deviation (n)."""
    if not scores:
        return "to do"
    if len(scores) == 1:
        return f"{scores[0]:.3f} (1)"
    return f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f} ({len(scores)})"


def _paper(setting: str, known: paper.Table | None) -> str:
    if known is None or setting not in known.accuracy:
        return MISSING
    speed = f", {known.speed[setting]:g}x" if setting in known.speed else ""
    return f"{known.accuracy[setting]:g}{speed} ({setting})"


def _mean(row: Row, name: str) -> float:
    values = [float(run[name]) for run in row.runs.values() if run.get(name) is not None]
    return float(np.mean(values)) if values else float("nan")


def _speed(row: Row) -> float:
    """Clips per second of pre-training; where cells share one, how often a second they are fine-tuned and judged."""
    speed = _mean(row, "clips_per_second")
    return 1 / _mean(row, "seconds") if math.isnan(speed) else speed


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _chances(rows: Sequence[Row]) -> dict[str, float]:
    return {judge: value for row in rows for judge, value in row.chance.items()}


def csv_of(records: Sequence[Mapping[str, Any]]) -> str:
    """A record per score; cells that several axes share stand under each."""
    if not records:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


# Commands ------------------------------------------------------------------------------------------------------------


def _commands(cells: Cells) -> list[str]:
    """How to have any cell again, with the sweep and without it."""
    options = cells.options
    if not paths_of(options.videos):
        return []
    lines = ["", "## Commands", "", "The sweep, or one cell of it (`--cell NAME`), goes on with:", "", "```"]
    lines += [command("ablate", options, leave_out=("list", "report", "run_for", "cell")), "```", ""]
    lines += ["Each pre-training by itself, and what judges it:", "", "```"]
    seen = set()
    for _, variant in cells.variants:
        for seed in range(options.seeds):
            name = cells.name(variant, seed)
            if name not in seen and options.wants_tokenizer(variant) and not options.tokenizer.exists():
                lines += [f"# {name}: once the sweep has made its tokenizer"]
            elif name not in seen:
                lines += [f"# {name}", command("pretrain", cells.pretraining(variant, seed), leave_out=("loggers",))]
            for judge, number in cells.judgings(variant):
                judged = cells.judged(variant, seed, judge, number)
                if judged not in seen:
                    lines += _judging(cells, variant, name, judged, judge, number)
                seen.add(judged)
            seen.add(name)
    return [*lines, "```"]


def _judging(cells: Cells, variant: Variant, name: str, judged: str, judge: str, seed: int) -> list[str]:
    run = shlex.quote(str(cells.out / "runs" / name))
    train, val, test = (shlex.quote(str(cells.out / "labels" / f"{part}.csv")) for part in ("train", "val", "test"))
    if judge == "knn":
        return [f"stmae knn {train} --val {val} --test {test} --model {run}"]
    if judge != "finetune":
        few = " --lr 0.001 --weight-decay 0 --epochs 1" if cells.options.smoke else ""
        return [f"stmae probe {train} --val {val} --test {test} --model {run} --kind {judge} --seed {seed}{few}"]
    given = {**cells.options.tuning_given(), **variant.finetune}
    flags = "".join(f" {flag(option, value)}" for option, value in given.items())
    out = shlex.quote(str(cells.out / "tuned" / judged))
    return [
        f"stmae finetune {train} --val {val} --init {run} --seed {seed}{flags} --out {out}",
        f"stmae evaluate {test} --model {out}",
    ]


def command(name: str, options: Options, leave_out: Sequence[str] = ()) -> str:
    """A command line with the options that were given."""
    positional = [f.name for f in fields(options) if not f.kw_only]  # type: ignore[arg-type]
    words = [shlex.quote(str(path)) for place in positional for path in paths_of(getattr(options, place))]
    own = [f.name for f in fields(type(options)) if f.name in options.given]  # type: ignore[arg-type]
    ordered = sorted(own, key=lambda option: option in RunOptions.__dataclass_fields__)  # the task's own ones first
    words += [flag(option, options.given[option]) for option in ordered if option not in {*positional, *leave_out}]
    return f"stmae {name} {' '.join(word for word in words if word)}"


def flag(option: str, value: Any) -> str:
    """An option on a command line; nothing for an empty list, which no command line can say."""
    if isinstance(value, list | tuple):
        if not value:
            return ""
        text = " ".join(shlex.quote(f"{each:g}" if isinstance(each, float) else str(each)) for each in value)
    elif isinstance(value, bool):
        return f"--{'' if value else 'no-'}{option.replace('_', '-')}"
    else:
        text = "none" if value is None else shlex.quote(str(value))
    return f"--{option.replace('_', '-')} {text}"


# Plots ---------------------------------------------------------------------------------------------------------------


def plot(rows: Sequence[Row], path: Path, *, title: str, known: paper.Table | None = None) -> Path:
    """Every score as a dot, mean and spread as a bar, chance as a line; the paper's numbers at the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    judges = list(dict.fromkeys(judge for row in rows for judge in row.scores))
    beside = {} if known is None else dict(known.accuracy)
    wide = 1.6 + 1.1 * len(rows), 1.6 + 0.8 * len(beside)
    figure, panels = pyplot.subplots(
        1, 2 if beside else 1, figsize=(sum(wide) if beside else wide[0] + 1, 3.8), dpi=120, layout="constrained",
        width_ratios=wide if beside else None, squeeze=False,
    )  # fmt: skip
    try:
        own = panels[0, 0]
        for place, judge in enumerate(judges):
            _draw(own, rows, judge, (place - (len(judges) - 1) / 2) * 0.22, f"C{place}")
        own.set_xticks(range(len(rows)), [_wrapped(row.label) for row in rows], fontsize=8)
        own.set_title(f"{title}: this sweep", fontsize=10)
        own.set_ylabel("score")
        own.legend(frameon=False, fontsize=8)
        if beside:
            other = panels[0, 1]
            other.plot(range(len(beside)), list(beside.values()), "s", color="black", markersize=5)
            for x, score in enumerate(beside.values()):
                other.annotate(f"{score:g}", (x, score), xytext=(0, 5), textcoords="offset points", ha="center",
                               fontsize=8)  # fmt: skip
            other.margins(x=0.15, y=0.25)
            other.set_xticks(range(len(beside)), [_wrapped(name, 10) for name in beside], fontsize=8)
            assert known is not None
            other.set_title(f"the paper, {known.where}", fontsize=10)
            other.set_ylabel("top-1 on Kinetics-400, %", fontsize=8)
        for axes in panels.flat:
            axes.grid(axis="y", alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path)
    finally:
        pyplot.close(figure)
    return path


def _draw(axes: Any, rows: Sequence[Row], judge: str, shift: float, colour: str) -> None:
    """One judge's scores of all cells. Marks tell the seeds of pre-training apart."""
    label = judge
    for x, row in enumerate(rows):
        scores = row.all(judge)
        if not scores:
            continue
        for seed, own in row.scores[judge].items():
            axes.plot([x + shift] * len(own), own, "osD^v"[seed % 5], color=colour, alpha=0.35, markersize=4, mew=0)
        deviation = np.std(scores, ddof=1) if len(scores) > 1 else 0.0
        axes.errorbar(x + shift, np.mean(scores), deviation, fmt="_", color=colour, markersize=12, capsize=3,
                      label=label)  # fmt: skip
        label = "_"
    chance = _chances(rows).get(judge)
    if chance is not None:
        axes.axhline(chance, color=colour, linewidth=0.8, linestyle=":")


def _wrapped(text: str, width: int = 14) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
