"""Every item exactly once in a pass, whatever the order; shares of a mixture exact; any slot asked for by itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stmae.data.clips import pass_order
from stmae.data.index import Index
from stmae.data.names import Names
from stmae.data.order import BLOCKS_MIXED, Order, block_order
from stmae.data.sources import Mixture
from stmae.errors import UserError


def index(count: int, root: str = "/v") -> Index:
    return Index(Path(root), Names.of(f"{i}.mp4" for i in range(count)))


class Blocked(Index):
    """Files that stand for shards of 7 items."""

    @property
    def blocks(self) -> np.ndarray:  # type: ignore[override]
        return np.arange(len(self)) // 7


def test_the_global_order_is_the_permutation_of_the_pass() -> None:
    order = Order(index(50), seed=3)
    for slot in (0, 49, 50, 73, 7):
        assert tuple(order.at(slot)) == (slot, pass_order(3, slot // 50, 50)[slot % 50], slot // 50)


@pytest.mark.parametrize("kind", ["global", "blocks"])
@settings(deadline=None)
@given(count=st.integers(1, 300), seed=st.integers(0, 2**63 - 1), pass_=st.integers(0, 5))
def test_every_item_once_in_a_pass(kind: str, count: int, seed: int, pass_: int) -> None:
    order = Order(Blocked(Path("/v"), index(count).paths), seed, kind)  # type: ignore[arg-type]
    assert len(order) == count
    places = [order.at(pass_ * count + i) for i in range(count)]
    assert sorted(place.item for place in places) == list(range(count))
    assert {place.pass_ for place in places} == {pass_}


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.3, 1, 1.5, 2, 7.1])), min_size=1, max_size=4),
    kind=st.sampled_from(["global", "blocks"]),
    passes=st.integers(1, 4),
)
def test_shares_of_a_mixture_are_exact(counts: list[tuple[int, float]], kind: str, passes: int) -> None:
    sources = [Blocked(Path("/v"), index(n).paths) for n, _ in counts]
    mixture = Mixture(sources, [w for _, w in counts])
    order = Order(mixture, 1, kind)  # type: ignore[arg-type]
    slots = [max(1, round(n * w)) for n, w in counts]
    assert len(order) == sum(slots)
    places = [order.at(slot) for slot in range(passes * len(order))]
    for number, (n, _) in enumerate(counts):
        own = [p for p in places if mixture.place(p.item)[0] == number]
        assert len(own) == passes * slots[number]
        times = Counter(mixture.place(p.item)[1] for p in own)
        assert max(times.values()) - min(times[i] for i in range(n)) <= 1  # nothing twice before all came once
        assert len({(p.item, p.pass_) for p in own}) == len(own)  # so no clip's key comes twice
        seen: Counter[int] = Counter()
        for place in own:
            assert place.pass_ == seen[place.item]
            seen[place.item] += 1
    again = Order(mixture, 1, kind)  # type: ignore[arg-type]
    assert all(again.at(slot) == places[slot] for slot in range(len(places) - 1, -1, -7))


def test_blocks_keep_neighbours_together() -> None:
    blocks = np.arange(4000) // 40
    found = block_order(5, 2, blocks)
    assert sorted(found) == list(range(4000))
    for start in range(0, 3840, 40 * BLOCKS_MIXED):
        group = blocks[found[start : start + 40 * BLOCKS_MIXED]]
        assert len(set(group)) <= BLOCKS_MIXED
        assert len(set(group[:40])) > 4  # mixed
    assert not np.array_equal(found, block_order(5, 3, blocks))


def test_a_mixture_speaks_for_its_sources() -> None:
    a = Index(Path("/a"), Names.of(["x/1.mp4", "2.mp4"]))
    b = Index(Path("/b"), Names.of(["y.mp4"]), Names.of(["7"]))
    both = Mixture([a, b])
    assert len(both) == 3
    assert [both.name(i) for i in range(3)] == ["/a/x/1.mp4", "/a/2.mp4", "/b/y.mp4"]
    assert [both.label(i) for i in range(3)] == ["x", None, "7"]
    assert both.media(2).path == Path("/b/y.mp4")
    assert [both.part([0, 2]).name(i) for i in range(2)] == ["/a/x/1.mp4", "/b/y.mp4"]
    assert [len(source) for source in both.part([2]).sources] == [0, 1]


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(UserError, match="1 weight for 2 sources"):
        Mixture([index(1), index(1)], [1])
    with pytest.raises(UserError, match="not all above 0"):
        Mixture([index(1), index(1)], [1, 0])
