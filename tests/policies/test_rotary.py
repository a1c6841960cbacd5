"""Queries and keys normed and turned in one go, against torch's norm and diffusers' rotary embeddings."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from customized_grpo.policies import rotary, slices
from customized_grpo.policies.rotary import normed_and_turned
from customized_grpo.policies.shortcuts import libraries_own

DRAWS = torch.Generator().manual_seed(0)
ANGLES = torch.randn(9, 8, generator=DRAWS).repeat_interleave(2, 1)
ROTARY = (ANGLES.cos(), ANGLES.sin())


def norm(dtype: torch.dtype, *, affine: bool = True, trained: bool = False) -> nn.RMSNorm:
    made = nn.RMSNorm(16, eps=1e-6, elementwise_affine=affine, dtype=dtype)
    if affine:
        made.weight.requires_grad_(trained)
        with torch.no_grad():
            made.weight.copy_(torch.linspace(0.5, 1.5, 16))
    return made


def given(dtype: torch.dtype) -> Tensor:
    return torch.randn(5, 9, 3, 16, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def both(x: Tensor, layer: nn.RMSNorm, *, ours: bool) -> tuple[Tensor, Tensor]:
    output = normed_and_turned(x, layer, ROTARY) if ours else apply_rotary_emb(layer(x), ROTARY, sequence_dim=1)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    (gradient,) = torch.autograd.grad(output, x, weights)
    return output.detach(), gradient


@pytest.fixture(params=["cpu", "gpu"])
def _where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, and as on a GPU."""
    if request.param == "gpu":
        monkeypatch.setattr(rotary, "_InSlices", rotary._AtOnce)


@pytest.mark.usefixtures("_where")
@pytest.mark.parametrize("at_once", [1 << 20, 4000], ids=["at once", "in slices"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forth_and_back_as_the_libraries(
    dtype: torch.dtype, affine: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "_AT_ONCE", at_once)
    found = both(given(dtype), norm(dtype, affine=affine), ours=True)
    exact = both(given(dtype).detach().double().requires_grad_(), norm(torch.float64, affine=affine), ours=False)
    rounding = 8 * torch.finfo(dtype).eps
    for own, true in zip(found, exact, strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own.double(), true.double(), rtol=rounding, atol=rounding)


@pytest.mark.usefixtures("_where")
def test_the_same_bits_with_gradients_and_without_and_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_AT_ONCE", 4000)
    x, layer = given(torch.float32), norm(torch.float32)
    whole = normed_and_turned(x, layer, ROTARY)
    with torch.no_grad():
        assert torch.equal(normed_and_turned(x, layer, ROTARY), whole)
        assert torch.equal(normed_and_turned(x[3:4], layer, ROTARY), whole[3:4])


def test_a_norm_that_is_trained_has_its_gradient() -> None:
    x = given(torch.float32)
    own, theirs = norm(torch.float32, trained=True), norm(torch.float32, trained=True)
    normed_and_turned(x, own, ROTARY).square().sum().backward()
    apply_rotary_emb(theirs(x), ROTARY, sequence_dim=1).square().sum().backward()
    assert own.weight.grad is not None and theirs.weight.grad is not None
    torch.testing.assert_close(own.weight.grad, theirs.weight.grad)


def test_without_embeddings_and_by_the_libraries_it_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, layer = given(torch.float32), norm(torch.float32)
    monkeypatch.setattr(rotary, "_InSlices", None)  # ours is not called
    assert torch.equal(normed_and_turned(x, layer, None), layer(x))
    with libraries_own():
        assert torch.equal(normed_and_turned(x, layer, ROTARY), apply_rotary_emb(layer(x), ROTARY, sequence_dim=1))


def test_some_tokens_have_their_own_angles() -> None:
    x, layer = given(torch.float32), norm(torch.float32)
    whole = normed_and_turned(x, layer, ROTARY)
    for tokens in (slice(4), slice(4, None), slice(2, 5)):
        assert torch.equal(normed_and_turned(x[:, tokens], layer, ROTARY, tokens), whole[:, tokens])
        with libraries_own():
            expected = apply_rotary_emb(layer(x), ROTARY, sequence_dim=1)[:, tokens]
            torch.testing.assert_close(normed_and_turned(x[:, tokens], layer, ROTARY, tokens), expected)


def test_angles_of_another_pass_are_its_own() -> None:
    x, layer = given(torch.float32), norm(torch.float32)
    first, other = normed_and_turned(x, layer, ROTARY), (ROTARY[0], -ROTARY[1])
    assert not torch.equal(normed_and_turned(x, layer, other), first)
    assert torch.equal(normed_and_turned(x, layer, ROTARY), first)
