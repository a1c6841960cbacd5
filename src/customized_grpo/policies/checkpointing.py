"""Gradient checkpointing: a block is computed again in the backward pass, of what it was given, which alone is kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

Within = Callable[[], AbstractContextManager[object]]


def checkpointing(device: torch.device, *, on_host: bool, inside: Within = nullcontext) -> Callable[..., Any]:
    """What diffusers calls for each block: as torch's own, with gradients of the same bits.

    With `on_host`, what blocks are given waits in host memory until it is wanted: a copy there and back for each, and
    one block's at a time on the device. `inside` it the first computation was made, and so is the second.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[object]]:
        return nullcontext(), inside()

    def compute(block: nn.Module, *inputs: Any) -> Any:
        with _host(device) if on_host else nullcontext():
            return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)

    return compute


def _host(device: torch.device) -> AbstractContextManager[None]:
    """Inside it, what autograd keeps is in host memory; of a model without weights, which has none there, nowhere."""
    if device.type == "meta":
        return saved_tensors_hooks(_shape, _again)
    return save_on_cpu(pin_memory=device.type == "cuda", device_type=device.type)


def _shape(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _again(kept: tuple[torch.Size, torch.dtype]) -> Tensor:
    return torch.empty(kept[0], dtype=kept[1], device="meta")
