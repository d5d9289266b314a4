"""`stmae pretrain`: a folder of unlabelled videos in, a video encoder out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from stmae import pictures
from stmae.data.clips import NOMINAL_FPS
from stmae.data.jitter import colour_jitter
from stmae.data.loader import Batch
from stmae.engine.loop import StepResult
from stmae.engine.precision import computing
from stmae.model.mae import MaeOutput, MaskedAutoencoder
from stmae.model.paint import paint
from stmae.model.targets import PAINTED
from stmae.tasks.monitor import Monitor
from stmae.tasks.outside import open_given
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.pretrain_setup import PretrainSetup
from stmae.tasks.task import task
from stmae.tasks.train import train_run
from stmae.tasks.training import PICTURE_CLIPS, Parts, Training


@task(PretrainOptions)
def pretrain(options: PretrainOptions) -> Path:
    """Returns:
        The run's folder, which `stmae.load` takes.

    Raises:
        UserError: a mistake in the options, the folder or the run that is there.
        Stopped: SIGINT or SIGTERM ended the run; it is saved and the same call goes on.
        Lost: another process of the run is gone.
    """
    return train_run(options, PretrainSetup.of, Pretraining)


class Pretraining(Training):
    """What the loop needs of pre-training: the loss, the held-out loss, the monitor's score, pictures."""

    model: MaskedAutoencoder
    options: PretrainOptions

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.monitor: Monitor | None = None
        if self.options.monitor is not None:
            self.monitor = Monitor(
                self.options.monitor, self.setup.fixed_clips, self.read_fixed, self.world, self.log.warning
            )
            self.log.message(f"monitor: {self.monitor.about}")
        self.given = open_given(self.options, self.setup.config, self.model, self.ema, self.device)

    def step(self, batch: Batch) -> StepResult:
        keys = batch.keys
        batch = batch.to(self.device)
        if self.options.color_jitter:
            batch = replace(batch, clips=colour_jitter(batch.clips, keys, self.options.color_jitter))
        given = self.given.training(batch.clips) if self.given else None
        output = self.wrapped(batch.clips, keys=batch.keys, given=given)
        weight = torch.full((), output.decoded.numel(), dtype=torch.float32, device=self.device)
        numbers = {name: number * weight for name, number in _numbers(output).items()}
        return StepResult(output.loss * weight, weight, clips=len(batch.clips), numbers=numbers)

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        values = dict(means)
        if "target" in values:
            values["explained"] = explained(values["loss"], values.pop("target"), values.pop("target_square"))
        return values

    def farewell(self) -> str:
        lines = super().farewell().splitlines()
        if self.options.target in PAINTED:
            return "\n".join(lines)
        lines[0] = f"done: the encoder is {self.run.encoder}. Next:"  # what it predicts is no picture
        return "\n".join(line for line in lines if "stmae reconstruct" not in line)

    @torch.no_grad()
    def evaluate(self, step: int, limit: int | None = None) -> dict[str, float]:
        """Scores on the held-out videos and on the labelled ones of `monitor`."""
        return self._score_held_out(limit) | self._score_labelled(limit)

    def _score_labelled(self, limit: int | None) -> dict[str, float]:
        """kNN on frozen features; with a limit only whether that can be done."""
        if self.monitor is None:
            return {}
        with self.judged_weights(), computing(self.device, self.options.precision):
            return self.monitor.score(self.model.encode, self.device, limit)

    def _score_held_out(self, limit: int | None) -> dict[str, float]:
        """Loss and explained variance, or share of right codes, on the held-out videos: the same clips and masks every
        time."""
        if self.setup.held_out is None:
            return {}
        clips, keys = self.fixed_clips()
        count = len(clips) if limit is None else min(limit, len(clips))
        sums = dict[str, Tensor]()
        with self.judged_weights():
            for start in range(0, count, 8 * self.world.size):  # as often in each process: a model in parts needs all
                at = start + 8 * self.world.rank
                mine = slice(at, min(at + 8, count)) if at < count else slice(0, 1)
                output = self._forward(clips[mine], keys[mine])
                share = len(output.hidden) if at < count else 0
                for name, number in {"loss": output.loss, **_numbers(output)}.items():
                    sums[name] = sums.get(name, torch.zeros_like(number)) + number * share
        totals = (self.world.sum_(torch.stack([*sums.values()])) / count).tolist()
        scores = self.summary(dict(zip(sums, totals, strict=True)))
        return {f"held_out_{name}": score for name, score in scores.items()}

    @torch.no_grad()
    def pictures(self, step: int) -> dict[str, np.ndarray | bytes]:
        """The same clips at every interval: original, masked, painted back; still and moving. None where something else
        than pixels is predicted."""
        if self.model.config.target not in PAINTED:
            return {}
        every, all_keys = self.fixed_clips()
        spread = torch.linspace(0, len(every) - 1, min(PICTURE_CLIPS, len(every))).long()
        clips, keys = every[spread], all_keys[spread]
        with self.judged_weights():
            output = self._forward(clips, keys)
        if not self.world.main:
            return {}
        painting = paint(self.model, clips.to(self.device), output)
        which = "training" if self.setup.held_out is None else "held-out"
        title = f"step {step}: {which} clips"
        still = pictures.clips_picture({self.options.mask_ratio: painting}, title=title)
        fps = NOMINAL_FPS / self.options.stride * len(painting.frames) / clips.shape[2]
        return {"reconstructions": still, "reconstructions.gif": pictures.clips_gif(painting, fps)}

    def _forward(self, clips: Tensor, keys: Tensor) -> MaeOutput:
        with computing(self.device, self.options.precision):
            clips = clips.to(self.device)
            given = self.given.judging(clips) if self.given else None
            return cast(MaeOutput, self.model(clips, keys=keys.to(self.device), given=given, decode_all=True))


def _numbers(output: MaeOutput) -> dict[str, Tensor]:
    """What explained variance is worked out from; for codes, the share that is predicted right."""
    target = output.target.detach()
    if not target.is_floating_point():
        return {"correct": (output.prediction.detach().argmax(dim=-1) == target).float().mean()}
    return {"target": target.mean(), "target_square": target.square().mean()}


def explained(loss: float, mean: float, square: float) -> float:
    """1 - loss / variance of the targets about their mean: 0 for predicting that mean, 1 for the truth.

    Args:
        loss, mean, square: means over all hidden values: of the squared error, the target and the target's square.
    """
    return 1 - loss / max(square - mean**2, 1e-12)
