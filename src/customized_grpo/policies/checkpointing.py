"""Gradient checkpointing: a block stores its inputs only and is computed again in the backward pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux2 import Flux2KVLayerCache
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from customized_grpo.policies import shortcuts
from customized_grpo.policies.sharding import any_sharded

Within = Callable[[], AbstractContextManager[object]]


def checkpointing(
    device: torch.device, *, on_host: bool, inside: Within = nullcontext, one_node: bool = True
) -> Callable[..., Any]:
    """Make the function that a diffusers model calls for each block, in place of torch's checkpoint.

    Gradients have the same bits as without it, except that of inputs that blocks share (the embedding of the noise
    level, if it is trained) the terms are summed in another order. Blocks must not use random numbers. `inside` is the
    context of the first computation, entered for the second too; inputs may wait `on_host`. With `one_node` a block is
    one node of the graph: torch's checkpoint calls Python three times for each saved tensor, which bounds small batches
    on a GPU. Blocks with sharded weights always use torch's, whose hooks FSDP expects.
    """
    modules: dict[nn.Module, list[nn.Module]] = {}
    storing: dict[nn.Module, _Storing] = {}

    def compute(block: nn.Module, *inputs: Any) -> Any:
        options = inputs[-1] if inputs and isinstance(inputs[-1], dict) else {}
        if options.get("kv_cache_mode") == "extract" and not isinstance(block, _Storing):
            if block not in storing:
                storing[block] = _Storing(block)
            *outputs, key, value = compute(storing[block], *inputs)
            options["kv_cache"].store(key, value)
            return outputs[0] if len(outputs) == 1 else tuple(outputs)
        if block not in modules:
            modules[block] = list(block.modules())
        owned = (weight for module in modules[block] for weight in module._parameters.values())
        weights = [weight for weight in owned if weight is not None and weight.requires_grad]
        leaves, spec = tree_flatten(inputs)
        with _host(device) if on_host else nullcontext():
            if not one_node or not shortcuts.taken() or any_sharded(weights):
                # Copies of mappings, because FLUX.2 gives all of its blocks one, which it changes for each.
                inputs = tree_unflatten(leaves, spec)
                return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), inside()))
            return _Recomputed.apply(block, inside, spec, len(leaves), *leaves, *weights)

    return compute


class _Storing(nn.Module):
    """A FLUX.2 block that returns the keys and values which it stores, so that they have a gradient when recomputed."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        *given, options = inputs
        stored = Flux2KVLayerCache()
        output = self.block(*given, {**options, "kv_cache": stored})
        return *((output,) if isinstance(output, Tensor) else output), *stored.get()


class _Recomputed(torch.autograd.Function):
    """A block of inputs, the leaves of a tree of that spec, and of its trained weights."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, inside: Within, spec: TreeSpec, count: int, *given: Any) -> Any:
        leaves, ctx.weights = list(given[:count]), given[count:]
        wanted = ctx.needs_input_grad[4:]
        ctx.differentiable = [place for place in range(count) if wanted[place]]
        ctx.save_for_backward(*(leaves[place] for place in ctx.differentiable))
        ctx.set_materialize_grads(False)
        output = block(*tree_unflatten(leaves, spec))
        for place in ctx.differentiable:
            leaves[place] = None
        ctx.block, ctx.inside, ctx.spec, ctx.leaves = block, inside, spec, leaves
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        leaves = list(ctx.leaves)
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        for place, tensor in zip(ctx.differentiable, inputs, strict=True):
            leaves[place] = tensor
        with torch.enable_grad(), ctx.inside():
            output = ctx.block(*tree_unflatten(leaves, ctx.spec))
        outputs = [output] if isinstance(output, Tensor) else output
        ends = [pair for pair in zip(outputs, gradients, strict=True) if pair[1] is not None and pair[0].requires_grad]
        wanted = (*inputs, *ctx.weights)
        found: Any = [None] * len(wanted)
        if ends:
            found = torch.autograd.grad(
                [one for one, _ in ends], wanted, [above for _, above in ends], allow_unused=True
            )
        of_leaves: list[Tensor | None] = [None] * len(leaves)
        for place, gradient in zip(ctx.differentiable, found, strict=False):
            of_leaves[place] = gradient
        return None, None, None, None, *of_leaves, *found[len(inputs) :]


def _host(device: torch.device) -> AbstractContextManager[None]:
    """Make the context in which autograd stores tensors in host memory; on the meta device, only their shapes."""
    if device.type == "meta":
        return saved_tensors_hooks(
            lambda tensor: (tensor.shape, tensor.dtype),
            lambda stored: torch.empty(stored[0], dtype=stored[1], device="meta"),
        )
    return save_on_cpu(pin_memory=device.type == "cuda", device_type=device.type)
