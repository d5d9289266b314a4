"""What the processes of a run tell each other before the first step: rank 0 settles everything, all hold the same."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stmae.data.shards import Shards
from stmae.data.sources import TensorSource, names_of, parts_of
from stmae.engine.distributed import World
from stmae.errors import UserError
from stmae.mirror import address_of
from stmae.runs import compare
from stmae.tasks import build
from stmae.tasks.choices import by_name, with_objects
from stmae.tasks.setup import Setup, part
from stmae.tasks.training_options import TrainingOptions
from stmae.weights import plain, write_atomic


def share(setup: Setup | None, options: TrainingOptions, device: torch.device, world: World) -> Setup:
    """Rank 0's setup on every process, with its own device.

    The list of videos travels with it: the other hosts need the videos at the same paths or an address, but neither
    the run's folder nor a scan of their own. Tensors do not travel: each process brings the same ones.

    Args:
        setup: of rank 0; None on the others.
        options: as this process was given them.

    Raises:
        UserError: the processes were started with different options, versions or clips, or a host lacks the videos; on
            all of them, with the differences.
    """
    if world.size == 1:
        assert setup is not None
        return setup
    _refuse_differences(world.gather(_started_with(options, device)))
    found: Any = None
    bring(_needed(setup), world)
    if setup is not None:
        sources = None if isinstance(setup.source, TensorSource) else (setup.source, setup.held_out)
        named = replace(by_name(setup.options), videos=None)
        found = replace(setup, source=None, held_out=None, options=named), sources  # type: ignore[arg-type]
    shared, sources = world.broadcast(found)
    source, held_out = sources or part(TensorSource(options.videos), shared.options)[:2]
    settled = replace(with_objects(shared.options, options), videos=options.videos)
    shared = replace(shared, options=settled, source=source, held_out=held_out, device=device)
    _refuse_differences(world.gather({"configuration": _digest(shared.saved()), "list of videos": _index(shared)}))
    return shared


@dataclass(frozen=True)
class Needed:
    """What has to lie on every host: where videos are, and tables of packs that were fetched or made for a cache."""

    places: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


def _needed(setup: Setup | None) -> Needed:
    sources = [each for each in (setup.source, setup.held_out) if each is not None] if setup is not None else []
    places, tables = set(), set()
    for source in (each for mixed in sources for each in parts_of(mixed)):
        if isinstance(source, Shards) and source.entries.path is not None and source.entries.path.parent != source.root:
            tables.add(str(source.entries.path))
        if isinstance(getattr(source, "root", None), Path):
            places.add(str(source.root))
    return Needed(tuple(sorted(places)), tuple(sorted(tables)))


def bring(needed: Needed, world: World) -> None:
    """Sees to it that all hosts have what rank 0 found. A cache is each host's own: tables that it lacks are copied.

    Raises:
        UserError: a host has no such folder, or cannot keep a table; on all processes.
    """
    needed = world.broadcast(needed)
    lacking = world.gather((socket.gethostname(), [place for place in needed.places if not Path(place).exists()]))
    refuse = [
        f'"{place}" is not on {host} (rank {rank})' for rank, (host, places) in enumerate(lacking) for place in places
    ]
    if refuse:
        raise UserError(
            f"{'; '.join(refuse[:4])}{' ...' if len(refuse) > 4 else ''}.",
            "Every host needs the videos at the same path: on a disk that all see, or as a copy; or give an address.",
        )
    for table in needed.tables:
        path, problem = Path(table), ""
        if not any(world.gather(not path.is_file())):
            continue
        content = world.broadcast(path.read_bytes() if world.main else b"")
        if not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, content)
            except OSError as error:
                problem = f'"{path}" cannot be written on {socket.gethostname()}: {error.strerror or error}'
        if problems := [each for each in world.gather(problem) if each]:
            raise UserError(f"{'; '.join(problems)}.", "Give a --cache that can be written on every host.")


def _shown(videos: Any) -> Any:
    """Paths as they were given; of clips from Python the type, how many they are, and what is in the first one."""
    if build.is_path(videos):
        return [str(each) for each in videos[:8]] if isinstance(videos, list | tuple) else str(videos)
    shown = f"{type(videos).__name__} of {len(videos)}"
    first = videos[0] if isinstance(videos, torch.Tensor | list) else None  # a Dataset may draw its clips at random
    if isinstance(first, torch.Tensor):
        pixels = first.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        shown += f", the first {first.dtype} {tuple(first.shape)} {hashlib.sha256(pixels.tobytes()).hexdigest()[:8]}"
    return shown


def _started_with(options: TrainingOptions, device: torch.device) -> dict[str, Any]:
    """What has to be alike on all processes before anything is shared."""
    import stmae

    given = by_name(replace(options, videos=None)).given
    values = plain({name: given[name] for name in options.given if name not in ("videos", "config")})
    return values | {
        "videos": _shown(options.videos), "device": device.type, "torch": torch.__version__, "stmae": stmae.__version__,
        "out": address_of(options.out) or str(options.out),  # each host stages it where its own cache is
    }  # fmt: skip


def _refuse_differences(processes: list[Mapping[str, Any]]) -> None:
    lines = [
        f"rank {rank}: {line}"
        for rank, own in enumerate(processes)
        for line in compare(processes[0], own)
    ]  # fmt: skip
    if lines:
        told = [line.replace(" in the run, ", " on rank 0, ").replace(" now", " there") for line in lines[:8]]
        raise UserError(
            "the processes do not agree on what to train:\n  " + "\n  ".join(told) + "\n",
            "Start all of them with the same command, code and data.",
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _index(setup: Setup) -> str:
    """A hash over the names of all videos, in their order; for tensors, over their number and shape."""
    said = hashlib.sha256()
    for source in (setup.source, setup.held_out):
        if source is None:
            continue
        said.update(f"{type(source).__name__} {len(source)} {source.root}\n".encode("utf-8", "surrogateescape"))
        if isinstance(source, TensorSource):
            said.update(str(source.shape).encode())
        else:
            for name in names_of(source):
                said.update(name.encode("utf-8", "surrogateescape") + b"\n")
    return said.hexdigest()[:16]
