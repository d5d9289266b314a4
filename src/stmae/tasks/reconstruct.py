"""`stmae reconstruct`: what a model paints back, as pictures and in numbers, beside two baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stmae import pictures
from stmae.data.clips import NOMINAL_FPS, clip_key
from stmae.data.dataset import FixedClips
from stmae.data.sources import Source, TensorSource
from stmae.data.values import Values
from stmae.data.views import starting
from stmae.engine.log import Console, Log
from stmae.engine.precision import computing
from stmae.errors import UserError
from stmae.interop.native import load_with_extras, with_decoder
from stmae.metrics import Scores, scores
from stmae.model.config import MaskKind
from stmae.model.mae import MaskedAutoencoder
from stmae.model.masking import draw_mask
from stmae.model.paint import Painting, Statistics, paint, require_pixels
from stmae.tasks import build
from stmae.tasks.inpaint import inpaint, read_mask, save_painted
from stmae.tasks.middle import free_stem, one_each
from stmae.tasks.reconstruct_options import ReconstructOptions
from stmae.tasks.task import task
from stmae.tasks.videos import none_readable, open_videos, places_of, printable, stride_of


@dataclass
class Reconstructions:
    """What `reconstruct` made.

    Attributes:
        pictures: the files it wrote.
        scores: by mask ratio, then "painted", "nothing" and "copied"; one entry per clip, in the order of `videos`.
        videos: the clips' names.
        bad: by path, why a video could not be read.
    """

    pictures: list[Path] = field(default_factory=list)
    scores: dict[float, dict[str, Scores]] = field(default_factory=dict)
    videos: list[str] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)


@dataclass
class _Clip:
    """One clip: its name, a file name for its pictures, (1, C, T, H, W), its key (1,), times of its frames (T,)."""

    name: str
    stem: str
    pixels: Tensor
    key: Tensor
    times: np.ndarray


@task(ReconstructOptions)
def reconstruct(options: ReconstructOptions) -> Reconstructions:
    """Returns:
        A `Reconstructions`: the files written, the scores, what could not be read.

    Raises:
        UserError: a mistake in the options, weights without a decoder, or not one video that can be read.
    """
    device = build.pick_device(options.device)
    model, extras = load_with_extras(options.model)
    autoencoder = with_decoder(model, options.model).to(device)
    require_pixels(autoencoder)
    precision, _ = build.pick_precision(options.precision, device)
    own = None if options.mask is None else read_mask(options.mask, autoencoder.config.encoder.clip)
    ratios = tuple(dict.fromkeys(options.mask_ratio)) or (autoencoder.config.mask_ratio,)
    found, made = Reconstructions(), dict[float, list[dict[str, Scores]]]()
    folder = options.out
    if "statistics" in options.given and autoencoder.config.target == "pixels":
        raise UserError(
            f'"{options.model}" predicts pixels as they are, for which statistics has no meaning.',
            "Leave it out.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with build.cpu_threads(options.threads), Log([Console()]) as log:
        source, values = open_videos(options, autoencoder.config.encoder.clip, extras, log.message)
        count = min(options.clips, len(source))
        for clip in _clips(source, values, options, autoencoder, extras, found, log):
            if own is not None:
                painting = inpaint(autoencoder, clip.pixels, own, options.statistics, precision)
                paintings = {round(float(own.mean()), 3): painting}
            else:
                paintings = {
                    ratio: repaint(autoencoder, clip.pixels, clip.key, ratio, options.statistics, precision)
                    for ratio in ratios
                }
            for ratio, painting in paintings.items():
                made.setdefault(ratio, []).append(scores(painting))
            found.pictures += save(
                folder, clip.stem, paintings, clip.times, title=printable(clip.name), alone=own is not None
            )
            found.videos.append(clip.name)
            log.progress(len(found.videos), count)
        if not found.videos:
            raise none_readable(found.bad)
        found.scores = {ratio: _joined(parts) for ratio, parts in made.items()}
        _report(log, found, autoencoder, options.statistics)
    return found


@torch.no_grad()
def repaint(
    model: MaskedAutoencoder, clips: Tensor, keys: Tensor, ratio: float, statistics: Statistics, precision: str = "fp32"
) -> Painting:
    """Hides tokens of clips (B, C, T, H, W) by their keys (B,) as in the model's training, and paints them back.

    A higher ratio leaves a part of those visible that a lower one does, since both go by the same noise.
    """
    config, device = model.config, next(model.parameters()).device
    clips, keys = clips.to(device), keys.to(device)
    kind: MaskKind = "agnostic" if config.mask == "own" else config.mask
    patches, grid = model.encoder.cut(clips)
    hidden, _, _ = draw_mask(replace(config, mask=kind, mask_ratio=ratio), grid, patches, keys)
    with computing(device, precision):
        output = model(clips, hidden=hidden, decode_all=True)
    return paint(model, clips, output, statistics=statistics)


def save(
    folder: Path,
    stem: str,
    paintings: dict[float, Painting],
    times: np.ndarray,
    *,
    title: str = "",
    alone: bool = False,
) -> list[Path]:
    """Writes <stem>.gif, .mp4 and .png of one clip at several mask ratios.

    Args:
        times: of the clip's frames in seconds, (T,).
        alone: write what was painted into the clip at the first ratio by itself too, as <stem>-painted.mp4.

    Raises:
        UserError: they cannot be written.
    """
    shown = times[next(iter(paintings.values())).frames]
    moving = pictures.animation(paintings, title=title)
    # As fast as the video itself; a clip that shows one moment stands for a second.
    span = float(shown[-1] - shown[0])
    fps = min(60.0, (len(shown) - 1) / span) if span > 0 else 1.0
    try:
        written = [
            pictures.save_gif(folder / f"{stem}.gif", moving, fps),
            pictures.save_mp4(folder / f"{stem}.mp4", moving, fps),
            pictures.save_png(folder / f"{stem}.png", pictures.steps_picture(paintings, shown.tolist(), title=title)),
        ]
        first = next(iter(paintings.values()))
        return [*written, save_painted(folder / f"{stem}-painted.mp4", first, fps)] if alone else written
    except OSError as error:
        raise UserError(
            f'the pictures cannot be written to "{folder}": {error.strerror or error}.', "Choose another place: --out."
        ) from None


def _clips(
    source: Source,
    values: Values,
    options: ReconstructOptions,
    model: MaskedAutoencoder,
    extras: Mapping[str, Any],
    found: Reconstructions,
    log: Log,
) -> Iterator[_Clip]:
    """One clip of each of at most `options.clips` videos that can be read; notes the others in `found`."""
    config = model.config.encoder.clip
    size = (config.height, config.width)
    stride = stride_of(extras)
    stems: set[str] = set()
    if isinstance(source, TensorSource):
        if options.start is not None:
            raise UserError("start has no meaning for clips from Python.", "Leave it out.")
        fixed = FixedClips(source, frames=config.frames, stride=stride, image_size=size, seed=options.seed)
        for item in range(min(options.clips, len(source))):
            sample = fixed[item]
            times = np.arange(config.frames) * stride / NOMINAL_FPS
            yield _Clip(f"clip {item}", f"clip-{item:04d}", sample.clips, sample.keys, times)
        return
    places = (
        places_of(extras, config.frames, 1) if options.start is None else starting(config.frames, stride, options.start)
    )
    clips = one_each(source, places, size, values, options.clips, options.start, found.bad, log)
    for path, view in clips:
        key = torch.tensor([clip_key(options.seed, -1, view.item, 0)])
        yield _Clip(path, free_stem(Path(path).stem, stems), view.clip[None], key, view.times)


def _joined(parts: list[dict[str, Scores]]) -> dict[str, Scores]:
    return {
        name: Scores(
            np.concatenate([part[name].explained for part in parts]),
            np.concatenate([part[name].psnr for part in parts]),
        )
        for name in parts[0]
    }


def _report(log: Log, found: Reconstructions, model: MaskedAutoencoder, statistics: Statistics) -> None:
    count = len(found.videos)
    rows = [("hidden", "painted back", "nothing", "copied")]
    for ratio, kinds in found.scores.items():
        cells = [
            f"{pictures.percent(kind.mean_explained):>5} {pictures.decibel(kind.mean_psnr):>8}"
            for kind in kinds.values()
        ]
        rows.append((f"{100 * ratio:g} %", cells[0], cells[1], cells[2]))
    how = pictures.STATISTICS[None if model.config.target == "pixels" else statistics]
    mean = f", mean of {count} clips" if count > 1 else ""
    log.table(f"explained variance and PSNR of the hidden pixels{mean} ({how})", rows)
    if found.bad:
        bad = [(printable(path), reason) for path, reason in found.bad.items()]
        log.table(f"{len(bad)} videos cannot be read and were left out:", bad)
    log.table(f"{len(found.pictures)} pictures written:", [(printable(str(path)),) for path in found.pictures])
