"""DDP and FSDP2 around a model, from outside, and tensors that lie in parts on many processes.

Whatever the strategy, gradients are summed over the processes, never averaged: the loop divides them by the weight of
the whole batch. A process alone passes through here unchanged.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stmae.engine.distributed import World


def wrap(model: nn.Module, world: World, strategy: str) -> nn.Module:
    """The model as all processes train it: gradients are summed (not averaged) over them. Call what is returned in
    `Task.step`; names, parameters and state stay those of `model`, which FSDP2 alters in place. One process: as it is.

    Args:
        strategy: "ddp" (a whole model on each device), "fsdp" (parameters, gradients and moments in parts over all
            devices) or "hybrid" (in parts over the devices of a host, copied over hosts). Parts are the members of
            every ModuleList, and the rest.
    """
    if world.size == 1:
        return model
    if strategy == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        ids = [world.device] if world.device.type == "cuda" else None
        whole = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        whole.register_comm_hook(None, lambda _, bucket: _summed(bucket))
        return whole
    return _sharded(model, world, strategy)


def _summed(bucket: Any) -> Any:
    """The gradients of a bucket, summed. DDP itself would divide them by the number of processes."""
    work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _sharded(model: nn.Module, world: World, strategy: str) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    hosts = world.size // world.local_size if strategy == "hybrid" else 1
    shape = (hosts, world.local_size) if hosts > 1 else (world.size,)
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=("copies", "parts")[-len(shape) :])
    for module in reversed(list(model.modules())):  # inner ones first
        if isinstance(module, nn.ModuleList):
            for part in module:
                fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if hasattr(model, "encode"):  # called in place of forward, it gathers the weights as that does
        register_fsdp_forward_method(model, "encode")
    # Of outputs that are views, which would be harmful only if somebody wrote into them.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it sums
    return model


def regathered(model: nn.Module) -> None:
    """To be called when parameters were changed in place. FSDP2 keeps what a forward pass without gradients gathered of
    its root, and the next pass would compute with that: it is let go.
    """
    if hasattr(model, "reshard"):
        model.reshard()  # type: ignore[operator]


@contextlib.contextmanager
def gradient_sync(model: nn.Module | None, last: bool) -> Iterator[None]:
    """Around forward and backward pass of a micro-batch: the gradients are exchanged with the last one alone.

    FSDP2 exchanges parts with each, so that gradients stay in parts, and leaves only the exchange between hosts.
    """
    if model is not None and hasattr(model, "set_requires_all_reduce"):
        model.set_requires_all_reduce(last)  # type: ignore[operator]
    if model is not None and not last and hasattr(model, "no_sync"):
        with model.no_sync():  # type: ignore[operator]
            yield
    else:
        yield


# Whole tensors and parts --------------------------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; a whole one as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that lies in parts; every process calls it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def total_norm(grads: list[Tensor]) -> Tensor:
    """The norm of all gradients, over the parts of all processes."""
    return whole(torch.nn.utils.get_total_norm(grads))


def full_copies(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Copies of whole tensors in host memory: on rank 0; empty on the others, which all call this."""
    copies = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if world.main:
            copies[name] = full.to("cpu", copy=True)
    return copies


def spread(full: Mapping[str, Tensor], like: Callable[[str], Tensor | None], world: World) -> Mapping[str, Tensor]:
    """Rank 0's whole tensors on every process, in parts where `like(name)` is in parts.

    Args:
        full: on rank 0; unread on the others.
        like: the tensor that one of this name goes to; None, or one of another shape, leaves it whole.
    """
    if world.size == 1:
        return full
    parts = {}
    for name, (shape, dtype) in world.broadcast({name: (t.shape, t.dtype) for name, t in full.items()}).items():
        tensor = torch.empty(shape, dtype=dtype, device=world.device)
        if world.main:
            tensor.copy_(full[name])
        torch.distributed.broadcast(tensor, 0)
        parts[name] = _part_like(tensor, like(name))
    return parts


def share_state(model: nn.Module, world: World) -> None:
    """Rank 0's parameters and buffers in all processes, while the model is still whole."""
    if world.size > 1:
        for tensor in model.state_dict().values():
            torch.distributed.broadcast(tensor, 0)


def _part_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    if like is None or not hasattr(like, "placements") or like.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
