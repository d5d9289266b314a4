"""`stmae knn`: how well the nearest neighbours of an encoder's features tell labelled videos apart."""

from __future__ import annotations

import numpy as np

from stmae.data.labels import Labels
from stmae.engine.log import Console, Log
from stmae.metrics import knn_predict
from stmae.tasks import build
from stmae.tasks.frozen import Features, Frozen, scratch
from stmae.tasks.judging import Number, Predictions, judge, main_number, quality, save, show
from stmae.tasks.knn_options import KnnOptions
from stmae.tasks.labelled import open_parts
from stmae.tasks.task import task

MEASURES = {"single": "accuracy", "multi": "mAP", "regression": "mean absolute error"}  # `main_number` in words


@task(KnnOptions)
def knn(options: KnnOptions) -> dict[str, Number]:
    """Returns:
        The test part's numbers by name.

    Raises:
        UserError: a mistake in the options, labels that disagree, or not one video of a part that can be read.
    """
    with build.cpu_threads(options.threads), Log([Console()]) as log, scratch(None) as folder:
        parts = open_parts(options, log.message)
        log.message(parts.origin)
        frozen = Frozen(options, log, folder)
        train, val, test = (frozen.read(getattr(parts, name), "pooled", name) for name in ("train", "val", "test"))
        chosen, on_val = choose(train, val, options.k, options.temperature)
        k, temperature = chosen
        scores = knn_predict(train.means(), as_numbers(train.labels), test.means(), ks=[k], temperatures=[temperature])
        found = Predictions(test.labels, test.paths, scores[chosen])
        numbers = judge(found, prior_of(train.labels))
        log.message(f"chosen on val: k {k}, temperature {temperature:g} ({told(val.labels, on_val)} there)")
        show(log, found, numbers, f"kNN, {len(found.paths)} test videos of {len(found.labels.classes)} classes")
        if options.out is not None:
            about = {**frozen.about(), "parts": parts.origin, "k": k, "temperature": temperature}
            written = save(options.out, found, numbers, about, f"kNN (k {k}) on {options.model}")
            log.message(f"written to {options.out}: {', '.join(path.name for path in written)}")
    return numbers


def choose(
    train: Features, val: Features, ks: tuple[int, ...], temperatures: tuple[float, ...]
) -> tuple[tuple[int, float], float]:
    """The (k, temperature) that does best on the validation part (`judging.quality`), and its number there."""
    ks = tuple(dict.fromkeys(min(k, len(train.paths)) for k in ks))
    settings = knn_predict(
        train.means(), as_numbers(train.labels), val.means(), ks=ks, temperatures=tuple(dict.fromkeys(temperatures))
    )
    best = max(settings, key=lambda setting: quality(val.labels, settings[setting]))
    return best, main_number(val.labels, settings[best])


def as_numbers(labels: Labels) -> np.ndarray:
    """Targets that can be averaged, (N, C): one-hot where they are classes."""
    return np.eye(len(labels.classes))[labels.targets] if labels.problem == "single" else labels.targets


def prior_of(labels: Labels) -> np.ndarray:
    """What is known without looking: how many videos each class has, or the mean of each value."""
    return labels.targets.mean(0) if labels.problem == "regression" else labels.counts


def told(labels: Labels, number: float) -> str:
    """`main_number` in words."""
    return f"{MEASURES[labels.problem]} {amount(labels, number)}"


def amount(labels: Labels, number: float) -> str:
    """`main_number` as people write it."""
    return f"{-number:.4g}" if labels.problem == "regression" else f"{100 * number:.1f} %"
