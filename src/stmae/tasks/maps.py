"""`stmae maps`: what an encoder attends to, and its features as colours, as pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stmae import charts, pictures
from stmae.data.sources import TensorSource
from stmae.data.views import starting
from stmae.engine.log import Console, Log
from stmae.engine.precision import computing
from stmae.errors import Problems, UserError
from stmae.interop.native import load_with_extras
from stmae.model.config import ClipConfig
from stmae.model.encoder import VideoViT
from stmae.model.maps import attention_map, principal_maps
from stmae.tasks import build
from stmae.tasks.maps_options import MapsOptions
from stmae.tasks.middle import free_stem, one_each
from stmae.tasks.task import task
from stmae.tasks.videos import none_readable, open_videos, places_of, printable, stride_of

STEPS = 4  # rows of a picture

Columns = dict[str, tuple[np.ndarray, str]]  # by name, panels uint8 (t, H, W, 3) and what stands below them


@dataclass
class Maps:
    """What `maps` made: the files it wrote, the videos' names, and by path why a video could not be read."""

    pictures: list[Path] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)


@task(MapsOptions)
def maps(options: MapsOptions) -> Maps:
    """Returns:
        A `Maps`: the files written, the videos, what could not be read.

    Raises:
        UserError: a mistake in the options, sizes that the patch does not divide, or no video that can be read.
    """
    device = build.pick_device(options.device)
    precision, _ = build.pick_precision(options.precision, device)
    model, extras = load_with_extras(options.model)
    encoder = (model if isinstance(model, VideoViT) else model.encoder).to(device)
    layer = encoder.layer(options.layer)
    frames, size = _sizes(options, encoder.config.clip)
    found, stems = Maps(), set[str]()
    options.out.mkdir(parents=True, exist_ok=True)
    with build.cpu_threads(options.threads), Log([Console()]) as log:
        source, values = open_videos(options, encoder.config.clip, extras, log.message)
        if isinstance(source, TensorSource):
            raise UserError("clips from Python have no pictures here.", "Use stmae.model.maps on them.")
        stride = stride_of(extras)
        places = places_of(extras, frames, 1) if options.start is None else starting(frames, stride, options.start)
        count = min(options.clips, len(source))
        for path, view in one_each(source, places, size, values, count, options.start, found.bad, log):
            clip = view.clip[None].to(device)
            with computing(device, precision):
                columns = map_columns(encoder, clip, layer)
            note = f"layer {layer} of {encoder.config.blocks.depth}"
            title = f"{printable(path)}, {note}"
            found.pictures += _save(options.out, free_stem(Path(path).stem, stems), columns, view.times, title, encoder)
            found.videos.append(path)
            log.progress(len(found.videos), count)
        if not found.videos:
            raise none_readable(found.bad)
        if found.bad:
            bad = [(printable(path), reason) for path, reason in found.bad.items()]
            log.table(f"{len(bad)} videos cannot be read and were left out:", bad)
        log.table(f"{len(found.pictures)} pictures written:", [(printable(str(path)),) for path in found.pictures])
    return found


def _sizes(options: MapsOptions, clip: ClipConfig) -> tuple[int, tuple[int, int]]:
    """Frames, and height and width, that are asked for; any multiple of the patch."""
    frames = options.frames or clip.frames
    height, width = (options.image_size or side for side in (clip.height, clip.width))
    problems, (pt, ph, pw) = Problems(), clip.patch
    for name, value, step in (("frames", frames, pt), ("image_size", height, ph), ("image_size", width, pw)):
        near = f"{max(1, value // step) * step} or {(value // step + 1) * step}"
        problems.check(value % step == 0, f"{name} {value} is not a multiple of the patch's {step}.", f"Choose {near}.")
    problems.raise_any()
    return frames, (height, width)


def map_columns(encoder: VideoViT, clip: Tensor, layer: int | None = None) -> Columns:
    """The pictures of a clip (1, C, T, H, W): a panel for each step of the token grid, uint8 (t, H, W, 3)."""
    H, W = clip.shape[3:]
    with torch.no_grad():
        features = encoder(clip, features="grid", layer=layer)
    attention = attention_map(encoder, clip, layer).mean(1)[0]  # over heads: (t, h, w)
    colours = principal_maps(features)[0]
    shown = clip[0, :, :: encoder.config.clip.patch[0]]
    pixels = shown.float() / 255 if shown.dtype == torch.uint8 else _undone(encoder, shown)
    original = charts.rgb(pixels.movedim(0, -1).cpu().numpy())
    relative = attention * attention.numel()  # 1 where all patches are attended to alike
    low, high = torch.quantile(relative, torch.tensor([0.02, 0.98], device=relative.device)).tolist()
    strength = ((relative - low) / max(high - low, 1e-12)).clamp(0, 1).cpu().numpy()
    return {
        "original": (original, ""),
        "attention": (
            charts.heat(original, _spread(strength, H, W)),
            f"dark {low:.2g} x, bright {high:.2g} x\nthe mean",
        ),
        "features": (_spread((colours.cpu().numpy() * 255).round().astype(np.uint8), H, W), ""),
    }


def _undone(encoder: VideoViT, clip: Tensor) -> Tensor:
    """A normalised clip (C, T, H, W) as pixels in 0..1."""
    return encoder.normalize.undo(clip.movedim(0, -1)).movedim(-1, 0).clamp(0, 1)


def _spread(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """(t, h, w, ...) to (t, height, width, ...): each token as the block of pixels that it stands for."""
    return grid.repeat(height // grid.shape[1], axis=1).repeat(width // grid.shape[2], axis=2)


def _save(folder: Path, stem: str, columns: Columns, times: np.ndarray, title: str, encoder: VideoViT) -> list[Path]:
    """Writes <stem>.gif, .mp4 and .png."""
    step = encoder.config.clip.patch[0]
    shown = times[::step]
    whose = "of the class token" if encoder.config.class_token else "received from all patches"
    footer = (
        f"Attention {whose}, mean over heads; brightest: most. Features: their three largest principal components over"
        " the clip as red, green and blue."
    )

    def page(rows: list[int]) -> np.ndarray:
        panels = [[column[row] for column, _ in columns.values()] for row in rows]
        labels = [f"{shown[row]:.2f} s" for row in rows]
        block = pictures.Block("", list(columns), [note for _, note in columns.values()], panels)
        return pictures.grid([block], title=title, rows=labels, footer=footer)

    count = len(columns["original"][0])
    span = float(shown[-1] - shown[0])
    fps = min(60.0, (count - 1) / span) if span > 0 else 1.0
    moving = [page([row]) for row in range(count)]
    try:
        return [
            pictures.save_gif(folder / f"{stem}.gif", moving, fps),
            pictures.save_mp4(folder / f"{stem}.mp4", moving, fps),
            pictures.save_png(folder / f"{stem}.png", page(pictures.spread_rows(count, STEPS))),
        ]
    except OSError as error:
        raise UserError(
            f'the pictures cannot be written to "{folder}": {error.strerror or error}.', "Choose another place: --out."
        ) from None
