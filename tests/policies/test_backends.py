"""Attention backends: the same velocity and gradients by each, no cuDNN by default, one line for unavailable ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import proofs
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from tiny_models import Model
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from customized_grpo.policies.backends import (
    WITHOUT_CUDNN,
    available_backends,
    context_of,
    resolve_backend,
    use_backend,
    with_contiguous_gradients,
)
from customized_grpo.policies.checkpointing import checkpointing
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.utils.hub import ModelError

CPU, CUDA, META = map(torch.device, ("cpu", "cuda", "meta"))
EXPLICIT = [name for name in available_backends(CPU, torch.float32) if name != "auto"]


@pytest.mark.parametrize("model", ["flux-kontext", "flux2-klein", "qwen-image-edit"], indirect=True)
def test_every_backend_learns_the_same_and_again_when_recomputed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's kernels are restricted to the one that was asked for, also by checkpointing."""
    conditions = model.encode(model.policy())
    expected, calls = proofs.learned(model.policy(), conditions), []
    own = functional.scaled_dot_product_attention

    def recorded(*args: Any, **kwargs: Any) -> Any:
        calls.append(_cur_sdpa_kernel_backends())
        return own(*args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", recorded)
    kernels = {"flash": [SDPBackend.FLASH_ATTENTION], "math": [SDPBackend.MATH], "native": _cur_sdpa_kernel_backends()}
    for name in EXPLICIT:
        calls.clear()
        policy = model.policy(attention=name)
        found = proofs.learned(policy, conditions)
        assert policy.attention_backend == resolve_backend(name, CPU, torch.float32)
        again = proofs.learned(model.policy(attention=name, gradient_checkpointing=True), conditions)
        assert calls and all(call == kernels[name] for call in calls), name
        assert len(found) == len(expected) and all(map(torch.equal, found, again))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * max(1.0, float(other.abs().max())))


def test_another_policy_keeps_its_own(folder: Path) -> None:
    proofs.built(PipelinePolicy, folder, attention="math")  # type: ignore[type-abstract]
    assert _AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName.NATIVE
    plain = proofs.built(PipelinePolicy, folder)  # type: ignore[type-abstract]
    processors = plain._transformer.attn_processors.values()
    assert {processor._attention_backend for processor in processors} == {AttentionBackendName.NATIVE}


def test_the_default_on_cuda_never_takes_cudnn() -> None:
    assert resolve_backend("auto", CUDA, torch.bfloat16) == WITHOUT_CUDNN
    seen: list[bool] = []

    class Block(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.backends.cuda.cudnn_sdp_enabled())
            return super().forward(x)

    block, inside = Block(2, 2), context_of(WITHOUT_CUDNN)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        with inside():
            found = checkpointing(CPU, on_host=False, inside=inside)(block, torch.ones(1, 2))
        found.sum().backward()
        assert seen == [False, False], "neither in the first computation nor in the second"
        assert torch.backends.cuda.cudnn_sdp_enabled(), "as it was before"
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    use_backend(block, WITHOUT_CUDNN)


def test_a_gradient_reaches_the_kernel_in_one_layout() -> None:
    """Concatenated with an MLP's output, attention gets a strided gradient; alone, a contiguous one."""
    layouts: list[tuple[int, ...]] = []

    def kernel(x: Tensor) -> Tensor:
        found = x * 2
        found.register_hook(lambda gradient: layouts.append(gradient.stride()))
        return found

    for compute in (kernel, with_contiguous_gradients(kernel)):
        x, inner = torch.ones(2, 3, 4, requires_grad=True), torch.ones(2, 3, 5)
        torch.cat([compute(x), inner], 2).square().sum().backward()
        compute(x).square().sum().backward()
        assert x.grad is not None and torch.equal(x.grad, torch.full((2, 3, 4), 16.0))
    assert layouts == [(27, 9, 1), (12, 4, 1), (12, 4, 1), (12, 4, 1)]
    once = with_contiguous_gradients(kernel)
    assert with_contiguous_gradients(once) is once


def test_cudnn_gets_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    name = AttentionBackendName._NATIVE_CUDNN
    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, _AttentionBackendRegistry._backends[name])
    own = _AttentionBackendRegistry._backends[name]
    use_backend(nn.Module(), name.value)
    assert _AttentionBackendRegistry._backends[name].__wrapped__ is own


@pytest.mark.parametrize("name", ["cudnn", "flash_hub", "fastest"])
def test_what_is_not_here_is_refused_with_what_is(folder: Path, name: str) -> None:
    proofs.refused(
        lambda: proofs.built(PipelinePolicy, folder, attention=name),  # type: ignore[type-abstract]
        f"policy.attention: {'there is no backend ' if name == 'fastest' else ''}{name}",
        "auto, native, flash, math",
    )


def test_diffusers_own_names_are_accepted_and_an_outline_takes_another_machines() -> None:
    """`cgrpo plan` for a GPU runs anywhere."""
    assert resolve_backend("_native_math", CPU, torch.float32) == "_native_math"
    assert resolve_backend("flash-3", META, torch.bfloat16) == "native"
    with pytest.raises(ModelError, match="no backend fastest"):
        resolve_backend("fastest", META, torch.bfloat16)
