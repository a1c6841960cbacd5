"""Weights that are sharded by FSDP2 (torch's `fully_shard`), or exchanged for a while."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Report whether a tensor is sharded over processes (FSDP2)."""
    return isinstance(tensor, DTensor)


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Return whether one of the tensors is sharded: then all processes take part in what is done with them."""
    return any(map(is_sharded, tensors))


def sum_over_processes(module: nn.Module) -> None:
    """Sum the gradients of a module's shards over processes, instead of averaging."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def reshard(module: nn.Module) -> None:
    """Shard a module's parameters again, which a forward pass may have left gathered."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard, or all of a tensor that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor. All processes call this for a sharded one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Shard a whole tensor, the same in all processes, as `other` is sharded, if it is."""
    if not isinstance(other, DTensor):
        return tensor
    # Without a source every process cuts its shard out of its own copy.
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def writes(weights: Sequence[Tensor]) -> bool:
    """Report whether this process writes such weights to a file: of sharded ones, only the first process."""
    return not any_sharded(weights) or torch.distributed.get_rank() == 0


@contextmanager
def undone(give_back: Callable[[], None]) -> Iterator[None]:
    """Call `give_back` at the end of the context, and once more if a signal interrupts it."""
    try:
        yield
    finally:
        try:
            give_back()
        except BaseException:
            give_back()
            raise
