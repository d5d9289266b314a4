"""The same batches for any number of workers and processes, from any cursor, folder or shards, whoever is killed."""

from __future__ import annotations

import itertools
import os
import signal
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_workers import assert_same

from stmae.data.dataset import Sample, VideoClips
from stmae.data.loader import Batch, ClipLoader
from stmae.data.order import Kind
from stmae.data.pack_plan import Job
from stmae.data.packing import pack
from stmae.data.remote import NetworkError
from stmae.data.shards import Shards
from stmae.data.sources import Source, scan
from stmae.data.synthetic import write_videos
from stmae.errors import UserError

STEPS = 9
GLOBAL = 8  # clips in a global batch, of two repeats


def training(source: Source, order: Kind = "global") -> VideoClips:
    return VideoClips(source, frames=4, stride=4, image_size=(16, 24), repeats=2, seed=3, order=order)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """Videos, one of them damaged and one no video, as a folder, as tar files and as `stmae pack` packs them; small, so
    that tests are quick.
    """

    folder = tmp_path_factory.mktemp("folder")
    write_videos(folder, count=5, seconds=(0.6, 1.0))
    (folder / "text.mp4").write_text("no video\n" * 99)
    first = min(folder.iterdir())
    (folder / f"zz-cut{first.suffix}").write_bytes(first.read_bytes()[: first.stat().st_size * 2 // 3])
    packed = tmp_path_factory.mktemp("shards")
    paths = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
    for number, part in enumerate((paths[:3], paths[3:])):
        with tarfile.open(packed / f"{number:04d}.tar", "w") as tar:
            for path in part:
                tar.add(path, path.name)
    ours = tmp_path_factory.mktemp("ours")
    pack(Job(scan(folder), "folder", None, 30_000, 0), ours)
    found: dict[str, Source] = {"folder": scan(folder), "shards": Shards.open(packed), "pack": Shards.open(ours)}
    assert len({len(source) for source in found.values()}) == 1
    assert all(len(np.unique(found[kind].blocks)) > 1 for kind in ("shards", "pack"))  # type: ignore[arg-type]
    return found


@pytest.fixture(scope="module")
def expected(sources: dict[str, Source]) -> dict[tuple[str, Kind], list[Batch]]:
    """What one process without workers gives. In block order every source has its own: blocks are its shards."""
    found: dict[tuple[str, Kind], list[Batch]] = {}
    for kind, source in sources.items():
        for order in ("global", "blocks"):
            batches = list(itertools.islice(ClipLoader(training(source, order), batch_size=GLOBAL), STEPS))
            assert any(bad.path.endswith("text.mp4") for batch in batches for bad in batch.bad)
            found[kind, order] = batches
    for kind in ("shards", "pack"):  # one and the same stream, however the videos lie
        assert_same(found[kind, "global"], found["folder", "global"])
    return found


def whole(parts: list[Batch]) -> Batch:
    """The global batch from those of the ranks."""
    assert len({part.cursor for part in parts}) == 1
    return Batch(torch.cat([part.clips for part in parts]), torch.cat([part.keys for part in parts]), parts[0].cursor)


@pytest.mark.slow
@settings(
    max_examples=10, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    kind=st.sampled_from(["folder", "shards", "pack"]),
    order=st.sampled_from(["global", "blocks"]),
    layout=st.sampled_from([(0, 1), (2, 1), (8, 1), (0, 4), (1, 4), (1, 2)]),
    begin=st.integers(0, STEPS - 3),
    kills=st.lists(st.integers(0, 1), min_size=2, max_size=2),
)
def test_batches_are_the_same_however_they_are_made(
    sources: dict[str, Source],
    expected: dict[tuple[str, Kind], list[Batch]],
    kind: str,
    order: Kind,
    layout: tuple[int, int],
    begin: int,
    kills: list[int],
) -> None:
    workers, world_size = layout
    told: list[str] = []
    ranks = [
        ClipLoader(
            training(sources[kind], order), batch_size=GLOBAL // world_size, cursor=begin * GLOBAL // 2,
            workers=workers, rank=rank, world_size=world_size, warn=told.append,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    try:
        for step in range(3):
            parts = []
            for rank in ranks:
                parts.append(next(rank))
                if step < 2 and kills[step] and rank.pids:
                    os.kill(rank.pids[0], signal.SIGKILL)
            assert_same([whole(parts)], [expected[kind, order][begin + step]])
    finally:
        for rank in ranks:
            rank.close()
    assert bool(told) <= bool(sum(kills) and workers)


class Unplugged(VideoClips):
    """The network fails at the third item."""

    def _read(self, item: int, *arguments: object) -> Sample:
        if item == 2:
            raise NetworkError("https://example.org/2.mp4 cannot be read: timed out.", "Try again later.")
        return super()._read(item, *arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_network_failure_is_no_bad_file(sources: dict[str, Source], workers: int) -> None:
    clips = Unplugged(sources["folder"], frames=4, stride=4, image_size=(16, 24), repeats=2, seed=3)
    told: list[str] = []
    with ClipLoader(clips, batch_size=2, workers=workers, warn=told.append) as loader:
        before = next(slot for slot in range(99) if clips.place(slot).item == 2)

        def train() -> None:
            for number, batch in enumerate(loader):
                assert number < before
                assert not any("example" in bad.reason for bad in batch.bad)

        # An unreadable file's stand-in may meet it earlier.
        with pytest.raises(NetworkError, match=r"example\.org/2\.mp4.*Try again later"):
            train()
        assert loader.pids == []
    assert told == []
    assert issubclass(NetworkError, UserError)
