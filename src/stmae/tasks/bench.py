"""`stmae bench`: what this machine can do with a model and some videos, what limits it, and what to change."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from stmae.data.opening import open_source
from stmae.engine.blocks import compile_blocks, pick_compile
from stmae.engine.launch import own_cores
from stmae.engine.optim import build_adamw, parameter_groups
from stmae.engine.precision import AUTOCAST, computing, float32_products
from stmae.model.config import MaeConfig
from stmae.model.mae import MaskedAutoencoder
from stmae.tasks.bench_options import BenchOptions
from stmae.tasks.build import cpu_threads, model_config, pick_device, pick_precision, stand_ins, training_flops
from stmae.tasks.fit import Trial, free_memory, kept_bytes
from stmae.tasks.machine import device_name, matmul_rate, seconds_of
from stmae.tasks.speed import loading_speed
from stmae.tasks.task import task
from stmae.weights import write_atomic

GAIN = 1.05  # below this factor, twice the clips in a step are not worth their memory
MOST = 1024  # clips in a step
GIVEN = {"tokens": 1024, "teacher": 768}  # values that are predicted for a token where they come from another model
COMFORT = 0.6  # of the matrix-product rate; a step that reaches it has little left to gain


@dataclass(frozen=True)
class Step:
    """One measurement: clips in a step, clips per second, bytes that a training step needs (counted; a GPU's peak)."""

    batch: int
    clips_per_second: float
    memory: int


@dataclass
class Bench:
    """What `bench` returns.

    Attributes:
        device, precision, compiled, threads: what computed, and how.
        matmul: FLOP/s of large matrix products in float32 or, with bf16 and fp16, in those.
        flops_per_clip: of a clip's forward and backward pass, a multiply-add counted as two.
        training: steps of pre-training, for growing numbers of clips.
        embedding: the encoder alone, on whole clips, without gradients.
        cores: that this process may use.
        loading: clips per second that one core makes of the videos; None without videos.
        limit: "loading" or "computing"; None without videos.
        advice: what to change, most useful first.
    """

    device: str
    precision: str
    compiled: bool
    threads: int
    matmul: float
    flops_per_clip: int
    training: list[Step]
    embedding: Step
    cores: int
    loading: float | None = None
    limit: str | None = None
    advice: list[str] = field(default_factory=list)

    @property
    def best(self) -> Step:
        """The fastest of the training steps."""
        return max(self.training, key=lambda step: step.clips_per_second)

    @property
    def share(self) -> float:
        """Of the matrix-product rate, that the best step reaches."""
        return self.best.clips_per_second * self.flops_per_clip / self.matmul


@task(BenchOptions)
def bench(options: BenchOptions) -> Bench:
    """Returns:
        A `Bench`, which is also printed.

    Raises:
        UserError: values that make no sense, a model that does not fit into memory, or videos that cannot be read.
    """
    device = pick_device(options.device)
    precision, why = pick_precision(options.precision, device)
    compiled, _ = pick_compile(options.compile, device)
    console = Console(highlight=False)
    with cpu_threads(options.threads), float32_products(precision):
        name, threads = device_name(device), torch.get_num_threads()
        rate = matmul_rate(device, AUTOCAST[precision] or torch.float32)
        on = f", {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else ""
        console.print(f"{name}{on}; {precision} ({why}): {_flops(rate)} in matrix products", soft_wrap=True)
        source = open_source(options.videos) if options.videos is not None else None
        config = model_config(
            options,
            frames=options.frames,
            image_size=options.image_size,
            channels=3,
            given_values=GIVEN.get(options.target, 0),
        )
        report = Bench(
            name, precision, compiled, threads, rate, training_flops(config),
            list(_training(config, options, device, precision, compiled, console)),
            _embedding(config, options, device, precision),
            own_cores(),
        )  # fmt: skip
    if source is not None:
        report.loading = loading_speed(
            source,
            frames=options.frames,
            stride=options.stride,
            image_size=options.image_size,
            repeats=options.repeats,
            seconds=options.seconds,
        ).clips_per_second
    _conclude(report, options, device)
    _show(report, options, console)
    if options.out is not None:
        write_atomic(options.out, json.dumps(_plain(report), indent=1) + "\n")
    return report


def _training(
    config: MaeConfig, options: BenchOptions, device: torch.device, precision: str, compiled: bool, console: Console
) -> Iterator[Step]:
    """Steps of growing batches until more clips gain nothing or do not fit; or those that were asked for."""
    model = MaskedAutoencoder(config).to(device)
    if compiled:
        compile_blocks(model)
    optimizer = build_adamw(parameter_groups(model, 0.05), 1e-4)
    best, batch, wanted = 0.0, 1, list(options.batches)
    fixed = 16 * sum(parameter.numel() for parameter in model.parameters())
    while wanted or not options.batches:
        batch = wanted.pop(0) if options.batches else batch
        memory = fixed + _kept(config, batch)
        there = fixed if optimizer.state else fixed // 4  # gradients and moments come with the first step
        if device.type == "cpu" and memory > free_memory() + there:
            console.print(f"{batch} clips in a step do not fit into memory ({memory / 1e9:.1f} GB)", soft_wrap=True)
            return
        clip = config.encoder.clip
        pixels = torch.randint(0, 256, (batch, clip.channels, *clip.shape), dtype=torch.uint8, device=device)
        extras = {name: value.to(device) for name, value in stand_ins(config, batch).items()}

        def step(pixels: torch.Tensor = pixels, extras: dict[str, torch.Tensor] = extras) -> None:
            with computing(device, precision):
                loss = model(pixels, **extras).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            with console.status(f"training steps of {batch} clips"):
                rate = batch / seconds_of(step, device, options.seconds)
        except torch.OutOfMemoryError:
            optimizer.zero_grad(set_to_none=True)
            console.print(f"{batch} clips in a step do not fit into the memory of {device}")
            return
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device)
        yield Step(batch, rate, memory)
        if not options.batches and (rate < GAIN * best or batch >= MOST):
            return
        best, batch = max(best, rate), 2 * batch


def _kept(config: MaeConfig, batch: int) -> int:
    """Bytes that a forward pass of so many clips keeps for the backward pass, counted on the meta device."""
    with torch.device("meta"):
        model = MaskedAutoencoder(config)

    def loss(model: torch.nn.Module, clips: torch.Tensor) -> torch.Tensor:
        extras = {name: value.to("meta") for name, value in stand_ins(config, len(clips)).items()}
        return model(clips, **extras).loss

    return kept_bytes(model, Trial(lambda: model, loss, lambda model: [], config.encoder.clip), batch)


def _embedding(config: MaeConfig, options: BenchOptions, device: torch.device, precision: str) -> Step:
    """The encoder on whole clips, eight at a time on a GPU and one elsewhere."""
    encoder = MaskedAutoencoder(config).encoder.to(device).eval()
    clip, batch = config.encoder.clip, 8 if device.type == "cuda" else 1
    pixels = torch.zeros(batch, clip.channels, *clip.shape, dtype=torch.uint8, device=device)

    def embed() -> None:
        with torch.inference_mode(), computing(device, precision):
            encoder(pixels)

    seconds = seconds_of(embed, device, options.seconds)
    return Step(batch, batch / seconds, 0)


def _conclude(report: Bench, options: BenchOptions, device: torch.device) -> None:
    """What limits, and what to change about it."""
    best, advice = report.best, report.advice
    if report.loading is not None:
        needed = best.clips_per_second / report.loading
        # A GPU leaves all cores but one to loading. On a CPU both share them, and the one that takes more of a clip's
        # time limits.
        beside = device.type == "cuda"
        spare = max(1, report.cores - 1) if beside else report.cores
        report.limit = "loading" if needed > spare else "computing"
        if report.limit == "loading":
            parts = f"{1 / report.loading:.2g} and {report.cores / best.clips_per_second:.2g}"
            advice.append(
                (
                    f"Loading needs {needed:.1f} cores and has {spare:g}:"
                    if beside
                    else f"Loading and computing a clip take {parts} seconds of a core:"
                )
                + " `stmae pack` the videos (then measure the pack),"
                + (f" take --repeats {2 * options.repeats}," if options.repeats < 4 else "")
                + f" or use a machine with more cores{' for each GPU' * beside}."
            )
    if best.batch > 1:
        advice.append(f"Train with micro-batches of {best.batch} clips: --batch-size auto finds what fits.")
    if options.decode == "all" and options.decoder == "self_attention":
        advice.append("--decode running_cell predicts half of the hidden tokens in a step, for about half the decoder.")
    if report.share < COMFORT and device.type == "cuda" and not report.compiled:
        advice.append("--compile on.")


def _show(report: Bench, options: BenchOptions, console: Console) -> None:
    """Prints the tables and the conclusion."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("", "clips in a step", "clips/s", "of matrix products", "memory"):
        table.add_column(head, justify="left" if not head else "right")
    for step in report.training:
        share = step.clips_per_second * report.flops_per_clip / report.matmul
        mark = "pre-training" + (" (fastest)" if step is report.best else "")
        table.add_row(mark, f"{step.batch}", f"{step.clips_per_second:.3g}", f"{share:.0%}", _gigabytes(step.memory))
    step = report.embedding
    table.add_row("embedding", f"{step.batch}", f"{step.clips_per_second:.3g}", "", "")
    console.print(table)
    clip = f"{options.frames} x {options.image_size} px"
    if report.loading is not None:
        console.print(f"one core loads {report.loading:.3g} clips/s ({clip}, repeats {options.repeats})")
        console.print(f"The limit is {report.limit}.", style="bold")
    for line in report.advice:
        console.print(f"- {line}", soft_wrap=True)


def _plain(report: Bench) -> dict[str, Any]:
    return {**dataclasses.asdict(report), "share_of_matmul": report.share}


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2g} GB"


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"
