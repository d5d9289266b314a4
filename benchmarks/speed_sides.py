"""The sides of the speed benchmark: each a process of its own that holds one model and takes a turn when told to.

A process each, so that the peak memory of one is not another's, and so that what one leaves behind (caches, compiled
code, the allocator's pools) is on nobody else's account.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from machine import peak_memory, synchronize
from reference_style import PlainAutoencoder
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stmae.engine.blocks import compile_blocks
from stmae.model.config import ClassifierConfig, MaeConfig
from stmae.model.heads import Classifier
from stmae.model.mae import MaskedAutoencoder
from stmae.model.sizes import mae_config

MASK_RATIO = 0.9
CLASSES = 400
WORKS = ("pretrain", "finetune", "inference")
HALF = {"decode": "running_cell", "decode_share": 0.5}  # of the hidden tokens, as VideoMAE v2 does


@dataclass(frozen=True)
class Work:
    """What all sides of a cell do.

    Attributes:
        kind: one of `WORKS`.
        model: a size, "vit_base".
        precision: "fp32" or "bf16" (autocast).
        batch: clips in a step.
        frames, size: of a clip.
        mask_ratio: when pre-training; of our sides.
    """

    kind: str
    model: str
    precision: str
    batch: int
    frames: int = 16
    size: int = 224
    mask_ratio: float = MASK_RATIO

    def config(self, **options: Any) -> MaeConfig:
        return mae_config(self.model, frames=self.frames, image_size=self.size, mask_ratio=self.mask_ratio, **options)


class Side:
    """A process with one side's model. `turn` runs some steps there."""

    def __init__(self, name: str, work: Work, device: str, threads: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, work, device, threads, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def turn(self, steps: int) -> tuple[float, float]:
        """Seconds a step, and the peak memory of the side's process so far in bytes.

        Raises:
            RuntimeError: the side failed; says how.
        """
        self._ours.send(steps)
        try:
            outcome = self._ours.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} died (out of memory?)") from None
        if isinstance(outcome, str):
            raise RuntimeError(f"{self.name}: {outcome}")
        return outcome

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(name: str, work: Work, device_name: str, threads: int, commands: Connection) -> None:
    try:
        if threads:
            torch.set_num_threads(threads)
        with suppress(ImportError):  # what it weighs is no difference between the sides
            from transformers import VideoMAEForPreTraining  # noqa: F401
        torch.manual_seed(0)
        device = torch.device(device_name)
        step = SIDES[name](work, device)
        while True:
            steps = commands.recv()
            synchronize(device)
            began = time.perf_counter()
            for _ in range(steps):
                step()
            synchronize(device)
            commands.send(((time.perf_counter() - began) / steps, peak_memory(device)))
    except EOFError:
        return
    except Exception as error:
        commands.send(f"{type(error).__name__}: {error}")


# The models -----------------------------------------------------------------------------------------------------------


def stmae(work: Work, device: torch.device, *, compiled: bool = False, **options: Any) -> Callable[[], Any]:
    model, loss = our_model(work, device, **options)
    if compiled:
        compile_blocks(model)
    return step_of(work, model, loss, device)


def our_model(work: Work, device: torch.device, **options: Any) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    """Our model and what a step computes with it; of uint8 clips, which it normalises itself."""
    config = work.config(**options)
    clip = config.encoder.clip
    pixels = torch.randint(0, 256, (work.batch, clip.channels, *clip.shape), dtype=torch.uint8, device=device)
    if work.kind == "pretrain":
        autoencoder, keys = MaskedAutoencoder(config).to(device), torch.arange(work.batch, device=device)
        return autoencoder, lambda: autoencoder(pixels, keys=keys).loss
    classifier = Classifier(ClassifierConfig(encoder=config.encoder, classes=CLASSES)).to(device)
    labels = torch.arange(work.batch, device=device) % CLASSES
    if work.kind == "inference":
        return classifier.eval(), lambda: classifier(pixels)
    return classifier, lambda: torch.nn.functional.cross_entropy(classifier(pixels), labels)


def videomae(work: Work, device: torch.device, *, attention: str = "sdpa") -> Callable[[], Any]:
    """transformers' VideoMAE of the same sizes; of floats that are normalised already."""
    from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification

    config = peer_config(work.config(), attention)
    clips, hidden = peer_inputs(work.config(), work.batch)
    clips, hidden = clips.to(device), hidden.to(device)
    if work.kind == "pretrain":
        pretraining = VideoMAEForPreTraining(config).to(device).train()
        return step_of(work, pretraining, lambda: pretraining(clips, bool_masked_pos=hidden).loss, device)
    config.num_labels = CLASSES
    classifier = VideoMAEForVideoClassification(config).to(device)
    labels = torch.arange(work.batch, device=device) % CLASSES
    if work.kind == "inference":
        return step_of(work, classifier.eval(), lambda: classifier(clips).logits, device)
    return step_of(work, classifier.train(), lambda: classifier(clips, labels=labels).loss, device)


def plain(work: Work, device: torch.device) -> Callable[[], Any]:
    model = PlainAutoencoder(work.config()).to(device)
    clip = work.config().encoder.clip
    clips = torch.randn(work.batch, clip.channels, *clip.shape, device=device)
    return step_of(work, model, lambda: model(clips), device)


def step_of(
    work: Work, model: torch.nn.Module, compute: Callable[[], Tensor], device: torch.device
) -> Callable[[], Any]:
    """A step: forward; and when training backward and fused AdamW, in the paper's settings."""

    def autocast() -> Any:
        return torch.autocast(device.type, dtype=torch.bfloat16) if work.precision == "bf16" else nullcontext()

    if work.kind == "inference":

        def infer() -> None:
            with torch.inference_mode(), autocast():
                compute()

        return infer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def train() -> None:
        with autocast():
            loss = compute()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # after the step: gradients are not held beside what a forward pass keeps

    return train


SIDES: dict[str, Callable[[Work, torch.device], Callable[[], Any]]] = {
    "stmae": stmae,
    "stmae compiled": lambda work, device: stmae(work, device, compiled=True),
    "stmae, half decoded": lambda work, device: stmae(work, device, **HALF),
    "VideoMAE, SDPA": videomae,
    "VideoMAE, eager": lambda work, device: videomae(work, device, attention="eager"),
    "reference style": plain,
}


# What a peer is given, and what is counted ----------------------------------------------------------------------------


def peer_config(config: MaeConfig, attention: str) -> Any:
    """VideoMAE of the same sizes."""
    from transformers import VideoMAEConfig

    clip, encoder, decoder = config.encoder.clip, config.encoder.blocks, config.decoder.blocks
    return VideoMAEConfig(
        image_size=clip.height,
        patch_size=clip.patch[1],
        num_channels=clip.channels,
        num_frames=clip.frames,
        tubelet_size=clip.patch[0],
        hidden_size=encoder.width,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.mlp_width,
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=decoder.mlp_width,
        norm_pix_loss=True,
        use_mean_pooling=True,
        attn_implementation=attention,
    )


def peer_inputs(config: MaeConfig, batch: int) -> tuple[Tensor, Tensor]:
    """Normalised clips (B, T, C, H, W) and tube masks (B, N), True = hidden: the same patches at every time step."""
    clip = config.encoder.clip
    t, h, w = clip.grid
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(batch, clip.frames, clip.channels, clip.height, clip.width, generator=generator)
    order = torch.rand(batch, h * w, generator=generator).argsort(dim=1)
    hidden = (order < int(MASK_RATIO * h * w)).repeat(1, t)
    return clips, hidden


def flops(work: Work, side: str) -> int:
    """The model's arithmetic on one clip, a multiply-add counted as two: of the forward pass, three times that when
    training. Of the model as written on the meta device, whatever a side's way of computing it repeats.
    """
    times = 1 if work.kind == "inference" else 3
    one = replace(work, precision="fp32", batch=1)
    if side.startswith("VideoMAE"):
        return times * _peer_flops(one)
    meta = torch.device("meta")
    with torch.device(meta), FlopCounterMode(display=False) as counter:
        if side == "reference style":
            config = one.config()
            PlainAutoencoder(config)(torch.empty(1, config.encoder.clip.channels, *config.encoder.clip.shape))
        else:
            our_model(one, meta, **(HALF if "half" in side else {}))[1]()
    return times * counter.get_total_flops()


def _peer_flops(work: Work) -> int:
    """With eager attention on the CPU: what a boolean mask picks has no shape on the meta device."""
    from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification

    config = peer_config(work.config(), "eager")
    clips, hidden = peer_inputs(work.config(), 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if work.kind == "pretrain":
            VideoMAEForPreTraining(config)(clips, bool_masked_pos=hidden)
        else:
            config.num_labels = CLASSES
            VideoMAEForVideoClassification(config)(clips)
    return counter.get_total_flops()
