"""Weights in shards (FSDP2, torch's `fully_shard`): telling them, making them whole, cutting whole ones again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def sum_over_processes(module: nn.Module) -> None:
    """Have the gradients of all shards in a module summed over processes, where they would be means."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def reshard(module: nn.Module) -> None:
    """Have a module's parameters be the shards again, which a forward pass may have left whole."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's shard; all of a tensor that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor. Of a sharded one this is a collective: all processes call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, the same on all processes, in the shards of `other`, where that is sharded."""
    if not isinstance(other, DTensor):
        return tensor
    # Without a source every process cuts its shard out of its own copy.
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def writes(weights: Sequence[Tensor]) -> bool:
    """Whether this process writes such weights to a file: of sharded ones, which all make whole, the first alone."""
    return not any(map(is_sharded, weights)) or torch.distributed.get_rank() == 0
