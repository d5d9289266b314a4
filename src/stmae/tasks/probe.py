"""`stmae probe`: how well a small head on frozen features tells labelled videos apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmae.data.labels import Labels, Problem
from stmae.engine.log import Console, Log
from stmae.engine.optim import CosineSchedule
from stmae.model.config import ClassifierConfig, as_dict
from stmae.model.heads import Classifier
from stmae.model.probes import AttentiveProbe, LinearProbe, attentive_probes, linear_probes
from stmae.runs import disk_errors, save_weights
from stmae.tasks import build
from stmae.tasks.frozen import Features, Frozen, Kind, scratch
from stmae.tasks.judging import Number, judge, quality, save, show
from stmae.tasks.knn import MEASURES, amount, prior_of
from stmae.tasks.labelled import open_parts
from stmae.tasks.probe_options import ProbeOptions
from stmae.tasks.task import task
from stmae.weights import CLASSIFIER

EPOCHS = {"linear": 100, "attentive": 20}
LEAST_STEPS = 300  # small sets have few clips to see, not few steps to take
WARMUP = 0.1  # of the steps

Head = LinearProbe | AttentiveProbe
Heads = Callable[[Sequence[Any], Tensor], Tensor]  # heads and features (B, ...) to outputs (G, B, C)


@dataclass(frozen=True)
class Setting:
    """How one head is trained."""

    lr: float
    weight_decay: float

    def __str__(self) -> str:
        return f"lr {self.lr:g}, weight decay {self.weight_decay:g}"


@task(ProbeOptions)
def probe(options: ProbeOptions) -> dict[str, Number]:
    """Returns:
        The test part's numbers by name.

    Raises:
        UserError: a mistake in the options, labels that disagree, or not one video of a part that can be read.
    """
    with build.cpu_threads(options.threads), Log([Console()]) as log, scratch(options.out) as folder:
        parts = open_parts(options, log.message)
        log.message(parts.origin)
        frozen = Frozen(options, log, folder)
        kind: Kind = "mean" if options.kind == "linear" else "tokens"
        train, val, test = (frozen.read(getattr(parts, name), kind, name) for name in ("train", "val", "test"))
        settings = [
            Setting(lr, decay) for lr in dict.fromkeys(options.lr) for decay in dict.fromkeys(options.weight_decay)
        ]
        scale = Scale.of(train.labels)
        heads = make_heads(options.kind, len(settings), train, frozen, options.seed)
        steps, epochs = _length(options, len(train.rows))
        log.message(f"training {len(heads)} {options.kind} heads together: {steps} steps, {epochs:.0f} epochs")
        train_heads(heads, settings, train, scale, steps, options.examples, options.seed, frozen.device, log)
        on_val = [
            quality(val.labels, val.predictions(scores).scores)
            for scores in head_scores(heads, val, scale, options.examples, frozen.device)
        ]
        best = on_val.index(max(on_val))
        _tell_choice(log, settings, [number for number, _ in on_val], best, val.labels)
        (scores,) = head_scores([heads[best]], test, scale, options.examples, frozen.device)
        found = test.predictions(scores)
        numbers = judge(found, prior_of(train.labels))
        show(log, found, numbers, f"{options.kind} probe, {len(found.paths)} test videos")
        if options.out is not None:
            about = {
                **frozen.about(), "parts": parts.origin, "kind": options.kind, "epochs": epochs, "steps": steps,
                "examples": options.examples, "seed": options.seed, "lr": settings[best].lr,
                "weight_decay": settings[best].weight_decay,
                "on_val": [[s.lr, s.weight_decay, n] for s, (n, _) in zip(settings, on_val, strict=True)],
            }  # fmt: skip
            written = save(options.out, found, numbers, about, f"{options.kind} probe on {options.model}")
            head = heads[best]
            if isinstance(head, LinearProbe):
                written.append(save_classifier(options.out, as_classifier(head, frozen, train.labels, scale), frozen))
            log.message(f"written to {options.out}: {', '.join(path.name for path in written)}")
    return numbers


def _length(options: ProbeOptions, rows: int) -> tuple[int, float]:
    """Steps of the training, and the epochs that they make."""
    per_epoch = math.ceil(rows / options.examples)
    if options.epochs is not None:
        return options.epochs * per_epoch, options.epochs
    steps = max(LEAST_STEPS, EPOCHS[options.kind] * per_epoch)
    return steps, steps / per_epoch


def make_heads(kind: str, count: int, train: Features, frozen: Frozen, seed: int) -> list[Head]:
    """Heads that all begin with the same weights, so that they differ by how they are trained alone."""
    outputs, made = len(train.labels.classes), list[Head]()
    blocks = frozen.encoder.config.blocks
    for _ in range(count):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if kind == "linear":
                made.append(LinearProbe.on(torch.from_numpy(train.rows), outputs))
            else:
                made.append(AttentiveProbe(blocks.width, blocks.heads, outputs))
    return [head.to(frozen.device) for head in made]


def train_heads(
    heads: Sequence[Head],
    settings: Sequence[Setting],
    train: Features,
    scale: Scale,
    steps: int,
    examples: int,
    seed: int,
    device: torch.device,
    log: Log,
) -> None:
    """Trains all heads in one pass over the same clips in the same order, each as if it were alone.

    No parameter is shared, so the gradient of the losses' sum is every head's own. AdamW; the learning rate rises over
    a tenth of the steps and falls as half a cosine.
    """
    optimizer = torch.optim.AdamW(
        [group for head, setting in zip(heads, settings, strict=True) for group in _groups(head, setting)], lr=1.0
    )
    shape = CosineSchedule(1.0, round(WARMUP * steps), steps, 0.0)
    batch = _Batches(heads, train, device)
    targets = scale.targets(train.labels, train.targets).to(device)
    order = _order(len(train.rows), steps * examples, seed)
    for step in range(steps):
        rows = order[step * examples : (step + 1) * examples]
        factor = shape(step)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        outputs = batch(rows)  # (G, B, C)
        loss = losses(train.labels.problem, outputs, targets[torch.from_numpy(rows).to(device)]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        log.progress(step + 1, steps)


def _groups(head: nn.Module, setting: Setting) -> list[dict[str, Any]]:
    """Vectors and biases are not decayed."""
    matrices = [p for p in head.parameters() if p.ndim > 1]
    vectors = [p for p in head.parameters() if p.ndim <= 1]
    return [
        {"params": params, "base_lr": setting.lr, "weight_decay": decay}
        for params, decay in ((matrices, setting.weight_decay), (vectors, 0.0))
    ]


def _order(count: int, total: int, seed: int) -> np.ndarray:
    """Numbers of rows, epoch after epoch, each in an order of its own: a batch may begin in one and end in the next."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(count) for _ in range(math.ceil(total / count))])[:total]


def losses(problem: Problem, outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of each head, (G,), from outputs (G, B, C): cross-entropy, for several labels per class, or squared
    error."""
    if problem == "single":
        wide = targets.expand(len(outputs), -1)
        return F.cross_entropy(outputs.transpose(1, 2), wide, reduction="none").mean(1)
    wide = targets.expand_as(outputs)
    if problem == "multi":
        return F.binary_cross_entropy_with_logits(outputs, wide, reduction="none").mean((1, 2))
    return F.mse_loss(outputs, wide, reduction="none").mean((1, 2))


@dataclass(frozen=True)
class Scale:
    """Heads learn values of a regression as deviations from the training mean, in standard deviations."""

    shift: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, labels: Labels) -> Scale:
        values = labels.targets if labels.problem == "regression" else np.zeros((1, 1), np.float32)
        deviation = values.std(0)
        return cls(values.mean(0), np.where(deviation > 0, deviation, 1))

    def targets(self, labels: Labels, targets: np.ndarray) -> Tensor:
        """What heads are to give for targets of rows."""
        if labels.problem != "regression":
            return torch.from_numpy(targets)
        return torch.from_numpy(((targets - self.shift) / self.factor).astype(np.float32))

    def scores(self, problem: Problem, outputs: Tensor) -> np.ndarray:
        """What heads' outputs say: shares of classes, probabilities of each, or values."""
        if problem == "single":
            return outputs.softmax(-1).cpu().numpy()
        if problem == "multi":
            return outputs.sigmoid().cpu().numpy()
        return outputs.cpu().numpy() * self.factor + self.shift


@torch.no_grad()
def head_scores(
    heads: Sequence[Head], features: Features, scale: Scale, examples: int, device: torch.device
) -> list[np.ndarray]:
    """Each head's scores of all rows, (R, C)."""
    batch, problem = _Batches(heads, features, device), features.labels.problem
    count = len(features.rows)
    parts = [
        scale.scores(problem, batch(np.arange(start, min(start + examples, count))))
        for start in range(0, count, examples)
    ]
    return list(np.concatenate(parts, axis=1))


class _Batches:
    """Outputs (G, B, C) of heads for rows of features by their numbers; features in memory go to the device once."""

    def __init__(self, heads: Sequence[Head], features: Features, device: torch.device) -> None:
        self._heads, self._device = heads, device
        linear = isinstance(heads[0], LinearProbe)
        self._function: Heads = linear_probes if linear else attentive_probes
        self._rows = torch.from_numpy(features.rows).to(device) if linear else None
        self._on_disk = features.rows

    def __call__(self, rows: np.ndarray) -> Tensor:
        if self._rows is not None:
            return self._function(self._heads, self._rows[torch.from_numpy(rows).to(self._device)])
        order = np.sort(rows)  # the disk is read forwards
        tokens = torch.from_numpy(self._on_disk[order]).to(self._device).float()
        return self._function(self._heads, tokens[torch.from_numpy(np.searchsorted(order, rows)).to(self._device)])


def as_classifier(probe: LinearProbe, frozen: Frozen, labels: Labels, scale: Scale) -> Classifier:
    """Encoder and linear probe as a classifier that does the same: batch norm and linear layer are one linear layer."""
    encoder, regression = frozen.encoder.config, labels.problem == "regression"
    config = ClassifierConfig(
        encoder=replace(encoder, blocks=replace(encoder.blocks, depth=frozen.layer)),
        classes=len(labels.classes),
        class_names=labels.classes,
        problem=labels.problem,
        shift=tuple(scale.shift.tolist()) if regression else (),
        scale=tuple(scale.factor.tolist()) if regression else (),
    )
    model = Classifier(config).eval()
    state = {f"encoder.{name}": tensor for name, tensor in frozen.encoder.state_dict().items()}
    weight, bias = probe.folded()
    state |= {"head.weight": weight.detach(), "head.bias": bias.detach()}
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


def save_classifier(folder: Path, model: Classifier, frozen: Frozen) -> Path:
    """Writes a classifier for `stmae predict`, `evaluate` and `load`."""
    path = folder / CLASSIFIER
    with disk_errors(folder):
        save_weights(path, model.state_dict(), {**frozen.extras, "model": as_dict(model.config)})
    return path


def _tell_choice(log: Log, settings: Sequence[Setting], numbers: Sequence[float], best: int, labels: Labels) -> None:
    """The grid, and whether the best of it lies at its edge."""
    decays = list(dict.fromkeys(setting.weight_decay for setting in settings))
    rows: list[tuple[str, ...]] = [("lr \\ weight decay", *(f"{decay:g}" for decay in decays))]
    for start in range(0, len(settings), len(decays)):
        cells = [
            f"{amount(labels, number)}{' *' if start + place == best else ''}"
            for place, number in enumerate(numbers[start : start + len(decays)])
        ]
        rows.append((f"{settings[start].lr:g}", *cells))
    log.table(f"{MEASURES[labels.problem]} on val (* chosen):", rows)
    lrs = [setting.lr for setting in settings]
    if len(set(lrs)) > 1 and settings[best].lr in (min(lrs), max(lrs)) and numbers.count(numbers[best]) == 1:
        log.message(f"the chosen lr {settings[best].lr:g} is at the edge of those tried: --lr takes others.")
