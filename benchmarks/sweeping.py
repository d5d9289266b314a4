"""What the benchmarks that are sweeps over footage share: their options, and going on with what is missing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from footage import Footage, prepare

from stmae.engine.log import Console, Log
from stmae.tasks.sweep import Sweep


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of a sweep whose results lie in docs/results/<name>."""
    cache = Path.home() / ".cache/stmae"
    parser.add_argument("--footage", nargs="+", metavar="DIR", help='folders of videos, or "synthetic"')
    parser.add_argument("--run-for", type=float, metavar="MINUTES", help="do what is missing for so long")
    parser.add_argument("--list", action="store_true", help="list the cells and how far they are")
    parser.add_argument("--report", action="store_true", help="write the report, from what there is")
    parser.add_argument("--smoke", action="store_true", help="tiny: whether everything works")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/results") / name, help="results; the report is beside")
    parser.add_argument("--work", type=Path, default=cache / name)
    decoded = "folder for decoded footage, which serves benchmarks/transfer.py too"
    parser.add_argument("--decoded", type=Path, default=cache / "transfer/full", help=decoded)


def footage_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Footage | None:
    """The footage, decoded; None where nothing is to be run."""
    if options.run_for is None:
        return None
    if not options.footage:
        parser.error("give --footage: folders of videos, or synthetic")
    options.work.mkdir(parents=True, exist_ok=True)
    return prepare(options.footage, options.decoded, synthetic=24 if options.smoke else 120)


def work_through(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    sweep: Sweep,
    footage: Footage | None,
    report: Callable[[], str],
) -> None:
    """Lists, runs and reports, as was asked. Results of other footage in `--out` are refused."""
    for unit in sweep.units if footage is not None else ():
        assert footage is not None
        if (sweep.result(unit.name) or {}).get("footage", footage.identity) != footage.identity:
            parser.error(f"{options.out} holds results of other footage ({unit.name}); give another --out")
    with Log([Console()]) as log:
        if options.list:
            rows = [(u.name, sweep.state(u), (sweep.result(u.name) or {}).get("told", "")) for u in sweep.units]
            log.table(f"cells in {options.out}:", rows)
        try:
            if options.run_for is not None:
                sweep.run(log, options.run_for)
        finally:
            if options.report or options.run_for is not None:
                log.message(report())
