"""The options of `stmae knn`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.labelled_options import FrozenOptions, PartsOptions
from stmae.tasks.options import SEVERAL, Source


@dataclass(frozen=True, kw_only=True)
class KnnOptions(PartsOptions, FrozenOptions):
    """Judge an encoder by its nearest neighbours: nothing is trained, so it takes no longer than reading the videos.

    Each test video gets the classes of the training videos whose features are most like its own. The validation part
    chooses how many count and how sharply; the test part is scored once, beside what chance gives.

    Examples:

        stmae knn labelled/ --model runs/first
        stmae knn train.csv --test test.csv --model runs/first --out results/knn
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """Class folders, with or without train, val and test above them; a list with labels; labelled shards."""
    k: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 200)
    """Numbers of neighbours to try."""
    temperature: tuple[float, ...] = (0.02, 0.07, 0.2, 1.0)
    """How sharply to weigh them by their likeness: numbers to try, small ones sharper."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae knn` can refuse before it looks into a file."""
        PartsOptions.check(self, problems)
        FrozenOptions.check(self, problems)
        problems.check(
            bool(self.k) and all(k >= 1 for k in self.k), f"k {self.k} has no neighbour.", "Give numbers from 1."
        )
        problems.check(
            bool(self.temperature) and all(t > 0 for t in self.temperature),
            f"temperature {self.temperature} is not above 0.",
            "Give numbers such as 0.07.",
        )
