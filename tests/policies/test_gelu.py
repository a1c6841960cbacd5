"""GELU by the logistic function: torch's, forth and back, at any batch, and of what alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from customized_grpo.policies import gelu as ours
from customized_grpo.policies import slices
from customized_grpo.policies.gelu import gelu
from customized_grpo.policies.processor import OnProcessor
from customized_grpo.policies.shortcuts import libraries_own

BACK: Any = ours._Gelu._backward_cls  # type: ignore[attr-defined]


def given(dtype: torch.dtype) -> Tensor:
    spread = torch.linspace(-8, 8, 3 * 100)
    return torch.cat([spread, torch.tensor([-60.0, -20.0, 0.0, 20.0, 60.0, 3.0])]).view(3, 102).to(dtype)


def both(how: object, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    output: Tensor = how(x)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(output, x, torch.linspace(1, 2, x.numel()).view(x.shape).to(x.dtype))
    return output.detach(), gradient


def torchs(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("at_once", [1 << 20, 64])
def test_forth_and_back_as_torch(dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_AT_ONCE", at_once)
    rounding = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for own, exact in zip(both(gelu, given(dtype)), both(torchs, given(dtype).double()), strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own.double(), exact, rtol=rounding, atol=rounding)


def test_float64_keeps_its_digits() -> None:
    for own, theirs in zip(both(gelu, given(torch.float64)), both(torchs, given(torch.float64)), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-12)


def test_of_tensors_that_lie_apart_in_memory() -> None:
    apart = given(torch.float32).T
    torch.testing.assert_close(gelu(apart), torchs(apart), rtol=1e-6, atol=1e-6)


def test_an_elements_bits_do_not_depend_on_the_others_or_on_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_AT_ONCE", 64 * 4)
    x = given(torch.float32)
    whole = gelu(x.clone().requires_grad_())
    assert torch.equal(gelu(x), whole)
    for row in range(len(x)):
        assert torch.equal(gelu(x[row]), whole[row])


def test_inside_the_mode_the_tanh_form_is_ours_and_the_exact_one_is_torchs() -> None:
    x = given(torch.float32).requires_grad_()
    with OnProcessor():
        assert isinstance(torchs(x).grad_fn, BACK)  # type: ignore[arg-type]
        exact = functional.gelu(x)
        with libraries_own():
            theirs = torchs(x)
    for output in (exact, theirs):
        assert not isinstance(output.grad_fn, BACK)  # type: ignore[arg-type]
    assert torch.equal(exact, functional.gelu(x))
