"""Count the bytes of tensors that live at the same time, on any device, including meta."""

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


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
        output = self._run(func, args, kwargs)
        self._enter(output, counted=True)
        self.peak = max(self.peak, self._bytes)
        return output

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def _enter(self, tree: Any, *, counted: bool) -> None:
        """Track the storages of all tensors in a tree until they are freed."""
        for tensor in _tensors(tree):
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


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries; torch's own `tree_leaves` is several times slower."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
