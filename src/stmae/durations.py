"""Lengths of training as people write them: 800, "800 epochs", "50000 steps", "10M clips", "5%".

A bare number has the unit of the option it is given for; a share is of the whole run. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from stmae.errors import UserError, did_you_mean

UNITS = ("steps", "epochs", "clips", "%")
_WRITTEN = re.compile(r"\s*([-+]?[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)\s*([kMG]?)\s*([A-Za-z%]*)\s*")
_LETTERS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}

if TYPE_CHECKING:
    Duration = float | str
else:

    class Duration:
        """What an option's annotation says to have its value read by `read`."""


def read(name: str, value: Any, units: Sequence[str] = UNITS) -> float | str:
    """A duration in its plain form: a number where no unit is given, else "50000 steps", "5%".

    Raises:
        UserError: neither a number nor a number with a unit; or negative.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        number, unit = float(value), ""
    else:
        found = _WRITTEN.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise UserError(f'{name} "{value}" is no length of training.', _examples(units))
        number, unit = float(found[1]) * _LETTERS[found[2]], found[3]
        unit = unit if unit in ("", "%") else unit.lower().rstrip("s") + "s"
        if unit and unit not in units:
            raise UserError(f'{name} "{value}" is in none of the units {", ".join(units)}.', did_you_mean(unit, units))
    if not 0 <= number < float("inf"):
        raise UserError(f"{name} {value} is not 0 or more.", _examples(units))
    plain = int(number) if number.is_integer() else number
    return f"{plain}{'' if unit == '%' else ' '}{unit}" if unit else plain


def parts(value: float | str, unit: str) -> tuple[float, str]:
    """Number and unit of a duration that `read` gave; `unit` is that of a bare number."""
    found = _WRITTEN.fullmatch(str(value))
    assert found is not None, value
    return float(found[1]), found[3] or unit


def _examples(units: Sequence[str]) -> str:
    known = {"steps": '"50000 steps"', "epochs": '"800 epochs"', "clips": '"10M clips"', "%": '"5%"'}
    return f"Give a number, or one with a unit: {', '.join(known[unit] for unit in units)}."


@dataclass(frozen=True)
class Clock:
    """Turns durations into steps.

    Attributes:
        batch_size: clips in a step.
        videos: clips in an effective epoch.
        total: steps in the whole run, which shares are of; None while it is not known.
    """

    batch_size: int
    videos: int
    total: int | None = None

    def steps(self, value: float | str, unit: str) -> int:
        """The nearest whole number of steps; `unit` is that of a bare number."""
        number, unit = parts(read("a duration", value), unit)
        if unit == "%":
            assert self.total is not None, "a share of a run whose length is not known"
            return round(number / 100 * self.total)
        clips = {"steps": self.batch_size, "epochs": self.videos, "clips": 1}[unit]
        return round(number * clips / self.batch_size)

    def interval(self, value: float | str) -> int:
        """As `steps`, of a bare number of them, and at least 1."""
        return max(1, self.steps(value, "steps"))
