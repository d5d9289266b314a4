"""Packed names are the strings they were made of; worker processes get the memory, not copies."""

from __future__ import annotations

import io
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stmae.data.dataset import VideoClips
from stmae.data.index import Index
from stmae.data.names import Names
from stmae.data.shared import Shared

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=30)


@settings(deadline=None)
@given(texts, st.data())
def test_names_are_a_sequence_of_strings(strings: list[str], data: st.DataObject) -> None:
    names = Names.of(strings)
    assert list(names) == strings
    assert [names[i] for i in range(-len(strings), len(strings))] == strings * 2
    assert names == strings
    assert names == Names.of(strings)
    assert names != [*strings, "x"]
    assert names + names == strings * 2
    assert list(names[1:-1]) == strings[1:-1]
    items = data.draw(st.lists(st.integers(0, len(strings) - 1), max_size=50)) if strings else []
    assert list(names.part(items)) == [strings[i] for i in items]
    assert pickle.loads(pickle.dumps(names)) == names


def test_many_names_are_parted_in_pieces() -> None:
    strings = [f"{i}" * (i % 5) for i in range(200_000)]
    items = np.random.default_rng(0).permutation(len(strings))[:150_000]
    assert list(Names.of(strings).part(items)) == [strings[i] for i in items]


def test_names_that_are_no_text_come_back() -> None:
    assert Names.of(["caf\udce9.mp4"])[0] == "caf\udce9.mp4"


def test_endings_are_the_last_bytes_in_small_letters() -> None:
    assert Names.of(["a/Long Name.MP4", "x.py", ""]).endings().tolist() == [b"name.mp4", b"\0\0\0\0x.py", b""]


class _Sent(io.BytesIO):
    """What multiprocessing writes for a new process; descriptors go beside it."""


def test_what_goes_to_a_worker_does_not_grow_with_the_data() -> None:
    names = Names.of(f"some/folder/{i:08d}.mp4" for i in range(200_000))
    clips = VideoClips(Index(Path("/v"), names, names), frames=2, stride=1, image_size=(8, 8), repeats=1, seed=0)
    clips.place(0)  # the order of a pass is there, and stays here
    buffer = _Sent()
    ForkingPickler(buffer).dump(clips)
    assert buffer.tell() < 3000
    assert len(pickle.dumps(clips)) > 6_000_000
    assert names[199_999] == "some/folder/00199999.mp4"


def test_shared_memory_is_read_only() -> None:
    shared = Shared(np.arange(100_000))
    ForkingPickler(io.BytesIO()).dump(shared)
    assert not shared.array.flags.writeable
    assert shared.array.sum() == 4_999_950_000
