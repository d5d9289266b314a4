"""The options of `stmae demo`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from stmae.errors import Problems
from stmae.tasks.checks import check_writable, positive
from stmae.tasks.options import AnyPath, Options, default
from stmae.tasks.places import check_places


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """Make sample videos, pre-train a small model on them in a few minutes, and show what it paints back.

    Example:

        stmae demo --out demo
    """

    data: Annotated[AnyPath | None, default("sample videos made for the purpose")] = None
    """Folder of videos to use in place of the sample videos."""
    out: AnyPath = Path("demo")
    """Folder for the videos, the run and the pictures."""
    minutes: float = 4.5
    """How long the training part may take."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae demo` can refuse at once."""
        if self.data is not None:
            check_places(self.data, problems, name="data")
        check_writable("out", self.out, problems, folder=True)
        positive("minutes", self.minutes, "Give it some time, such as 4.", problems)
