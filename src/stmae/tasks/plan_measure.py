"""What `stmae plan` measures: how fast clips load, as the files are and packed, and how fast a model trains."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from stmae.data import encode
from stmae.data.container import open_video, video_stream
from stmae.data.encode import Recipe
from stmae.data.media import Media
from stmae.data.names import encoded
from stmae.data.opening import open_source
from stmae.data.sources import Source, names_of, scan
from stmae.data.survey import Facts, survey
from stmae.data.synthetic import write_video, write_videos
from stmae.engine.launch import cores
from stmae.engine.optim import build_adamw, parameter_groups
from stmae.engine.peaks import named_peak
from stmae.errors import UserError
from stmae.model.mae import MaskedAutoencoder
from stmae.model.sizes import mae_config
from stmae.tasks.build import training_flops
from stmae.tasks.machine import device_name, seconds_of
from stmae.tasks.plan import MEASURED, Number, default_bytes
from stmae.tasks.plan_options import PlanOptions
from stmae.tasks.speed import loading_speed

SAMPLE = 24  # videos that are looked at for their durations
PACKED = 6  # of these, that are encoded for the measurement
REPEATS = (1, 2, 4)
SHORT_SIDE = 256  # of the packed sample: the default of `stmae pack`
SECONDS = 10.0  # of a packed video, at most
ASSUMED_SHARE = 0.3  # of a GPU's peak, that a training step reaches


@dataclass
class Sample:
    """What a folder tells.

    Attributes:
        videos: how many there are.
        seconds: mean duration.
        name_bytes: mean length of a path.
        source: some readable videos of it.
    """

    videos: int
    seconds: Number
    name_bytes: float
    source: Source

    @classmethod
    def of(cls, options: PlanOptions) -> Sample:
        """Looks at a few videos spread over the folder.

        Raises:
            UserError: none of them can be read.
        """
        source = open_source(options.videos)
        items = np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int))
        facts: list[tuple[int, Facts]] = [(int(item), survey(source.media(int(item)), 0.1)) for item in items]
        readable = [(item, found) for item, found in facts if not found.reason]
        if not readable:
            raise UserError(
                f"none of {len(items)} videos of {options.videos} can be read: {facts[0][1].reason}.",
                "`stmae check` says what is wrong with them.",
            )
        mean = float(np.mean([found.duration for _, found in readable]))
        names = sum(len(encoded(name)) for name in names_of(source)) / len(source)
        seconds = Number(mean, f"mean of {len(readable)} of the videos, {MEASURED}")
        return cls(len(source), seconds, names, source.part([item for item, _ in readable]))


@dataclass
class Rates:
    """Clips per second and core by (kind of files, repeats); bytes of a second of packed video; where from."""

    clips_per_second: dict[tuple[str, int], float]
    bytes: Callable[[], Number]
    origin: str


def loading_rates(options: PlanOptions, sample: Sample | None) -> Rates:
    """Measures one core: the videos as they are and encoded anew; without videos, synthetic ones."""
    found: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        if sample is None:
            _write_synthetic(Path(folder))
            sources: dict[str, Source] = {"as they are": scan(folder)}
            size, origin = default_bytes, f"{MEASURED}, on synthetic videos of {SHORT_SIDE} px and {SECONDS:g} s"
        else:
            size_now = _pack(sample.source, Path(folder))
            sources = {"as they are": sample.source, "packed": scan(folder)}
            origin = f"{MEASURED}, on {len(sample.source)} of the videos"

            def size() -> Number:
                return Number(size_now, f"{PACKED} of the videos at short side {SHORT_SIDE}, {MEASURED}")

        for kind, source in sources.items():
            for repeats in sorted({*REPEATS, options.repeats}):
                speed = loading_speed(
                    source,
                    frames=options.frames,
                    stride=options.stride,
                    image_size=options.image_size,
                    repeats=repeats,
                    seconds=options.measure_seconds,
                )
                found[kind, repeats] = speed.clips_per_second
    return Rates(found, size, origin)


def _write_synthetic(folder: Path) -> None:
    """Two videos of moving shapes, enlarged: drawing them at full size would take longer than measuring."""
    with tempfile.TemporaryDirectory() as small:
        for path in write_videos(small, count=2, seconds=(SECONDS, SECONDS)):
            write_video(folder / f"{path.stem}.mp4", _frames(Media.of(path)), 30, options=_coding())


def _pack(source: Source, folder: Path) -> float:
    """Encodes a few videos as `stmae pack` does by default; returns the bytes of a second of them."""
    items = np.unique(np.linspace(0, len(source) - 1, PACKED).astype(int))
    size = seconds = 0.0
    for item in items:
        media = source.media(int(item))
        with open_video(media) as container:
            stream = video_stream(container, media)
            rate = stream.average_rate or stream.guessed_rate or 30
        path = folder / f"{item}.mp4"
        write_video(path, _frames(media), rate, options=_coding())
        size += path.stat().st_size
        with av.open(str(path)) as container:
            seconds += container.duration / av.time_base
    return size / seconds


def _coding() -> dict[str, str]:
    """As `stmae pack` does."""
    return encode.X264 | {"g": str(Recipe.gop), "crf": str(Recipe.quality)}


def _frames(media: Media) -> Iterator[np.ndarray]:
    """The first frames, with a short side of `SHORT_SIDE` pixels."""
    with open_video(media) as container:
        begin = None
        try:
            for frame in container.decode(video_stream(container, media)):
                begin = (frame.time or 0.0) if begin is None else begin
                if (frame.time or 0.0) - begin >= SECONDS:
                    return
                scale = SHORT_SIDE / min(frame.width, frame.height)
                width, height = (2 * round(scale * side / 2) for side in (frame.width, frame.height))
                yield frame.to_ndarray(width=width, height=height, format="rgb24")
        except av.FFmpegError:
            return  # what came before the damage will do


def step_rate(options: PlanOptions) -> Number:
    """Clips per second of a training step of the model: on the device here, or estimated for a GPU that is named.

    Raises:
        UserError: there is no GPU here, and none is named.
    """
    config = mae_config(options.model, frames=options.frames, image_size=options.image_size)
    peak = named_peak(options.gpu or "")
    if peak is not None:
        rate = ASSUMED_SHARE * peak / training_flops(config)
        share = f"assumed: {ASSUMED_SHARE:.0%} of its {peak / 1e12:.0f} TFLOP/s in bf16"
        return Number(rate, f"{options.model} on {options.gpu}, {share}; benchmarks/speed.py measures it")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and options.gpu != "this":
        raise UserError(
            "this machine has no GPU that PyTorch can use, so the clips per second of one cannot be measured here.",
            "Give --step-rate, as a run or benchmarks/speed.py prints it on such a GPU; or --gpu A100 for an estimate; "
            "or --gpu this to plan for training on this CPU.",
        )
    batch = 32 if device.type == "cuda" else 1
    model = MaskedAutoencoder(config).to(device)
    optimizer = build_adamw(parameter_groups(model, 0.05), 1e-4)
    clips = torch.zeros(batch, 3, options.frames, options.image_size, options.image_size, dtype=torch.uint8)
    clips, keys = clips.to(device), torch.arange(batch, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(clips, keys=keys).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    rate = batch / seconds_of(step, device, 3 * options.measure_seconds)
    name = device_name(device) + (f", {cores()} cores" if device.type == "cpu" else "")
    return Number(rate, f"{options.model} on {name}, {MEASURED}")
