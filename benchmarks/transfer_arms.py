"""The arms of benchmarks/transfer.py: what is trained, on what, how it is scored. docs/transfer-design.md says why."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import motion8
import numpy as np
import torch
import torch.nn.functional as F
from footage import Footage
from motion8 import Clips
from torch import Tensor, nn

from stmae.engine.optim import CosineSchedule, build_adamw, layer_decay_groups, parameter_groups
from stmae.model.config import BlocksConfig, ClassifierConfig, ClipConfig, DecoderConfig, EncoderConfig, MaeConfig
from stmae.model.heads import Classifier
from stmae.model.mae import MaskedAutoencoder
from stmae.model.masking import agnostic, key_noise, visible_count

SEEDS, PRETRAININGS, LABELS = 5, 3, (256, 2048)
CORE_PRETRAININGS = 2
TUNING_SEED = 100
# Learning rate and layer decay: as many for each arm, chosen on the validation part with 256 labels. Cells are named by
# their place in here, so that what comes anew comes last.
TUNING = {
    "mae": [(5e-4, 0.75), (1e-3, 0.75), (2e-3, 0.75), (1e-3, 1.0), (2.5e-4, 0.75), (5e-4, 1.0)],
    "scratch": [(3e-4, 1.0), (1e-3, 1.0), (3e-3, 1.0), (1e-3, 0.75), (1e-4, 1.0), (3e-4, 0.75)],
}


@dataclass(frozen=True)
class Size:
    """How large everything is; `SMOKE` is for tests.

    `finetune_steps`: by number of labels. `hidden`: the share of tokens left out in fine-tuning, for speed and as
    regularisation, in all arms alike (paper, Table 11); scoring sees all tokens.
    """

    width: int = 192
    depth: int = 6
    heads: int = 3
    decoder: tuple[int, int, int] = (96, 2, 3)  # width, depth, heads
    pretrain_steps: int = 3000
    pretrain_batch: int = 32
    pretrain_lr: float = 1e-3
    finetune_steps: tuple[int, int] = (300, 900)
    finetune_batch: int = 32
    hidden: float = 0.75
    val_clips: int = 560
    test_clips: int = 3000
    control_clips: int = 800
    labels: tuple[int, int] = LABELS
    probe_epochs: int = 30
    synthetic: int = 120
    rounds: int = 3  # of pre-training, at most: another follows as long as the gate is not passed
    gate: float = 1.05  # held-out loss with a clip's steps in disorder / in order
    settled: bool = True  # nothing is tested while the best rate is at the edge of those tried

    def is_that_of(self, task: dict[str, Any]) -> bool:
        """Whether the result of the cell "task" was made in this size, as far as it says."""
        now = json.loads(json.dumps(dataclasses.asdict(self)))
        return {**now, **task["size"]} == now


FULL = Size()
SMOKE = Size(
    width=32, depth=1, heads=1, decoder=(32, 1, 1), pretrain_steps=3, pretrain_batch=4, finetune_steps=(3, 3),
    finetune_batch=4, val_clips=16, test_clips=32, control_clips=16, labels=(16, 32), probe_epochs=1, synthetic=12,
    gate=0.0, settled=False,
)  # fmt: skip


class OutOfTime(Exception):
    """The minutes are over; what was reached is saved."""


@dataclass(frozen=True)
class Place:
    """Where everything is.

    Attributes:
        ends: time.monotonic() at which to stop.
    """

    footage: Footage
    size: Size
    out: Path
    work: Path
    ends: float

    def result(self, cell: str) -> dict[str, Any] | None:
        path = self.out / f"{cell}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def done(self, cell: str) -> dict[str, Any]:
        found = self.result(cell)
        assert found is not None, cell
        return found

    def state(self, cell: str) -> Path:
        return self.work / f"{cell}.pt"


# Models --------------------------------------------------------------------------------------------------------------


def encoder_config(size: Size) -> EncoderConfig:
    clip = ClipConfig(frames=motion8.FRAMES, height=motion8.CROP, width=motion8.CROP, patch=(2, 8, 8))
    blocks = BlocksConfig(width=size.width, depth=size.depth, heads=size.heads, mlp_width=4 * size.width)
    return EncoderConfig(clip=clip, blocks=blocks, class_token=False, position_values="learned_from_sincos")


def autoencoder(size: Size) -> MaskedAutoencoder:
    width, depth, heads = size.decoder
    blocks = BlocksConfig(width=width, depth=depth, heads=heads, mlp_width=4 * width)
    decoder = DecoderConfig(blocks=blocks, class_token="none", position_values="learned_from_sincos")
    return MaskedAutoencoder(
        MaeConfig(encoder=encoder_config(size), decoder=decoder, mask_ratio=0.9, predict_frames="all")
    )


def pretrained(place: Place, number: int) -> MaskedAutoencoder:
    model = autoencoder(place.size)
    last = place.done(f"pretrain-{number}")["rounds"] - 1
    model.load_state_dict(torch.load(place.state(state_name(number, last)), weights_only=True)["model"])
    return model.eval()


# Training ------------------------------------------------------------------------------------------------------------


def fit(place: Place, cell: str, model: nn.Module, groups: Any, lr: float, steps: int, betas: tuple[float, float],
        loss: Callable[[int], Tensor]) -> dict[str, Any]:  # fmt: skip
    """Trains for so many steps, from where the cell was left; `loss` is told the step. Gives losses and CPU seconds.

    Raises:
        OutOfTime: the state is saved.
    """
    optimizer = build_adamw(groups, lr, betas=betas)
    schedule = CosineSchedule(lr, round(0.1 * steps), steps)
    path = place.state(cell)
    step, spent, losses = 0, 0.0, []
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        step, spent, losses = state["step"], state["cpu_seconds"], state["losses"]
        if step < steps:
            optimizer.load_state_dict(state["optimizer"])
    began, saved = time.process_time(), time.monotonic()

    def save() -> None:
        state = {"model": model.state_dict(), "step": step, "losses": losses}
        state["cpu_seconds"] = spent + time.process_time() - began
        if step < steps:
            state["optimizer"] = optimizer.state_dict()
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)

    model.train()
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = schedule(step) * group["lr_scale"]
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % max(1, steps // 20) == 0:
            losses.append(round(float(value.detach()), 4))
        if step == steps or time.monotonic() > min(saved + 60, place.ends):
            save()
            saved = time.monotonic()
            if step < steps and saved > place.ends:
                raise OutOfTime
    state = torch.load(path, weights_only=True)
    return {"steps": steps, "losses": losses, "cpu_seconds": round(state["cpu_seconds"], 3)}


def keys_of(seed: int, step: int, count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, step]).integers(0, 2**62, count))


def pretrain(place: Place, number: int) -> dict[str, Any]:
    """A masked autoencoder on unlabelled clips of the training part; trained on, twice at most, until it has learned
    motion (`by_order`)."""
    size = place.size
    torch.manual_seed(1000 + number)
    model = autoencoder(size)
    rounds: list[dict[str, Any]] = []
    while len(rounds) < size.rounds and (not rounds or not by_order(place, model)["passed"]):
        first = len(rounds) * size.pretrain_steps

        def loss(step: int, first: int = first) -> Tensor:
            draws = [7, number, first + step]
            clips = motion8.draw_unlabelled(place.footage, "train", size.pretrain_batch, draws)
            keys = keys_of(number, first + step, len(clips))
            return model(motion8.pixels(place.footage, clips), keys=keys).loss

        groups = parameter_groups(model, 0.05)
        rounds.append(
            fit(place, state_name(number, len(rounds)), model, groups, size.pretrain_lr, size.pretrain_steps,
                (0.9, 0.95), loss)
        )  # fmt: skip
    return {
        "rounds": len(rounds), "losses": [value for each in rounds for value in each["losses"]],
        "cpu_seconds": round(sum(each["cpu_seconds"] for each in rounds), 3),
        "clips": len(rounds) * size.pretrain_steps * size.pretrain_batch,
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
    }  # fmt: skip


def state_name(number: int, rounds: int) -> str:
    """Of the weights after some whole rounds of a pre-training, and of those on the way to the next."""
    return f"pretrain-{number}" + (f"-round{rounds}" if rounds else "")


@torch.no_grad()
def by_order(place: Place, model: MaskedAutoencoder) -> dict[str, Any]:
    """Held-out loss with the clip's 2-frame steps in order and in disorder: the same visible and hidden contents."""
    model.eval()
    clips = motion8.draw_unlabelled(place.footage, "val", min(256, place.size.val_clips), [11])
    t, h, w = model.config.encoder.clip.grid
    N, count = t * h * w, visible_count(t * h * w, model.config.mask_ratio)
    losses: dict[str, list[float]] = {"in order": [], "in disorder": []}
    for part, clip in enumerate(motion8.batches(place.footage, clips)):
        hidden = agnostic(key_noise(keys_of(11, part, len(clip)), N), count)
        order = torch.from_numpy(np.random.default_rng([12, part]).permutation(t))
        mixed = clip.unflatten(2, (t, 2))[:, :, order].flatten(2, 3)
        moved = hidden.unflatten(1, (t, h * w))[:, order].flatten(1)
        losses["in order"].append(float(model(clip, hidden=hidden).loss))
        losses["in disorder"].append(float(model(mixed, hidden=moved).loss))
    means = {name: round(float(np.mean(values)), 4) for name, values in losses.items()}
    ratio = means["in disorder"] / means["in order"]
    return {"loss": means, "ratio": round(ratio, 4), "passed": ratio >= place.size.gate}


def gate(place: Place, number: int) -> dict[str, Any]:
    """Whether a pre-training has learned motion."""
    return by_order(place, pretrained(place, number))


Change = Callable[[Tensor], Tensor]  # of clips (B, C, T, H, W)


def as_is(clip: Tensor) -> Tensor:
    return clip


def train_classifier(
    place: Place,
    cell: str,
    start: MaskedAutoencoder | None,
    known: Tensor,
    targets: Tensor,
    seed: int,
    setting: tuple[float, float],
    steps: int,
) -> tuple[Classifier, dict[str, Any]]:
    """Trains an encoder and a linear layer on labelled clips, uint8 (n, 3, T, H, W) and int64 (n,)."""
    size, (lr, decay) = place.size, setting
    torch.manual_seed(2000 + seed)
    model = Classifier(ClassifierConfig(encoder=encoder_config(size), classes=int(targets.max()) + 1))
    if start is not None:
        model.encoder.load_state_dict(start.encoder.state_dict())

    def layer(name: str) -> int:
        if name.startswith("encoder.blocks."):
            return int(name.split(".")[2]) + 1
        return 0 if name.startswith(("encoder.patch_embed", "encoder.positions")) else size.depth + 1

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        rows = torch.from_numpy(rng.choice(len(known), size.finetune_batch, replace=False))
        gain, shift = (
            torch.from_numpy(rng.uniform(*at, (len(rows), 1, 1, 1, 1))).float() for at in ((0.7, 1.3), (-0.3, 0.3))
        )
        clip = (known[rows].float() / 255 - 0.45) / 0.225 * gain + shift  # contrast and brightness
        return F.cross_entropy(model(clip, keys=keys_of(seed, step, len(rows)), mask_ratio=size.hidden), targets[rows])

    groups = layer_decay_groups(model, 0.05, decay=decay, depth=size.depth, layer_id=layer)
    found = fit(place, cell, model, groups, lr, steps, (0.9, 0.999), loss)
    return model.eval(), found | {"setting": setting, "labels": len(known), "seed": seed}


def finetune(
    place: Place,
    cell: str,
    start: MaskedAutoencoder | None,
    labels: int,
    seed: int,
    setting: tuple[float, float],
    *,
    steps: int | None = None,
    change: Change = as_is,
) -> tuple[Classifier, dict[str, Any]]:
    """Trains a classifier on `labels` clips of the training part; the seed decides which."""
    train = motion8.draw(place.footage, "train", labels, seed)
    known = change(motion8.pixels(place.footage, train))
    steps = place.size.finetune_steps[place.size.labels.index(labels)] if steps is None else steps
    return train_classifier(place, cell, start, known, torch.from_numpy(train.labels), seed, setting, steps)


@torch.no_grad()
def predict(model: Classifier, footage: Footage, clips: Clips, change: Change = as_is) -> np.ndarray:
    """The classes of clips, from all tokens."""
    return np.concatenate([model(change(clip)).argmax(dim=1).numpy() for clip in motion8.batches(footage, clips)])


# Arms ----------------------------------------------------------------------------------------------------------------


def digits(classes: np.ndarray) -> str:
    """Classes of clips as a text with a digit for each."""
    return "".join(map(str, classes.tolist()))


def val_clips(place: Place) -> Clips:
    return motion8.draw(place.footage, "val", place.size.val_clips, 0)


def test_clips(place: Place) -> Clips:
    return motion8.draw(place.footage, "test", place.size.test_clips, 0)


def tune(place: Place, arm: str, number: int) -> dict[str, Any]:
    """One setting of an arm with the first number of labels, scored on the validation part."""
    start = pretrained(place, 0) if arm == "mae" else None
    labels, setting = place.size.labels[0], TUNING[arm][number]
    model, found = finetune(place, f"tune-{arm}-{number}", start, labels, TUNING_SEED, setting)
    return found | {"val_accuracy": val_accuracy(place, model)}


def at_edge(place: Place, arm: str) -> bool:
    """Whether the best learning rate is the lowest or highest tried: then more have to be tried first (the design)."""
    rates = [lr for lr, _ in TUNING[arm]]
    return tuned(place, arm)[0] in (min(rates), max(rates)) and place.size.settled


def val_accuracy(place: Place, model: Classifier) -> float:
    clips = val_clips(place)
    return round(float((predict(model, place.footage, clips) == clips.labels).mean()), 4)


def tuned(place: Place, arm: str) -> tuple[float, float]:
    """The setting that did best on the validation part."""
    best = max((place.done(f"tune-{arm}-{n}") for n in range(len(TUNING[arm]))), key=lambda cell: cell["val_accuracy"])
    lr, decay = best["setting"]
    return lr, decay


def arm(place: Place, cell: str, start: int | None, n: int, seed: int) -> dict[str, Any]:
    """A classifier from a pre-training, or from scratch, with the n-th number of labels, and its test predictions."""
    model = None if start is None else pretrained(place, start)
    setting = tuned(place, "scratch" if start is None else "mae")
    model, found = finetune(place, cell, model, place.size.labels[n], seed, setting)
    if start is None:
        found["val_accuracy"] = val_accuracy(place, model)  # for `longer`
    return scored(place, model, found)


def scored(place: Place, model: Classifier, found: dict[str, Any]) -> dict[str, Any]:
    clips = test_clips(place)
    told = predict(model, place.footage, clips)
    return found | {"accuracy": round(float((told == clips.labels).mean()), 4), "predictions": digits(told)}


def longer(place: Place, cell: str, seed: int) -> dict[str, Any]:
    """From scratch for as long as pre-training and fine-tuning take together, by CPU seconds of the cells that did.

    So many steps over so few labels may end worse than few steps do: of this run and the short one of the same seed,
    whichever does better on the validation part stands for the arm.
    """
    spent = [place.done(f"pretrain-{n}")["cpu_seconds"] for n in range(CORE_PRETRAININGS)]
    short = f"scratch-256-s{seed}"
    mae, scratch = (place.done(f"{arm}-256-s{seed}")["cpu_seconds"] for arm in ("mae0", "scratch"))
    labels = place.size.labels[0]
    steps = round((float(np.mean(spent)) + mae) / max(scratch, 1e-3) * place.size.finetune_steps[0])
    model, found = finetune(place, cell, None, labels, seed, tuned(place, "scratch"), steps=steps)
    found["val_accuracy"] = {"long": val_accuracy(place, model), "short": place.done(short)["val_accuracy"]}
    found = scored(place, model, found)
    found["long"] = {key: found[key] for key in ("accuracy", "predictions")}
    if found["val_accuracy"]["short"] > found["val_accuracy"]["long"]:
        found |= {key: place.done(short)[key] for key in ("accuracy", "predictions")}
    return found


def task(place: Place) -> dict[str, Any]:
    """The test part's labels and clusters, for the statistic; and the footage in numbers."""
    clips = test_clips(place)
    facts = {"footage": place.footage.summary(), "size": dataclasses.asdict(place.size)}
    return facts | {"labels": digits(clips.labels), "clusters": place.footage.clusters[clips.videos].tolist()}
