"""Scores, in NumPy: how near what a model painted back comes to what was hidden, and how well features tell classes.

explained variance = 1 - sum (original - painted)^2 / sum (original - mean)^2      over the hidden pixels
PSNR               = -10 log10(mean (original - painted)^2)                        pixels in 0..1, in dB

1 is a perfect picture; 0 is what the best single colour for all hidden pixels of the clip would score, so "predicting
nothing" cannot be above 0; below 0 is worse than that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from stmae.model.paint import Painting

FLAT = 1 / 255  # deviation of pixels in 0..1 below which a picture is flat: there is nothing to explain


@dataclass(frozen=True)
class Scores:
    """Scores of several clips, one entry each (B,).

    Attributes:
        explained: explained variance, at most 1; NaN for a clip whose hidden pixels are flat.
        psnr: in dB; infinite where every hidden pixel is right.
    """

    explained: np.ndarray
    psnr: np.ndarray

    @property
    def mean_explained(self) -> float:
        """The mean over clips that have an explained variance; NaN if none has."""
        known = self.explained[~np.isnan(self.explained)]
        return float(known.mean()) if len(known) else float("nan")

    @property
    def mean_psnr(self) -> float:
        """The mean over clips, in dB."""
        return float(self.psnr.mean())


def hidden_scores(original: np.ndarray, painted: np.ndarray, hidden: np.ndarray) -> Scores:
    """Scores over the hidden pixels of each clip.

    Args:
        original, painted: (B, C, T, H, W), pixels in 0..1.
        hidden: bool, broadcasting to the same shape; at least one pixel of each clip is hidden.
    """
    explained, psnr = [], []
    for truth, guess, mask in zip(original, painted, hidden, strict=True):
        chosen = np.broadcast_to(mask, truth.shape)
        # The mask is the same for all channels, so the channels stay apart: (C, pixels).
        x = truth[chosen].reshape(len(truth), -1).astype(np.float64)
        error = np.square(x - guess[chosen].reshape(x.shape)).mean()
        variance = np.square(x - x.mean(axis=1, keepdims=True)).mean()
        explained.append(1 - error / variance if variance > FLAT**2 else np.nan)
        psnr.append(-10 * np.log10(error) if error > 0 else np.inf)
    return Scores(np.array(explained), np.array(psnr))


def scores(painting: Painting) -> dict[str, Scores]:
    """Scores of what the model painted and of both baselines: {"painted": ..., "nothing": ..., "copied": ...}."""
    original, hidden = painting.original.cpu().numpy(), painting.hidden.cpu().numpy()
    kinds = {"painted": painting.painted, "nothing": painting.nothing, "copied": painting.copied}
    return {name: hidden_scores(original, pixels.cpu().numpy(), hidden) for name, pixels in kinds.items()}


# Features ------------------------------------------------------------------------------------------------------------

KNN_CELLS = 2**25  # numbers that are held at once


def knn_score(
    features: np.ndarray,
    labels: np.ndarray,
    asked: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """The share of features whose class their nearest neighbours tell (`knn_predict`).

    Args:
        features, labels: (N, D) and whole numbers from 0 (N,): those that are known.
        asked, truth: (M, D) and (M,): those to be classified. Without them each of the known is classified by all
            others (leave one out).
        k: fewer where the smallest class has fewer, or the others would outvote it whatever the features.
    """
    sizes = np.bincount(labels)
    k = max(1, min(k, int(sizes[sizes > 0].min()) - (asked is None)))
    targets = np.eye(len(sizes))[labels]
    votes = knn_predict(features, targets, asked, ks=[k], temperatures=[temperature])[k, temperature]
    return float((votes.argmax(1) == (labels if truth is None else truth)).mean())


def knn_predict(
    features: np.ndarray,
    targets: np.ndarray,
    asked: np.ndarray | None = None,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
) -> dict[tuple[int, float], np.ndarray]:
    """Weighted kNN (Wu et al., 2018, section 3.4), for every k and temperature in one search.

    The k neighbours with the greatest cosine similarity s count with weight exp(s / temperature); what results is the
    weighted mean of their targets: votes that sum to 1 where targets are one-hot.

    Args:
        features: (N, D), those that are known.
        targets: (N, C), one-hot classes, several labels as 0 and 1, or numbers.
        asked: (M, D); without them each of the known is asked, and all others answer (leave one out).
        ks: more than there are neighbours means all of them.

    Returns:
        By (k, temperature), (M, C) float32.
    """
    known, alone = _unit(features), asked is None
    queries = known if asked is None else _unit(asked)
    others = len(known) - alone
    assert others > 0, "nothing to compare with"
    most = min(max(ks), others)
    found = {(k, t): np.empty((len(queries), targets.shape[1]), np.float32) for k in ks for t in temperatures}
    step = max(1, KNN_CELLS // max(len(known), most * targets.shape[1]))
    for start in range(0, len(queries), step):
        similar = queries[start : start + step] @ known.T
        rows = np.arange(len(similar))
        if alone:
            similar[rows, start + rows] = -np.inf
        near = np.argpartition(-similar, most - 1, axis=1)[:, :most]
        sims = np.take_along_axis(similar, near, 1)
        order = np.lexsort((near, -sims))  # of equally near ones the first
        near, sims = np.take_along_axis(near, order, 1), np.take_along_axis(sims, order, 1)
        for (k, temperature), out in found.items():
            # Relative to the nearest one, so that no weight overflows.
            weights = np.exp((sims[:, :k] - sims[:, :1]) / temperature)
            weights /= weights.sum(1, keepdims=True)
            out[start : start + step] = np.einsum("mk,mkc->mc", weights, targets[near[:, :k]])
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


# Predictions ---------------------------------------------------------------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def hits(scores: np.ndarray, targets: np.ndarray, k: int = 1) -> np.ndarray:
    """Whether the right class is among the k of highest score: bool (N,). Of equal scores the lower class goes first.

    Args:
        scores: (N, C).
        targets: whole numbers (N,).
    """
    own = np.take_along_axis(scores, targets[:, None], 1)
    before = (scores == own) & (np.arange(scores.shape[1]) < targets[:, None])
    # A score that is not a number is never right, whatever it is compared with.
    return ((scores > own) | before).sum(1) < np.where(np.isnan(own[:, 0]), -1, k)


def topk_accuracy(scores: np.ndarray, targets: np.ndarray, k: int = 1) -> float:
    """The share of rows whose right class is among the k of highest score (`hits`)."""
    return float(hits(scores, targets, k).mean())


def confusion_matrix(predicted: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """How often each class (row) was taken for each class (column): int64 (C, C)."""
    return np.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_accuracies(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The share of each class's rows that are right: (C,), NaN for a class without rows."""
    classes = scores.shape[1]
    right = np.bincount(targets, weights=hits(scores, targets), minlength=classes)
    counts = np.bincount(targets, minlength=classes)
    return np.divide(right, counts, out=np.full(classes, np.nan), where=counts > 0)


def mean_class_accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    """The mean of `class_accuracies` over classes that have rows: classes count alike, however many rows they have."""
    return float(np.nanmean(class_accuracies(scores, targets)))


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """The area under precision over recall, in steps (no interpolation); NaN where nothing is true.

    sum over thresholds n of (recall_n - recall_(n-1)) * precision_n; rows of equal score come in together, so that
    their order makes no difference.

    Args:
        scores: (N,).
        truth: (N,), 0 or 1.
    """
    positives = truth.sum()
    if not positives:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    true, last = np.cumsum(truth[order]), np.append(np.diff(scores[order]) != 0, True)
    precision = true[last] / (np.flatnonzero(last) + 1)
    return float((np.diff(true[last], prepend=0) * precision).sum() / positives)


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """mAP: the mean of `average_precision` over the columns of (N, C) that are true somewhere; NaN if none is."""
    found = [average_precision(scores[:, c], targets[:, c]) for c in range(scores.shape[1])]
    known = [value for value in found if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


@dataclass(frozen=True)
class Calibration:
    """How often predictions of a confidence are right, in bins of equal width over 0..1.

    Attributes:
        counts: rows in each bin (bins,).
        confidence, accuracy: their mean confidence and the share that is right (bins,); NaN in empty bins.
        error: the expected calibration error: the mean distance of both, bins weighted by their rows.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> Calibration:
    """The expected calibration error (Guo et al., 2017, equation 3) and its bins, each open below and closed above.

    Args:
        confidence: in 0..1 (N,): the highest score of each row.
        right: bool (N,).
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    there = counts > 0
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (confidence, right)]
    mean, share = (np.divide(s, counts, out=np.full(bins, np.nan), where=there) for s in sums)
    error = (np.abs(mean - share)[there] * counts[there]).sum() / max(1, len(confidence))
    return Calibration(counts, mean, share, float(error))


@dataclass(frozen=True)
class RegressionErrors:
    """Of each output (K,): mean absolute error, root of the mean squared error, and explained variance R^2 (NaN where
    the truth does not vary)."""

    mae: np.ndarray
    rmse: np.ndarray
    r2: np.ndarray


def regression_errors(predicted: np.ndarray, targets: np.ndarray) -> RegressionErrors:
    """Errors of predictions (N, K) of numbers (N, K)."""
    error = predicted.astype(np.float64) - targets
    spread = np.square(targets - targets.mean(0, dtype=np.float64)).sum(0)
    r2 = 1 - np.divide(np.square(error).sum(0), spread, out=np.full(len(spread), np.nan), where=spread > 0)
    return RegressionErrors(np.abs(error).mean(0), np.sqrt(np.square(error).mean(0)), r2)


# How sure ------------------------------------------------------------------------------------------------------------

Z95 = 1.959963984540054  # 95 % of a normal distribution lie within so many deviations


def wilson(right: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, `right` of `count` (Wilson, 1927): it stays within 0..1 and holds for few rows."""
    share, z2 = right / count, Z95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * np.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def class_mean_interval(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of `mean_class_accuracy`: normal, from each class's own variance.

    A class's variance is that of four more rows, two of them right (Agresti and Coull, 1998), so that one whose few
    rows are all right is not thought certain.
    """
    right, counts = (
        np.bincount(targets, weights=weights, minlength=scores.shape[1]) for weights in (hits(scores, targets), None)
    )
    right, counts = right[counts > 0], counts[counts > 0]
    share = (right + 2) / (counts + 4)
    half = Z95 * np.sqrt((share * (1 - share) / (counts + 4)).sum()) / len(counts)
    mean = (right / counts).mean()
    return max(0.0, float(mean - half)), min(1.0, float(mean + half))


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    count: int,
    *,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of a statistic of `count` rows: the middle 95 % of its values on rows drawn with replacement.

    Args:
        statistic: of the numbers of the rows drawn, (any,); draws on which it is NaN are left out.
        groups: whole numbers (count,): rows of one group (clips of one video, say) are drawn together.
    """
    random = np.random.default_rng(seed)
    if groups is None:
        members = [np.array([row]) for row in range(count)]
    else:
        members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    values = []
    for _ in range(draws):
        drawn = random.integers(0, len(members), len(members))
        rows = drawn if groups is None else np.concatenate([members[i] for i in drawn])
        values.append(statistic(rows))
    known = np.array(values)[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
