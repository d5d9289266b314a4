"""Charts of what predictions are worth, as PNG files' bytes: confusion matrix, calibration, values; and heat maps."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from stmae.metrics import Calibration

NAMED = 60  # classes whose names and numbers can be read in a matrix
NUMBERED = 25


@contextmanager
def _figure(width: float, height: float, title: str, encoded: io.BytesIO) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, in inches; written as PNG on leaving."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), dpi=120, layout="constrained")
    try:
        axes.set_title(title, fontsize=11, wrap=True)
        yield figure, axes
        figure.savefig(encoded, format="png", bbox_inches="tight", pad_inches=0.12)
    finally:
        pyplot.close(figure)


def confusion_chart(matrix: np.ndarray, classes: Sequence[str], *, title: str = "") -> bytes:
    """What was taken for what: a row per true class, coloured by the share of it, with the counts where they fit.

    Args:
        matrix: whole numbers (C, C), rows are the truth (`metrics.confusion_matrix`).
        classes: their names.
    """
    count = len(classes)
    sums = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, sums, out=np.zeros(matrix.shape), where=sums > 0)
    side = float(np.clip(0.42 * count, 3.6, 14)) if count <= NAMED else 9.0
    encoded = io.BytesIO()
    with _figure(side + 2.4, side + 1.6, title, encoded) as (figure, axes):
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046, pad=0.03)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if count <= NAMED:
            names = [_short(name) for name in classes]
            axes.set_xticks(range(count), names, rotation=90 if count > 4 else 0, fontsize=8)
            rows = [f"{name} ({n})" for name, n in zip(names, sums[:, 0], strict=True)]
            axes.set_yticks(range(count), rows, fontsize=8)
        if count <= NUMBERED:
            for row, column in np.argwhere(matrix > 0):
                ink = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, matrix[row, column], ha="center", va="center", color=ink, fontsize=8)
    return encoded.getvalue()


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:26]}..."


def calibration_chart(found: Calibration, *, title: str = "") -> bytes:
    """How often predictions of each confidence are right, over the diagonal on which they would be trusted rightly."""
    encoded = io.BytesIO()
    bins = len(found.counts)
    with _figure(5.4, 4.6, title, encoded) as (_, axes):
        edges = np.arange(bins) / bins
        there = found.counts > 0
        shades = 0.25 + 0.75 * found.counts / max(1, found.counts.max())
        for left, height, shade in zip(edges[there], found.accuracy[there], shades[there], strict=True):
            axes.bar(left, height, width=1 / bins, align="edge", color="tab:blue", alpha=shade, edgecolor="white")
        axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="confidence = share that is right")
        axes.plot(
            found.confidence[there], found.accuracy[there], "o-", color="tab:red", markersize=3.5, linewidth=1,
            label=f"measured; calibration error {100 * found.error:.1f} %",
        )  # fmt: skip
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence (darker: more predictions)")
        axes.set_ylabel("share that is right")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
    return encoded.getvalue()


def rgb(pixels: np.ndarray) -> np.ndarray:
    """(..., C) in 0..1 to uint8 (..., 3). Of 3 and more channels the first 3, else the first as grey."""
    values = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def heat(picture: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """A picture, uint8 (..., H, W, 3), dark and grey where `strength` (..., H, W) is 0, over red and yellow to white
    where it is 1."""
    grey = 0.35 * picture.mean(axis=-1, keepdims=True)
    share = strength[..., None]
    red, green, blue = (((share - low) / (high - low)).clip(0, 1) for low, high in ((0, 0.5), (0.35, 1), (0.85, 1)))
    glow = 0.9 * np.concatenate([red, green, blue], axis=-1)
    return (grey + (255 - grey) * glow).astype(np.uint8)


def values_chart(predicted: np.ndarray, truth: np.ndarray, names: Sequence[str], *, title: str = "") -> bytes:
    """Predicted over true values, (N, K) each, in a colour per output; the diagonal is right."""
    encoded = io.BytesIO()
    with _figure(5.4, 4.8, title, encoded) as (_, axes):
        for place, name in enumerate(names):
            axes.plot(truth[:, place], predicted[:, place], "o", markersize=4, alpha=0.6, label=name)
        low, high = float(min(predicted.min(), truth.min())), float(max(predicted.max(), truth.max()))
        axes.plot([low, high], [low, high], color="black", linewidth=1, linestyle="--", label="right")
        axes.set_xlabel("true value")
        axes.set_ylabel("predicted value")
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return encoded.getvalue()
