"""Labelled pictures of what a model paints back: grids, GIFs, videos; and loss curves.

90 % hidden
original   masked    painted back   nothing   copied
[      ]   [ # # ]   [          ]   [     ]   [    ]      one row per time step or clip
                     explains 71 %  ...
                     PSNR 23.4 dB
un-normalised with visible neighbours' statistics
"""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stmae.charts import rgb
from stmae.errors import UserError
from stmae.metrics import Scores, scores

if TYPE_CHECKING:
    from torch import Tensor

    from stmae.model.paint import Painting

LONG_SIDE = 160  # panels smaller than this are scaled up, by a whole number so that pixels stay square
TEXT, HEADING = 14, 17  # sizes of the fonts in pixels
MARGIN, GAP, LEADING = 14, 6, 1.3
INK, PALE, PAPER = (20, 20, 20), (90, 90, 90), (255, 255, 255)

COLUMNS = ("original", "masked", "painted back", "nothing", "copied")
STATISTICS = {
    "visible": "un-normalised with visible neighbours' statistics",
    "true": "un-normalised with the hidden patches' own statistics: these give much away",
    None: "predicted as pixels",
}


@dataclass(frozen=True)
class Block:
    """A table of panels.

    Attributes:
        title: stands above it.
        columns: names of the columns.
        notes: what stands below each column, of one or more lines.
        panels: rows of pictures, uint8 (H, W, 3), all of one size.
    """

    title: str
    columns: Sequence[str]
    notes: Sequence[str]
    panels: Sequence[Sequence[np.ndarray]]


def grid(
    blocks: Sequence[Block], *, title: str = "", rows: Sequence[str] = (), footer: str = "", stacked: bool = False
) -> np.ndarray:
    """Blocks side by side, or below one another, as one labelled picture: uint8 (height, width, 3).

    Args:
        blocks: with the same number of rows each.
        rows: labels at the left of the rows, or none.
    """
    side = math.ceil(max(_width(label, TEXT) for label in rows)) + 2 * GAP if rows else 0
    drawn = [_block(block, rows if stacked or i == 0 else (), side) for i, block in enumerate(blocks)]
    gap = 2 * MARGIN
    across = [max(part.width for part in drawn)] if stacked else [part.width for part in drawn]
    down = [part.height for part in drawn] if stacked else [max(part.height for part in drawn)]
    inner = sum(across) + gap * (len(across) - 1)
    above = _wrap(title, HEADING, inner)
    below = _wrap(footer, TEXT, inner)
    top = MARGIN + len(above) * _line(HEADING) + (GAP if above else 0)
    height = top + sum(down) + gap * (len(down) - 1) + (GAP if below else 0) + len(below) * _line(TEXT) + MARGIN
    page = Image.new("RGB", (inner + 2 * MARGIN, height), PAPER)
    draw = ImageDraw.Draw(page)
    _lines(draw, above, MARGIN, MARGIN, HEADING, INK)
    x, y = MARGIN, top
    for part in drawn:
        page.paste(part, (x, y))
        x, y = (x, y + part.height + gap) if stacked else (x + part.width + gap, y)
    _lines(draw, below, MARGIN, top + sum(down) + gap * (len(down) - 1) + GAP, TEXT, PALE)
    return np.asarray(page)


def _block(block: Block, rows: Sequence[str], side: int) -> Image.Image:
    panels = [[_enlarge(panel) for panel in row] for row in block.panels]
    wide, high = panels[0][0].size
    notes = [note.splitlines() for note in block.notes]
    widths = [
        max(wide, *(math.ceil(_width(text, TEXT)) for text in (name, *note)))
        for name, note in zip(block.columns, notes, strict=True)
    ]
    left = side if rows else 0
    head = (_line(HEADING) + GAP if block.title else 0) + _line(TEXT)
    foot = max(len(note) for note in notes) * _line(TEXT)
    width = max(left + sum(widths) + GAP * (len(widths) - 1), math.ceil(_width(block.title, HEADING)))
    image = Image.new("RGB", (width, head + len(panels) * (high + GAP) + foot), PAPER)
    draw = ImageDraw.Draw(image)
    _lines(draw, [block.title], left, 0, HEADING, INK)
    x = left
    for column, (name, note) in enumerate(zip(block.columns, notes, strict=True)):
        _lines(draw, [name], x, head - _line(TEXT), TEXT, INK)
        for row, line in enumerate(panels):
            image.paste(line[column], (x, head + row * (high + GAP)))
        _lines(draw, note, x, head + len(panels) * (high + GAP), TEXT, INK)
        x += widths[column] + GAP
    for row, label in enumerate(rows):
        _lines(draw, [label], 0, head + row * (high + GAP) + (high - _line(TEXT)) // 2, TEXT, PALE)
    return image


def _enlarge(panel: np.ndarray) -> Image.Image:
    height, width = panel.shape[:2]
    times = math.ceil(LONG_SIDE / max(height, width))
    return Image.fromarray(panel).resize((width * times, height * times), Image.Resampling.NEAREST)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _width(text: str, size: int) -> float:
    return _font(size).getlength(text)


def _line(size: int) -> int:
    return math.ceil(size * LEADING)


def _wrap(text: str, size: int, width: int) -> list[str]:
    """Lines no wider than `width`, broken between words, or within a word that is wider."""
    lines: list[str] = []
    for word in text.split():
        if lines and _width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
            continue
        while _width(word, size) > width and len(word) > 1:
            fits = max(1, sum(_width(word[: n + 1], size) <= width for n in range(len(word))))
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines


def _lines(
    draw: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int, size: int, colour: tuple[int, int, int]
) -> None:
    for i, line in enumerate(lines):
        draw.text((x, y + i * _line(size)), line, fill=colour, font=_font(size))


# Pictures of paintings -----------------------------------------------------------------------------------------------


def clips_picture(paintings: Mapping[float, Painting], *, frame: int | None = None, title: str = "") -> np.ndarray:
    """Several clips at one moment, one row per clip: uint8 (height, width, 3).

    Args:
        paintings: by mask ratio, of the same clips; the ratios stand side by side.
        frame: which of the painted frames, counted from 0; the middle one unless given.
    """
    first = next(iter(paintings.values()))
    frame = len(first.frames) // 2 if frame is None else frame
    places = [(clip, frame) for clip in range(len(first.original))]
    return _side_by_side(paintings, places, None, title)


def steps_picture(
    paintings: Mapping[float, Painting], times: Sequence[float], *, clip: int = 0, steps: int = 4, title: str = ""
) -> np.ndarray:
    """One clip at several moments, one row per time step: uint8 (height, width, 3).

    Args:
        paintings: by mask ratio, of the same clips; the ratios stand side by side.
        times: seconds at which the painted frames are shown in the video, for the rows' labels.
        steps: at most so many rows, spread over the painted frames.
    """
    frames = spread_rows(len(times), steps)
    places = [(clip, frame) for frame in frames]
    return _side_by_side(paintings, places, clip, title, [f"{times[frame]:.2f} s" for frame in frames])


def _side_by_side(
    paintings: Mapping[float, Painting],
    places: Sequence[tuple[int, int]],
    scored: int | None,
    title: str,
    rows: Sequence[str] = (),
) -> np.ndarray:
    """A row of panels for each (clip, painted frame); the original stands once, at the left."""
    blocks: list[Block] = []
    for ratio, painting in paintings.items():
        first = 1 if blocks else 0
        columns = _columns(painting)[first:]
        panels = [[column[place] for column in columns] for place in places]
        blocks.append(Block(_hidden(ratio), COLUMNS[first:], _notes(scores(painting), scored)[first:], panels))
    return grid(blocks, rows=rows, title=title, footer=_footer(next(iter(paintings.values()))))


def animation(paintings: Mapping[float, Painting], *, clip: int = 0, title: str = "") -> list[np.ndarray]:
    """One clip moving, one row of panels per mask ratio: a picture uint8 (height, width, 3) per painted frame."""
    columns = {ratio: _columns(painting) for ratio, painting in paintings.items()}
    notes = {ratio: _notes(scores(painting), clip) for ratio, painting in paintings.items()}
    first = next(iter(paintings.values()))
    pages = []
    for frame in range(len(first.frames)):
        blocks = [
            Block(_hidden(ratio), COLUMNS, notes[ratio], [[column[clip, frame] for column in columns[ratio]]])
            for ratio in paintings
        ]
        pages.append(grid(blocks, title=title, footer=_footer(first), stacked=True))
    return pages


def _columns(painting: Painting) -> list[np.ndarray]:
    kinds = (painting.original, painting.masked, painting.painted, painting.nothing, painting.copied)
    return [_pixels(kind) for kind in kinds]


def _pixels(pictures: Tensor) -> np.ndarray:
    """(B, C, T, H, W) in 0..1 to uint8 (B, T, H, W, 3)."""
    return rgb(pictures.movedim(1, -1).cpu().numpy())


def _notes(found: Mapping[str, Scores], clip: int | None = None) -> list[str]:
    """What stands below each of `COLUMNS`: the scores of one clip, or their means."""
    notes = ["", ""]
    for name in ("painted", "nothing", "copied"):
        score = found[name]
        explained, psnr = (
            (score.mean_explained, score.mean_psnr) if clip is None else (score.explained[clip], score.psnr[clip])
        )
        notes.append(f"explains {percent(explained)}\nPSNR {decibel(psnr)}")
    return notes


def percent(share: float) -> str:
    """An explained variance for people: "71 %"; "-" where there was nothing to explain."""
    return "-" if math.isnan(share) else f"{round(100 * share)} %"


def decibel(psnr: float) -> str:
    """A PSNR for people: "23.4 dB"."""
    return "exact" if math.isinf(psnr) else f"{psnr:.1f} dB"


def _hidden(ratio: float) -> str:
    return f"{100 * ratio:g} % hidden"


def _footer(painting: Painting) -> str:
    return (
        f"Painted back: {STATISTICS[painting.statistics]}. Baselines: nothing = the visible patches' mean colour; "
        "copied = the nearest visible patch in time. Explains: share of the hidden pixels' variance; "
        "PSNR over hidden pixels."
    )


def spread_rows(count: int, steps: int) -> list[int]:
    """At most `steps` of `count` frames, evenly spread, first and last among them."""
    return [round(i) for i in np.linspace(0, count - 1, min(steps, count))]


# Files ---------------------------------------------------------------------------------------------------------------


def save_png(path: str | Path, picture: np.ndarray) -> Path:
    """Writes a picture, uint8 (H, W, 3)."""
    Image.fromarray(picture).save(path, format="PNG")
    return Path(path)


def save_gif(path: str | Path, pictures: Sequence[np.ndarray], fps: float) -> Path:
    """Writes pictures, uint8 (H, W, 3) of one size, as an animation that repeats for ever."""
    Path(path).write_bytes(gif(pictures, fps))
    return Path(path)


def gif(pictures: Sequence[np.ndarray], fps: float) -> bytes:
    """Pictures, uint8 (H, W, 3) of one size, as a GIF file that repeats for ever."""
    frames = [Image.fromarray(picture) for picture in pictures]
    # One palette for all frames, so that nothing flickers that does not move; a part of the pixels tells the colours.
    step = math.ceil(math.sqrt(len(pictures) * pictures[0].size / 3 / 2**18))
    strip = Image.fromarray(np.concatenate([picture[::step, ::step] for picture in pictures]))
    palette = strip.quantize(256, method=Image.Quantize.MEDIANCUT)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames)
    encoded = io.BytesIO()
    first.save(encoded, format="GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    return encoded.getvalue()


def clips_gif(painting: Painting, fps: float, *, side: int = 112) -> bytes:
    """Several clips moving, one row per clip (original, masked, painted back), as a small GIF file.

    Args:
        side: panels are made smaller, by leaving out pixels, until no side is longer.
    """
    columns = [_pixels(kind) for kind in (painting.original, painting.masked, painting.painted)]  # (B, T, H, W, 3)
    step = math.ceil(max(columns[0].shape[2:4]) / side)
    whole = np.concatenate([np.concatenate(list(column[:, :, ::step, ::step]), axis=1) for column in columns], axis=2)
    return gif(list(whole), fps)


def save_mp4(path: str | Path, pictures: Sequence[np.ndarray], fps: float) -> Path:
    """Writes pictures, uint8 (H, W, 3) of one size, as H.264, or as MPEG-4 where the build cannot encode that.

    Sizes are made even with a line of paper, which the colour format asks for.
    """
    import av
    from av.codec import Codec

    def encodes(name: str) -> bool:
        try:
            return Codec(name, "w").is_encoder
        except ValueError:  # PyAV's error for a codec this build does not have
            return False

    codec = next(name for name in ("libx264", "h264", "mpeg4") if encodes(name))
    high, wide = (size + size % 2 for size in pictures[0].shape[:2])
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = wide, high, "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "16"}
        else:
            stream.bit_rate = 4 * wide * high
        for picture in pictures:
            padded = np.full((high, wide, 3), 255, np.uint8)
            padded[: picture.shape[0], : picture.shape[1]] = picture
            for packet in stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return Path(path)


# Curves --------------------------------------------------------------------------------------------------------------


def plot_curves(
    metrics: str | Path, path: str | Path, names: Sequence[str] = ("loss", "held_out_loss"), *, title: str = ""
) -> Path:
    """Draws numbers of a run's metrics.jsonl over its steps, as PNG or SVG by the ending of `path`.

    Raises:
        UserError: no metrics there, or none of the names in them.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = {name: curve for name, curve in read_curves(metrics, names).items() if curve}
    if not curves:
        raise UserError(f'"{metrics}" holds no {" or ".join(names)}.', "Give the metrics.jsonl of a run.")
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120, layout="constrained")
    try:
        for name, curve in curves.items():
            steps, values = zip(*curve, strict=True)
            axes.plot(steps, values, label=name.replace("_", " "), linewidth=1.6, marker="." if len(curve) < 60 else "")
        axes.set_xlabel("step")
        axes.set_title(title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(path)
    finally:
        pyplot.close(figure)
    return Path(path)


def read_curves(metrics: str | Path, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """(step, value) pairs by name from a metrics.jsonl; values that were not finite are left out.

    Raises:
        UserError: the file cannot be read, or is no metrics.jsonl.
    """
    curves: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    try:
        for text in Path(metrics).read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            for name in names:
                if line.get(name) is not None:
                    curves[name].append((line["step"], line[name]))
    except OSError as error:
        raise UserError(f'"{metrics}" cannot be read: {error.strerror}.', "Give the metrics.jsonl of a run.") from None
    except (ValueError, KeyError, AttributeError):
        raise UserError(f'"{metrics}" is no metrics.jsonl.', "Give the one in a run's folder.") from None
    return curves
