"""What tasks share: the device and its arithmetic, the model, and numbers worked out from the options."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stmae.data.opening import paths_of
from stmae.data.sources import Source, TensorSource
from stmae.durations import Clock
from stmae.engine.distributed import World
from stmae.engine.launch import Launch, find, own_cores
from stmae.engine.optim import SCHEDULES, Groups, Schedule, by_prefix, layer_scale, parameter_groups
from stmae.errors import UserError
from stmae.model.config import MaeConfig
from stmae.model.mae import MaskedAutoencoder
from stmae.model.sizes import mae_config
from stmae.tasks.choices import mask_kind
from stmae.tasks.options import ModelOptions, OptimizerOptions, Parallel
from stmae.tasks.values import named_numbers

REFERENCE_LR, REFERENCE_CLIPS = 1.6e-3, 2048


def pick_device(name: str, *, many: bool = False) -> torch.device:
    """The device by name; "auto" takes CUDA, then MPS, then the CPU. Each process of a host has a GPU of its own.

    Args:
        many: whether several processes may share the task.

    Raises:
        UserError: the device is not there, or several processes were started for a task of one.
    """
    launch = find()
    if launch.size > 1 and not many:
        raise UserError(
            f"{launch.size} processes were started, and only `stmae pretrain` and `stmae finetune` share their work.",
            "Start this command without torchrun or srun.",
        )
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and launch.size == 1,
        "cpu": True,
    }
    kind = next(kind for kind, present in there.items() if present) if name == "auto" else name
    if not there[kind]:
        present = ", ".join(kind for kind, found in there.items() if found)
        several = f" with {launch.size} processes" if launch.size > 1 else ""
        raise UserError(
            f'device "{name}" is not available to PyTorch {torch.__version__}{several}.',
            f"Available: {present}, or auto.",
        )
    return torch.device("cuda", _own_gpu(launch)) if kind == "cuda" and launch.size > 1 else torch.device(kind)


def _own_gpu(launch: Launch) -> int:
    """The process's own: the one that Slurm shows it, or that of its number on the host."""
    count = torch.cuda.device_count()
    if count == 1 or launch.local_rank < count:
        return 0 if count == 1 else launch.local_rank
    raise UserError(
        f"{launch.local_size} processes were started on this host, which has {count} GPUs.",
        f"Start {count}: one for each.",
    )


def pick_parallel(name: Parallel, world: World, parameters: int) -> tuple[str, str]:
    """How several processes share the model, "ddp", "fsdp" or "hybrid", and why.

    "auto" copies the model to each device while parameters, gradients and the optimiser's moments, 16 bytes for each
    parameter in float32, leave more than half of its memory free, and else keeps them in parts.

    Raises:
        UserError: "hybrid" on hosts with unequal numbers of processes.
    """
    if name == "hybrid" and world.size % world.local_size:
        raise UserError(
            f"parallel hybrid needs as many processes on each host, and {world.size} are not a multiple of the"
            f" {world.local_size} here.",
            "Start as many on each, or choose fsdp.",
        )
    if name != "auto":
        return name, "as asked"
    if world.device.type == "cuda":
        memory = torch.cuda.get_device_properties(world.device).total_memory
        if 16 * parameters > memory / 2:
            strategy = "hybrid" if 1 < world.local_size < world.size and world.size % world.local_size == 0 else "fsdp"
            return strategy, f"{16 * parameters / 1e9:.0f} GB of model and optimiser do not fit on each device"
    return "ddp", "the model fits on each device"


Precision = Literal["fp32", "tf32", "bf16", "fp16"]


def pick_precision(name: Literal["auto"] | Precision, device: torch.device) -> tuple[Precision, str]:
    """The arithmetic of matrix multiplications (`engine.precision`), and the reason for it.

    "auto" takes bf16 where the hardware has it: on CUDA by its own word, on a CPU where it measures faster.

    Raises:
        UserError: the device has no such arithmetic.
    """
    if name == "tf32" and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise UserError(
            f"precision tf32 is arithmetic of NVIDIA GPUs since 2020, and this runs on {device.type}.",
            "Choose fp32, or auto.",
        )
    if name != "auto":
        return name, "as asked"
    if device.type == "cuda":
        fine = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "this GPU has it in hardware") if fine else ("fp32", "this GPU has no bf16 in hardware")
    if device.type == "mps":
        return "fp32", "bf16 is not tried on MPS"
    gain = _seconds(torch.float32) / _seconds(torch.bfloat16)
    return (
        ("bf16", f"measured {gain:.1f}x as fast as fp32")
        if gain > 1.2
        else ("fp32", f"bf16 measured {gain:.2g}x as fast on this CPU")
    )


def _seconds(dtype: torch.dtype, size: int = 256) -> float:
    """The best of three matrix multiplications."""
    a = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return best


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """While open, operations on the CPU are split over so many threads; None leaves torch's choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_workers(device: torch.device, source: Source) -> int:
    """Processes that decode: all cores but one beside an accelerator (at most 16), a half where the CPU also trains.

    Several training processes of a host share its cores. None for clips from Python, which are there already.
    """
    if isinstance(source, TensorSource):
        return 0
    cores = own_cores()
    return max(1, cores // 2) if device.type == "cpu" else max(1, min(16, cores - 1))


def learning_rate(lr: float | None, batch_size: int) -> float:
    """The peak learning rate: the one given, or 1.6e-3 at 2,048 clips per step and in proportion.

    Of the two reference points, 1.6e-3 at 2,048 clips (PySlowFast on 16 nodes, which trained the published models)
    and 1.6e-3 at 1,024 (mae_st, which leaves repeated sampling out of its count), this is the careful one.
    """
    return lr if lr is not None else REFERENCE_LR * batch_size / REFERENCE_CLIPS


@dataclass(frozen=True)
class Plan:
    """Numbers that follow from the options and the count of videos."""

    steps: int
    warmup_steps: int
    lr: float

    cooldown_steps: int

    @classmethod
    def of(cls, options: OptimizerOptions, videos: int) -> Plan:
        """Epochs are effective ones: one of them takes as many clips as there are videos.

        Raises:
            UserError: warm-up and cool-down are together longer than the run.
        """
        batch_size = options.batch_size
        steps = max(1, Clock(batch_size, videos).steps(options.epochs, "epochs"))
        clock = Clock(batch_size, videos, steps)
        warmup = clock.steps(options.warmup, "epochs")
        cooldown = clock.steps(options.cooldown, "epochs") if options.schedule == "constant" else 0
        if warmup + cooldown > steps:
            parts = f"warmup {options.warmup} ({warmup} steps)" + (
                f" and cooldown {options.cooldown} ({cooldown} steps)" if cooldown else ""
            )
            raise UserError(f"{parts} do not fit into a run of {steps} steps.", "Shorten them, or train for longer.")
        return cls(steps, warmup, learning_rate(options.lr, batch_size), cooldown)

    def schedule(self, options: OptimizerOptions) -> Schedule:
        """The learning rate of every step."""
        shape = {"cooldown_steps": self.cooldown_steps} if options.schedule == "constant" else {}
        return SCHEDULES[options.schedule](self.lr, self.warmup_steps, self.steps, options.end_lr, **shape)


def groups(model: MaskedAutoencoder, options: OptimizerOptions) -> Groups:
    """The model's parameters with their learning-rate factors and weight decays.

    Raises:
        UserError: `group_lr` or `group_decay` name parameters that there are not.
    """
    return decayed_groups(model, model.config.encoder.blocks.depth, options)


def decayed_groups(model: nn.Module, depth: int, options: OptimizerOptions, *, no_decay: Iterable[str] = ()) -> Groups:
    """The parameters of a model whose `encoder` has so many blocks; weights in `no_decay` are not decayed.

    Raises:
        UserError: `group_lr` or `group_decay` name parameters that there are not.
    """
    names = [name for name, _ in model.named_parameters()]
    layer = layer_scale(options.layer_decay, depth, lambda name: layer_of(name, depth))
    factor = by_prefix(named_numbers("group_lr", options.group_lr), names)
    decay = by_prefix(named_numbers("group_decay", options.group_decay), names)

    def scale(name: str) -> float:
        own = factor(name)
        return layer(name) * (1.0 if own is None else own)

    return parameter_groups(model, options.weight_decay, no_decay=no_decay, lr_scale=scale, decay=decay)


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter of a masked autoencoder for layer decay: the encoder's block counted from 1.

    0 is what stands before the blocks (patch embedding, class token, positions), depth + 1 all that comes after them.
    """
    block = re.match(r"encoder\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    before = ("encoder.patch_embed.", "encoder.positions.", "encoder.class_token", "encoder_mask_token")
    return 0 if name.startswith(before) else depth + 1


def model_config(
    options: ModelOptions, *, frames: int, image_size: int | tuple[int, int], channels: int, given_values: int = 0
) -> MaeConfig:
    """The configuration that the model options describe; `given_values` as in `MaeConfig`."""
    return mae_config(
        options.model,
        frames=frames,
        image_size=image_size,
        channels=channels,
        patch=options.patch,
        mask=mask_kind(options.mask),
        mask_ratio=options.mask_ratio,
        target=options.target,
        given_values=given_values,
        predict_frames=options.predict_frames,
        positions=options.positions,
        position_values=options.position_values,
        class_token=options.class_token,
        mask_tokens_in_encoder=options.mask_tokens_in_encoder,
        decoder=options.decoder,
        decode=options.decode,
        decode_share=0.5 if options.decode_share is None else options.decode_share,
        decoder_width=options.decoder_width,
        decoder_depth=options.decoder_depth,
        decoder_heads=options.decoder_heads,
    )


def training_flops(config: MaeConfig) -> int:
    """Floating-point operations of one clip's forward and backward pass, counted on the meta device."""
    clip = config.encoder.clip
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, clip.channels, *clip.shape), **stand_ins(config, 1))
    return 3 * counter.get_total_flops()  # a backward pass costs two forward ones


def stand_ins(config: MaeConfig, clips: int) -> dict[str, Tensor]:
    """What a model takes beside clips, where only shapes count: its mask, and targets from outside."""
    N = config.encoder.clip.tokens
    mask = {"noise": torch.zeros(clips, N)} if config.mask == "own" else {"keys": torch.zeros(clips, dtype=torch.int64)}
    given = {
        "tokens": lambda: torch.zeros(clips, N, dtype=torch.int64),
        "teacher": lambda: torch.zeros(clips, N, config.given_values),
    }
    return mask | ({"given": given[config.target]()} if config.target in given else {})


def is_path(source: object) -> bool:
    """Whether a source of videos is named by paths, and not a tensor or a Dataset."""
    return bool(paths_of(source))
