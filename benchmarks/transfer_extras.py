"""What benchmarks/transfer.py asks beside its endpoint: frozen encoders, secondary tasks, controls."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import motion8
import numpy as np
import torch
from transfer_arms import (
    LABELS,
    SEEDS,
    Change,
    Place,
    as_is,
    autoencoder,
    digits,
    encoder_config,
    finetune,
    predict,
    pretrained,
    test_clips,
    tuned,
    val_clips,
)

from stmae.metrics import knn_score
from stmae.model.config import ClassifierConfig
from stmae.model.heads import Classifier


def frozen(place: Place, number: int, trained: bool) -> dict[str, Any]:
    """Attentive probe and kNN on an encoder that stays as it is; validation chooses the settings."""
    torch.manual_seed(1000 + number)
    encoder = (pretrained(place, number) if trained else autoencoder(place.size)).encoder
    val, test = val_clips(place), test_clips(place)
    began = time.process_time()
    val_tokens, test_tokens = (motion8.features(encoder, place.footage, clips) for clips in (val, test))
    found: dict[str, Any] = {"attentive": {}, "knn": {}, "predictions": {}}
    for n, labels in enumerate(place.size.labels):
        for seed in range(SEEDS if n == 0 else 1):
            train = motion8.draw(place.footage, "train", labels, seed)
            tokens = motion8.features(encoder, place.footage, train)
            told, _ = motion8.attend(
                (tokens, train.labels), (val_tokens, val.labels), test_tokens, seed=seed, epochs=place.size.probe_epochs
            )
            pooled = [each.float().mean(dim=1).numpy() for each in (tokens, val_tokens, test_tokens)]
            choices = [(k, t) for k in (1, 5, 20) for t in (0.03, 0.07, 0.2)]
            k, t = max(
                choices,
                key=lambda kt: knn_score(pooled[0], train.labels, pooled[1], val.labels, k=kt[0], temperature=kt[1]),
            )
            name = f"{LABELS[n]}-s{seed}"
            found["attentive"][name] = round(float((told == test.labels).mean()), 4)
            found["knn"][name] = round(
                knn_score(pooled[0], train.labels, pooled[2], test.labels, k=k, temperature=t), 4
            )
            found["predictions"][name] = digits(told)
    return found | {"cpu_seconds": round(time.process_time() - began, 1)}


def time_tasks(place: Place, number: int, trained: bool) -> dict[str, Any]:
    """Playback speed and arrow of time, frozen, by attentive probe, on the test part."""
    torch.manual_seed(1000 + number)
    encoder = (pretrained(place, number) if trained else autoencoder(place.size)).encoder
    found: dict[str, Any] = {}
    for task in ("speed", "arrow"):
        parts = {
            part: motion8.draw_time(place.footage, part, count, 0, task)
            for part, count in (("train", place.size.labels[1]), ("val", place.size.val_clips),
                                ("test", place.size.test_clips // 2))
        }  # fmt: skip
        tokens = {part: motion8.features(encoder, place.footage, clips) for part, clips in parts.items()}
        told, _ = motion8.attend(
            (tokens["train"], parts["train"].labels), (tokens["val"], parts["val"].labels), tokens["test"],
            seed=0, epochs=place.size.probe_epochs,
        )  # fmt: skip
        found[task] = {
            "accuracy": round(float((told == parts["test"].labels).mean()), 4),
            "chance": round(1 / (int(parts["test"].labels.max()) + 1), 4),
            "predictions": digits(told),
            "labels": digits(parts["test"].labels),
            "clusters": place.footage.clusters[parts["test"].videos].tolist(),
        }
    return found


def controls(place: Place) -> dict[str, Any]:
    """What the task can be solved by: phase correlation; and what becomes of the classifiers' answers without motion,
    with frames in disorder, and backwards."""
    clips = test_clips(place)
    blocks = np.random.default_rng(3).permutation(len(clips) // 8)[: place.size.control_clips // 8]
    clips = clips[(np.sort(blocks)[:, None] * 8 + np.arange(8)).ravel()]
    shown = [motion8.phase_correlation(clip) for clip in motion8.batches(place.footage, clips)]
    found: dict[str, Any] = {"phase correlation": round(float((np.concatenate(shown) == clips.labels).mean()), 4)}
    changes: dict[str, Change] = {
        "as it is": as_is,
        "first frame repeated": motion8.repeated,
        "middle frame repeated": partial(motion8.repeated, frame=motion8.FRAMES // 2),
        "last frame repeated": partial(motion8.repeated, frame=motion8.FRAMES - 1),
        "frames shuffled": motion8.shuffled,
        "reversed": motion8.reversed_in_time,
    }
    for name in ("scratch-256-s0", "mae0-256-s0"):
        model = Classifier(ClassifierConfig(encoder=encoder_config(place.size), classes=motion8.CLASSES)).eval()
        model.load_state_dict(torch.load(place.state(name), weights_only=True)["model"])
        found[name] = {}
        for kind, change in changes.items():
            told = predict(model, place.footage, clips, change)
            found[name][kind] = round(float((told == clips.labels).mean()), 4)
            if kind == "reversed":
                found[name]["reversed, opposite label"] = round(
                    float((told == motion8.OPPOSITE[clips.labels]).mean()), 4
                )
    return found | {"clips": len(clips), "chance": 1 / motion8.CLASSES}


def no_motion(place: Place) -> dict[str, Any]:
    """Trained and tested on the first frame repeated: what the pictures alone give away."""
    labels = place.size.labels[0]
    model, found = finetune(
        place, "no-motion-256-s0", pretrained(place, 0), labels, 0, tuned(place, "mae"), change=motion8.repeated
    )
    clips = test_clips(place)
    told = predict(model, place.footage, clips, motion8.repeated)
    return found | {"accuracy": round(float((told == clips.labels).mean()), 4), "predictions": digits(told)}
