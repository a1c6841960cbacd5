"""What torch is slow at on a CPU, in our own ways wherever a model asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from customized_grpo.policies import shortcuts
from customized_grpo.policies.attention import attention, fits
from customized_grpo.policies.gelu import gelu


class OnProcessor(TorchFunctionMode):
    """Inside it, plain scaled dot-product attention and GELU's tanh form on a CPU are ours; all else is torch's.

    Args:
        attention: whether attention is ours, too.
    """

    def __init__(self, attention: bool = True) -> None:
        super().__init__()
        self._attention = attention

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if shortcuts.taken():
            if func is functional.scaled_dot_product_attention and self._attention:
                given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
                given |= kwargs
                query, key, value = (given.pop(name) for name in ("query", "key", "value"))
                plain = not any(isinstance(option, Tensor) or option for option in given.values())
                if plain and fits(query, key, value):
                    return attention(query, key, value)
            elif func is functional.gelu and kwargs == {"approximate": "tanh"} and args[0].device.type == "cpu":
                return gelu(args[0])
        return func(*args, **kwargs)
