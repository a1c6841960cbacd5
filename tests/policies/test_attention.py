"""Attention in half precision: torch's own bits forth, gradients nearer to the exact ones back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from customized_grpo.policies import attention as ours
from customized_grpo.policies.attention import BackwardInFull


def given(dtype: torch.dtype) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    shape = (2, 3, 9, 16)
    return [torch.randn(shape, generator=draws).to(torch.bfloat16).to(dtype).requires_grad_() for _ in range(3)]


def gradients(inside: bool, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    tensors = given(dtype)
    if inside:
        with BackwardInFull():
            output = functional.scaled_dot_product_attention(*tensors, dropout_p=0.0, is_causal=False)
    else:
        output = functional.scaled_dot_product_attention(*tensors)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).to(dtype)
    (output * weights).sum().backward()
    return output, [tensor.grad for tensor in tensors if tensor.grad is not None]


def test_forth_as_torch_back_no_worse_than_torch() -> None:
    _, exact = gradients(False, torch.float64)
    plain_output, plain = gradients(False, torch.bfloat16)
    output, found = gradients(True, torch.bfloat16)
    assert torch.equal(output, plain_output)
    assert [gradient.dtype for gradient in found] == [torch.bfloat16] * 3
    for own, theirs, true in zip(found, plain, exact, strict=True):
        assert (own - true).abs().max() <= 1.01 * (theirs - true).abs().max()
        assert (own - true).abs().max() < 0.02 * true.abs().max()


@pytest.mark.parametrize("option", [{"is_causal": True}, {"attn_mask": torch.ones(9, 9, dtype=torch.bool).tril()}])
def test_what_is_not_plain_is_left_to_torch(option: dict[str, object]) -> None:
    tensors = given(torch.bfloat16)
    with BackwardInFull():
        output = functional.scaled_dot_product_attention(*tensors, **option)  # type: ignore[arg-type]
    assert torch.equal(output, functional.scaled_dot_product_attention(*tensors, **option))  # type: ignore[arg-type]
    assert not isinstance(output.grad_fn, ours._Attention)


def test_full_precision_is_left_to_torch() -> None:
    plain, found = gradients(False, torch.float32), gradients(True, torch.float32)
    assert all(torch.equal(own, theirs) for own, theirs in zip(found[1], plain[1], strict=True))
