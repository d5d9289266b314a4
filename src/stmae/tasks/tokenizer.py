"""`stmae tokenizer`: a codebook of spacetime patches, and how good it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stmae.data.clips import splitmix64
from stmae.data.dataset import FixedClips, VideoClips
from stmae.data.loader import ClipLoader
from stmae.data.sources import Source, TensorSource, split
from stmae.data.values import Values, values_of
from stmae.engine.log import Console, Log
from stmae.errors import UserError
from stmae.model.tokenizer import LEAST_GAIN, LEAST_USED, PatchTokenizer, falls_short
from stmae.runs import save_weights
from stmae.tasks import build
from stmae.tasks.task import task
from stmae.tasks.tokenizer_options import TokenizerOptions
from stmae.tasks.videos import none_readable, open_given

JUDGED_CLIPS = 64


@dataclass(frozen=True)
class Tokenized:
    """What `tokenizer` made.

    Attributes:
        path: of the file.
        used: share of the codes that occur in held-out clips.
        psnr, mean_psnr: of held-out patches painted by their codes, and by the mean patch of the training clips, in dB.
    """

    path: Path
    used: float
    psnr: float
    mean_psnr: float

    @property
    def gain(self) -> float:
        """Decibels over the mean patch."""
        return self.psnr - self.mean_psnr

    @property
    def experimental(self) -> bool:
        """Whether the codebook falls short: less than half of it used, or less than 3 dB over the mean patch."""
        return falls_short(self.used, self.gain)


@task(TokenizerOptions)
def tokenizer(options: TokenizerOptions) -> Tokenized:
    """Returns:
        A `Tokenized`: the file and how good the codebook is.

    Raises:
        UserError: a mistake in the options, or not one video that can be read.
    """
    device = build.pick_device(options.device)
    with build.cpu_threads(options.threads), Log([Console()]) as log:
        found = open_given(options, log.message)
        values = Values() if isinstance(found, TensorSource) else values_of(found, None)
        training, held_out = split(found, options.holdout)
        channels = found.shape[0] if isinstance(found, TensorSource) else values.channels
        made = PatchTokenizer(patch=options.patch, channels=channels, codes=options.codes).to(device)
        mean = _learn(made, training, values, options, device, log)
        judged = _judge(made, mean, held_out if len(held_out) else training, values, options, device)
        about = {"patch": made.patch, "channels": made.channels, "codes": made.codes}
        scores = {"used": judged.used, "psnr": judged.psnr, "mean_psnr": judged.mean_psnr}
        tensors = {name: tensor.cpu() for name, tensor in made.state_dict().items()}
        try:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            save_weights(options.out, tensors, {"tokenizer": about, "scores": scores})
        except OSError as error:
            raise UserError(
                f'"{options.out}" cannot be written: {error.strerror or error}.', "Choose another."
            ) from None
        _report(log, judged, options)
    return judged


def _shape(source: Source, options: TokenizerOptions) -> dict[str, Any]:
    """Frames, stride and size of the clips; tensors bring their own."""
    frames, height, width = (
        source.shape[1:] if isinstance(source, TensorSource) else (options.frames, *2 * (options.image_size,))
    )
    return {"frames": frames, "stride": options.stride, "image_size": (height, width)}


def _learn(
    made: PatchTokenizer, source: Source, values: Values, options: TokenizerOptions, device: torch.device, log: Log
) -> Tensor:
    """Learns the codebook; gives the mean patch (P,) of what it learnt from."""
    clips = VideoClips(
        source,
        **_shape(source, options),
        repeats=1,
        seed=options.seed,
        values=values,
    )
    workers = build.default_workers(device, source) if options.workers is None else options.workers
    loader = ClipLoader(clips, batch_size=options.batch_size, workers=workers, device=device.type)
    sums = torch.zeros(made.codebook.shape[1], dtype=torch.float64, device=device)
    try:
        for step, batch in zip(range(options.steps), loader, strict=False):
            patches = made.cut(batch.clips.to(device)).flatten(0, 1)
            made.learn(patches, _order(options.seed, step, len(patches)).to(device))
            sums += patches.mean(dim=0)
            log.progress(step + 1, options.steps)
    finally:
        loader.close()
    return (sums / options.steps).float()


def _order(seed: int, step: int, count: int) -> Tensor:
    """A permutation of `count` things, another for every step."""
    generator = torch.Generator().manual_seed(splitmix64(seed ^ splitmix64(step)) >> 1)
    return torch.randperm(count, generator=generator)


def _judge(
    made: PatchTokenizer, mean: Tensor, source: Source, values: Values, options: TokenizerOptions, device: torch.device
) -> Tokenized:
    """Scores on one clip of each of up to 64 videos."""
    seen = torch.zeros(made.codes, dtype=torch.bool, device=device)
    errors, count = torch.zeros(2, dtype=torch.float64, device=device), 0
    for clips in _clips(source, values, options):
        patches = made.cut(clips.to(device)).flatten(0, 1)
        codes = made.nearest(patches)
        seen[codes] = True
        painted = (made.pictures(codes) - patches).square().mean()
        errors += torch.stack([painted, (mean - patches).square().mean()])
        count += 1
    psnr, mean_psnr = (-10 * math.log10(max(error, 1e-12)) for error in (errors / count).tolist())
    return Tokenized(options.out, seen.float().mean().item(), psnr, mean_psnr)


def _clips(source: Source, values: Values, options: TokenizerOptions) -> Iterator[Tensor]:
    fixed = FixedClips(
        source,
        **_shape(source, options),
        seed=options.seed,
        values=values,
    )
    read, bad = 0, dict[str, str]()
    for item in range(len(source)):
        sample = fixed[item]
        bad |= {file.path: file.reason for file in sample.bad}
        if len(sample.clips):
            yield sample.clips
            read += 1
        if read == JUDGED_CLIPS:
            break
    if not read:
        raise none_readable(bad)


def _report(log: Log, judged: Tokenized, options: TokenizerOptions) -> None:
    log.message(
        f"{judged.used:.0%} of {options.codes} codes occur in held-out clips; PSNR {judged.psnr:.1f} dB,"
        f" {judged.gain:.1f} dB over the mean patch's {judged.mean_psnr:.1f}."
    )
    if judged.experimental:
        log.warning(
            f"less than {LEAST_USED:.0%} of the codes used or less than {LEAST_GAIN:g} dB gained: take this codebook"
            " for an experiment. More --steps, more videos or fewer --codes may help."
        )
    log.message(f"done: {options.out}. Next:\n  stmae pretrain VIDEOS --target tokens --tokenizer {options.out}")
