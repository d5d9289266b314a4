"""The options of `stmae export`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.checks import check_writable
from stmae.tasks.options import AnyPath, Options
from stmae.tasks.places import exists


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Write a model for other runtimes, as ONNX file or torch.export program, and check it against the model.

    What comes out takes uint8 clips (B, C, T, H, W) of the model's own size, any number of them, and normalises them
    itself. A classifier gives logits, an encoder features.

    Examples:

        stmae export runs/first --out encoder.onnx
        stmae export runs/first --out encoder.pt2 --features grid
    """

    model: Positional[str] = field(kw_only=False)
    """Run, weights file or another project's checkpoint."""
    out: AnyPath
    """File to write; its ending (.onnx or .pt2) is the format."""
    features: Literal["pooled", "grid", "tokens"] = "pooled"
    """What an encoder gives: a vector per clip (B, D), a map (B, t, h, w, D) or tokens (B, N, D)."""
    int8: bool = False
    """Hold the weights of an ONNX file in 8 bits: a quarter of the size, less exact."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae export` can refuse before it looks into the model."""
        exists("model", self.model, "Give a run's folder or a weights file", problems)
        if self.out.suffix not in (".onnx", ".pt2"):
            problems.add(
                f'out "{self.out}" is neither a .onnx nor a .pt2 file.', f"Name it {self.out.with_suffix('.onnx')}."
            )
        elif self.int8 and self.out.suffix != ".onnx":
            problems.add(f'int8 goes with ONNX, and out is "{self.out}".', "Leave it out, or write an .onnx file.")
        check_writable("out", self.out, problems, folder=False)
