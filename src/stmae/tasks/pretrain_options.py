"""The options of `stmae pretrain`, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from stmae.errors import Problems, UserError
from stmae.presets import PRESETS, Preset
from stmae.tasks.checks import check_known, check_model
from stmae.tasks.choices import check_choices, idle
from stmae.tasks.options import AnyPath, ModelOptions, default
from stmae.tasks.places import exists
from stmae.tasks.training_options import TrainingOptions
from stmae.weights import step_folders


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(TrainingOptions, ModelOptions):
    """Pre-train a video encoder on a folder of unlabelled videos.

    Takes any folder, of any depth, with any mix of video files. The same command again goes on where a stopped
    run stood.

    Examples:

        stmae pretrain videos/ --out runs/first
        stmae pretrain train.csv --root videos/ --out runs/listed
        stmae pretrain ours/ shards/ --weights 2 1 --out runs/both
        stmae pretrain videos/ --out runs/base --preset paper --model vit_base --batch-size 512
    """

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    preset: str = "auto"
    """Named settings for everything not given here; auto picks by device. `stmae presets` lists them."""
    init: Annotated[str | None, default("none: start from random weights")] = None
    """Run, file, other project's checkpoint or hf://user/name to take weights and the model's size from (a new run; to
    go on with a run, repeat its command)."""
    weights: Annotated[tuple[float, ...] | None, default("1 each")] = None
    """How many times each of several folders or lists is gone through in a pass: 2 for twice, 0.5 for half of it."""
    color_jitter: float = 0.0
    """Random brightness, contrast and saturation: factors from 1 - this to 1 + this, the same for a clip's frames."""
    monitor: Annotated[AnyPath | None, default("none")] = None
    """Folder of labelled videos in class folders: how well features tell them apart (kNN) is logged at evaluations."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae pretrain` can refuse before it looks into the folder."""
        check_known("preset", self.preset, tuple(PRESETS), problems)
        super().check(problems)
        _source_weights(self, problems)
        if self.init is not None and not step_folders(self.out / "checkpoints"):  # else it has served
            exists("init", self.init, "Give a run's folder or a weights file", problems)
        check_model(self, self.frames, self.image_size, problems)
        check_choices(self, problems)
        problems.check(
            0 <= self.color_jitter <= 1,
            f"color_jitter {self.color_jitter:g} is not from 0 to 1.",
            "Choose such as 0.4; 0 leaves colours as they are.",
        )
        if self.monitor is not None:
            there = exists("monitor", self.monitor, "Give a folder of class folders with videos", problems)
            problems.check(
                not there or Path(self.monitor).is_dir(),
                f'monitor "{self.monitor}" is a file.',
                "Give a folder of class folders with videos.",
            )

    def idle(self, asked: Collection[str]) -> list[str]:
        return idle(self, asked)


def _source_weights(options: PretrainOptions, problems: Problems) -> None:
    """Whether there is a weight for each source."""
    from stmae.data.opening import paths_of
    from stmae.data.sources import check_weights

    if options.weights is None:
        return
    places = paths_of(options.videos)
    if not places:
        problems.add("weights go with several folders or lists, not with clips from Python.", "Leave them out.")
        return
    try:
        check_weights(len(places), options.weights)
    except UserError as error:
        problems.extend(error)
