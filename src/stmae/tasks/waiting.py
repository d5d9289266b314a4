"""Says once, and with the cure, that training waits for its data."""

from __future__ import annotations

from collections.abc import Mapping

from stmae.data.sources import Mixture, Source, TensorSource
from stmae.engine.log import Log, Sink

TOO_MUCH = 0.1  # of the time


class WaitingHint(Sink):
    """Watches the share of the time for which training waits for data, and tells the log once when it is too much.

    Args:
        log: what is told.
        cure: what to do about it.
    """

    def __init__(self, log: Log, cure: str) -> None:
        self._log, self._cure = log, cure
        self._lines, self._said = 0, False

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if "data_wait" not in values:
            return
        self._lines += 1
        # While the first interval lasts, the workers are still starting.
        if self._lines > 1 and values["data_wait"] > TOO_MUCH and not self._said:
            self._said = True
            self._log.message(f"training waits for data {values['data_wait']:.0%} of the time. {self._cure}")


def waiting_cure(source: Source, *, workers: int, cores: int, repeats: int, beside: bool) -> str:
    """What makes loading faster, given what is done already: workers first, then packing, then repeats.

    Args:
        source: of the videos.
        workers: processes that decode.
        cores: of this process's share of the machine.
        repeats: clips taken from each decoding.
        beside: the device computes beside the cores, so all of them but one may decode.
    """
    spare = cores - 1 if beside else cores // 2
    if workers < spare:
        return f"More workers will help: --workers {spare}."
    if isinstance(source, TensorSource):
        return "It comes from Python here: make its __getitem__ faster, or keep the clips in memory."
    if not is_packed(source):
        return "Small videos with a short GOP decode faster: `stmae pack`, then train on the shards."
    if repeats < 4:
        return "Taking more clips from each decoding will help: --repeats 4."
    return "It needs more cores for each device: `stmae plan` says how many."


def is_packed(source: Source) -> bool:
    """Whether all of it lies in shards."""
    if isinstance(source, Mixture):
        return all(is_packed(each) for each in source.sources)
    return source.blocks is not None
