"""Does masked pre-training pay? One experiment that can answer, in cells that can be run one by one, in any order.

    python benchmarks/transfer.py --footage DIR DIR --run 60        # goes on for an hour with what is missing
    python benchmarks/transfer.py --footage synthetic --run 600     # the same on generated videos, for anyone
    python benchmarks/transfer.py --footage DIR DIR --list          # cells, what they need, which are done
    python benchmarks/transfer.py --footage DIR DIR --cell mae0-256-s3
    python benchmarks/transfer.py --report                          # docs/results/transfer.md and its figure

docs/transfer-design.md is the design: task, arms, statistic, and what was decided before the test part was looked at.
A cell's result is a small JSON file in `--out`; weights, decoded frames and half-done cells lie in `--work`. Several
processes may run at once: each cell is claimed by a lock. A stopped cell goes on where it was.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO, Any

import footage as videos
import torch
import transfer_arms as arms
import transfer_extras as extras
from transfer_arms import CORE_PRETRAININGS, LABELS, PRETRAININGS, SEEDS, TUNING, OutOfTime, Place

Run = Callable[[Place], dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One piece of the experiment.

    Attributes:
        needs: cells that must be done before.
        core: whether it belongs to what is run first.
    """

    run: Run
    needs: tuple[str, ...] = ()
    core: bool = False


def cells() -> dict[str, Cell]:
    """All cells, the core's first, in a good order."""
    found: dict[str, Cell] = {}
    tunings = {arm: tuple(f"tune-{arm}-{n}" for n in range(len(TUNING[arm]))) for arm in TUNING}

    def add(name: str, run: Run, *needs: str, core: bool = False) -> None:
        found[name] = Cell(run, needs, core)

    def pretraining(p: int, core: bool) -> None:
        add(f"pretrain-{p}", lambda place: arms.pretrain(place, p), core=core)
        add(f"gate-{p}", lambda place: arms.gate(place, p), f"pretrain-{p}", core=core)

    def tuning(arm: str, n: int) -> None:
        needs = ("gate-0",) if arm == "mae" else ()
        add(tunings[arm][n], lambda place: arms.tune(place, arm, n), *needs, core=True)

    def scratch(n: int, seed: int, core: bool) -> None:
        name = f"scratch-{LABELS[n]}-s{seed}"
        add(name, lambda place: arms.arm(place, name, None, n, seed), *tunings["scratch"], core=core)

    def mae(p: int, n: int, seed: int, core: bool) -> None:
        name = f"mae{p}-{LABELS[n]}-s{seed}"
        add(name, lambda place: arms.arm(place, name, p, n, seed), *tunings["mae"], f"gate-{p}", core=core)

    def longer(seed: int) -> None:
        needs = (*(f"pretrain-{p}" for p in range(CORE_PRETRAININGS)), f"mae0-256-s{seed}", f"scratch-256-s{seed}")
        add(f"longer-256-s{seed}", lambda place: arms.longer(place, f"longer-256-s{seed}", seed), *needs)

    def frozen(p: int) -> None:
        add(f"frozen-mae{p}", lambda place: extras.frozen(place, p, True), f"gate-{p}")
        add(f"frozen-random{p}", lambda place: extras.frozen(place, p, False))

    add("task", arms.task, core=True)
    pretraining(0, core=True)
    for arm in TUNING:
        for n in range(len(TUNING[arm])):
            tuning(arm, n)
    pretraining(1, core=True)
    for seed in range(SEEDS):
        scratch(0, seed, core=True)
        for p in range(CORE_PRETRAININGS):
            mae(p, 0, seed, core=True)
    add("controls", extras.controls, "scratch-256-s0", "mae0-256-s0")
    add("no-motion-256-s0", extras.no_motion, *tunings["mae"], "gate-0")
    for p in range(CORE_PRETRAININGS):
        frozen(p)
    for seed in range(2):  # the longest runs: two seeds of them before other cells
        longer(seed)
    pretraining(2, core=False)
    for seed in range(SEEDS):
        mae(2, 0, seed, core=False)
    frozen(2)
    add("time-mae0", lambda place: extras.time_tasks(place, 0, True), "gate-0")
    add("time-random0", lambda place: extras.time_tasks(place, 0, False))
    for seed in range(SEEDS):
        scratch(1, seed, core=False)
        for p in range(PRETRAININGS):
            mae(p, 1, seed, core=False)
        if seed >= 2:
            longer(seed)
    return found


@contextmanager
def claimed(path: Path) -> Iterator[IO[str] | None]:
    """A lock that ends with the process; None where somebody else has it."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        yield file


def lacking(place: Place, cell: Cell) -> list[str]:
    """What a cell still needs: cells that are not done, and gates that were not passed."""
    found = {need: place.result(need) for need in cell.needs}
    lacks = [need for need, result in found.items() if result is None or not result.get("passed", True)]
    if not lacks:
        tuned = [arm for arm in TUNING if any(need.startswith(f"tune-{arm}-") for need in cell.needs)]
        lacks = [
            f"more settings of {arm} (TUNING): the best rate is at the edge"
            for arm in tuned
            if arms.at_edge(place, arm)
        ]
    return lacks


def run_cell(place: Place, name: str, cell: Cell) -> bool:
    """Runs a cell unless it is done or another process has it; gives whether it ran to its end."""
    with claimed(place.work / f"{name}.lock") as lock:
        if lock is None or place.result(name) is not None:
            return False
        began = time.monotonic()
        print(f"{name} ...", flush=True)
        found = cell.run(place)
        found |= {
            "cell": name, "seconds": round(time.monotonic() - began, 1), "date": str(date.today()),
            "torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine(),
            "footage_identity": place.footage.identity,
        }  # fmt: skip
        place.out.mkdir(parents=True, exist_ok=True)
        path = place.out / f"{name}.json"
        path.with_suffix(".part").write_text(json.dumps(found) + "\n")
        path.with_suffix(".part").rename(path)
        # The test's score is for the report, when all choices are made.
        short = {key: value for key, value in found.items() if not isinstance(value, (str, list, dict))}
        short.pop("accuracy", None)
        print(f"{name}: {short}", flush=True)
        return True


def run_missing(place: Place, chosen: dict[str, Cell]) -> None:
    """Runs what is missing and possible until nothing is left.

    Raises:
        OutOfTime: something is.
    """
    tried: set[str] = set()
    while True:
        ready = [n for n, c in chosen.items() if n not in tried and place.result(n) is None and not lacking(place, c)]
        if not ready:
            return
        if time.monotonic() > place.ends:
            raise OutOfTime
        # A cell that another process has is looked at again once one of ours has ended.
        tried = set() if run_cell(place, ready[0], chosen[ready[0]]) else tried | {ready[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--footage", nargs="+", metavar="DIR", help='folders of videos, or "synthetic"')
    parser.add_argument("--run", type=float, metavar="MINUTES", help="run what is missing for so long")
    parser.add_argument("--cell", metavar="NAME", help="run this cell")
    parser.add_argument("--list", action="store_true", help="list the cells")
    parser.add_argument("--core", action="store_true", help="of the core only")
    parser.add_argument("--report", action="store_true", help="write the report and its figure")
    parser.add_argument("--smoke", action="store_true", help="tiny: whether everything works, in seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/results/transfer"))
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/stmae/transfer")
    options = parser.parse_args()
    chosen = {name: cell for name, cell in cells().items() if cell.core or not options.core}
    if options.cell is not None and options.cell not in chosen:
        parser.error(f"unknown cell {options.cell}; see --list")
    if options.list:
        for name, cell in chosen.items():
            done = "done" if (options.out / f"{name}.json").exists() else "    "
            print(f"{done}  {'core ' if cell.core else '     '}{name:24} {' '.join(cell.needs)}")
    if options.run is not None or options.cell is not None:
        if not options.footage:
            parser.error("give --footage: folders of videos, or synthetic")
        torch.set_num_threads(options.threads)
        size = arms.SMOKE if options.smoke else arms.FULL
        work = options.work / ("smoke" if options.smoke else "full")
        footage = videos.prepare(options.footage, work, synthetic=size.synthetic)
        work = work / footage.identity
        work.mkdir(parents=True, exist_ok=True)
        ends = time.monotonic() + 60 * (options.run if options.run is not None else 1e6)
        place = Place(footage, size, options.out, work, ends)
        before = place.result("task")
        if before is not None and before["footage_identity"] != footage.identity:
            parser.error(f"{options.out} holds results of other footage; give another --out")
        if before is not None and not size.is_that_of(before):
            parser.error(f"{options.out} holds results of another size; give another --out")
        try:
            if options.cell is not None:
                lacks = lacking(place, chosen[options.cell])
                if lacks:
                    parser.error(f"{options.cell} needs first: {' '.join(lacks)} (a gate must be passed: train longer)")
                run_cell(place, options.cell, chosen[options.cell])
            else:
                run_missing(place, chosen)
        except OutOfTime:
            print("out of time; the next --run goes on from here", flush=True)
    if options.report:
        from transfer_report import write_report

        write_report(options.out, options.out.parent / "transfer.md")


if __name__ == "__main__":
    main()
