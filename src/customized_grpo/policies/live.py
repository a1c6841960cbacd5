"""Count the bytes of tensors that live at the same time, on any device, including meta."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Count the bytes of storages that operations inside the context make; `peak` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._enter((args, kwargs), counted=False)
        output = func(*args, **kwargs)
        self._enter(output, counted=True)
        self.peak = max(self.peak, self._bytes)
        return output

    def _enter(self, tree: Any, *, counted: bool) -> None:
        """Track the storages of all tensors in a tree until they are freed."""
        for tensor in tree_leaves(tree):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            size = storage.nbytes() if counted else 0
            self._known.add(key)
            self._bytes += size
            weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._bytes -= size
