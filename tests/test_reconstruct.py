"""`stmae reconstruct`: pictures, scores and what it says of files it cannot read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from small_run import save_run, small_model, write_clock

import stmae
from stmae.data.synthetic import write_videos
from stmae.errors import UserError
from stmae.model.config import as_dict
from stmae.runs import save_weights
from stmae.tasks.reconstruct import repaint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("reconstruct") / "run", small_model())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of two names, and a file that is none."""
    folder = tmp_path_factory.mktemp("reconstruct") / "videos"
    made = write_videos(folder, count=3, seconds=(1.2, 1.6))
    for path, name in zip(made, ("a/clip", "b/clip", "b/other"), strict=True):
        path.parent.joinpath(name).parent.mkdir(exist_ok=True)
        path.rename(folder / f"{name}{path.suffix}")
    (folder / "b" / "broken.mp4").write_bytes(b"\0" * 1000)
    return folder


@pytest.mark.slow
def test_a_folder_gives_three_pictures_per_video_and_scores(
    run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = stmae.reconstruct(videos, model=str(run), out=tmp_path / "out", mask_ratio=(0.5, 0.9))
    names = {path.name for path in made.pictures}
    assert names == {f"{stem}{ending}" for stem in ("clip", "clip-2", "other") for ending in (".gif", ".mp4", ".png")}
    assert names == {path.name for path in (tmp_path / "out").iterdir()}
    for path in made.pictures:
        if path.suffix == ".mp4":
            with av.open(str(path)) as container:
                assert sum(1 for _ in container.decode(video=0)) == 4
        else:
            with Image.open(path) as image:
                image.load()
                assert min(image.size) > 300
                assert getattr(image, "n_frames", 1) == (4 if path.suffix == ".gif" else 1)
    assert list(made.scores) == [0.5, 0.9]
    assert len(made.videos) == 3
    assert list(made.bad) == ["b/broken.mp4"]
    for kinds in made.scores.values():
        assert set(kinds) == {"painted", "nothing", "copied"}
        assert all(len(kind.psnr) == 3 and np.isfinite(kind.psnr).all() for kind in kinds.values())
        assert (kinds["nothing"].explained <= 0).all()
    told = capsys.readouterr().out
    assert "b/broken.mp4" in told
    assert "50 %" in told
    assert "90 %" in told
    assert "visible neighbours' statistics" in told
    assert all(str(path) in told for path in made.pictures)


@pytest.mark.slow
def test_the_same_call_gives_the_same_pictures_and_another_seed_others(run: Path, videos: Path, tmp_path: Path) -> None:
    outs = [
        stmae.reconstruct(videos, model=str(run), out=tmp_path / name, clips=1, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, second, third = ((made.pictures[2]).read_bytes() for made in outs)
    assert first == second
    assert first != third
    assert [len(made.videos) for made in outs] == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["pixels", "normalized_pixels"])
@pytest.mark.parametrize("frames", ["strided", "linspace", "all"])
def test_models_of_all_targets(target: str, frames: str, videos: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", small_model(target=target, predict_frames=frames))
    video = next((videos / "a").iterdir())
    options: Any = {"statistics": "true"} if target == "normalized_pixels" else {}
    made = stmae.reconstruct(video, model=str(run), out=tmp_path / "out", **options)
    assert list(made.scores) == [0.9]
    with Image.open(made.pictures[0]) as image:
        # "linspace" shows frames 0, 2, 4, 7 at one mean speed.
        assert image.n_frames == (8 if frames == "all" else 4)


def test_higher_ratios_leave_a_part_of_the_same_tokens_visible() -> None:
    model = small_model()
    clip = torch.randint(0, 256, (1, 3, 8, 32, 32), dtype=torch.uint8)
    some, fewer = (repaint(model, clip, torch.tensor([7]), ratio, "visible").hidden for ratio in (0.5, 0.9))
    assert (fewer | ~some).all()
    assert fewer.float().mean() == pytest.approx(58 / 64)


def test_tokens_are_hidden_as_in_training() -> None:
    """Tubes for a model of tubes; all hidden tokens are painted, also where training decoded a share of them."""
    model = small_model(mask="space", decode="running_cell", decode_share=0.5)
    clip = torch.randint(0, 256, (1, 3, 8, 32, 32), dtype=torch.uint8)
    painting = repaint(model, clip, torch.tensor([7]), 0.75, "visible")
    assert torch.equal(painting.hidden, painting.hidden[:, :, :1].expand_as(painting.hidden))
    assert painting.hidden.float().mean() == 0.75
    own = small_model(mask="own")  # nobody has the mask any more: tokens are hidden at random
    hidden = repaint(own, clip, torch.tensor([7]), 0.75, "visible").hidden
    assert torch.equal(hidden, repaint(small_model(), clip, torch.tensor([7]), 0.75, "visible").hidden)


@pytest.mark.slow
def test_the_clip_starts_where_it_should(run: Path, tmp_path: Path) -> None:
    video = write_clock(tmp_path / "clock.mp4", seconds=4.0)
    early, late = (
        stmae.reconstruct(video, model=str(run), out=tmp_path / f"{start}", start=start) for start in (0.0, 2.5)
    )
    brightness = []
    for made in (early, late):
        picture = np.asarray(Image.open(made.pictures[2]))
        # Clock pictures are grey of one brightness, the first panel begins right of the row labels.
        brightness.append(picture[150, 120].astype(float).mean())
    assert brightness[1] - brightness[0] == pytest.approx(50, abs=4)
    with pytest.raises(UserError, match=r"ends at 4.00 s, before the start 9 s"):
        stmae.reconstruct(video, model=str(run), out=tmp_path / "late", start=9)


@pytest.mark.slow
def test_clips_from_python(run: Path, tmp_path: Path) -> None:
    clips = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    made = stmae.reconstruct(clips, model=str(run), out=tmp_path)
    assert [path.name for path in made.pictures[:3]] == ["clip-0000.gif", "clip-0000.mp4", "clip-0000.png"]
    assert len(made.pictures) == 6
    with pytest.raises(UserError, match="start has no meaning"):
        stmae.reconstruct(clips, model=str(run), out=tmp_path, start=1.0)


def test_models_of_other_channels_need_such_clips(videos: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", small_model(channels=1))
    with pytest.raises(UserError, match="1 channels; these have 3"):
        stmae.reconstruct(videos, model=str(run), out=tmp_path / "out")
    clips = torch.randint(0, 256, (1, 1, 8, 32, 32), dtype=torch.uint8)
    assert len(stmae.reconstruct(clips, model=str(run), out=tmp_path / "out").pictures) == 3


def test_mistakes_are_told(run: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="does not exist"):
        stmae.reconstruct(videos / "none.mp4", model=str(run), out=out)
    with pytest.raises(UserError, match=r"mask_ratio 1\.0 hides every token"):
        stmae.reconstruct(videos, model=str(run), out=out, mask_ratio=(0.5, 1.0))
    with pytest.raises(UserError, match=r"the video cannot be read: broken\.mp4"):
        stmae.reconstruct(videos / "b" / "broken.mp4", model=str(run), out=out)
    pixels = small_model(target="pixels")
    save_weights(tmp_path / "pixels.safetensors", pixels.state_dict(), {"model": as_dict(pixels.config)})
    with pytest.raises(UserError, match="predicts pixels as they are"):
        stmae.reconstruct(videos, model=str(tmp_path / "pixels.safetensors"), out=out, statistics="true")
    save_weights(tmp_path / "empty.safetensors", {}, {"frames": 16})
    with pytest.raises(UserError, match="describes no model"):
        stmae.reconstruct(videos, model=str(tmp_path / "empty.safetensors"), out=out)
    encoder = small_model().encoder
    save_weights(tmp_path / "encoder.safetensors", encoder.state_dict(), {"model": as_dict(encoder.config)})
    with pytest.raises(UserError, match="holds no decoder"):
        stmae.reconstruct(videos, model=str(tmp_path / "encoder.safetensors"), out=out)
    only_bad = tmp_path / "bad"
    only_bad.mkdir()
    for n in range(5):
        (only_bad / f"{n}.avi").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"none of the 5 videos can be read: 0.avi: .*\(and 2 more\)"):
        stmae.reconstruct(only_bad, model=str(run), out=out)


@pytest.mark.slow
def test_a_run_stands_for_its_held_out_videos(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    write_videos(folder, count=4, seconds=(1.0, 1.2))
    short = {"epochs": 1, "batch_size": 4, "repeats": 2, "workers": 0, "decoder_width": 32, "decoder_heads": 2}
    run = stmae.pretrain(folder, out=tmp_path / "run", holdout=0.3, image_size=32, **short)
    held_out = [line.split(",", 1)[1] for line in (run / "index.csv").read_text().splitlines() if line[:7] == "holdout"]
    made = stmae.reconstruct(run, model=str(run), out=tmp_path / "out")
    assert made.videos == held_out
