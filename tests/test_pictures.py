"""Pictures: panels where they belong, nothing cut off, files that other programs read."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import random_clip, tiny

from stmae import pictures
from stmae.errors import UserError
from stmae.model.paint import Painting, paint


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def find(panel: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """Where a panel stands in a picture: (top, left). It must be there exactly once."""
    height, width = panel.shape[:2]
    corners = np.argwhere((picture[: -height + 1, : -width + 1] == panel[0, 0]).all(-1))
    places = [(y, x) for y, x in corners if np.array_equal(picture[y : y + height, x : x + width], panel)]
    assert len(places) == 1
    return places[0]


def painting(**options: object) -> Painting:
    model = tiny(**options).float()  # type: ignore[arg-type]
    clip = random_clip(model.config)
    with torch.no_grad():
        return paint(model, clip, model(clip, keys=torch.tensor([1, 2])))


def nothing_cut_off(picture: np.ndarray) -> bool:
    """The margin is empty all around, so no text and no panel runs out of the page."""
    edge = 4
    sides = (picture[:edge], picture[-edge:], picture[:, :edge], picture[:, -edge:])
    return all((side == 255).all() for side in sides)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("size", [(200, 170), (160, 90), (32, 48), (7, 5)])
def test_panels_stand_in_rows_and_columns(size: tuple[int, int], stacked: bool) -> None:
    panels = [[[noise(*size, seed=100 * b + 10 * r + c) for c in range(3)] for r in range(2)] for b in range(2)]
    blocks = [pictures.Block(f"block {b}", ("a", "b", "c"), ("", "x", "y\nz"), panels[b]) for b in range(2)]
    picture = pictures.grid(blocks, title="a title", rows=("first", "second"), footer="a " * 300, stacked=stacked)
    assert picture.dtype == np.uint8
    assert nothing_cut_off(picture)
    times = max(1, -(-160 // max(size)))
    large = [[[np.kron(p, np.ones((times, times, 1), np.uint8)) for p in row] for row in block] for block in panels]
    assert max(large[0][0][0].shape) >= 160
    places = np.array([[[find(p, picture) for p in row] for row in block] for block in large])  # (b, r, c, 2)
    tops, lefts = places[..., 0], places[..., 1]
    assert (tops == tops[:, :, :1]).all()  # a row is level
    assert (lefts == lefts[:, :1]).all()  # a column is straight
    assert (np.diff(tops, axis=1) >= large[0][0][0].shape[0]).all()
    assert (np.diff(lefts, axis=2) >= large[0][0][0].shape[1]).all()
    below = tops[1].min() > tops[0].max()
    beside = lefts[1].min() > lefts[0].max()
    assert (below, beside) == ((True, False) if stacked else (False, True))


def test_long_words_above_small_panels_are_not_cut() -> None:
    block = pictures.Block(
        "a very long title of a block " * 2, ("painted back by the model",), ("explains 100 %",), [[noise(4, 3)]]
    )
    assert nothing_cut_off(pictures.grid([block], rows=("12345.67 s",), title="x" * 20, footer="words " * 40))


def test_a_word_longer_than_the_page_is_broken() -> None:
    block = pictures.Block("", ("a",), ("",), [[noise(160, 100)]])
    picture = pictures.grid([block], title="one/very_long/path_without/any_place/to_break/" * 3 + "clip.mp4")
    assert nothing_cut_off(picture)
    assert picture.shape[1] < 300


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_paintings_of_any_channels_become_pictures(channels: int) -> None:
    made = painting(channels=channels)
    assert nothing_cut_off(pictures.clips_picture({0.75: made}, title="step 10"))
    panels = pictures._pixels(made.original)
    assert panels.shape == (2, 4, 16, 24, 3)
    assert panels.dtype == np.uint8
    if channels < 3:
        assert (panels[..., :1] == panels).all()


def test_ratios_stand_side_by_side_or_below_one_another() -> None:
    made = painting()
    one = pictures.steps_picture({0.9: made}, [0.0, 0.5, 1.0, 1.5])
    two = pictures.steps_picture({0.9: made, 0.95: made}, [0.0, 0.5, 1.0, 1.5])
    assert two.shape[1] > 1.6 * one.shape[1]
    assert len(pictures.animation({0.9: made})) == len(made.frames)
    single, double = (pictures.animation(m)[0].shape for m in ({0.9: made}, {0.9: made, 0.95: made}))
    assert double[0] > 1.6 * single[0]
    assert double[1] == single[1]
    few = pictures.steps_picture({0.9: made}, [0.0, 0.5, 1.0, 1.5], steps=2)
    assert few.shape[0] < one.shape[0]


def test_the_statistics_are_named_on_the_picture() -> None:
    assert "visible neighbours' statistics" in pictures._footer(painting())
    assert "give much away" in pictures.STATISTICS["true"]
    assert "predicted as pixels" in pictures._footer(painting(target="pixels"))


def test_a_png_reads_back_bit_for_bit(tmp_path: Path) -> None:
    picture = noise(31, 17)
    path = pictures.save_png(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)


def test_a_gif_repeats_at_the_given_speed(tmp_path: Path) -> None:
    frames = [noise(40, 60, seed) for seed in range(4)]
    path = pictures.save_gif(tmp_path / "a.gif", frames, fps=5)
    with Image.open(path) as image:
        assert (image.n_frames, image.info["loop"], image.info["duration"], image.size) == (4, 0, 200, (60, 40))


def test_a_gif_keeps_frames_that_look_alike(tmp_path: Path) -> None:
    still = np.full((20, 20, 3), 200, np.uint8)
    path = pictures.save_gif(tmp_path / "a.gif", [still, still.copy(), still.copy()], fps=4)
    with Image.open(path) as image:
        total = 0
        for n in range(image.n_frames):
            image.seek(n)
            total += image.info["duration"]
    assert total == 750


@pytest.mark.parametrize("size", [(40, 60), (41, 63)])
def test_an_mp4_has_even_sizes_and_all_frames(tmp_path: Path, size: tuple[int, int]) -> None:
    ramp = np.linspace(0, 1, size[1])[None, :, None] * np.linspace(0.3, 1, size[0])[:, None, None]
    frames = [np.repeat(255 * ramp * (1 + n) / 5, 3, axis=2).astype(np.uint8) for n in range(5)]
    path = pictures.save_mp4(tmp_path / "a.mp4", frames, fps=3.75)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(15, 4)
        assert stream.codec_context.name in ("h264", "mpeg4")
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(read) == 5
    assert read[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    for frame, original in zip(read, frames, strict=True):
        assert np.abs(frame[: size[0], : size[1]].astype(int) - original).mean() < 4


@pytest.mark.slow
def test_curves_are_drawn_from_a_metrics_file(tmp_path: Path) -> None:
    lines = [{"step": n, "time": 0.0, "loss": 1 / n} for n in range(1, 9)]
    lines += [{"step": 4, "time": 0.0, "held_out_loss": 0.5}, {"step": 8, "time": 0.0, "held_out_loss": None}]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = pictures.read_curves(metrics, ("loss", "held_out_loss"))
    assert curves["loss"] == [(n, 1 / n) for n in range(1, 9)]
    assert curves["held_out_loss"] == [(4, 0.5)]
    with Image.open(pictures.plot_curves(metrics, tmp_path / "a.png", title="a run")) as image:
        assert image.size == (840, 480)


@pytest.mark.parametrize(("text", "says"), [('{"step": 1}\n', "holds no loss"), ("not json", "no metrics.jsonl")])
def test_curves_of_no_metrics_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=says):
        pictures.plot_curves(tmp_path / "metrics.jsonl", tmp_path / "a.png")
    with pytest.raises(UserError, match="cannot be read"):
        pictures.plot_curves(tmp_path / "none.jsonl", tmp_path / "a.png")
