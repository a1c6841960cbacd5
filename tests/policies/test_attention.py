"""Attention by products of matrices: what exact arithmetic gives, forth and back, at any batch, and of what alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.iteration.flops import flop_counter
from customized_grpo.policies import attention as ours
from customized_grpo.policies import slices
from customized_grpo.policies.attention import attention
from customized_grpo.policies.processor import OnProcessor
from customized_grpo.policies.shortcuts import libraries_own

BACK: Any = ours._Attention._backward_cls  # type: ignore[attr-defined]
KINDS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True, params=[1 << 20, 700], ids=["at once", "in slices"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Scores of all heads at once, and of two heads of the three of a picture."""
    monkeypatch.setattr(slices, "_AT_ONCE", request.param)
    return int(request.param)


def given(dtype: torch.dtype, tokens: int = 9, seen: int = 9, width: int = 16) -> list[Tensor]:
    """Queries, keys, values as models have them: heads between tokens and channels in memory."""
    draws = torch.Generator().manual_seed(0)
    shapes = [(2, tokens, 3, width), (2, seen, 3, width), (2, seen, 3, width)]
    made = [torch.randn(shape, generator=draws).to(torch.bfloat16).to(dtype).transpose(1, 2) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made]


def gradients(inside: bool, tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    how = attention if inside else functional.scaled_dot_product_attention
    output = how(*tensors)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).to(output.dtype)
    return output.detach(), list(torch.autograd.grad((output * weights).sum(), tensors))


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("tokens", "seen", "width"), [(9, 9, 16), (4, 11, 8), (40, 40, 2)], ids=["", "some", "long"])
def test_forth_and_back_as_exact_arithmetic(dtype: torch.dtype, tokens: int, seen: int, width: int) -> None:
    """No further from it than torch's own but for rounding; "long" makes the probabilities anew for the way back."""
    exact_output, exact = gradients(False, given(torch.float64, tokens, seen, width))
    plain_output, plain = gradients(False, given(dtype, tokens, seen, width))
    output, found = gradients(True, given(dtype, tokens, seen, width))
    assert [gradient.dtype for gradient in found] == [dtype] * 3
    rounding = 4 * torch.finfo(dtype).eps
    for own, theirs, true in zip((output, *found), (plain_output, *plain), (exact_output, *exact), strict=True):
        most = float(true.abs().max())
        assert float((own - true).abs().max()) <= 2 * float((theirs - true).abs().max()) + rounding * most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pictures_bits_do_not_depend_on_its_batch_or_on_gradients(dtype: torch.dtype) -> None:
    tensors = given(dtype)
    whole = attention(*tensors)
    with torch.no_grad():
        assert torch.equal(attention(*tensors), whole)
        for k in range(2):
            assert torch.equal(attention(*(tensor[k : k + 1] for tensor in tensors)), whole[k : k + 1])


def test_long_rows_keep_no_probabilities() -> None:
    kept = []
    for tokens, width in ((9, 16), (40, 2)):
        output = attention(*given(torch.float32, tokens, tokens, width))
        assert output.grad_fn is not None
        shapes = [saved.shape for saved in output.grad_fn.saved_tensors]  # type: ignore[attr-defined]
        kept.append(any(shape[-2:] == (tokens, tokens) for shape in shapes))
    assert kept == [True, False]


def test_its_operations_are_counted_as_torchs_own() -> None:
    tensors = [tensor.detach() for tensor in given(torch.float32)]
    with flop_counter() as own:
        attention(*tensors)
    with flop_counter() as theirs:
        functional.scaled_dot_product_attention(*tensors)
    assert own.get_total_flops() == theirs.get_total_flops() > 0


def test_inside_the_mode_plain_attention_is_ours() -> None:
    tensors = given(torch.float32)
    with OnProcessor():
        output = functional.scaled_dot_product_attention(*tensors, dropout_p=0.0, is_causal=False)
        with libraries_own():
            theirs = functional.scaled_dot_product_attention(*tensors)
    assert isinstance(output.grad_fn, BACK)  # type: ignore[arg-type]
    assert not isinstance(theirs.grad_fn, BACK)  # type: ignore[arg-type]
    assert torch.equal(output, attention(*tensors))


@pytest.mark.parametrize("option", [{"is_causal": True}, {"attn_mask": torch.ones(9, 9, dtype=torch.bool).tril()}])
def test_what_is_not_plain_is_left_to_torch(option: dict[str, object]) -> None:
    tensors = given(torch.bfloat16)
    with OnProcessor():
        output = functional.scaled_dot_product_attention(*tensors, **option)  # type: ignore[arg-type]
    assert torch.equal(output, functional.scaled_dot_product_attention(*tensors, **option))  # type: ignore[arg-type]
    assert not isinstance(output.grad_fn, BACK)  # type: ignore[arg-type]


def test_what_it_cannot_do_is_left_to_torch() -> None:
    """Another precision, and keys of fewer heads."""
    for tensors in (
        given(torch.float64),
        [given(torch.float32)[0], *(part[:, :1] for part in given(torch.float32)[1:])],
    ):
        with OnProcessor():
            output = functional.scaled_dot_product_attention(*tensors)
        assert not isinstance(output.grad_fn, BACK)  # type: ignore[arg-type]
