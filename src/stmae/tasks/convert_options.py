"""The options of `stmae convert`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import Positional

from stmae.errors import Problems
from stmae.tasks.checks import check_writable
from stmae.tasks.options import AnyPath, Families, Options, default
from stmae.tasks.places import exists


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Options):
    """Convert other projects' checkpoints to stmae's format, or models of that shape back to theirs.

    Reads mae_st, PySlowFast's MAE, VideoMAE (v1, v2), transformers' VideoMAE folders and image MAE; says what the file
    holds, what was assumed and which licence such weights come under.

    Examples:

        stmae convert VIT_L_16x4_MAE_PT.pyth --out models/large
        stmae convert mae_visualize_vit_base.pth --out models/from-image --sizes num_frames=16
        stmae convert runs/first --out first.pth --to mae_st
        stmae convert runs/first --out image.pth --to mae_image --encoder-only
    """

    model: Positional[str] = field(kw_only=False)
    """Checkpoint to read: a file, a folder of transformers, or a run."""
    out: AnyPath
    """Folder to write; with --to another family's, the .pth or .safetensors file (a folder for videomae_hf)."""
    family: Annotated[Families | None, default("recognised by names and shapes")] = None
    """Whose checkpoint it is."""
    sizes: Annotated[tuple[str, ...], default("the published models'")] = ()
    """What names and shapes do not tell, by the reference's names: num_heads=12 decoder_num_heads=8 num_frames=16."""
    to: Literal["stmae", "mae_st", "slowfast", "videomae", "videomae_hf", "mae_image"] = "stmae"
    """Whose format to write; for mae_image a video encoder is made one of stills, its kernel summed over time."""
    encoder_only: bool = False
    """Leave a decoder or a classifier's head out."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae convert` can refuse before it looks into the checkpoint."""
        exists("model", self.model, "Give a checkpoint's file, a folder of transformers or a run", problems)
        folder = self.to in ("stmae", "videomae_hf")
        if not folder and self.out.suffix not in (".pth", ".safetensors"):
            problems.add(
                f'out "{self.out}" is neither a .pth nor a .safetensors file, which --to {self.to} writes.',
                f"Name it {self.out.with_suffix('.pth')}.",
            )
        check_writable("out", self.out, problems, folder=folder)
