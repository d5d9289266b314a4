"""What an encoder that sees visible tokens alone saves: the paper's Table 1, and other mask ratios, on this machine.

    python benchmarks/sparse_vs_dense.py                     # ViT-B and ViT-L: long on a CPU
    python benchmarks/sparse_vs_dense.py --quick             # a tiny model, in half a minute

Two parts. Compute: forward and backward of a batch in memory, and beside it AdamW's step, whose time depends on neither
tokens nor batch. Loading: whole steps on clips that are read from packed shards, with a model and clips so small that
loading shows (`LOADING`); the same steps on clips that lie in memory stand beside them. Computing leaves a core to each
decoding process.

Dense is an encoder with mask tokens in the place of hidden patches, and the same decoder. All sides of a model share
their weights and take turns, so that whatever else the machine does hits all of them. Arithmetic is float32. Every
measurement is kept as it is made (--state): repeated, the command goes on where it stood.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import device_name, slug, synchronize, write_report
from torch.utils.flop_counter import FlopCounterMode

import stmae
from stmae.data.dataset import VideoClips
from stmae.data.loader import ClipLoader
from stmae.data.opening import open_source
from stmae.data.synthetic import write_videos
from stmae.model.config import MaeConfig
from stmae.model.mae import MaskedAutoencoder
from stmae.model.sizes import SIZES, mae_config
from stmae.tasks.fit import Trial, free_memory, kept_bytes

PAPER = {"multiply-adds": 7.7, "compute": 5.8, "compute and loading": 4.1}  # ViT-L on 128 A100 GPUs (Table 1)
RATIO = 0.9
LOADING = {"image_size": 64, "patch": (2, 8, 8), "decoder_width": 96, "decoder_depth": 2, "decoder_heads": 3}
REPEATS = 4  # clips of a video, the paper's


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    device = torch.device(args.device)
    args.state.mkdir(parents=True, exist_ok=True)
    state = State(args.state / f"sparse-vs-dense-{slug(device_name(device))}{'-quick' if args.quick else ''}.jsonl")
    for model in args.model:
        measure_compute(args, device, model, state)
    if not args.no_loading:
        measure_loading(args, device, state)
    report = {
        "command": shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "compute": list(compute_rows(args, state)),
        "loading": None if args.no_loading else loading_row(args, state),
    }
    write_report(args.out, f"sparse-vs-dense-{slug(report['device'])}", report, markdown(args, report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=SIZES, default=["vit_base", "vit_large"])
    parser.add_argument("--batch", type=int, default=4, help="clips per step")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.75, 0.9, 0.95])
    parser.add_argument("--repeats", type=int, default=5, help="how often each side is measured")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves torch's choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-loading", action="store_true", help="leave out the part with packed shards")
    parser.add_argument("--loading-model", choices=SIZES, default="vit_mini")
    parser.add_argument("--loading-batch", type=int, default=16)
    parser.add_argument("--loading-steps", type=int, default=10, help="steps of each side in a repeat")
    parser.add_argument("--videos", type=Path, help="folder for the part with shards; made-up videos unless given")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode")
    parser.add_argument("--quick", action="store_true", help="a tiny model and small clips, to see that it works")
    parser.add_argument("--state", type=Path, default=Path("build/benchmarks"), help="where measurements are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "results")
    args = parser.parse_args()
    if args.quick:
        args.model, args.frames, args.image_size, args.repeats, args.loading_steps = ["vit_tiny"], 4, 64, 2, 2
        args.loading_batch = 4
    args.ratios = sorted({*args.ratios, RATIO})
    return args


class State:
    """Measurements by name, in a file that grows line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            self.lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def add(self, name: str, **values: float) -> None:
        self.lines.append({"name": name, **values})
        with open(self.path, "a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in values.items()), flush=True)

    def of(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["name"] == name]


# Compute --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a step is computed on. `shape` goes to `mae_config`."""

    model: str
    batch: int
    shape: dict[str, Any]

    def config(self, ratio: float, dense: bool) -> MaeConfig:
        return mae_config(self.model, mask_ratio=ratio, mask_tokens_in_encoder=dense, **self.shape)

    def sides(self, ratios: Iterable[float]) -> dict[str, MaeConfig]:
        """By name: dense, and sparse at every ratio."""
        return {"dense": self.config(RATIO, True)} | {
            f"sparse {ratio:g}": self.config(ratio, False) for ratio in ratios
        }

    def cell(self, side: str) -> str:
        return f"{self.model} {self.shape['frames']}x{self.shape['image_size']} batch {self.batch} {side}"


def in_memory(args: argparse.Namespace, model: str) -> Work:
    return Work(model, args.batch, {"frames": args.frames, "image_size": args.image_size})


class Sides:
    """Dense and sparse models over the same weights, and their optimiser."""

    def __init__(self, work: Work, ratios: Sequence[float], device: torch.device) -> None:
        torch.manual_seed(0)
        self.configs, self.device = work.sides(ratios), device
        self.parts = {name: parts_of(work.batch, config, device) for name, config in self.configs.items()}
        sparse = MaskedAutoencoder(work.config(RATIO, False))
        dense = MaskedAutoencoder(self.configs["dense"])
        dense.encoder = sparse.encoder
        for name in ("embed", "positions", "blocks", "norm", "head"):
            setattr(dense.decoder, name, getattr(sparse.decoder, name))
        self.models = {"dense": dense.to(device), "sparse": sparse.to(device)}
        trained = [p for p in sparse.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def step(self, side: str, clips: torch.Tensor, keys: torch.Tensor) -> tuple[float, float]:
        """Seconds of forward and backward, and of the optimiser."""
        model = self.models[side.split()[0]]
        model.config = self.configs[side]
        synchronize(self.device)
        begun = time.perf_counter()
        clips, keys = clips.to(self.device), keys.to(self.device)
        parts = self.parts[side]
        for few, own in zip(clips.chunk(parts), keys.chunk(parts), strict=True):
            (model(few, keys=own).loss * (len(few) / len(clips))).backward()
        synchronize(self.device)
        computed = time.perf_counter()
        self.optimizer.step()
        synchronize(self.device)
        ended = time.perf_counter()
        model.zero_grad()  # also the dense encoder's own mask token
        return computed - begun, ended - computed


def parts_of(batch: int, config: MaeConfig, device: torch.device) -> int:
    """In how many parts, one after the other, the batch has to be computed to fit into two thirds of free memory."""
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    keys = torch.zeros(batch, dtype=torch.int64, device="meta")
    trial = Trial(
        build=lambda: model,
        loss=lambda model, clips: model(clips, keys=keys[: len(clips)]).loss,
        groups=lambda model: [],
        clip=config.encoder.clip,
    )
    weights = 16 * sum(p.numel() for p in model.parameters())
    return next(
        parts
        for parts in range(1, batch + 1)
        if batch % parts == 0
        and (parts == batch or kept_bytes(model, trial, batch // parts) < 2 / 3 * (room - weights))
    )


def measure_compute(args: argparse.Namespace, device: torch.device, model: str, state: State) -> None:
    """Every side `repeats` times, in turns; one round to warm up."""
    work = in_memory(args, model)
    left = {side: args.repeats - len(state.of(work.cell(side))) for side in work.sides(args.ratios)}
    if max(left.values()) <= 0:
        return
    made = Sides(work, args.ratios, device)
    shape = (args.batch, 3, args.frames, args.image_size, args.image_size)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8)
    made.step(f"sparse {RATIO:g}", clips, torch.arange(args.batch))
    made.step("dense", clips, torch.arange(args.batch))
    for repeat in range(max(left.values()), 0, -1):
        for side in (side for side, count in left.items() if count >= repeat):
            compute, optimizer = made.step(side, clips, torch.arange(args.batch) + args.batch * repeat)
            state.add(work.cell(side), compute=compute, optimizer=optimizer, parts=made.parts[side])


def compute_rows(args: argparse.Namespace, state: State) -> Iterator[dict[str, Any]]:
    for model in args.model:
        work = in_memory(args, model)
        dense_flops = forward_flops(work.config(RATIO, True))
        dense = state.of(work.cell("dense"))[: args.repeats]
        for side, config in work.sides(args.ratios).items():
            found = state.of(work.cell(side))[: args.repeats]
            gains = {"gain": [], "gain_with_optimizer": []}
            for slow, fast in zip(dense, found, strict=True):  # of the same round
                gains["gain"].append(slow["compute"] / fast["compute"])
                whole = [line["compute"] + line["optimizer"] for line in (slow, fast)]
                gains["gain_with_optimizer"].append(whole[0] / whole[1])
            flops = forward_flops(config)
            yield {
                "model": model,
                "side": side,
                "gmacs": flops / 2e9,
                "fewer_multiply_adds": dense_flops / flops,
                "parts": max(line["parts"] for line in found),
                "compute_seconds": statistics.median(line["compute"] for line in found),
                "optimizer_seconds": statistics.median(line["optimizer"] for line in found),
                **{name: statistics.median(each) for name, each in gains.items()},
                "gain_range": [min(gains["gain"]), max(gains["gain"])],
            }


def forward_flops(config: MaeConfig) -> int:
    clip = config.encoder.clip
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, clip.channels, *clip.shape), keys=torch.zeros(1, dtype=torch.int64))
    return int(counter.get_total_flops())


# Loading --------------------------------------------------------------------------------------------------------------


def with_loading(args: argparse.Namespace) -> Work:
    return Work(args.loading_model, args.loading_batch, {"frames": args.frames, **LOADING})


def loading_cell(args: argparse.Namespace, side: str, how: str) -> str:
    what = args.videos.name if args.videos else "made-up videos"
    how = f"{how}, {args.loading_steps} steps, {args.workers} workers, {what} packed"
    return f"{with_loading(args).cell(side)} {how}"


def measure_loading(args: argparse.Namespace, device: torch.device, state: State) -> None:
    """Seconds of a whole step, dense and sparse in turns, with the clips in memory and from packed shards."""
    ways = [(side, how) for side in ("dense", f"sparse {RATIO:g}") for how in ("in memory", "from shards")]
    left = max(args.repeats - len(state.of(loading_cell(args, *way))) for way in ways)
    if left <= 0:
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - args.workers))  # cores of their own for the processes that decode
    made, size = Sides(with_loading(args), [RATIO], device), LOADING["image_size"]
    with tempfile.TemporaryDirectory() as folder:
        videos = args.videos
        if videos is None:
            videos = Path(folder) / "videos"
            write_videos(videos, count=8 if args.quick else 48)
        stmae.pack(videos, out=Path(folder) / "shards", short_side=64 if args.quick else 256, workers=2)
        loader = ClipLoader(
            VideoClips(
                open_source(Path(folder) / "shards"),
                frames=args.frames,
                stride=4.0,
                image_size=(size, size),
                repeats=REPEATS,
                seed=0,
            ),
            batch_size=args.loading_batch,
            workers=args.workers,
            device=device.type,
        )
        try:
            batches = iter(loader)
            memory = next(batches)
            for _ in range(left):
                for side, how in ways:
                    for _ in range(2):  # what was loaded ahead while another side computed is used up
                        batch = next(batches) if how == "from shards" else memory
                        made.step(side, batch.clips, batch.keys)
                    begun = time.perf_counter()
                    for _ in range(args.loading_steps):
                        batch = next(batches) if how == "from shards" else memory
                        made.step(side, batch.clips, batch.keys)
                    state.add(loading_cell(args, side, how), step=(time.perf_counter() - begun) / args.loading_steps)
        finally:
            loader.close()
            torch.set_num_threads(threads)


def loading_row(args: argparse.Namespace, state: State) -> dict[str, Any]:
    seconds = {
        f"{side} {how}": statistics.median(
            line["step"] for line in state.of(loading_cell(args, side, how))[: args.repeats]
        )
        for side in ("dense", f"sparse {RATIO:g}")
        for how in ("in memory", "from shards")
    }
    gains = {how: seconds[f"dense {how}"] / seconds[f"sparse {RATIO:g} {how}"] for how in ("in memory", "from shards")}
    work = with_loading(args)
    return {
        "model": work.model,
        "batch": work.batch,
        "shape": work.shape,
        "workers": args.workers,
        "step_seconds": seconds,
        "gain": gains,
        "kept": gains["from shards"] / gains["in memory"],
    }


# The page -------------------------------------------------------------------------------------------------------------


def markdown(args: argparse.Namespace, report: dict[str, Any]) -> str:
    threads = f", {report['threads']} threads" if report["threads"] else ""
    named = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        f"# Sparse and dense encoders on {report['device']}",
        "",
        f"{args.frames}x{args.image_size}x{args.image_size} clips, {args.batch} a step, float32; {report['date']};"
        f" {named}{threads}.",
        "",
        f"    {report['command']}",
        "",
        "| model | encoder | GMAC, forward | fewer | compute, s | optimiser, s | gain | range | with AdamW | parts |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["compute"]:
        lines.append(
            f"| {row['model']} | {row['side']} | {row['gmacs']:.1f} | {row['fewer_multiply_adds']:.2f}x"
            f" | {row['compute_seconds']:.3g} | {row['optimizer_seconds']:.3g} | {row['gain']:.2f}x"
            f" | {row['gain_range'][0]:.2f} to {row['gain_range'][1]:.2f} | {row['gain_with_optimizer']:.2f}x"
            f" | {row['parts']} |"
        )
    lines += ["", ABOUT, ""]
    if report["loading"]:
        found = report["loading"]
        seconds = "; ".join(f"{name} {value:.3g}" for name, value in found["step_seconds"].items())
        shape = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found["shape"].items())
        lines += [
            f"With loading: {found['model']}, {found['batch']} clips a step, {REPEATS} of a video ({shape});"
            f" {found['workers']} decoding, as many threads fewer to compute with. Dense over sparse, {RATIO:.0%}"
            f" hidden: {found['gain']['in memory']:.2f}x with the clips in memory, {found['gain']['from shards']:.2f}x"
            f" with clips from packed shards, which is {found['kept']:.2f} of it. Seconds a step: {seconds}.",
            "",
        ]
    paper = ", ".join(f"{what} {gain}x" for what, gain in PAPER.items())
    return "\n".join([*lines, f"The paper, ViT-L on 128 A100 GPUs at 0.9 (Table 1): {paper}.", ""])


ABOUT = """\
Numbers after "sparse" are mask ratios; dense is measured at 0.9. Compute is forward and backward, the optimiser AdamW's
fused step over all parameters. Seconds are medians; gains are medians of dense over sparse within a round, with the
smallest and the largest. Parts: where a batch does not fit into memory, it is computed in so many parts."""


if __name__ == "__main__":
    main()
