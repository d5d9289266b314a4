"""The options of `stmae probe`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.checks import at_least, check_seed
from stmae.tasks.labelled_options import FrozenOptions, PartsOptions
from stmae.tasks.options import SEVERAL, Source, default


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(PartsOptions, FrozenOptions):
    """Judge an encoder by a small head on its frozen features: a linear layer, or one query that attends to its tokens.

    Each video goes through the encoder once; heads for all learning rates and weight decays are then trained together.
    The validation part chooses one of them, which is scored once on the test part, beside what chance gives.

    Examples:

        stmae probe labelled/ --model runs/first
        stmae probe labelled/ --model runs/first --kind attentive --out results/attentive
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """Class folders, with or without train, val and test above them; a list with labels; labelled shards."""
    kind: Literal["linear", "attentive"] = "linear"
    """The head: batch norm and a linear layer on averaged tokens, or attention of one learned query to all tokens."""
    lr: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    """Learning rates to try."""
    weight_decay: tuple[float, ...] = (0.0, 0.1, 1.0)
    """Weight decays to try with each of them."""
    epochs: Annotated[int | None, default("100 linear, 20 attentive; at least 300 steps")] = None
    """How many times the head sees each training clip."""
    examples: int = 64
    """Training clips per step of the head."""
    seed: int = 0
    """The head's first weights and the order of the clips follow from this number."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae probe` can refuse before it looks into a file."""
        PartsOptions.check(self, problems)
        FrozenOptions.check(self, problems)
        problems.check(
            bool(self.lr) and all(lr > 0 for lr in self.lr), f"lr {self.lr} is not above 0.", "Such as 1e-4 1e-3 1e-2."
        )
        problems.check(
            bool(self.weight_decay) and all(decay >= 0 for decay in self.weight_decay),
            f"weight_decay {self.weight_decay} is negative or nothing.",
            "Such as 0 0.1.",
        )
        if self.epochs is not None:
            at_least(self, ("epochs",), 1, problems)
        at_least(self, ("examples",), 1, problems)
        check_seed(self.seed, problems)
