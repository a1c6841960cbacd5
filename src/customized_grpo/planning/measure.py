"""How much memory a computation takes beyond what it is given, counted without doing it.

The real code runs on torch's meta device: every operation makes tensors with shapes and no numbers. What they would
take is added up as they come and go, so that gradient checkpointing, casts and copies count as they really are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most bytes that tensors made inside `compute` hold at once, in autograd's graph too.

    Tensors that were there before count nothing. Attention counts as a fused kernel (flash or memory-efficient) holds
    it: queries, keys, values, output and one number for each query, but no matrix of all pairs of tokens.
    """
    live = _Live()
    with _fused_attention(), live:
        compute()
    return live.peak


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Bytes of the storages made inside it and not freed yet, and the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor):
                self._enter(given, counted=False)
        made = func(*args, **kwargs)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._enter(tensor, counted=True)
        self.peak = max(self.peak, self._bytes)
        return made

    def _enter(self, tensor: Tensor, *, counted: bool) -> None:
        """Know a tensor's storage from now on until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counted else 0
        self._known.add(key)
        self._bytes += size
        weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._bytes -= size


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
