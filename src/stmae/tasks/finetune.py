"""`stmae finetune`: a pre-trained encoder and labelled videos in, a classifier out."""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stmae import metrics
from stmae.data.augment import augment, on_device
from stmae.data.loader import Batch
from stmae.data.mixing import mix
from stmae.data.opening import paths_of
from stmae.data.workers import Verdict
from stmae.engine.loop import StepResult
from stmae.engine.precision import computing
from stmae.errors import UserError
from stmae.model.heads import Classifier
from stmae.runs import save_weights
from stmae.tasks.finetune_options import FinetuneOptions
from stmae.tasks.finetune_setup import FinetuneSetup
from stmae.tasks.task import task
from stmae.tasks.train import train_run
from stmae.tasks.training import Parts, Training

CLIPS_AT_ONCE = 8  # of a validation, in each process
VALIDATION_SLOT = -2  # of the verdicts on validation videos
KEPT_BYTES = 2**29  # of validation clips: more of them are read anew each time
HEADLINE = {"single": "val_top1", "multi": "val_map", "regression": "val_r2"}


@task(FinetuneOptions)
def finetune(options: FinetuneOptions) -> Path:
    """Returns:
        The run's folder, which `stmae.load` takes: it gives the classifier.

    Raises:
        UserError: a mistake in the options, the labels, the folder or the run that is there.
        Stopped: SIGINT or SIGTERM ended the run; it is saved and the same call goes on.
        Lost: another process of the run is gone.
    """
    return train_run(options, FinetuneSetup.of, Finetuning)


class Finetuning(Training):
    """What the loop needs of fine-tuning: the loss of augmented clips, and scores on the validation videos."""

    model: Classifier
    options: FinetuneOptions
    setup: FinetuneSetup

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        setup, options = self.setup, self.options
        self.problem = setup.config.problem
        self.targets = setup.labels.targets[setup.sampled[1]]
        self.weights = on_device(class_weights(setup), self.device)
        self.scale = self.model.scale
        videos_a_step = options.batch_size // options.repeats
        self.mask_ratio = functools.partial(mask_ratio, options.mask_ratio, setup.plan.steps, videos_a_step)
        self.kept: list[tuple[int, Tensor]] | None = None  # validation clips of this process: item, (1, C, T, H, W)
        own = parts.counters
        self.best = float(own.get("task/best", -math.inf))
        self.best_loss = float(own.get("task/best_loss", math.inf))
        self.waited = int(own.get("task/waited", 0))

    # Training

    def step(self, batch: Batch) -> StepResult:
        keys = batch.keys  # on the host, where augmentation draws its settings
        targets = self._targets(batch.items.numpy())
        ratio = self.mask_ratio(batch.cursor)
        batch = batch.to(self.device)
        options = self.options
        with torch.autocast(self.device.type, enabled=False):  # half precision is too coarse for where pixels come from
            clips = augment(batch.clips, keys, self.setup.strength)
            clips, targets = mix(
                clips, targets, keys, repeats=options.repeats, mixup=options.mixup, cutmix=options.cutmix
            )
        logits = self.wrapped(clips, keys=batch.keys, mask_ratio=ratio)
        loss, weight = self._loss(logits, targets)
        numbers = {}
        if self.problem == "single":
            hits = logits.detach().argmax(1) == targets.argmax(1)
            numbers["train_top1"] = (hits * (self.weights * targets).sum(1)).sum()  # divided by the loss's weight
        return StepResult(loss, weight, clips=len(clips), numbers=numbers)

    def _targets(self, items: np.ndarray) -> Tensor:
        """Of the videos of a batch: (B, outputs) on the device; one class of all as 1 among zeros."""
        own = on_device(self.targets[items], self.device)
        if self.problem != "single":
            return own
        return (own[:, None] == torch.arange(self.setup.config.classes, device=self.device)).float()

    def _loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss summed over the clips of a batch, and what it is to be divided by.

        Labels are smoothed here, after mixing, which gives the same. A clip weighs what its classes do, not what the
        share does that smoothing gives to each of the others: else a rare class would draw all clips to itself.
        """
        if logits.dtype != torch.float64:
            logits = logits.float()
        count = torch.full((), float(len(logits)), device=logits.device)
        smoothing = self.options.label_smoothing
        if self.problem == "single":
            weights = (self.weights * targets).sum(dim=1)
            smooth = targets * (1 - smoothing) + smoothing / targets.shape[1]
            return -(weights[:, None] * smooth * logits.log_softmax(dim=1)).sum(), weights.sum().detach()
        if self.problem == "multi":
            targets = targets.to(logits.dtype)
            smooth, weights = targets * (1 - smoothing) + smoothing / 2, 1 + (self.weights - 1) * targets
            loss = F.binary_cross_entropy_with_logits(logits, smooth, weight=weights, reduction="none")
            return loss.mean(dim=1).sum(), count
        assert self.scale is not None
        return ((logits - targets) / self.scale).square().mean(dim=1).sum(), count

    # Validation

    @torch.no_grad()
    def evaluate(self, step: int, limit: int | None = None) -> dict[str, float]:
        """Scores on the middle clips of the validation videos; the best ones so far are kept in mind."""
        if self.setup.val is None:
            return {}
        items, outputs = self._outputs(limit)
        if limit is not None:
            return {}
        labels = self.setup.val.labels
        found = score(self.problem, outputs, labels.targets[items])
        self._note_score(found)
        return found

    def _outputs(self, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Items (N,) and logits (N, outputs) of the validation videos that can be read, on every process."""
        self.model.eval()
        found: list[tuple[int, np.ndarray]] = []
        clip = self.setup.config.encoder.clip
        assert self.setup.val is not None
        count = len(self.setup.val.source) if limit is None else min(limit, len(self.setup.val.source))
        mine = range(self.world.rank, count, self.world.size)
        rounds = math.ceil(math.ceil(count / self.world.size) / CLIPS_AT_ONCE)  # a model in parts needs all processes
        clips = self._validation_clips(mine)
        with self.judged_weights(), computing(self.device, self.options.precision):
            for _ in range(rounds):
                part = [pair for _, pair in zip(range(CLIPS_AT_ONCE), clips, strict=False)]
                idle = torch.zeros(1, clip.channels, *clip.shape, dtype=torch.uint8)
                batch = torch.cat([each for _, each in part]) if part else idle
                rows = self.model(batch.to(self.device)).float().cpu().numpy()
                found += [(item, row) for (item, _), row in zip(part, rows, strict=False)]
        assert next(clips, None) is None
        self.model.train()
        every = sorted((pair for each in self.world.gather(found) for pair in each), key=lambda pair: pair[0])
        if not every and limit is None:
            raise UserError(
                "none of the validation videos can be read.", "Mend or remove them, or validate on others with --val."
            )
        return np.array([item for item, _ in every], int), np.array([row for _, row in every])

    def _validation_clips(self, items: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Clips (1, C, T, H, W) of the readable ones among these videos; where they are few, they stay in memory."""
        if self.kept is not None:
            yield from (pair for pair in self.kept if pair[0] in items)
            return
        clips = self.setup.validation_clips()
        whole = len(items) == len(range(self.world.rank, len(clips), self.world.size))
        kept, size = list[tuple[int, Tensor]](), 0
        known = [Verdict(item, item, reason) for slot, item, reason in self.verdicts.found if slot == VALIDATION_SLOT]
        for sample in self.read_fixed(clips, items, known):
            self.news.bad += sample.bad
            self.news.verdicts += [Verdict(VALIDATION_SLOT, bad.item, bad.reason) for bad in sample.bad if bad.verdict]
            if not len(sample.clips):
                continue
            size += sample.clips.nbytes
            if size <= KEPT_BYTES:
                kept.append((sample.item, sample.clips))
            yield sample.item, sample.clips
        if whole and size <= KEPT_BYTES:
            self.kept = kept

    def _note_score(self, found: dict[str, float]) -> None:
        """Keeps the best weights for the run's file, where training ends once no better ones come."""
        score, loss = found[HEADLINE[self.problem]], found["val_loss"]
        if (score, -loss) > (self.best, -self.best_loss):
            self.best, self.best_loss, self.waited = score, loss, 0
            if self.options.patience is not None:
                self._save_best()
        else:
            self.waited += 1

    def _save_best(self) -> None:
        """Publishes the weights that were just judged."""
        try:
            self.save_weights()
        except OSError as error:
            self.log.warning(f"the best weights so far could not be written ({error}); better ones will be tried.")

    def enough(self) -> bool:
        return self.options.patience is not None and self.waited >= self.options.patience

    def counters(self) -> dict[str, float]:
        own = {"best": self.best, "best_loss": self.best_loss, "waited": self.waited}
        return super().counters() | (own if math.isfinite(self.best) else {})

    # What is written

    def on_save(self, step: int) -> None:
        if self.options.patience is not None and math.isfinite(self.best):
            self.hear()  # the file holds the best weights so far, not these
            self.write_bad_files()
            return
        super().on_save(step)

    def publish(self, weights: dict[str, Tensor]) -> None:
        save_weights(self.run.classifier, weights, self.setup.header())

    def farewell(self) -> str:
        folder = shlex.quote(str(self.run.path))
        kept = "the best weights" if self.options.patience is not None else "the last weights"
        best = f"; {kept}, best {HEADLINE[self.problem]} {self.best:.4g}" * math.isfinite(self.best)
        ended = " It was stopped early: no evaluation since was better." * self.enough()
        lines = [f"done: the classifier is {self.run.classifier}{best}.{ended} Next:"]
        if paths_of(self.options.videos):
            videos = "test-videos/"
            lines += [
                f"  stmae evaluate {videos} --model {folder}",
                f"  stmae predict clip.mp4 --model {folder}",
            ]
        return "\n".join([*lines, f"  python -c 'import stmae; print(stmae.load(\"{self.run.path}\"))'"])


def mask_ratio(start: float, steps: int, videos: int, cursor: int) -> float:
    """The share of hidden tokens in the step that ends at a cursor: half a cosine from `start` to 0 (appendix B.3).

    Args:
        start: in the first step.
        steps: of the run.
        videos: in a step.
        cursor: video slots used up, that of a part of a step too.
    """
    done = (cursor - 1) // videos
    return start * 0.5 * (1 + math.cos(math.pi * min(done / max(1, steps), 1.0)))


def class_weights(setup: FinetuneSetup) -> np.ndarray:
    """By what a class's loss is multiplied, float32: 1, or with balance "loss" more for those of which there are few.

    Of "single" such that every class weighs alike and the mean over the videos is 1; of "multi" it multiplies the
    loss of videos that show the class, such that these weigh as much as those that do not.
    """
    counts, videos = setup.labels.counts, len(setup.labels.targets)
    if setup.options.balance != "loss":
        return np.ones(len(counts), np.float32)
    single = setup.config.problem == "single"
    there = (counts > 0) & (single | (counts < videos))  # a class of all videos has nothing to be weighed against
    wanted = videos / there.sum() if single else videos - counts
    return np.divide(wanted, counts, out=np.ones(len(counts)), where=there).astype(np.float32)


def score(problem: str, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Of the outputs (N, K) for videos of these targets: the loss (without any smoothing) and what people ask for."""
    outputs = outputs.astype(np.float64)
    if problem == "regression":
        errors = metrics.regression_errors(outputs, targets)
        # Of values that never vary there is no R2, and they count as 0; outputs that are no numbers are the worst.
        r2 = float(np.nan_to_num(errors.r2, nan=0.0).mean()) if np.isfinite(outputs).all() else -math.inf
        return {"val_loss": float((errors.rmse**2).mean()), "val_r2": r2, "val_mae": float(errors.mae.mean())}
    if problem == "multi":
        loss = np.logaddexp(0, outputs) - targets * outputs
        precision = metrics.mean_average_precision(outputs, targets)
        return {"val_loss": float(loss.mean()), "val_map": 0.0 if math.isnan(precision) else precision}
    shares = metrics.softmax(outputs)
    own = np.take_along_axis(shares, targets[:, None], 1)
    found = {"val_loss": float(-np.log(own.clip(1e-300)).mean()), "val_top1": metrics.topk_accuracy(outputs, targets)}
    if outputs.shape[1] > 5:
        found["val_top5"] = metrics.topk_accuracy(outputs, targets, 5)
    return found | {"val_mean_class": metrics.mean_class_accuracy(outputs, targets)}
