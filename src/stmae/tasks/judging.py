"""What a model's predictions are worth: numbers with their intervals and what chance gives, in a table and in files.

result.json           the numbers, and the protocol: model, views, sizes, rates, decoder, versions
predictions.parquet   a row per video: label, prediction, scores, and the scores of every view with its times
classes.csv           a row per class
confusion.png         what was taken for what; calibration.png: how far confidence can be trusted
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stmae import charts, metrics
from stmae.data.labels import Labels
from stmae.engine.log import Log
from stmae.runs import disk_errors
from stmae.tasks.videos import printable
from stmae.weights import write_atomic

SHOWN_CLASSES = 20  # more are in classes.csv only, but for the best and the worst


@dataclass(frozen=True)
class Number:
    """A score; `low` and `high` of its 95 % interval, and what chance gives, where there is such a thing (else NaN)."""

    value: float
    low: float = math.nan
    high: float = math.nan
    chance: float = math.nan


@dataclass
class Predictions:
    """What a model said of labelled videos; a row for each that could be read.

    Attributes:
        labels: their classes and targets, of these rows only.
        paths: names of the videos.
        scores: (N, C): averaged over views; shares or probabilities, of a regression its values.
        views: of each video the scores of every view, (V, C).
        times: of each video begin and end of every view, in seconds.
    """

    labels: Labels
    paths: list[str]
    scores: np.ndarray
    views: list[np.ndarray] = field(default_factory=list)
    times: list[list[tuple[float, float]]] = field(default_factory=list)


def quality(labels: Labels, scores: np.ndarray) -> tuple[float, float]:
    """By what settings are chosen, more is better: `main_number`, and between equals the mean log-likelihood.

    A small validation part gives many settings the same accuracy.
    """
    if not np.isfinite(scores).all():  # a head that diverged
        return -np.inf, -np.inf
    if labels.problem == "regression":
        return main_number(labels, scores), 0.0
    shares = scores.clip(1e-6, 1 - 1e-6)
    if labels.problem == "single":
        likelihood = np.log(np.take_along_axis(shares, labels.targets[:, None], 1)).mean()
    else:
        likelihood = np.where(labels.targets > 0, np.log(shares), np.log1p(-shares)).mean()
    return main_number(labels, scores), float(likelihood)


def main_number(labels: Labels, scores: np.ndarray) -> float:
    """The one number by which settings are chosen, more is better: accuracy, mAP, or minus the mean absolute error."""
    if labels.problem == "single":
        return metrics.topk_accuracy(scores, labels.targets)
    if labels.problem == "multi":
        return metrics.mean_average_precision(scores, labels.targets)
    return -float(metrics.regression_errors(scores, labels.targets).mae.mean())


def judge(found: Predictions, prior: np.ndarray | None = None) -> dict[str, Number]:
    """The numbers of predictions by name, the most important first.

    Args:
        found: the predictions.
        prior: what is known without looking, of the training videos: how many each class has (C,), or the mean of each
            value (K,); without it, of the judged videos themselves. Chance is what always saying the most frequent
            class, or the mean, gives; or what drawing lots gives, where that is more.
    """
    labels, scores = found.labels, found.scores
    if labels.problem == "single":
        return _judge_classes(labels, scores, labels.counts if prior is None else prior)
    if labels.problem == "multi":
        return _judge_several(labels.targets, scores)
    return _judge_values(labels, scores, labels.targets.mean(0) if prior is None else prior)


def _judge_classes(labels: Labels, scores: np.ndarray, prior: np.ndarray) -> dict[str, Number]:
    targets, count = labels.targets, len(labels.targets)
    always = np.broadcast_to(prior.astype(np.float64), scores.shape)  # says the most frequent classes, whatever it sees
    numbers = {}
    for k in (1, 5):
        if k == 1 or len(labels.classes) > k:
            right = metrics.hits(scores, targets, k)
            chance = max(metrics.topk_accuracy(always, targets, k), k / len(labels.classes))
            numbers[f"top-{k} accuracy"] = Number(float(right.mean()), *metrics.wilson(right.sum(), count), chance)
    numbers["mean class accuracy"] = Number(
        metrics.mean_class_accuracy(scores, targets),
        *metrics.class_mean_interval(scores, targets),
        max(metrics.mean_class_accuracy(always, targets), 1 / len(labels.classes)),
    )
    numbers["calibration error"] = Number(calibration_of(labels, scores).error)
    return numbers


def _judge_several(targets: np.ndarray, scores: np.ndarray) -> dict[str, Number]:
    there = targets.any(0)
    draws = int(np.clip(10**8 // targets.size, 100, 1000))  # of large sets fewer say as much

    def drawn(rows: np.ndarray) -> float:
        return metrics.mean_average_precision(scores[rows], targets[rows])

    return {
        "mAP": Number(
            metrics.mean_average_precision(scores, targets),
            *metrics.bootstrap(drawn, len(targets), draws=draws),
            float(targets[:, there].mean()) if there.any() else math.nan,  # equal scores for all videos
        ),
        "calibration error": Number(metrics.calibration(scores.ravel(), targets.ravel() > 0).error),
    }


def _judge_values(labels: Labels, scores: np.ndarray, prior: np.ndarray) -> dict[str, Number]:
    targets, numbers = labels.targets, {}
    always = np.broadcast_to(prior, targets.shape)
    measures = {"mean absolute error": "mae", "root mean squared error": "rmse", "explained variance R2": "r2"}
    for place, name in enumerate(labels.classes):
        own, guess, truth = scores[:, [place]], always[:, [place]], targets[:, [place]]
        for words, measure in measures.items():

            def of(rows: np.ndarray, own: np.ndarray = own, truth: np.ndarray = truth, measure: str = measure) -> float:
                return float(getattr(metrics.regression_errors(own[rows], truth[rows]), measure)[0])

            everything = np.arange(len(targets))
            numbers[f"{words}, {name}" if len(labels.classes) > 1 else words] = Number(
                of(everything), *metrics.bootstrap(of, len(targets)), of(everything, guess)
            )
    return numbers


def calibration_of(labels: Labels, scores: np.ndarray) -> metrics.Calibration:
    """How far the scores can be trusted: each video's highest, or with several classes per video each score."""
    if labels.problem == "single":
        return metrics.calibration(scores.max(1), metrics.hits(scores, labels.targets))
    return metrics.calibration(scores.ravel(), labels.targets.ravel() > 0)


# In words ------------------------------------------------------------------------------------------------------------


def show(log: Log, found: Predictions, numbers: Mapping[str, Number], title: str) -> None:
    """Prints the numbers and the classes."""
    rows: list[tuple[str, ...]] = [("", "", "95 % interval", "chance")]
    share = found.labels.problem != "regression"
    rows += [(name, *_cells(number, share)) for name, number in numbers.items()]
    log.table(title, rows)
    name, first = next(iter(numbers.items()))
    if first.low <= first.chance <= first.high:
        log.message(f"{name} cannot be told from chance: its interval holds it.")
    elif share and first.high < first.chance:
        log.message(f"{name} is below chance: what was learnt misleads here. Are these other scenes, other cameras?")
    if share:
        log.table("classes:", _class_lines(found))
        without = int((found.labels.counts == 0).sum())
        if without:
            log.message(f"  ({without} class{'es' * (without > 1)} without a video here)")


def _cells(number: Number, share: bool) -> tuple[str, str, str]:
    def text(value: float) -> str:
        if math.isnan(value):
            return "-"
        return f"{100 * value:.1f} %" if share else f"{value:.4g}"

    between = "-" if math.isnan(number.low) else f"{text(number.low)} to {text(number.high)}"
    return text(number.value), between, text(number.chance)


def class_rows(found: Predictions) -> list[dict[str, Any]]:
    """A row for each class: its videos, how many are right (or its average precision), what it is taken for."""
    labels, scores = found.labels, found.scores
    rows: list[dict[str, Any]] = []
    if labels.problem == "multi":
        for place, name in enumerate(labels.classes):
            precision = metrics.average_precision(scores[:, place], labels.targets[:, place])
            rows.append({"class": name, "videos": int(labels.counts[place]), "average_precision": precision})
        return rows
    matrix = metrics.confusion_matrix(scores.argmax(1), labels.targets, len(labels.classes))
    for place, name in enumerate(labels.classes):
        count, right = int(matrix[place].sum()), int(matrix[place, place])
        wrong = matrix[place].copy()
        wrong[place] = 0
        worst = int(wrong.argmax())
        low, high = metrics.wilson(right, count) if count else (math.nan, math.nan)
        rows.append(
            {
                "class": name,
                "videos": count,
                "right": right,
                "accuracy": right / count if count else math.nan,
                "low": low,
                "high": high,
                "predicted": int(matrix[:, place].sum()),
                "taken_for": labels.classes[worst] if wrong[worst] else "",
                "times": int(wrong[worst]),
            }
        )
    return rows


def _class_lines(found: Predictions) -> list[tuple[str, ...]]:
    rows = class_rows(found)
    measure = "average_precision" if found.labels.problem == "multi" else "accuracy"
    known = sorted((row for row in rows if row["videos"]), key=lambda row: -row[measure])
    cut = len(known) > SHOWN_CLASSES
    shown = [*known[: SHOWN_CLASSES // 2], *known[-(SHOWN_CLASSES // 2) :]] if cut else known
    head = ("class", "videos", measure.replace("_", " "), "95 % interval", "most often taken for")
    lines: list[tuple[str, ...]] = [head if measure == "accuracy" else head[:3]]
    for place, row in enumerate(shown):
        if cut and place == SHOWN_CLASSES // 2:
            lines.append(("...",))
        cells: tuple[str, ...] = (printable(row["class"]), str(row["videos"]), f"{100 * row[measure]:.1f} %")
        if measure == "accuracy":
            cells += (
                f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %",
                f"{printable(row['taken_for'])} ({row['times']})" if row["taken_for"] else "",
            )
        lines.append(cells)
    return lines


# Files ---------------------------------------------------------------------------------------------------------------


def save(
    folder: Path, found: Predictions, numbers: Mapping[str, Number], about: Mapping[str, Any], title: str
) -> list[Path]:
    """Writes the files above into a folder, which is made if missing; each whole, or not at all.

    Args:
        about: the protocol: all that another person needs to get the same numbers.
        title: of the pictures.

    Raises:
        UserError: they cannot be written.
    """
    labels, written = found.labels, []
    values = {name: {k: v if math.isfinite(v) else None for k, v in asdict(n).items()} for name, n in numbers.items()}
    result = {"numbers": values, "videos": len(found.paths), "problem": labels.problem, "protocol": dict(about)}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)

        def put(name: str, content: str | bytes) -> None:
            write_atomic(folder / name, content)
            written.append(folder / name)

        put("result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        put("predictions.parquet", parquet_of(found, about))
        if labels.problem != "regression":
            put("classes.csv", _csv_of(class_rows(found)))
            put("calibration.png", charts.calibration_chart(calibration_of(labels, found.scores), title=title))
        else:
            put("values.png", charts.values_chart(found.scores, labels.targets, labels.classes, title=title))
        if labels.problem == "single":
            matrix = metrics.confusion_matrix(found.scores.argmax(1), labels.targets, len(labels.classes))
            put("confusion.png", charts.confusion_chart(matrix, labels.classes, title=title))
    return written


def _csv_of(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        tidy = {k: ("" if math.isnan(v) else f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
        writer.writerow(tidy)
    return text.getvalue().encode("utf-8", "surrogateescape")


def parquet_of(found: Predictions, about: Mapping[str, Any]) -> bytes:
    """A row per video; the classes, in the order of the scores, and the protocol stand in the schema's metadata."""
    import pyarrow
    from pyarrow import parquet

    labels, classes = found.labels, [printable(name) for name in found.labels.classes]
    columns: dict[str, Any] = {"path": pyarrow.array([printable(path) for path in found.paths], pyarrow.string())}
    if labels.problem == "single":
        columns["label"] = pyarrow.array([classes[target] for target in labels.targets], pyarrow.string())
        columns["predicted"] = pyarrow.array([classes[place] for place in found.scores.argmax(1)], pyarrow.string())
        columns["right"] = pyarrow.array(metrics.hits(found.scores, labels.targets))
    elif labels.problem == "multi":
        names = [[classes[place] for place in np.flatnonzero(row)] for row in labels.targets]
        columns["labels"] = pyarrow.array(names, pyarrow.list_(pyarrow.string()))
    else:
        columns["values"] = pyarrow.array(labels.targets.tolist(), pyarrow.list_(pyarrow.float32()))
    numbers = pyarrow.list_(pyarrow.float32())
    columns["scores"] = pyarrow.array(found.scores.astype(np.float32).tolist(), numbers)
    if found.views:
        columns["view_scores"] = pyarrow.array(
            [rows.astype(np.float32).tolist() for rows in found.views], pyarrow.list_(numbers)
        )
        for place, name in enumerate(("view_start", "view_end")):
            columns[name] = pyarrow.array(
                [[time[place] for time in times] for times in found.times], pyarrow.list_(pyarrow.float64())
            )
    table = pyarrow.table(columns)
    known = {"stmae": json.dumps({**about, "classes": classes})}
    buffer = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata(known), buffer)
    return buffer.getvalue()
