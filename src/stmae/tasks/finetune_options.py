"""The options of `stmae finetune`, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal

from stmae.errors import Problems
from stmae.finetune_presets import FINETUNE_PRESETS
from stmae.presets import Facts, Preset
from stmae.tasks.checks import at_least, check_encoder, check_known, positive
from stmae.tasks.labelled_options import LabelledOptions
from stmae.tasks.options import AutoCount, Duration, EncoderOptions, Options, Source, default
from stmae.tasks.places import check_places, exists
from stmae.tasks.training_options import TrainingOptions
from stmae.weights import step_folders

SCRATCH = "none"
SHAPE = tuple(field.name for field in fields(EncoderOptions))  # what a checkpoint says of itself
MOST_ALPHA = 2.0  # of the Beta distribution: beyond it, drawing from a key takes too many attempts


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(Options):
    """What is done to clips and labels against learning them by heart."""

    rand_augment: int = 2
    """Operations of RandAugment on each clip, the same for all its frames; 0 for none."""
    magnitude: float = 7.0
    """Strength of these operations, from 0 to 10."""
    magnitude_std: float = 0.5
    """By how much their strength varies from clip to clip."""
    erase: float = 0.25
    """Share of the clips of which a box is filled with noise."""
    mixup: float = 0.8
    """Alpha of the shares in which neighbouring videos are faded into each other; 0 for none."""
    cutmix: float = 1.0
    """Alpha of the shares of a box that is replaced by a neighbouring video; 0 for none. With mixup, half the pairs."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes."""
    dropout: float = 0.3
    """Dropout of the averaged features."""
    drop_path: float = 0.2
    """Share of clips that skip the last block's branches; it rises from 0 at the first block."""
    mask_ratio: float = 0.0
    """Share of the tokens hidden at the beginning, which falls to 0 as half a cosine: faster, a little less exact."""

    def check(self, problems: Problems) -> None:
        """Shares and strengths."""
        at_least(self, ("rand_augment",), 0, problems)
        for name in ("dropout", "drop_path", "label_smoothing", "mask_ratio"):
            value = getattr(self, name)
            problems.check(0 <= value < 1, f"{name} {value:g} is no share.", "Choose one from 0 to below 1.")
        problems.check(0 <= self.erase <= 1, f"erase {self.erase:g} is no share.", "Choose one from 0 to 1.")
        problems.check(
            0 <= self.magnitude <= 10, f"magnitude {self.magnitude:g} is not from 0 to 10.", "PySlowFast's is 7."
        )
        problems.check(
            self.magnitude_std >= 0, f"magnitude_std {self.magnitude_std:g} is negative.", "PySlowFast's is 0.5."
        )
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            problems.check(
                0 <= value <= MOST_ALPHA,
                f"{name} {value:g} is not from 0 to {MOST_ALPHA:g}.",
                "PySlowFast's are mixup 0.8 and cutmix 1.",
            )

    def idle(self, asked: Collection[str]) -> list[str]:
        names = ("magnitude", "magnitude_std") if self.rand_augment == 0 else ()
        return [f"{name} has no meaning with rand_augment 0." for name in names if name in asked]


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions, LabelledOptions, AugmentOptions, EncoderOptions):
    """Fine-tune a pre-trained encoder to classify labelled videos, or to tell several labels or numbers of each.

    Labels are class folders, a list's or shards'. The same command again goes on where a stopped run stood. The
    encoder's size and clips are those of --init; --frames and --image-size change the clips.

    Examples:

        stmae finetune labelled/ --init runs/first --out runs/tuned
        stmae finetune train.csv --val val.csv --init runs/first --out runs/listed --no-flip
        stmae finetune labelled/ --init none --model vit_tiny --image-size 112 --out runs/scratch
        stmae finetune k400/train --val k400/val --init mae.pyth --preset slowfast_k400_ft_large --out runs/k400
    """

    presets: ClassVar[Mapping[str, Preset]] = FINETUNE_PRESETS

    init: str
    """Run, weights file or another project's checkpoint to begin with; "none" for random weights."""
    preset: str = "auto"
    """Named settings for everything not given here; auto picks by device and number of videos. See `stmae presets`."""
    val: Annotated[Source | None, default("the part called val there, else the share holdout")] = None
    """Videos to validate on: folder, list or shards with the same classes."""
    balance: Literal["none", "sampling", "loss"] = "none"
    """Against uneven classes: take each class as often, or weigh the rare ones' loss more."""
    patience: Annotated[int | None, default("none: to the end")] = None
    """Evaluations without a better score on the validation videos, after which training ends with the best weights."""
    decay_positions: bool = False
    """Decay the weights of positions and class token too, as PySlowFast does."""
    base_lr: float = 2.4e-3
    """Peak learning rate at 256 clips per step; it grows with the batch. --lr goes before it."""

    # The recipe's own values of shared options
    frames: Annotated[int, default("the model's; 16 from scratch")] = 16
    """Frames in a clip."""
    image_size: Annotated[int, default("the model's; 224 from scratch")] = 224
    """Height and width of a clip, in pixels."""
    stride: Annotated[float, default("the model's; 4 from scratch")] = 4.0
    """Distance between frames of a clip, in frames of a nominal 30 fps clock (4 is 0.133 s)."""
    sampling: Annotated[Literal["dense", "segments"], default("the model's; dense from scratch")] = "dense"
    """Frames a stride apart, or one from each of as many equal parts of the whole video."""
    holdout: float = 0.1
    """Share of the videos kept out of training to validate on, of every class alike, where there are no others."""
    repeats: int = 2
    """Clips taken from a video each time it is opened, at different times."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Random crops: smallest and largest share of the frame's area."""
    epochs: Duration = 100
    """Effective epochs: how many clips are taken from each video in all. Or "50000 steps", "10M clips"."""
    warmup: Duration = "10%"
    """How long the learning rate rises from 0: epochs, or "500 steps", "5%" of the run."""
    batch_size: AutoCount = 32
    """Clips per step, over all processes; auto takes as many as fit into memory (times accumulate)."""
    lr: Annotated[float | None, default("base_lr x clips per step / 256")] = None
    """Peak learning rate."""
    end_lr: float = 1e-6
    """Learning rate at the end."""
    layer_decay: float = 0.75
    """Factor of the learning rate from each block of the encoder to the one below; below 1 to keep what it learnt."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's momentum terms."""
    clip_grad: float | None = 5.0
    """Longest gradient norm; longer ones are scaled down to it. None leaves them as they are."""
    save_every: Duration = "5%"
    """Steps between checkpoints; or "1 epoch", "1M clips", "5%" of the run."""
    evaluate_every: Duration = "5%"
    """Steps between scores on the validation videos; or another duration."""

    def facts(self, videos: int, device: str) -> Facts:
        return Facts(videos=videos, device=device, scratch=self.init == SCRATCH)

    def check(self, problems: Problems) -> None:
        """Everything `stmae finetune` can refuse before it looks into the folder."""
        check_known("preset", self.preset, tuple(FINETUNE_PRESETS), problems)
        TrainingOptions.check(self, problems)
        if self.label_map is not None:
            exists("label_map", self.label_map, "Give a file of class names and their numbers", problems)
        AugmentOptions.check(self, problems)
        positive("base_lr", self.base_lr, "PySlowFast's for ViT-L is 2.4e-3.", problems)
        if self.init == SCRATCH:
            check_encoder(self, self.frames, self.image_size, problems)
        elif not step_folders(self.out / "checkpoints"):  # else it has served
            exists("init", self.init, 'Give a run\'s folder or a weights file, or "none"', problems)
        if self.val is not None:
            check_places(self.val, problems, name="val", media=self.media, root=self.root)
        if self.patience is not None:
            at_least(self, ("patience",), 1, problems)
