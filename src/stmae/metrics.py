"""Scores, in NumPy: how near what a model painted back comes to what was hidden, and how well features tell classes.

explained variance = 1 - sum (original - painted)^2 / sum (original - mean)^2      over the hidden pixels
PSNR               = -10 log10(mean (original - painted)^2)                        pixels in 0..1, in dB

1 is a perfect picture; 0 is what the best single colour for all hidden pixels of the clip would score, so "predicting
nothing" cannot be above 0; below 0 is worse than that.
"""

from __future__ import annotations

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


def knn_score(
    features: np.ndarray,
    labels: np.ndarray,
    asked: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """The share of features whose class their nearest neighbours tell (weighted kNN: Wu et al., 2018, section 3.4).

    The k neighbours with the greatest cosine similarity s vote for their classes with weight exp(s / temperature).

    Args:
        features, labels: (N, D) and whole numbers from 0 (N,): those that are known.
        asked, truth: (M, D) and (M,): those to be classified. Without them each of the known is classified by all
            others (leave one out).
        k: fewer where the smallest class has fewer, or the others would outvote it whatever the features.
    """
    known = _unit(features)
    alone = asked is None
    queries = known if asked is None else _unit(asked)
    truth = labels if truth is None else truth
    assert len(known) > alone, "nothing to compare with"
    sizes = np.bincount(labels)
    k = max(1, min(k, int(sizes[sizes > 0].min()) - alone))
    right = 0
    for start in range(0, len(queries), 1024):
        similar = queries[start : start + 1024] @ known.T
        rows = np.arange(len(similar))
        if alone:
            similar[rows, start + rows] = -np.inf
        near = np.argsort(-similar, axis=1, kind="stable")[:, :k]
        # Relative to the nearest one, so that no weight overflows.
        weights = np.exp((np.take_along_axis(similar, near, 1) - similar.max(1, keepdims=True)) / temperature)
        votes = np.zeros((len(similar), int(labels.max()) + 1))
        np.add.at(votes, (rows[:, None], labels[near]), weights)
        right += int((votes.argmax(1) == truth[start : start + 1024]).sum())
    return right / len(queries)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
