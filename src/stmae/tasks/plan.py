"""`stmae plan`: bytes, shards, cores and hours of a pre-training, and whether loading or computing limits it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from stmae.engine.launch import cores
from stmae.tasks.plan_options import PlanOptions, count_of
from stmae.tasks.task import task

# What a second of video takes when it is packed at a short side of 256 pixels: from docs/results/check.json, which
# `python benchmarks/check_quality.py` writes; a test holds them together.
PACKED_BYTES_PER_SECOND = 39_100
CLIP_SECONDS = 10.0  # assumed where nothing is said, as Kinetics' are
NAME_BYTES = 48  # of a path in the index, where there is no folder to look at
INDEX_BYTES = 8 + 8  # beside its name: where the name ends, and its place in the order of the pass
GIVEN, MEASURED = "given", "measured here and now"


@dataclass
class Forecast:
    """What `plan` returns.

    Attributes:
        videos, seconds: how many, and how long each, in seconds.
        packed_bytes, shards, index_bytes: of the whole when packed, and of its index in memory.
        step_rate: clips per second that one GPU trains on.
        load_rate: clips per second that one core makes.
        cores_needed: for each GPU, so that it never waits.
        rate: clips per second of the whole, by the slower of the two.
        limit: "loading" or "computing".
        epoch_hours, hours: of an effective epoch, and of all of them.
        origins: where each of the numbers came from, by name.
        others: clips per second and core for other (kind of files, repeats) that were measured.
    """

    videos: int
    seconds: float
    packed_bytes: float
    shards: int
    index_bytes: float
    step_rate: float
    load_rate: float
    cores_needed: int
    rate: float
    limit: str
    epoch_hours: float
    hours: float
    origins: dict[str, str] = field(default_factory=dict)
    others: dict[tuple[str, int], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Number:
    """A number and where it came from."""

    value: float
    origin: str


@task(PlanOptions)
def plan(options: PlanOptions) -> Forecast:
    """Returns:
        A `Forecast`, which is also printed.

    Raises:
        UserError: values that make no sense, videos that cannot be read, or no GPU here whose rate could be measured.
    """
    from stmae.tasks.plan_report import show

    numbers, others = gather(options)
    forecast = work_out(options, numbers)
    forecast.others = others
    show(forecast, options)
    return forecast


def gather(options: PlanOptions) -> tuple[dict[str, Number], dict[tuple[str, int], float]]:
    """The numbers that the plan rests on, given or measured; and loading rates for other repeats and when packed."""
    from stmae.tasks import plan_measure as measure

    count = count_of(options.videos)
    step_rate = _or(options.step_rate, lambda: measure.step_rate(options))  # first: it may have to be asked for
    numbers = {"cores": _or(options.cores, lambda: Number(cores(), "this machine's"))}
    sample = None
    if count is None:
        sample = measure.Sample.of(options)
        numbers |= {
            "videos": Number(sample.videos, "counted"),
            "seconds": _or(options.seconds, lambda: sample.seconds),
            "name_bytes": Number(sample.name_bytes, "the folder's"),
        }
    else:
        numbers |= {
            "videos": Number(count, GIVEN),
            "seconds": _or(options.seconds, lambda: Number(CLIP_SECONDS, "assumed; give --seconds")),
            "name_bytes": Number(NAME_BYTES, "assumed"),
        }
    others: dict[tuple[str, int], float] = {}
    if options.load_rate is None:
        rates = measure.loading_rates(options, sample)
        others = rates.clips_per_second
        numbers["load_rate"] = Number(others["as they are", options.repeats], rates.origin)
        numbers["bytes_per_second"] = _or(options.packed_kilobytes and 1000 * options.packed_kilobytes, rates.bytes)
    else:
        numbers["load_rate"] = Number(options.load_rate, GIVEN)
        numbers["bytes_per_second"] = _or(options.packed_kilobytes and 1000 * options.packed_kilobytes, default_bytes)
    numbers["step_rate"] = step_rate
    return numbers, others


def _or(given: float | None, otherwise: object) -> Number:
    """The number given, or what a function makes of it."""
    if given is not None:
        return Number(given, GIVEN)
    assert callable(otherwise)
    number = otherwise()
    assert isinstance(number, Number)
    return number


def default_bytes() -> Number:
    return Number(PACKED_BYTES_PER_SECOND, "default: docs/results/check.md, short side 256; give --packed-kilobytes")


def work_out(options: PlanOptions, numbers: dict[str, Number]) -> Forecast:
    """The forecast from the numbers; arithmetic only."""
    value = {name: number.value for name, number in numbers.items()}
    videos = int(value["videos"])
    computing = options.gpus * value["step_rate"]
    loading = options.gpus * value["cores"] * value["load_rate"]
    rate = min(computing, loading)
    packed = videos * value["seconds"] * value["bytes_per_second"]
    epoch_hours = videos / rate / 3600
    return Forecast(
        videos=videos,
        seconds=value["seconds"],
        packed_bytes=packed,
        shards=math.ceil(packed / (options.shard_gigabytes * 1e9)),
        index_bytes=videos * (value["name_bytes"] + INDEX_BYTES),
        step_rate=value["step_rate"],
        load_rate=value["load_rate"],
        cores_needed=math.ceil(value["step_rate"] / value["load_rate"] - 1e-9),
        rate=rate,
        limit="loading" if loading < computing else "computing",
        epoch_hours=epoch_hours,
        hours=epoch_hours * options.epochs,
        origins={name: number.origin for name, number in numbers.items()},
    )
