"""Gradient checkpointing: a block is computed again in the backward pass, of what it was given, which alone is kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from customized_grpo.policies import shortcuts
from customized_grpo.policies.sharding import is_sharded

Within = Callable[[], AbstractContextManager[object]]


def checkpointing(device: torch.device, *, on_host: bool, inside: Within = nullcontext) -> Callable[..., Any]:
    """Make the function that diffusers calls for each block, in place of torch's checkpoint.

    Gradients have the same bits as without it, except that what several blocks are given (the embedding of the noise
    level, if it is trained) gets the same terms in another order. torch's own checkpoint calls Python for each tensor
    that any operation of the block saves, three times. Here the block is one node of the graph, which is
    differentiated inside its backward pass. Blocks must not draw random numbers. Blocks with sharded weights are left
    to torch's own, whose hooks FSDP expects.

    Args:
        device: device of the blocks.
        on_host: what blocks are given waits in host memory until it is wanted: a copy there and back for each, and one
            block's at a time on the device.
        inside: context of the first computation, which the second is made in, too.
    """
    parts: dict[nn.Module, list[nn.Module]] = {}

    def compute(block: nn.Module, *inputs: Any) -> Any:
        if block not in parts:
            parts[block] = list(block.modules())
        owned = (weight for part in parts[block] for weight in part._parameters.values())
        weights = [weight for weight in owned if weight is not None and weight.requires_grad]
        with _host(device) if on_host else nullcontext():
            if not shortcuts.taken() or any(map(is_sharded, weights)):
                return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), inside()))
            leaves, spec = tree_flatten(inputs)
            function: Any = _Recomputed
            return function.apply(block, inside, spec, len(leaves), *leaves, *weights)

    return compute


class _Recomputed(torch.autograd.Function):
    """A block of inputs, which are leaves of a tree of that spec, and of its trained weights."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, inside: Within, spec: TreeSpec, count: int, *given: Any) -> Any:
        leaves, ctx.weights = list(given[:count]), given[count:]
        wanted = ctx.needs_input_grad[4:]
        ctx.moving = [place for place in range(count) if wanted[place]]
        ctx.save_for_backward(*(leaves[place] for place in ctx.moving))
        ctx.set_materialize_grads(False)
        output = block(*tree_unflatten(leaves, spec))
        for place in ctx.moving:
            leaves[place] = None
        ctx.block, ctx.inside, ctx.spec, ctx.leaves = block, inside, spec, leaves
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        leaves = list(ctx.leaves)
        moving = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        for place, tensor in zip(ctx.moving, moving, strict=True):
            leaves[place] = tensor
        with torch.enable_grad(), ctx.inside():
            made = ctx.block(*tree_unflatten(leaves, ctx.spec))
        outputs = [made] if isinstance(made, Tensor) else made
        ends = [pair for pair in zip(outputs, gradients, strict=True) if pair[1] is not None and pair[0].requires_grad]
        wanted = (*moving, *ctx.weights)
        found: Any = [None] * len(wanted)
        if ends:
            found = torch.autograd.grad(
                [one for one, _ in ends], wanted, [above for _, above in ends], allow_unused=True
            )
        of_leaves: list[Tensor | None] = [None] * len(leaves)
        for place, gradient in zip(ctx.moving, found, strict=False):
            of_leaves[place] = gradient
        return None, None, None, None, *of_leaves, *found[len(moving) :]


def _host(device: torch.device) -> AbstractContextManager[None]:
    """Inside it, what autograd keeps is in host memory; of a model without weights, which has none there, nowhere."""
    if device.type == "meta":
        return saved_tensors_hooks(_shape, _again)
    return save_on_cpu(pin_memory=device.type == "cuda", device_type=device.type)


def _shape(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _again(kept: tuple[torch.Size, torch.dtype]) -> Tensor:
    return torch.empty(kept[0], dtype=kept[1], device="meta")
