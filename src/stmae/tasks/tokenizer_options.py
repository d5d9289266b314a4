"""The options of `stmae tokenizer`, and what can be wrong with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.checks import at_least, check_seed, check_threads, check_workers, check_writable, nearest, positive
from stmae.tasks.options import SEVERAL, AnyPath, ClipOptions, RunOptions, Source, SourceOptions
from stmae.tasks.places import check_source


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions(SourceOptions, ClipOptions, RunOptions):
    """Learn a codebook of spacetime patches, for pre-training that predicts tokens (--target tokens).

    Takes some minutes on a CPU. Says what share of the codes held-out videos use, and how much nearer to their patches
    the codebook comes than the mean patch does.

    Example:

        stmae tokenizer videos/ --out tokenizer.safetensors
        stmae pretrain videos/ --target tokens --tokenizer tokenizer.safetensors --out runs/tokens
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """Folder, list or shards."""
    out: AnyPath
    """File to write."""
    codes: int = 512
    """Entries of the codebook."""
    patch: tuple[int, int, int] = (2, 16, 16)
    """Size of a spacetime patch, that of the model: frames, rows, columns."""
    steps: int = 200
    """Batches to learn from."""
    batch_size: int = 16
    """Clips in a batch, each of another video."""
    holdout: float = 0.1
    """Share of the videos kept out, to judge the codebook by."""
    seed: int = 0
    """Everything random follows from this number."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae tokenizer` can refuse before it looks into the folder."""
        check_source(self, problems)
        check_writable("out", self.out, problems, folder=False)
        problems.check(
            self.out.suffix == ".safetensors",
            f'out "{self.out}" is no .safetensors file.',
            f"Name it {self.out.with_suffix('.safetensors')}.",
        )
        at_least(self, ("frames", "image_size", "steps", "batch_size"), 1, problems)
        problems.check(self.codes >= 2, f"codes {self.codes} is too small.", "Choose 2 or more.")
        positive("stride", self.stride, "Its unit is frames of a 30 fps clock; 4 is the paper's.", problems)
        problems.check(min(self.patch) >= 1, f"patch {self.patch} is empty.", "Give sizes of 1 or more.")
        if min(*self.patch, self.frames, self.image_size) >= 1:
            for name, step in (("frames", self.patch[0]), ("image_size", math.lcm(*self.patch[1:]))):
                value = getattr(self, name)
                problems.check(
                    value % step == 0,
                    f"{name} {value} does not divide into patches of {step}.",
                    f"Choose {nearest(value, step)}, or another patch.",
                )
        problems.check(0 <= self.holdout < 1, f"holdout {self.holdout:g} is no share.", "Choose such as 0.1.")
        check_seed(self.seed, problems)
        check_workers(self.workers, problems)
        check_threads(self, problems)
