"""`stmae demo`: from nothing to a trained encoder and a picture of what it paints back, in minutes on a CPU."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch

from stmae import presets
from stmae.data.sources import scan, split
from stmae.data.synthetic import write_videos
from stmae.engine.log import Console, Log
from stmae.engine.optim import build_adamw, parameter_groups
from stmae.model.mae import MaskedAutoencoder
from stmae.model.masking import key_noise
from stmae.runs import RunFolder
from stmae.tasks import build
from stmae.tasks.demo_options import DemoOptions
from stmae.tasks.pretrain import pretrain
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.reconstruct import Reconstructions, reconstruct
from stmae.tasks.task import task

SAMPLE_VIDEOS = 48
RATIOS = (0.75, 0.9, 0.95)
MARGIN = 0.95  # of the time: pictures and checkpoints want some too


@task(DemoOptions)
def demo(options: DemoOptions) -> Path:
    """Returns:
    The folder with everything it made.

    Raises:
        UserError: a mistake in the options, or `data` holds no videos that can be read.
    """
    out = options.out.expanduser()
    videos = out / "videos" if options.data is None else options.data
    threads = torch.get_num_threads()
    # The steps of so small a model gain little from the last core, and wait for each other when others want it too:
    # it is left to the process that decodes.
    torch.set_num_threads(max(1, threads - 1))
    try:
        _train(videos, out, options)
        run = str(out / "run")
        made = reconstruct(run, model=run, out=out / "pictures", mask_ratio=RATIOS)
    finally:
        torch.set_num_threads(threads)
    _report(out, videos, made)
    return out


def _train(videos: Path, out: Path, options: DemoOptions) -> None:
    with Log([Console()]) as log:
        if options.data is None and not (videos.is_dir() and len(list(videos.iterdir())) >= SAMPLE_VIDEOS):
            log.message(f"writing {SAMPLE_VIDEOS} sample videos to {videos}")
            write_videos(videos, count=SAMPLE_VIDEOS)
        begun = RunFolder(out / "run").exists
        epochs = 0.0 if begun else epochs_for(options.minutes, videos, log)
    if begun:
        pretrain(videos, out=out / "run")  # goes on, with the epochs it was begun with
    else:
        pretrain(videos, out=out / "run", preset="demo", epochs=epochs, warmup="5%")


def epochs_for(minutes: float, videos: Path, log: Log) -> float:
    """How many epochs of the demo's preset this machine can train in so many minutes: a few steps are timed."""
    index = scan(videos)
    preset = presets.demo(presets.Facts(videos=len(index), device="cpu"))
    options = dataclasses.replace(PretrainOptions("", out=Path()), **preset)
    model = MaskedAutoencoder(
        build.model_config(options, frames=options.frames, image_size=options.image_size, channels=3)
    )
    clip = model.config.encoder.clip
    clips = torch.zeros(options.batch_size, 3, *clip.shape, dtype=torch.uint8)
    noise = key_noise(torch.arange(options.batch_size), clip.tokens)
    optimizer = build_adamw(parameter_groups(model, options.weight_decay), lr=0.0)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        model(clips, noise=noise).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    step = min(seconds)
    steps = max(20, round(MARGIN * minutes * 60 / step))
    log.message(f"a step of {options.batch_size} clips takes {step:.2f} s here: {steps} steps in {minutes:g} minutes")
    return steps * options.batch_size / len(split(index, options.holdout)[0])


def _report(out: Path, videos: Path, made: Reconstructions) -> None:
    lines = {
        videos: "the videos it learnt from, without labels",
        out / "run" / "encoder.safetensors": "the video encoder",
        out / "run" / "reconstructions": "the same held-out clips through training",
        made.pictures[-1]: "one of the held-out clips painted back, beside others",
    }
    width = max(len(str(path)) for path in lines)
    print("\nmade:")
    for path, what in lines.items():
        print(f"  {path!s:{width}}  {what}")
    print(
        f"""try next:
  stmae embed {videos} --model {out}/run --out {out}/features.parquet
  stmae reconstruct {out}/run --model {out}/run --out {out}/more --mask-ratio 0.9 0.98
  stmae pretrain YOUR_VIDEOS/ --out runs/first"""
    )
