"""Convolutions of the VAE with channels last: where, and for the same images."""

from __future__ import annotations

from pathlib import Path

import proofs
import pytest
import torch
from torch import nn

from customized_grpo.policies import pipelines
from customized_grpo.policies.compute import takes_channels_last
from customized_grpo.policies.pipelines import PipelinePolicy

CPU, CUDA, META = map(torch.device, ("cpu", "cuda", "meta"))


def test_where_it_is_used() -> None:
    halves = (torch.bfloat16, torch.float16)
    assert all(takes_channels_last(CUDA, dtype) for dtype in (torch.float32, *halves))
    assert takes_channels_last(CPU, torch.float32) and not any(takes_channels_last(CPU, dtype) for dtype in halves)
    assert not takes_channels_last(META, torch.float32)


def decoded(folder: Path, dtype: str) -> tuple[torch.Tensor, set[bool]]:
    """Images, and whether weights of 3x3 convolutions have channels last."""
    policy = proofs.built(PipelinePolicy, folder, dtype=dtype, reference_sizes=[(16, 24)])  # type: ignore[type-abstract]
    convolutions = [part.weight for part in policy._pipeline.vae.modules() if isinstance(part, nn.Conv2d)]
    last = {weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions if weight.shape[-1] == 3}
    return policy.decode(proofs.noise(policy, 2)), last


@pytest.mark.parametrize(("dtype", "within"), [("float32", 2e-6), ("bfloat16", 0.04)])
def test_images_are_the_same(folder: Path, dtype: str, within: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for last in (False, True):
        monkeypatch.setattr(pipelines, "takes_channels_last", lambda *where, last=last: last)
        images, layouts = decoded(folder, dtype)
        assert layouts == {last}
        found.append(images)
    assert proofs.apart(*found) <= within
