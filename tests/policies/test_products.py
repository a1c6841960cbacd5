"""The product of float32 on a CPU against one in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from customized_grpo.policies.products import product

X, WEIGHT = torch.randn(6, 10), torch.randn(4, 10)
#: Rows as they come out of other operations: contiguous, transposed, a part of wider ones, one row for all, none.
LAYOUTS = {
    "contiguous": (X, WEIGHT),
    "transposed": (torch.randn(10, 6).T, torch.randn(10, 4).T),
    "part": (torch.randn(6, 30)[:, 5:15], torch.randn(9, 12)[2:6, 1:11]),
    "every second": (torch.randn(6, 20)[:, ::2], WEIGHT),
    "expanded": (torch.randn(1, 1).expand(6, 10), WEIGHT),
    "expanded rows": (torch.randn(10).expand(6, 10), WEIGHT),
    "empty": (torch.randn(0, 10), WEIGHT),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [None, torch.randn(4)])
def test_of_any_layout(layout: str, bias: Tensor | None) -> None:
    x, weight = LAYOUTS[layout]
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    found = product(x, weight, bias)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_torchs_own(dtype: torch.dtype) -> None:
    x, weight = X.to(dtype), WEIGHT.to(dtype)
    assert torch.equal(product(x, weight), torch.nn.functional.linear(x, weight))
