"""motion-8: in which of 8 directions does a window move over real footage? Exact labels, and only motion tells them.

A crop of 64 pixels moves over video of 128 pixels at 1 to 3 whole pixels a frame, for 16 frames, while the video plays.

    128  ┌──────────────┐        the path's box lies anywhere, whatever the direction, so that no single frame says
         │ ┌────┐       │        where the crop is heading; each video gives every direction equally often
         │ │    │→      │
         │ └────┘       │        reversed in time, a clip shows the opposite direction
         └──────────────┘

`judge` says how well frozen features tell the directions, on the validation part of the footage (footage.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from footage import FRAME, Footage
from torch import Tensor

from stmae.model.encoder import VideoViT

FRAMES, CROP, CLASSES = 16, 64, 8
SPEEDS = (1, 2, 3)
DIRECTIONS = np.array([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)])  # of the crop, (x, y)
OPPOSITE = (np.arange(CLASSES) + 4) % CLASSES


# Clips ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clips:
    """Clips by their numbers, all int64 (n,).

    Attributes:
        videos: of the footage.
        starts: the first frame within the video.
        steps: footage frames from one frame of the clip to the next; below 0 the footage runs backwards.
        velocity: (n, 2), of the crop in pixels a frame, x and y.
        corners: (n, 2), the left and upper end of the box that a path at this speed could fill.
        labels: what is asked.
    """

    videos: np.ndarray
    starts: np.ndarray
    steps: np.ndarray
    velocity: np.ndarray
    corners: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, which: np.ndarray | slice) -> Clips:
        return Clips(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def paths(self) -> np.ndarray:
        """The crop's corner in each frame: (n, FRAMES, 2). Along an axis without motion it is the box's middle."""
        speed = np.abs(self.velocity).max(axis=1)[:, None]
        span = (FRAMES - 1) * speed
        begin = np.where(self.velocity > 0, 0, np.where(self.velocity < 0, span, span // 2))
        return self.corners[:, None] + begin[:, None] + self.velocity[:, None] * np.arange(FRAMES)[None, :, None]


def draw(footage: Footage, part: str, count: int, seed: int) -> Clips:
    """Labelled clips of motion-8: about `count` (a multiple of 8), clusters alike, directions balanced in each video.

    Each block of 8 clips shows the 8 directions on one video; a cluster's blocks go round its videos.
    """
    rng = np.random.default_rng([seed, *part.encode()])
    videos = footage.videos(part)
    by_cluster = [videos[footage.clusters[videos] == c] for c in np.unique(footage.clusters[videos])]
    blocks = round(count / CLASSES)
    turns = [rng.permutation(own) for own in (by_cluster[i] for i in rng.permutation(len(by_cluster)))]
    chosen = np.array([turns[b % len(turns)][b // len(turns) % len(turns[b % len(turns)])] for b in range(blocks)])
    labels = np.tile(np.arange(CLASSES), blocks)
    videos = np.repeat(chosen, CLASSES)
    speeds = rng.choice(SPEEDS, len(videos))
    return _placed(footage, videos, DIRECTIONS[labels] * speeds[:, None], labels, rng)


def draw_unlabelled(footage: Footage, part: str, count: int, seed: Sequence[int]) -> Clips:
    """Clips for pre-training: any velocity of -3 to 3 pixels a frame in x and in y, no labels."""
    rng = np.random.default_rng(seed)
    top = SPEEDS[-1]
    velocity = rng.integers(-top, top + 1, (count, 2))
    return _placed(footage, rng.choice(footage.videos(part), count), velocity, np.zeros(count, np.int64), rng)


def draw_time(footage: Footage, part: str, count: int, seed: int, task: str) -> Clips:
    """The secondary tasks, under a crop that stands still: "speed" (footage at 1, 2, 3 frames a step), or "arrow"."""
    rng = np.random.default_rng([seed, *part.encode(), *task.encode()])
    choices = np.array([1, 2, 3] if task == "speed" else [1, -1])
    videos = footage.videos(part)
    videos = videos[footage.counts[videos] > (FRAMES - 1) * np.abs(choices).max()]
    labels = np.tile(np.arange(len(choices)), -(-count // len(choices)))
    videos = np.repeat(rng.choice(videos, len(labels) // len(choices)), len(choices))
    return _placed(footage, videos, np.zeros((len(videos), 2), np.int64), labels, rng, choices[labels])


def _placed(
    footage: Footage,
    videos: np.ndarray,
    velocity: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    steps: np.ndarray | None = None,
) -> Clips:
    steps = np.ones(len(videos), np.int64) if steps is None else steps
    room = footage.counts[videos] - (FRAMES - 1) * np.abs(steps)
    corner = FRAME - CROP - (FRAMES - 1) * np.abs(velocity).max(axis=1)
    corners = rng.integers(0, corner[:, None] + 1, (len(videos), 2))
    starts = rng.integers(0, room) + np.where(steps < 0, (FRAMES - 1) * -steps, 0)
    return Clips(videos, starts, steps, velocity, corners, labels)


def pixels(footage: Footage, clips: Clips) -> Tensor:
    """uint8 (n, 3, FRAMES, CROP, CROP)."""
    out = np.empty((len(clips), FRAMES, CROP, CROP, 3), np.uint8)
    rows = footage.firsts[clips.videos] + clips.starts
    for i, path in enumerate(clips.paths()):
        for t, (x, y) in enumerate(path):
            out[i, t] = footage.frames[rows[i] + t * clips.steps[i], y : y + CROP, x : x + CROP]
    return torch.from_numpy(out).permute(0, 4, 1, 2, 3).contiguous()


def batches(footage: Footage, clips: Clips, size: int = 32) -> Iterator[Tensor]:
    """The clips' pixels in portions."""
    for begin in range(0, len(clips), size):
        yield pixels(footage, clips[slice(begin, begin + size)])


def repeated(clip: Tensor, frame: int = 0) -> Tensor:
    """One frame all the time: what a still picture can tell. The first and the last tell most: the crop begins at one
    end of its path's box, so that a model that knew where the crop lies in the video would often know the direction.
    """
    return clip[:, :, frame : frame + 1].expand_as(clip).contiguous()


def shuffled(clip: Tensor) -> Tensor:
    """Frames in one fixed, disorderly order."""
    return clip[:, :, torch.from_numpy(np.random.default_rng(0).permutation(FRAMES))]


def reversed_in_time(clip: Tensor) -> Tensor:
    return clip.flip(2)


# Judging -------------------------------------------------------------------------------------------------------------


def phase_correlation(clip: Tensor) -> np.ndarray:
    """The direction of each clip by phase correlation of frames that follow each other, without learning: (n,)."""
    grey = clip.float().mean(dim=1)
    window = torch.hann_window(CROP, periodic=False)
    spectra = torch.fft.fft2((grey - grey.mean(dim=(2, 3), keepdim=True)) * window * window[:, None])
    cross = spectra[:, :-1] * spectra[:, 1:].conj()
    surface = torch.fft.ifft2(cross / cross.abs().clamp(min=1e-6)).real.sum(dim=1)
    # The scene moves against the crop; of the shifts that occur, the best.
    scores = [surface[:, s * y % CROP, s * x % CROP] for x, y in DIRECTIONS.tolist() for s in SPEEDS]
    return (torch.stack(scores, dim=1).argmax(dim=1) // len(SPEEDS)).numpy()


@torch.no_grad()
def features(encoder: VideoViT, footage: Footage, clips: Clips) -> Tensor:
    """Frozen tokens, averaged over 2 x 2 neighbours: float16 (n, t * h/2 * w/2, D)."""
    encoder.eval()
    found = []
    for clip in batches(footage, clips):
        grid = encoder(clip, features="grid")
        B, t, h, w, D = grid.shape
        found.append(grid.reshape(B, t, h // 2, 2, w // 2, 2, D).mean(dim=(3, 5)).flatten(1, 3).half())
    return torch.cat(found)


def attend(
    train: tuple[Tensor, np.ndarray], choose: tuple[Tensor, np.ndarray], asked: Tensor, *, seed: int, epochs: int = 30
) -> tuple[np.ndarray, float]:
    """Attentive probes on features, a grid of learning rates and weight decays at once; the best on `choose` answers.

    Args:
        train, choose: features (n, N, D) and labels (n,).
        asked: features of what is to be told.

    Returns:
        Classes of `asked`, and the best probe's accuracy on `choose`.
    """
    from stmae.model.probes import AttentiveProbe, attentive_probes

    torch.manual_seed(seed)
    grid = [(lr, decay) for lr in (3e-4, 1e-3, 3e-3) for decay in (0.01, 0.3)]
    width, classes = train[0].shape[2], int(train[1].max()) + 1
    probes = [AttentiveProbe(width, max(1, width // 64), classes) for _ in grid]
    groups = [
        {"params": list(probe.parameters()), "lr": lr, "weight_decay": decay, "peak": lr}
        for probe, (lr, decay) in zip(probes, grid, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    labels, order = torch.from_numpy(train[1]), np.random.default_rng(seed)
    size = min(64, len(labels))
    steps = epochs * (len(labels) // size)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1, (step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
        rows = torch.from_numpy(order.choice(len(labels), size, replace=False))
        logits = attentive_probes(probes, train[0][rows].float())
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[rows].repeat(len(probes)), reduction="sum").div(
            size
        ).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def answers(tokens: Tensor) -> np.ndarray:
        parts = [attentive_probes(probes, part.float()).argmax(dim=2) for part in tokens.split(256)]
        return torch.cat(parts, dim=1).numpy()

    scores = (answers(choose[0]) == choose[1]).mean(axis=1)
    best = int(scores.argmax())
    return answers(asked)[best], float(scores[best])


def judge(
    encoder: VideoViT, footage: Footage, *, labels: int = 1024, held_out: int = 560, seeds: Sequence[int] = (0, 1, 2)
) -> dict[str, Any]:
    """How well frozen features tell the direction: attentive probe on labels of the training part, validation part.

    The clips of the validation part are fixed; half of its clusters choose the probe's settings, and the other half
    gives the score, then the other way round. The test part is not touched.

    Returns:
        {"accuracy": mean over the seeds, "by_seed": [...], "chance": 0.125, "labels": ..., "clips": ...}.
    """
    val = draw(footage, "val", held_out, 0)
    found, halves = features(encoder, footage, val), footage.clusters[val.videos]
    first = np.isin(halves, np.unique(halves)[::2])
    by_seed = []
    for seed in seeds:
        train = draw(footage, "train", labels, 1000 + seed)
        known = features(encoder, footage, train), train.labels
        right = np.zeros(len(val), bool)
        for half in (first, ~first):
            told, _ = attend(known, (found[half], val.labels[half]), found[~half], seed=seed)
            right[~half] = told == val.labels[~half]
        by_seed.append(round(float(right.mean()), 4))
    return {
        "accuracy": float(np.mean(by_seed)), "by_seed": by_seed, "chance": 1 / CLASSES, "labels": labels,
        "clips": len(val),
    }  # fmt: skip
