"""Workers that are killed, hang or meet a deadly file: batches stay those of an undisturbed run, and it is told."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stmae.data import workers
from stmae.data.dataset import FixedClips, Sample, VideoClips
from stmae.data.loader import Batch, ClipLoader, read_fixed
from stmae.data.sources import TensorSource, scan
from stmae.data.workers import Verdict
from stmae.errors import UserError


class Disturbed(VideoClips):
    """`trouble` happens in a worker process before it reads `item`; if `once` is given, while no file is there."""

    def __init__(
        self,
        videos: Path,
        trouble: str = "",
        item: int = -1,
        once: Path | None = None,
        size: tuple[int, int] = (16, 24),
        frames: int = 4,
    ) -> None:
        super().__init__(scan(videos), frames=frames, stride=4, image_size=size, repeats=2, seed=1)
        self.trouble, self.troubled, self.once, self.main = trouble, item, once, os.getpid()

    def _read(self, item: int, keys: list[int], begin: Any = lambda item: None) -> Sample:
        begin(item)
        if item == self.troubled and os.getpid() != self.main and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            if self.trouble == "sleep":
                time.sleep(600)
            if self.trouble == "error":
                raise ZeroDivisionError("of the test")
            os.kill(os.getpid(), getattr(signal, self.trouble))
        return super()._read(item, keys, begin)


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.clips, b.clips)
        assert torch.equal(a.keys, b.keys)
        assert a.cursor == b.cursor


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


@pytest.mark.slow
def test_killed_workers_change_nothing(videos: Path) -> None:
    clips = Disturbed(videos)
    expected = list(itertools.islice(ClipLoader(clips, batch_size=4), 12))
    told: list[str] = []
    found = []
    with ClipLoader(clips, batch_size=4, workers=2, warn=told.append) as loader:
        for number, batch in enumerate(loader):
            found.append(batch)
            if number == len(expected) - 1:
                break
            if number in (0, 3, 4):
                os.kill(loader.pids[number % 2], signal.SIGKILL)
            if number == 6:  # all at once, as when memory runs out
                before = loader.pids
                for pid in before:
                    os.kill(pid, signal.SIGKILL)
        assert len(told) == 5
        pids = loader.pids
        assert len(set(pids)) == 2
        assert not set(pids) & set(before)
    assert_same(found, expected)
    assert all("SIGKILL" in text and "nothing is lost" in text for text in told)
    assert not any(batch.bad or batch.verdicts for batch in found)
    assert all(gone(pid) for pid in [*before, *pids])


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["SIGKILL", "SIGSEGV", "SIGSTOP", "sleep"])
def test_what_happens_once_changes_nothing_and_names_the_file(videos: Path, tmp_path: Path, trouble: str) -> None:
    clips = Disturbed(videos, trouble, 2, once=tmp_path / "happened")
    expected = list(itertools.islice(ClipLoader(clips, batch_size=6), 3))
    told: list[str] = []
    with ClipLoader(clips, batch_size=6, workers=2, timeout=2.0, warn=told.append) as loader:
        assert_same(list(itertools.islice(loader, 3)), expected)
    assert (tmp_path / "happened").exists()
    (text,) = told
    assert clips.source.name(2) in text
    assert (trouble if trouble in ("SIGKILL", "SIGSEGV") else "hung") in text


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["SIGKILL", "sleep"])
def test_a_file_that_costs_two_workers_is_bad_and_stays_so(videos: Path, trouble: str) -> None:
    clips = Disturbed(videos, trouble, 2)
    n = len(clips)
    told: list[str] = []
    with ClipLoader(clips, batch_size=2 * n, workers=2, timeout=1.0, warn=told.append) as loader:
        found = list(itertools.islice(loader, 2))
    verdicts = [verdict for batch in found for verdict in batch.verdicts]
    assert [(verdict.slot, verdict.item) for verdict in verdicts] == [
        (slot, 2) for slot in range(2 * n) if clips.place(slot).item == 2
    ]
    assert len(told) in (3, 4)  # twice for the first slot, once for each further one; maybe the third is reached
    assert all(clips.source.name(2) in text for text in told)
    for batch in found:
        (bad,) = batch.bad
        assert bad.path == clips.source.name(2)
        assert (
            bad.reason
            == {
                "SIGKILL": "decoding it ended the process, by SIGKILL",
                "sleep": "decoding it took longer than 1 s",
            }[trouble]
        )
        assert not bad.used
    # With the verdicts the stream is the same where the file is quick now: in this process it always is.
    assert_same(list(itertools.islice(ClipLoader(clips, batch_size=2 * n, verdicts=verdicts), 2)), found)
    other = next(ClipLoader(clips, batch_size=2 * n))
    assert not torch.equal(other.keys, found[0].keys)
    with ClipLoader(clips, batch_size=2 * n, workers=1, timeout=1.0, verdicts=verdicts, warn=told.append) as loader:
        assert_same(list(itertools.islice(loader, 2)), found)
    assert len(told) <= 6  # they are not tried again; slots beyond, decoded ahead, are


@pytest.mark.slow
def test_workers_that_all_die_end_the_run_with_the_reason(tmp_path: Path) -> None:
    from stmae.data.synthetic import write_videos

    write_videos(tmp_path, count=1, seconds=(0.5, 0.6))
    told: list[str] = []
    clips = Disturbed(tmp_path, "SIGKILL", 0)
    with ClipLoader(clips, batch_size=2, workers=1, warn=told.append) as loader:
        with pytest.raises(UserError, match=r"If memory ran out|videos in a row"):
            next(loader)
        assert loader.pids == []
    assert 2 <= len(told) <= 5


@pytest.mark.slow
def test_an_error_in_a_worker_says_where(videos: Path) -> None:
    with (
        ClipLoader(Disturbed(videos, "error", 2), batch_size=12, workers=1) as loader,
        pytest.raises(ZeroDivisionError, match="of the test") as caught,
    ):
        next(loader)
    assert "_read" in caught.value.__notes__[0]


@pytest.mark.slow
def test_clips_of_any_kind_come_through_whole() -> None:
    data = torch.rand(7, 2, 4, 6, 10)
    clips = VideoClips(TensorSource(data), frames=4, stride=1, image_size=(6, 10), repeats=3, seed=0)
    expected = list(itertools.islice(ClipLoader(clips, batch_size=9), 4))
    with ClipLoader(clips, batch_size=9, workers=3) as loader:
        found = list(itertools.islice(loader, 4))
    assert_same(found, expected)
    assert found[0].clips.dtype == torch.float32


def test_verdicts_hold_without_workers(videos: Path) -> None:
    clips = Disturbed(videos)
    item = clips.place(1).item
    batch = next(ClipLoader(clips, batch_size=6, verdicts=[Verdict(1, item, "as it was")]))
    plain: Any = next(ClipLoader(clips, batch_size=6))
    assert torch.equal(batch.clips[:2], plain.clips[:2])
    assert torch.equal(batch.clips[4:], plain.clips[4:])
    assert not set(batch.keys[2:4].tolist()) & set(plain.keys.tolist())
    assert [(bad.path, bad.reason) for bad in batch.bad] == [(clips.source.name(item), "as it was")]
    assert batch.verdicts == [Verdict(1, item, "as it was")]
    assert plain.verdicts == []


class Deadly(FixedClips):
    """Reading `item` in a worker process ends it, or hangs."""

    def __init__(self, videos: Path, trouble: str, item: int) -> None:
        super().__init__(scan(videos), frames=4, stride=4, image_size=(16, 24))
        self.trouble, self.troubled, self.main = trouble, item, os.getpid()

    def _read(self, item: int, keys: list[int], begin: Any = lambda item: None) -> Sample:
        begin(item)
        if item == self.troubled and os.getpid() != self.main:
            if self.trouble == "sleep":
                time.sleep(600)
            os.kill(os.getpid(), getattr(signal, self.trouble))
        return super()._read(item, keys, begin)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["SIGSEGV", "sleep"])
def test_held_out_files_that_end_or_hold_up_their_reader_are_bad_ones(videos: Path, trouble: str) -> None:
    clips = Deadly(videos, trouble, 3)
    told: list[str] = []
    items = [5, 3, 0, 1]
    found = list(read_fixed(clips, items, workers=2, timeout=1.0, warn=told.append))
    assert [sample.item for sample in found] == items
    for sample in found:
        if sample.item == 3:
            (bad,) = sample.bad
            assert bad.verdict
            assert ("SIGSEGV" if trouble == "SIGSEGV" else "longer than 1 s") in bad.reason
            assert sample.clips.shape == (0, 3, 4, 16, 24)
        else:
            assert torch.equal(sample.clips, clips[sample.item].clips)
            assert sample.keys.tolist() == clips[sample.item].keys.tolist()
    assert len(told) == 2
    kept = [Verdict(3, 3, "as before")]
    (known,) = read_fixed(clips, [3], workers=1, verdicts=kept, warn=told.append)
    assert (known.bad[0].reason, len(told)) == ("as before", 2)
    (here,) = read_fixed(clips, [3], verdicts=kept)
    assert here.bad == known.bad


@pytest.mark.slow
def test_workers_make_room_for_new_ones_and_nobody_notices(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LIFE", 4)
    clips = Disturbed(videos)
    expected = list(itertools.islice(ClipLoader(clips, batch_size=4), 16))
    told: list[str] = []
    found, pids = [], set[int]()
    with ClipLoader(clips, batch_size=4, workers=2, warn=told.append) as loader:
        for batch in itertools.islice(loader, 16):
            found.append(batch)
            pids |= {*loader.pids}
    assert_same(found, expected)
    assert told == []
    assert 7 <= len(pids) <= 12  # 32 slots and those ahead, 4 each
    assert all(gone(pid) for pid in pids)
