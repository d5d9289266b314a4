"""`stmae pack`: a source of any kind to tar shards, as it is or written anew."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

from stmae.data.encode import Recipe
from stmae.data.pack_plan import Job
from stmae.data.packing import Result
from stmae.data.packing import pack as pack_source
from stmae.data.shard_writer import Totals, to_json, write_whole
from stmae.data.sources import Source, names_of
from stmae.engine.launch import cores
from stmae.engine.log import Console, Log
from stmae.errors import UserError
from stmae.tasks.pack_options import PackOptions
from stmae.tasks.task import task
from stmae.tasks.values import size_in_bytes
from stmae.tasks.videos import open_given, printable

REPORT = "report.json"
FAILURES = "report.csv"
EVERY = 30.0  # seconds between lines where there is no terminal for a bar


@task(PackOptions)
def pack(options: PackOptions) -> Path:
    """Returns:
        The folder of the shards: stmae-pack.json, index.safetensors, shard-000000.tar ..., report.json, report.csv.

    Raises:
        UserError: a mistake in the options, a full disk, or not one item that can be read.
        NetworkError: items elsewhere cannot be fetched. Given again, the pack goes on.
    """
    recipe = recipe_of(options)
    with Log([Console()]) as log:
        source = open_given(options, log.message)
        if recipe is None and any(name.endswith("/") for name in names_of(source)):
            raise UserError(
                f"folders of frames, as in {source.root}, have no bytes that could be stored as they are.",
                "Have them written as videos: --short-side 256, or 0 for their own size.",
            )
        workers = cores() if options.workers is None else options.workers
        job = Job(source, str(options.videos), recipe, size_in_bytes(options.shard_size), workers)
        how = "their bytes as they are" if recipe is None else describe(recipe)
        log.message(f"{len(source):,} items from {source.root} to {options.out}: {how}; {workers} workers.")
        progress = _Progress(log, len(source))
        try:
            result = pack_source(job, options.out, progress)
        except KeyboardInterrupt:
            log.message("Stopped. The same command goes on with the shard that was being written.")
            raise
        if not result.records:
            log.message(f"{options.out} holds this pack already, whole.")
            return options.out
        report = report_of(result, source)
        _write_report(options.out, report, result)
        _tell(log, report, result, options.out)
    return options.out


def recipe_of(options: PackOptions) -> Recipe | None:
    """How videos are written anew; None where their bytes stay."""
    if options.keep_original and not options.asks_for_new:
        return None
    return Recipe(
        short_side=256 if options.short_side is None else options.short_side or None,
        fps=options.fps,
        gop=Recipe.gop if options.gop is None else options.gop,
        quality=Recipe.quality if options.quality is None else options.quality,
        segment=options.segment,
    )


def describe(recipe: Recipe) -> str:
    """A recipe in words."""
    size = f"short side {recipe.short_side} at most" if recipe.short_side else "in their size"
    rate = f", {recipe.fps:g} fps at most" if recipe.fps else ""
    cut = f", in segments of {recipe.segment:g} s" if recipe.segment else ""
    return f"as H.264, {size}{rate}, a key frame every {recipe.gop} frames, quality {recipe.quality}{cut}"


def report_of(result: Result, source: Source) -> dict[str, Any]:
    """The numbers of a pack, for people and programs."""
    totals, done = result.totals, result.totals.items - result.resumed
    seconds = max(result.seconds, 1e-9)
    failed = sum(what == "skipped" for _, what, _ in result.failures)
    told = [(printable(path), what, reason) for path, what, reason in result.failures[:1000]]
    return {
        "source": str(source.root),
        "items": totals.items,
        "packed": totals.items - failed,
        "skipped": failed,
        "damaged": len(result.failures) - failed,
        "entries": totals.entries,
        "hours": round(totals.seconds / 3600, 4),
        "bytes_in": totals.bytes_in,
        "bytes_out": totals.bytes_out,
        "shards": len(result.records),
        "seconds": round(result.seconds, 2),
        "resumed_at_item": result.resumed,
        "items_per_second": round(done / seconds, 2),
        "failures": [{"path": path, "outcome": what, "reason": reason} for path, what, reason in told],
    }


def _write_report(out: Path, report: dict[str, Any], result: Result) -> None:
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("path", "outcome", "reason"))
    table.writerows(result.failures)
    try:
        write_whole(out / FAILURES, text.getvalue().encode("utf-8", "surrogateescape"))
        write_whole(out / REPORT, to_json(report))
    except OSError as error:
        raise UserError(
            f'the report in "{out}" cannot be written: {error.strerror}.', "The shards are whole."
        ) from None


def _tell(log: Log, report: dict[str, Any], result: Result, out: Path) -> None:
    if result.failures:
        rows = [(printable(path), what, reason) for path, what, reason in result.failures[:20]]
        more = f" (the first 20; all are in {out / FAILURES})" if len(result.failures) > 20 else ""
        log.table(f"{len(result.failures)} items with trouble{more}:", rows)
    saved = report["bytes_out"] / max(1, report["bytes_in"])
    log.message(
        f"{report['packed']:,} of {report['items']:,} items, {report['hours']:.2f} hours, {report['shards']} shards: "
        f"{report['bytes_in'] / 1e6:,.1f} MB became {report['bytes_out'] / 1e6:,.1f} MB ({saved:.2f}x), "
        f"{report['items_per_second']:.1f} items/s."
    )
    log.message(f"Train from them: stmae pretrain {out}")


class _Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, log: Log, total: int) -> None:
        self._log, self._total = log, total
        self._began, self._told, self._first = time.monotonic(), time.monotonic(), -1

    def __call__(self, done: int, totals: Totals) -> None:
        self._log.progress(done, self._total)
        now = time.monotonic()
        self._first = done - 1 if self._first < 0 else self._first
        if now - self._told < EVERY:
            return
        self._told = now
        left = (now - self._began) / (done - self._first) * (self._total - done)
        self._log.message(
            f"{done:,} of {self._total:,} items, {totals.seconds / 3600:.2f} hours, "
            f"{totals.bytes_out / 1e9:.2f} GB; {left / 60:.0f} min left"
        )
