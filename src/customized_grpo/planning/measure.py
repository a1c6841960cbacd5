"""How much memory a computation takes beyond what it is given, counted without doing it.

The real code runs on torch's meta device: every operation makes tensors with shapes and no numbers. What they would
take is added up as they come and go, so that gradient checkpointing, casts and copies count as they really are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from customized_grpo.policies.live import LiveBytes


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most bytes that tensors made inside `compute` hold at once, in autograd's graph too.

    Tensors that were there before count nothing. Attention counts as a fused kernel (flash or memory-efficient) holds
    it: queries, keys, values, output and one number for each query, but no matrix of all pairs of tokens.
    """
    live = LiveBytes()
    with _fused_attention(), live:
        compute()
    return live.peak


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as fused kernels hold it: on meta, torch would take the one that writes all pairs of tokens down."""

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return _Fused.apply(query, key, value)  # type: ignore[no-untyped-call]

    # Not by a TorchFunctionMode, which is off where gradient checkpointing computes a block again.
    functional: Any = torch.nn.functional
    own = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


class _Fused(torch.autograd.Function):
    """What a fused kernel makes and keeps, without numbers."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value = ctx.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
