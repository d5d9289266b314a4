"""What `stmae plan` prints: each number with where it came from, and what would change the outcome."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stmae.engine.launch import cores
from stmae.engine.log import duration
from stmae.tasks.check_report import in_bytes
from stmae.tasks.plan import Forecast
from stmae.tasks.plan_options import PlanOptions


def show(forecast: Forecast, options: PlanOptions) -> None:
    """Prints the forecast."""
    console = Console(highlight=False)
    origin = forecast.origins
    clip = f"{options.frames} x {options.image_size} px, repeats {options.repeats}"
    rows = [
        ("videos", f"{forecast.videos:,}", origin["videos"]),
        ("mean duration", f"{forecast.seconds:.3g} s", origin["seconds"]),
        ("one GPU trains on", f"{forecast.step_rate:.3g} clips/s", origin["step_rate"]),
        ("one core loads", f"{forecast.load_rate:.3g} clips/s ({clip})", origin["load_rate"]),
        ("cores per GPU", f"{_own_cores(options)}", origin["cores"]),
        ("GPUs", f"{options.gpus}", "given" if "gpus" in options.given else "default"),
        ("epochs", f"{options.epochs:g} effective", "given" if "epochs" in options.given else "default: the paper's"),
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for what, value, where in rows:
        table.add_row(what, value, Text(where, style="dim"))
    console.print(table)
    _result(console, forecast, options)
    _changes(console, forecast, options)


def _result(console: Console, forecast: Forecast, options: PlanOptions) -> None:
    console.print()
    need = f"{forecast.cores_needed} cores for each GPU"
    if forecast.limit == "loading":
        share = forecast.rate / (options.gpus * forecast.step_rate)
        verdict = f"Loading is the limit: the GPUs work {share:.0%} of the time. They need {need}."
    else:
        verdict = f"Computing is the limit: {need} are enough."
    console.print(Text(verdict, style="bold"), soft_wrap=True)
    console.print(
        f"{_rate(forecast.rate)} clips/s in all: {duration(3600 * forecast.epoch_hours)} for an effective epoch,"
        f" {duration(3600 * forecast.hours)} for all {options.epochs:g}.",
        soft_wrap=True,
    )
    console.print(
        f"Packed: {in_bytes(forecast.packed_bytes)} ({forecast.origins['bytes_per_second']}),"
        f" {forecast.shards:,} shards of {options.shard_gigabytes:g} GB.",
        soft_wrap=True,
    )
    console.print(f"Index in memory: {in_bytes(forecast.index_bytes)} for all processes of a machine.", soft_wrap=True)


def _changes(console: Console, forecast: Forecast, options: PlanOptions) -> None:
    """The same with other repeats, and packed, where that was measured."""
    if not forecast.others:
        console.print("What other repeats or packing would change is measured without --load-rate.", soft_wrap=True)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("files", "repeats", "clips/s per core", "cores per GPU", "the whole takes"):
        table.add_column(name)
    origin = forecast.origins["cores"]
    for (kind, repeats), rate in sorted(forecast.others.items()):
        own = _own_cores(options)
        clips = options.gpus * min(forecast.step_rate, own * rate)
        hours = forecast.videos * options.epochs / clips / 3600
        here = kind == "as they are" and repeats == options.repeats
        style = "bold" if here else ""
        cells = (kind, f"{repeats}", f"{rate:.3g}", f"{math.ceil(forecast.step_rate / rate)}", duration(3600 * hours))
        table.add_row(*(Text(cell, style=style) for cell in cells))
    console.print(f"\nWhat repeats and packing change, with {_own_cores(options)} cores per GPU ({origin}):")
    console.print(table)


def _own_cores(options: PlanOptions) -> int:
    return options.cores if options.cores is not None else cores()


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
