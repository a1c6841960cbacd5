"""FLUX.1's blocks in fewer passes against diffusers' own: velocities and gradients, and what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import proofs
import pytest
import torch
from torch import Tensor, nn

from benchmarks.iteration.flops import flop_counter
from customized_grpo.policies.flux import FluxPolicy
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.policies.shortcuts import libraries_own
from customized_grpo.policies.uno import UnoPolicy
from customized_grpo.protocols import Conditions


@pytest.fixture(params=["flux-kontext", "uno"])
def policy(request: pytest.FixtureRequest) -> FluxPolicy:
    kind: Any = {"flux-kontext": FluxKontextPolicy, "uno": UnoPolicy}[request.param]
    folder = request.getfixturevalue({"flux-kontext": "folder", "uno": "flux_folder"}[request.param])
    built: FluxPolicy = proofs.built(kind, folder, kind=request.param, reference_sizes=[(16, 24)])
    proofs.tune(built)
    return built


def conditions(policy: FluxPolicy, references: int) -> Conditions:
    pictures = [proofs.random_picture(16, 24, seed) for seed in range(references)]
    return Conditions.join([policy.encode(proofs.PROMPT, pictures)] * 2)


def learned(policy: FluxPolicy, references: int) -> tuple[Tensor, Tensor]:
    """A velocity and the gradient of a number made of it."""
    x = torch.cat([proofs.noise(policy)] * 2) * torch.tensor([1.0, 0.5])[:, None, None]
    velocity = policy.velocity(x, torch.tensor([0.9, 0.4]), conditions(policy, references))
    weights = list(policy.trainable().values())
    gradients = torch.autograd.grad(velocity.square().mean(), weights)
    return velocity.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("references", [0, 1, 2])
def test_velocity_and_gradients_are_those_of_diffusers_blocks(policy: FluxPolicy, references: int) -> None:
    found = learned(policy, references)
    with libraries_own():
        expected = learned(policy, references)
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    assert float(found[1].abs().max()) > 0


def test_the_same_bits_with_gradients_and_without(policy: FluxPolicy) -> None:
    with torch.no_grad():
        x, told = torch.cat([proofs.noise(policy)] * 2), conditions(policy, 1)
        without = policy.velocity(x, torch.tensor([0.9, 0.4]), told)
    assert torch.equal(policy.velocity(x, torch.tensor([0.9, 0.4]), told), without)


def test_nobody_looks_at_what_the_last_block_leaves_out(policy: FluxPolicy) -> None:
    """Its queries, inner layer and outer layer are worked out for the picture's tokens alone."""
    last: Any = policy._transformer.single_transformer_blocks[-1]
    rows: dict[str, int] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, given, name=name: rows.__setitem__(name, given[0].shape[1]))
        for name, layer in last.named_modules()
        if name in ("proj_mlp", "proj_out", "attn.to_q", "attn.to_k", "attn.to_v")
    ]
    told = conditions(policy, 2)
    drawn, every = (
        policy.latent_shape[0],
        policy.latent_shape[0]
        + sum(
            row.shape[1] if name == "prompt_embeds" else row.shape[1] * row.shape[2]
            for name, row in told.rows.items()
            if name != "pooled"
        ),
    )
    x, half = torch.cat([proofs.noise(policy)] * 2), torch.full((2,), 0.5)
    with torch.no_grad(), flop_counter() as counter:
        policy.velocity(x, half, told)
    assert rows == {"proj_mlp": drawn, "proj_out": drawn, "attn.to_q": drawn, "attn.to_k": every, "attn.to_v": every}
    for hook in hooks:
        hook.remove()
    with torch.no_grad(), libraries_own(), flop_counter() as whole:
        policy.velocity(x, half, told)
    assert counter.get_total_flops() < whole.get_total_flops()


def test_names_of_weights_and_blocks_stay(policy: FluxPolicy, folder: Path, flux_folder: Path) -> None:
    """So that what is saved is what diffusers loads, and launchers find the blocks to shard."""
    stock = proofs.stock(folder if isinstance(policy, FluxKontextPolicy) else flux_folder).transformer
    own: nn.Module = policy._transformer
    plain = {name.replace(".base_layer", "") for name in own.state_dict() if ".lora_" not in name}
    assert plain == set(stock.state_dict())
    for block in (own.transformer_blocks[0], own.single_transformer_blocks[0], own.single_transformer_blocks[-1]):  # type: ignore[index]
        assert type(block).__name__ in own._no_split_modules  # type: ignore[operator]
