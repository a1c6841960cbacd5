"""Products of matrices by the fastest of torch's own libraries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b of x (N, I), weight (O, I) and bias (O,), (N, O). No gradient is recorded where oneDNN computes it.

    torch multiplies float32 on a CPU by MKL, which on processors that are not Intel's leaves out their widest units:
    oneDNN, the library of torch's convolutions and of its half-precision products, is then up to 2.5 times as fast at
    the same float32 arithmetic, and about as fast elsewhere.
    """
    if (
        x.device.type == "cpu"
        and x.dtype == torch.float32 == weight.dtype
        and _ONEDNN
        and not torch.compiler.is_compiling()  # inductor chooses for itself
    ):
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], None)
        return found
    return functional.linear(x, weight, bias)


def _onednn() -> bool:
    """Whether this build of torch has oneDNN's linear layer, and it is as another release has it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        one = torch.ones(1, 1)
        return bool(torch.ops.mkldnn._linear_pointwise(one, one, None, "none", [], None) == 1)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


_ONEDNN = _onednn()
