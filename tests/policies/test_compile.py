"""torch.compile as an option: the same velocity and gradients within rounding."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from embedded import embedded
from PIL import Image
from tiny import save_flux_kontext

from customized_grpo.config import LoraConfig, PolicyConfig
from customized_grpo.policies.flux_kontext import FluxKontextPolicy


def velocity_and_gradients(folder: Path, device: str, compile_: bool) -> list[torch.Tensor]:
    sizes = {"height": 16, "width": 16, "reference_sizes": [(16, 16)]}
    lora = LoraConfig(rank=2)
    policy = FluxKontextPolicy(
        embedded(PolicyConfig, path=str(folder), device=device, lora=lora, compile=compile_, **sizes)
    )
    draws = torch.Generator().manual_seed(0)
    weights = policy.trainable()
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draws).to(weight))
    conditions = policy.encode("a dog", [Image.radial_gradient("L").resize((16, 16)).convert("RGB")])
    latents = torch.randn(1, *policy.latent_shape, generator=draws)
    velocity = policy.velocity(latents, torch.tensor([0.5]), conditions)
    return [velocity.detach(), *torch.autograd.grad(velocity.square().sum(), list(weights.values()))]


@pytest.mark.parametrize(
    ("device", "backend"),
    [
        ("cpu", "aot_eager"),  # the same graphs without a C++ compiler, which takes most of the time
        pytest.param("cpu", "inductor", marks=pytest.mark.slow),
        pytest.param("cuda", "inductor", marks=pytest.mark.gpu),
    ],
)
def test_a_compiled_policy_is_the_same_within_rounding(
    tmp_path: Path, device: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    folder = save_flux_kontext(tmp_path)
    plain = velocity_and_gradients(folder, device, False)
    try:
        compiled = velocity_and_gradients(folder, device, True)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if "InvalidCxxCompiler" in str(error) or "No working C++ compiler" in str(error):
            pytest.skip("torch.compile needs a C++ compiler on a CPU")
        raise
    assert len(plain) == len(compiled) > 2
    for one, other in zip(plain, compiled, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "something was compiled"
