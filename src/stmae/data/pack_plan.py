"""What is packed and how: said in advance, so that a stopped pack is gone on with by the same command only."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmae.data.encode import Recipe
from stmae.data.names import encoded
from stmae.data.shard_writer import Totals, to_json, write_whole
from stmae.data.shards import MANIFEST, WORKSHOP, Shards
from stmae.data.sources import Index, Source, names_of
from stmae.errors import UserError


@dataclass(frozen=True)
class Job:
    """What to pack and how.

    Attributes:
        source: the videos, images and arrays.
        origin: the source as the person named it, for the manifest.
        recipe: how videos are written anew; None stores the original bytes.
        shard_size: bytes of a shard, at most, unless a single video takes more.
        workers: processes that look at videos and write them anew; 0 does it in this one.
    """

    source: Source
    origin: str
    recipe: Recipe | None
    shard_size: int
    workers: int


def class_numbers(source: Source) -> dict[str, int]:
    """A number for each class: labels that are numbers stay, others are counted in alphabetical order."""
    labels = sorted({label for item in range(len(source)) if (label := source.label(item)) is not None})
    if all(re.fullmatch(r"0|[1-9][0-9]{0,8}", label) for label in labels):
        return {label: int(label) for label in labels}
    return {label: number for number, label in enumerate(labels)}


def plan_of(job: Job) -> dict[str, Any]:
    """What is packed and how: all that the result follows from."""
    digest = hashlib.sha256()
    for item, name in enumerate(names_of(job.source)):
        digest.update(encoded(f"{name}\0{job.source.label(item) or ''}\0"))
    sizes = _sizes(job.source)
    digest.update(b"" if sizes is None else sizes.tobytes())
    return {
        "videos": asdict(job.recipe) if job.recipe else "original bytes",
        "shard_size": job.shard_size,
        "items": len(job.source),
        "source": digest.hexdigest(),
    }


def done(out: Path, plan: dict[str, Any]) -> Totals | None:
    """What is in `out` if it holds this very pack already; shards of others are not written over."""
    if (out / MANIFEST).is_file():
        try:
            about = dict(json.loads((out / MANIFEST).read_bytes()))
        except (ValueError, TypeError) as error:
            raise UserError(f'"{out / MANIFEST}" is damaged: {error}.', "Choose another --out, or remove it.") from None
        if about.get("plan") != plan:
            raise UserError(f'"{out}" holds another pack, which is finished.', "Choose another --out, or remove it.")
        totals = Totals(plan["items"], about["entries"], about["seconds"])
        totals.bytes_out = sum(shard["bytes"] for shard in about["shards"])
        return totals
    if out.is_dir() and not (out / WORKSHOP).is_dir() and next(out.glob("*.tar"), None) is not None:
        raise UserError(f'"{out}" holds other tar files.', "Choose another --out.")
    return None


def settle_plan(job: Job, out: Path, plan: dict[str, Any]) -> None:
    """Keeps what is packed and how; a pack that was begun otherwise is not gone on with."""
    path = out / WORKSHOP / "plan.json"
    if path.exists():
        before = json.loads(path.read_bytes())
        changed = [name for name in plan if before.get(name) != plan[name]]
        if changed:
            told = {name: f"{name} {before.get(name)} is now {plan[name]}" for name in changed}
            told["source"] = "the source has changed"
            raise UserError(
                f'"{out}" holds an unfinished pack that was begun otherwise: {", ".join(told[n] for n in changed)}.',
                "Give the same source and options to go on, or another --out.",
            )
    elif job.recipe is None and (sizes := _sizes(job.source)) is not None:
        _room_for(int(sizes.sum()), out)
    write_whole(path, to_json(plan))


def _sizes(source: Source) -> np.ndarray | None:
    """Bytes of each item, 0 for what cannot be read; None where asking would take long."""
    if isinstance(source, Shards):
        return np.array([source.entries.size[source.row(item)] for item in range(len(source))], np.int64)
    if not isinstance(source, Index) or not isinstance(source.root, Path):
        return None

    def size(item: int) -> int:
        try:
            return source.path(item).stat().st_size
        except OSError:
            return 0

    return np.fromiter(map(size, range(len(source))), np.int64, len(source))


def _room_for(size: int, out: Path) -> None:
    free = shutil.disk_usage(out).free
    if size > free:
        shutil.rmtree(out / WORKSHOP)
        raise UserError(
            f'the shards take at least {size / 1e6:,.1f} MB, and "{out}" has {free / 1e6:,.1f} MB free.',
            "Make room, choose another --out, or write the videos smaller with --short-side.",
        )
