"""Runs that are killed or broken at random points, and whether each ends as if nothing had happened.

    python benchmarks/faults.py

Every run is a small `stmae pretrain` in a process of its own, started again by the same command after it was broken.
Its end (weights, optimiser, position, every logged loss, TensorBoard's steps) is compared bit for bit with that of a
run that was left alone. What counts as the right end:

- killed, stopped, damaged, worker killed: the end of the run left alone;
- NaN injected, and killed too: the end of a run with the same NaN that was not killed;
- disk full (a small tmpfs mount): a warning, no traceback, the earlier checkpoints whole; once there is room, the run
  itself or its repeated command reaches the end of the run left alone.

Cells whose result is there already are left out, so an interrupted session goes on. Writes docs/results/faults.csv and
.md. Mounting needs root; without it the cells of the full disk say so and count as failed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = 24
OPTIONS = (
    "--model vit_tiny --frames 8 --image-size 32 --patch 2 8 8 --target pixels --position-values learned_from_sincos"
    " --decoder-width 64 --decoder-depth 1 --decoder-heads 2 --batch-size 8 --lr 0.001 --clip-grad 1.0 --workers 1"
    f" --precision fp32 --log-every 1 --evaluate-every 8 --save-every 3 --max-bad-steps 3 --epochs {STEPS}steps"
).split()
KINDS = {
    "SIGKILL": 6, "SIGTERM": 4, "killed in a save": 6, "disk full": 4, "NaN, killed": 2, "NaN in a row, killed": 2,
    "worker killed": 3, "bit flipped": 3,
}  # fmt: skip
POINTS = ("first byte", "between the files", "manifest", "rename", "renamed", "deleting the old", "any moment")
COMPARED = ("step", "loss", "explained", "grad_norm", "lr", "held_out_loss", "cursor", "skipped_steps")
FIELDS = ("cell", "kind", "where", "statuses", "went_on", "equal", "seconds")


# In the process that is broken ----------------------------------------------------------------------------------------


def kill_myself(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def inject(fault: dict[str, Any]) -> None:
    """Changes this process so that it breaks as told."""
    from stmae import weights
    from stmae.engine.loop import StepResult
    from stmae.tasks.pretrain import Pretraining

    if "nan" in fault:
        real_step, slots = Pretraining.step, fault["slots"]

        def step(self: Pretraining, batch: Any) -> StepResult:
            result = real_step(self, batch)
            bad = batch.cursor // slots - 1 in fault["nan"]
            factor = float("nan") if bad else 1.0
            return StepResult(result.loss_sum * factor, result.weight, result.clips, result.numbers)

        Pretraining.step = step  # type: ignore[method-assign]
    if "save" in fault:
        spot = {
            "first byte": "save_weights", "between the files": "write_tensors", "manifest": "write_manifest",
            "rename": "publish", "renamed": "publish", "deleting the old": "remove_folder",
            "any moment": "save_weights",
        }[fault["point"]]  # fmt: skip
        real, left = getattr(weights, spot), [fault["save"]]

        def broken(*args: Any) -> None:
            if spot in ("save_weights", "write_tensors") and ".step-" not in str(args[0]):
                return real(*args)  # the encoder's file
            if spot == "write_tensors" and "optimizer" not in str(args[0]):
                return real(*args)
            left[0] -= 1
            if left[0] == 0:
                if fault["point"] == "any moment":
                    threading.Timer(fault["delay"], kill_myself).start()
                elif fault["point"] == "renamed":
                    real(*args)
                    kill_myself()
                else:
                    kill_myself()
            return real(*args)

        setattr(weights, spot, broken)


# Around it ------------------------------------------------------------------------------------------------------------


class Run:
    """One run: its folder, and the statuses of the processes that were started for it."""

    def __init__(self, work: Path, out: Path, threads: int) -> None:
        self.work, self.out, self.threads = work, out, threads
        self.statuses: list[int] = []
        self.output = ""

    def start(self, fault: dict[str, Any] | None = None) -> subprocess.Popen[str]:
        command = ["pretrain", str(self.work / "videos"), "--out", str(self.out), *OPTIONS]
        head = ["-m", "stmae"] if fault is None else [str(Path(__file__)), "--inject", json.dumps(fault)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "COLUMNS": "200"}
        environment.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin slow a busy machine down
        process = subprocess.Popen(
            [sys.executable, *head, *command], stdout=-1, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
        )
        self.reader = threading.Thread(target=self._read, args=(process,))
        self.reader.start()
        return process

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.output += line

    def end(self, process: subprocess.Popen[str], timeout: float = 300) -> int:
        status = process.wait(timeout)
        self.reader.join()
        self.statuses.append(status)
        return status

    def wait_for(self, process: subprocess.Popen[str], text: str, timeout: float = 200) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.output and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)

    def whole(self, fault: dict[str, Any] | None = None) -> int:
        return self.end(self.start(fault))


def final(out: Path) -> dict[str, Any]:
    """Everything of a run's end that must not depend on what happened on the way."""
    from safetensors import safe_open
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    newest = max((out / "checkpoints").glob("step-*"))
    end: dict[str, Any] = {"step": newest.name}
    for name in ("model", "optimizer"):
        with safe_open(str(newest / f"{name}.safetensors"), framework="np") as file:
            end[name] = {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118
    state = json.loads((newest / "state.json").read_text())
    end["position"] = {name: state[name] for name in ("step", "cursor", "left_out", "roll_backs")}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    end["losses"] = [{name: line[name] for name in COMPARED if name in line} for line in lines]
    reader = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    end["tensorboard"] = [(event.step, event.value) for event in reader.Scalars("grad_norm")]
    return end


def differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    return ", ".join(name for name in one if repr(one[name]) != repr(other.get(name)))  # repr: NaN is NaN here


def broken_by_signal(run: Run, rng: random.Random, signum: int, fault: dict[str, Any] | None = None) -> str:
    step, delay = rng.randint(1, STEPS - 4), rng.uniform(0, 0.2)
    process = run.start(fault)
    run.wait_for(process, f"step {step}/")
    time.sleep(delay)
    process.send_signal(signum)
    run.end(process)
    run.whole(fault)
    return f"{delay * 1000:.0f} ms after step {step}"


def broken_in_save(run: Run, rng: random.Random, cell: int) -> str:
    point = POINTS[cell % len(POINTS)]
    # Only from the fourth save on is there an old checkpoint to delete.
    fault = {"save": rng.randint(1, 3) if point == "deleting the old" else rng.randint(2, 6), "point": point}
    run.whole(fault | {"delay": rng.uniform(0, 0.1)})
    run.whole()
    return f"save {fault['save']}, {point}"


def bit_flipped(run: Run, rng: random.Random) -> str:
    step = rng.randint(7, STEPS - 4)
    process = run.start()
    run.wait_for(process, f"step {step}/")
    process.kill()
    run.end(process)
    newest = max((run.out / "checkpoints").glob("step-*"))
    file = rng.choice(sorted(newest.iterdir()))
    content = bytearray(file.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    run.whole()
    said = "passing over the damaged checkpoint" in run.output
    return f"bit {bit} of {newest.name}/{file.name}" + ("" if said else ", NOT SAID")


def worker_killed(run: Run, rng: random.Random) -> str:
    step = rng.randint(1, STEPS - 4)
    process = run.start()
    run.wait_for(process, f"step {step}/")
    workers = [pid for pid in descendants(process.pid) if "resource_tracker" not in commandline(pid)]
    leaves = [pid for pid in workers if not descendants(pid)]
    with suppress(ProcessLookupError):
        os.kill(rng.choice(leaves), signal.SIGKILL)
    if run.end(process) != 0:
        run.whole()
    said = "does its work again" in run.output
    return f"after step {step}, one of {len(leaves)}" + ("" if said else ", NOT SAID")


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                    found += [int(entry.name), *descendants(int(entry.name))]
    return found


def commandline(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def disk_full(run: Run, rng: random.Random, size: int) -> str:
    """The folder lies on a disk that has room for `room` bytes, then for enough."""
    room = rng.uniform(0.2, 3.5) * size  # in checkpoints
    run.out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(room)}", "tmpfs", str(run.out)], check=True)
    try:
        process = run.start()
        run.wait_for(process, f"step {rng.randint(10, STEPS)}/", 100)
        subprocess.run(["mount", "-o", "remount,size=2G", str(run.out)], check=True)
        if run.end(process) != 0:
            run.whole()
        complaint = "could not be" in run.output or "cannot be written" in run.output
        problem = " TRACEBACK" if "Traceback" in run.output else ("" if complaint else " NOT SAID")
        shutil.copytree(run.out, run.work / "copy", dirs_exist_ok=True)
    finally:
        subprocess.run(["umount", str(run.out)], check=True)
    shutil.copytree(run.work / "copy", run.out, dirs_exist_ok=True)
    shutil.rmtree(run.work / "copy")
    return f"room for {room / size:.1f} checkpoints{problem}"


def how(run: Run) -> str:
    """How a run went on, from what it said."""
    phrases = {
        "going on from step": "resumed", "passing over the damaged": "damaged one passed over",
        "goes back to step": "rolled back", "could not be written": "warned of the disk",
        "cannot be written": "refused for the disk", "and were skipped": "steps skipped",
        "does its work again": "worker replaced",
    }  # fmt: skip
    said = [words for phrase, words in phrases.items() if phrase in run.output]
    resumed = [line.split("step ")[1].split(" ")[0] for line in run.output.splitlines() if "going on from step" in line]
    return (
        ", ".join(f"{word} from step {', '.join(resumed)}" if word == "resumed" else word for word in said)
        or "began anew"
    )


class Session:
    """The runs that are left alone, made when first asked for, and all cells."""

    def __init__(self, work: Path, seed: int, threads: int) -> None:
        self.work, self.seed, self.threads = work, seed, threads
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "videos").is_dir():
            from stmae.data.synthetic import write_videos

            write_videos(work / "videos", count=6, seconds=(1.5, 2.0))
        self.ends: dict[str, dict[str, Any]] = {}

    def alone(self, name: str, fault: dict[str, Any] | None = None) -> dict[str, Any]:
        if name not in self.ends:
            run = Run(self.work, self.work / name, self.threads)
            if run.whole(fault) != 0:
                raise SystemExit(f"the run left alone failed:\n{run.output}")
            self.ends[name] = final(run.out)
        return self.ends[name]

    def cell(self, number: int, kind: str) -> dict[str, Any]:
        rng = random.Random(f"{self.seed}/{number}")
        slots = self.alone("left-alone")["position"]["cursor"] // STEPS
        out = self.work / f"cell-{number:02d}"
        shutil.rmtree(out, ignore_errors=True)
        run, wanted, began = Run(self.work, out, self.threads), self.alone("left-alone"), time.monotonic()
        breakers: dict[str, Callable[[], str]] = {
            "SIGKILL": lambda: broken_by_signal(run, rng, signal.SIGKILL),
            "SIGTERM": lambda: broken_by_signal(run, rng, signal.SIGTERM),
            "killed in a save": lambda: broken_in_save(run, rng, number),
            "bit flipped": lambda: bit_flipped(run, rng),
            "worker killed": lambda: worker_killed(run, rng),
            "disk full": lambda: disk_full(run, rng, self.size()),
        }
        if kind.startswith("NaN"):
            first = rng.randint(7, 14)
            count = 4 if "row" in kind else 1
            fault = {"nan": [*range(first, first + count)], "slots": slots}
            wanted = self.alone(f"left-alone-nan-{first}-{count}", fault)
            began = time.monotonic()
            where = f"NaN in steps {first + 1} to {first + count}; killed "
            where += broken_by_signal(run, rng, signal.SIGKILL, fault)
        else:
            try:
                where = breakers[kind]()
            except subprocess.CalledProcessError as error:
                where = f"COULD NOT BE SET UP: {error}"
        differs = differences(wanted, final(out)) if run.statuses and run.statuses[-1] == 0 else "did not end"
        wrong = differs or next((word for word in ("NOT", "TRACEBACK") if word in where), "")
        result = {
            "cell": number, "kind": kind, "where": where, "statuses": " ".join(map(str, run.statuses)),
            "went_on": how(run), "equal": "no: " + wrong if wrong else "yes",
            "seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip
        if wrong:
            print(run.output[-3000:], file=sys.stderr)
        else:
            shutil.rmtree(out)
        return result

    def size(self) -> int:
        newest = max((self.work / "left-alone" / "checkpoints").glob("step-*"))
        return sum(file.stat().st_size for file in newest.iterdir())


def page(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    import torch

    good, left = sum(row["equal"] == "yes" for row in rows), sum(KINDS.values()) - len(rows)
    lines = [
        "# Faults",
        "",
        f"`python benchmarks/faults.py --seed {options.seed} --threads {options.threads}`, {date.today()},"
        f" {platform.machine()}, torch {torch.__version__}: {STEPS} steps of a vit_tiny, a checkpoint every 3 steps,"
        " a log line every step. Each run was broken at a random point and started again by the same command.",
        "",
        *([f"{left} of {len(rows) + left} are yet to be run; the same command goes on with them.", ""] if left else []),
        f"**{good} of {len(rows)} ended right**: weights, optimiser, position, logged losses and TensorBoard's steps"
        " are bit for bit those of a run that was left alone. With NaN injected, that is a run with the same NaN that"
        " was not killed. With a full disk, the run warns and goes on, or ends with a message; once there is room it"
        " (or the repeated command) reaches the same end.",
        "",
        "| | broken by | where | statuses | went on | bit-equal | s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(str(row[name]) for name in FIELDS) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    if sys.argv[1:2] == ["--inject"]:
        from stmae.cli import main as command

        inject(json.loads(sys.argv[2]))
        return command(sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", type=int, nargs="*", help="only these, by number")
    parser.add_argument("--quick", action="store_true", help="one cell of each kind")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "faults", help="for the runs; may be deleted")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "faults")
    options = parser.parse_args()
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    cells = options.cells if options.cells is not None else range(len(kinds))
    if options.quick:
        cells = [kinds.index(kind) for kind in KINDS]
    table = options.out.with_suffix(".csv")
    rows: dict[int, dict[str, Any]] = {}
    if table.exists():
        with open(table, newline="") as file:
            rows = {int(row["cell"]): row for row in csv.DictReader(file)}
    shutil.rmtree(options.work, ignore_errors=True)
    session = Session(options.work, options.seed, options.threads)
    for number in cells:
        if number in rows:
            continue
        rows[number] = session.cell(number, kinds[number])
        print(*rows[number].values(), sep=" | ", flush=True)
        done = [rows[place] for place in sorted(rows)]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with open(table, "w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(done)
        options.out.with_suffix(".md").write_text(page(done, options))
    return 0 if all(row["equal"] == "yes" for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
