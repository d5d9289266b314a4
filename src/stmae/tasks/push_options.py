"""The options of `stmae push`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.options import AnyPath, Options, default
from stmae.tasks.places import exists


@dataclass(frozen=True, kw_only=True)
class PushOptions(Options):
    """Put a model on the Hugging Face Hub: weights, configuration, numbers, a picture and a model card.

    Example:

        stmae push runs/first user/name --license cc-by-4.0
    """

    model: Positional[str] = field(kw_only=False)
    """Run or weights file."""
    name: Positional[str] = field(kw_only=False)
    """Place on the hub: user/name."""
    license: Annotated[str, default("that of the weights it was made from, else other")] = ""
    """Licence of the weights, as the hub names it (apache-2.0, cc-by-nc-4.0, ...)."""
    description: str = ""
    """A sentence on the model, for its card."""
    data: str = ""
    """A sentence on what it was trained on, for its card."""
    private: bool = False
    """Make a new repository private."""
    to: Annotated[AnyPath | None, default("the hub")] = None
    """Write the files into this folder instead, to look at them first."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae push` can refuse before it looks into the model."""
        exists("model", self.model, "Give a run's folder or a weights file", problems)
        problems.check(
            self.name.count("/") == 1 and all(self.name.split("/")),
            f'name "{self.name}" is no place on the hub.',
            "Write it as user/name.",
        )
