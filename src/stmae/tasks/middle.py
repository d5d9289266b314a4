"""One clip of each of some videos, for pictures: the middle one, or from a given time on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stmae.data.container import DecodeError
from stmae.data.sources import Source
from stmae.data.values import Values
from stmae.data.views import Places, View, read_views
from stmae.engine.log import Log
from stmae.tasks.videos import printable


def one_each(
    source: Source,
    places: Places,
    size: tuple[int, int],
    values: Values,
    count: int,
    start: float | None,
    bad: dict[str, str],
    log: Log,
) -> Iterator[tuple[str, View]]:
    """A clip of each of at most `count` videos that can be read, spread over the source, with the video's name.

    Args:
        source: the videos.
        places: of the clip in a video.
        size: height and width of a clip.
        values: what the pixels are.
        count: of videos.
        start: where the clip was asked to begin, in seconds, for what is said of videos that end before.
        bad: is given the others by name, and why they cannot be read.
        log: is told of videos that are short or damaged.
    """
    given = 0
    for item in _order(len(source), count):
        if given == count:
            return
        view = _middle(source, item, places, size, values, start, log)
        if isinstance(view, str):
            bad[source.name(item)] = view
            continue
        given += 1
        yield source.name(item), view


def _middle(
    source: Source, item: int, places: Places, size: tuple[int, int], values: Values, start: float | None, log: Log
) -> View | str:
    """The clip of a video, or why there is none."""
    views: list[View] = []
    name = printable(Path(source.name(item)).name)
    try:
        end = read_views(source.media(item), places, image_size=size, give=views.append, values=values)
    except DecodeError as error:
        return error.reason
    if start is not None and start >= end.duration:
        return f"it ends at {end.duration:.2f} s, before the start {start:g} s"
    if end.damage:
        log.warning(f"{name} can be read up to {end.duration:.2f} s only: {end.damage}")
    if end.shrunk:
        log.message(f"{name} is shorter than a clip: its frames are taken closer together.")
    return views[-1]


def _order(count: int, clips: int) -> list[int]:
    """Positions of `count` videos: first `clips` of them evenly spread, then the rest, should some be unreadable."""
    first = sorted({i * count // clips for i in range(clips)}) if clips < count else list(range(count))
    return [*first, *sorted(set(range(count)) - set(first))]


def free_stem(stem: str, taken: set[str]) -> str:
    """A file name that no other video has, whatever the case: the stem, or the stem with a number."""
    names = (stem if n == 1 else f"{stem}-{n}" for n in range(1, len(taken) + 2))
    name = next(name for name in names if name.casefold() not in taken)
    taken.add(name.casefold())
    return name
