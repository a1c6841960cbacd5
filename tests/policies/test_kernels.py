"""Kernels against the layers of diffusers and peft that they replace, and their switches."""

from __future__ import annotations

import copy
import logging
from typing import Any

import peft
import proofs
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from tiny_models import Model
from torch import Tensor, nn

from benchmarks.iteration.flops import flop_counter
from customized_grpo.policies.kernels import flux, lora, rotary, source_hash, usable
from customized_grpo.policies.kernels.lora import LowRankLinear
from customized_grpo.policies.kernels.rotary import norm_and_rotate
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.policies.shortcuts import libraries_own, taken
from customized_grpo.protocols import Conditions

# Switches


def test_kernels_fit_the_installed_libraries() -> None:
    """If this fails after an upgrade, compare the kernels with the new source, then update their hashes."""
    assert lora.USABLE and rotary.USABLE and flux.USABLE


def test_a_changed_library_is_used_as_it_is_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, models: Any
) -> None:
    right = {FluxTransformerBlock.forward: source_hash(FluxTransformerBlock.forward)}
    with caplog.at_level(logging.WARNING):
        assert usable("a", right) and not caplog.records
        assert not usable("FLUX.1 block", {**right, len: "", print: "other"})
    (record,) = caplog.records
    assert record.getMessage().startswith("the FLUX.1 block kernel is off: builtins.print differs")
    for module in (lora, rotary, flux):
        monkeypatch.setattr(module, "USABLE", False)
    policy = models("flux-kontext").policy()
    assert not any("forward" in vars(module) for module in policy._transformer.modules())
    assert not any(isinstance(module, LowRankLinear) for module in policy._transformer.modules())


@pytest.mark.parametrize("model", ["flux-kontext", "uno"], indirect=True)
def test_they_are_used_by_default_and_can_be_switched_off(model: Model) -> None:
    ours, theirs = model.policy(), model.policy(kernels="off", gradient_checkpointing=True)
    kinds = [
        {type(policy._transformer.get_submodule(name.split(".lora_")[0])) for name in policy.trainable()}
        for policy in (ours, theirs)
    ]
    assert kinds == [{LowRankLinear}, {peft.tuners.lora.Linear}]
    assert not any("forward" in vars(module) for module in theirs._transformer.modules())
    for policy in (ours, theirs):
        proofs.tune(policy)
    with libraries_own():
        found, expected = (proofs.half_way(policy, model.encode(policy)) for policy in (ours, theirs))
    assert torch.equal(found, expected)
    assert taken()


def test_modules_and_their_names_stay(models: Any) -> None:
    """So that what is saved is what diffusers loads, and launchers find the blocks to shard."""
    model = models("flux-kontext")
    policy = model.policy()
    plain = {name.replace(".base_layer", "") for name in policy._transformer.state_dict() if ".lora_" not in name}
    assert plain == set(model.stock(policy).transformer.state_dict())
    assert {type(block) for block in policy._transformer.transformer_blocks} == {FluxTransformerBlock}
    assert {type(block) for block in policy._transformer.single_transformer_blocks} == {FluxSingleTransformerBlock}
    again: Any = copy.deepcopy(policy._transformer)
    assert again.transformer_blocks[0].forward.__self__ is again.transformer_blocks[0]


# FLUX.1's blocks


def conditioning(policy: PipelinePolicy, references: int) -> Conditions:
    images = [proofs.random_image(16, 24, seed) for seed in range(references)]
    return Conditions.join([policy.encode(proofs.PROMPT, images)] * 2)


def learned(policy: PipelinePolicy, references: int) -> tuple[Tensor, Tensor]:
    """A velocity and the gradient of a number made of it."""
    x = torch.cat([proofs.noise(policy)] * 2) * torch.tensor([1.0, 0.5])[:, None, None]
    velocity = policy.velocity(x, torch.tensor([0.9, 0.4]), conditioning(policy, references))
    gradients = torch.autograd.grad(velocity.square().mean(), list(policy.trainable().values()))
    return velocity.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("model", ["flux-kontext", "uno"], indirect=True)
def test_velocity_and_gradients_are_those_of_diffusers_blocks(model: Model, references: int) -> None:
    policy = model.policy()
    proofs.tune(policy)
    found = learned(policy, references)
    with libraries_own():
        expected = learned(policy, references)
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    assert float(found[1].abs().max()) > 0


@pytest.mark.parametrize("model", ["flux-kontext"], indirect=True)
def test_the_last_block_computes_the_images_tokens_only(model: Model) -> None:
    policy = model.policy()
    last: Any = policy._transformer.single_transformer_blocks[-1]
    rows: dict[str, int] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, given, name=name: rows.__setitem__(name, given[0].shape[1]))
        for name, layer in last.named_modules()
        if name in ("proj_mlp", "proj_out", "attn.to_q", "attn.to_k", "attn.to_v")
    ]
    rows_of = conditioning(policy, 2).rows
    image = policy.latent_shape[0]
    every = image + rows_of["prompt_embeds"].shape[1] + 2 * 2 * 3
    x, half = torch.cat([proofs.noise(policy)] * 2), torch.full((2,), 0.5)
    with torch.no_grad(), flop_counter() as counter:
        policy.velocity(x, half, Conditions(rows_of))
    assert rows == {"proj_mlp": image, "proj_out": image, "attn.to_q": image, "attn.to_k": every, "attn.to_v": every}
    for hook in hooks:
        hook.remove()
    with torch.no_grad(), libraries_own(), flop_counter() as whole:
        policy.velocity(x, half, Conditions(rows_of))
    assert counter.get_total_flops() < whole.get_total_flops()


# Norm and rotary embedding

ANGLES = torch.randn(9, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 1)
ROTARY = (ANGLES.cos(), ANGLES.sin())


def norm(dtype: torch.dtype, *, affine: bool = True, trained: bool = False) -> nn.RMSNorm:
    made = nn.RMSNorm(16, eps=1e-6, elementwise_affine=affine, dtype=dtype)
    if affine:
        made.weight.requires_grad_(trained)
        with torch.no_grad():
            made.weight.copy_(torch.linspace(0.5, 1.5, 16))
    return made


def heads(dtype: torch.dtype) -> Tensor:
    return torch.randn(5, 9, 3, 16, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def both(x: Tensor, layer: nn.RMSNorm, *, ours: bool) -> tuple[Tensor, Tensor]:
    output = norm_and_rotate(x, layer, ROTARY) if ours else apply_rotary_emb(layer(x), ROTARY, sequence_dim=1)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    (gradient,) = torch.autograd.grad(output, x, weights)
    return output.detach(), gradient


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norm_and_rotation_are_exact_within_rounding(dtype: torch.dtype, affine: bool) -> None:
    found = both(heads(dtype), norm(dtype, affine=affine), ours=True)
    exact = both(heads(dtype).detach().double().requires_grad_(), norm(torch.float64, affine=affine), ours=False)
    rounding = 8 * torch.finfo(dtype).eps
    for own, true in zip(found, exact, strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own.double(), true.double(), rtol=rounding, atol=rounding)


def test_a_norm_that_is_trained_has_its_gradient() -> None:
    x = heads(torch.float32)
    own, theirs = norm(torch.float32, trained=True), norm(torch.float32, trained=True)
    norm_and_rotate(x, own, ROTARY).square().sum().backward()
    apply_rotary_emb(theirs(x), ROTARY, sequence_dim=1).square().sum().backward()
    assert own.weight.grad is not None and theirs.weight.grad is not None
    torch.testing.assert_close(own.weight.grad, theirs.weight.grad)


def test_tokens_and_passes_have_their_own_angles() -> None:
    x, layer = heads(torch.float32), norm(torch.float32)
    whole = norm_and_rotate(x, layer, ROTARY)
    assert torch.equal(norm_and_rotate(x, layer, None), layer(x))
    assert not torch.equal(norm_and_rotate(x, layer, (ROTARY[0], -ROTARY[1])), whole)
    for tokens in (slice(4), slice(4, None), slice(2, 5)):
        assert torch.equal(norm_and_rotate(x[:, tokens], layer, ROTARY, tokens), whole[:, tokens])
        with libraries_own():
            expected = apply_rotary_emb(layer(x), ROTARY, sequence_dim=1)[:, tokens]
            assert torch.equal(norm_and_rotate(x[:, tokens], layer, ROTARY, tokens), expected)


# LoRA


def adapted(base: nn.Module, own: bool, dtype: torch.dtype = torch.float64, **settings: Any) -> nn.Module:
    """The layers with a LoRA whose factors are random, by our layer or by peft's."""
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0", "2"], **settings)
    if own:
        config._register_custom_module({nn.Linear: LowRankLinear})
    model = peft.inject_adapter_in_model(config, copy.deepcopy(base))
    draws = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            weight.data = torch.randn(weight.shape, generator=draws).to(dtype)
    return model


@pytest.fixture
def base() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 4, bias=False)).double()
    return layers.requires_grad_(False)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    x.grad = None
    model(x).square().sum().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return found if x.grad is None else found | {"x": x.grad}


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6)], ids=["fewer rows than the weight", "more"])
@pytest.mark.parametrize("moving", [False, True])
def test_output_and_gradients_are_those_of_pefts_layer(base: nn.Module, shape: tuple[int, ...], moving: bool) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=moving)
    own, theirs = adapted(base, True), adapted(base, False)
    torch.testing.assert_close(own(x), theirs(x), rtol=1e-12, atol=1e-12)
    assert not torch.equal(own(x), base(x)), "the adapter is active"
    found, expected = gradients(own, x), gradients(theirs, x)
    assert found.keys() == expected.keys() and len(found) == 4 + moving
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)
    with libraries_own():
        assert torch.equal(own(x), theirs(x))


def test_bits_do_not_depend_on_gradients_or_on_an_adapter_of_zeros(base: nn.Module) -> None:
    model, x = adapted(base.float(), True, torch.float32), torch.randn(64, 6)
    layers = (model[0], model[2])  # type: ignore[index]
    with torch.no_grad():
        without = model(x)
    assert torch.equal(model(x), without)
    for layer in layers:
        layer.lora_B["default"].weight.data.zero_()
    with torch.no_grad():
        tuned = model(x)
        for layer in layers:
            layer.enable_adapters(False)
        assert torch.equal(model(x), tuned)


def test_whatever_is_not_plain_is_left_to_peft(base: nn.Module) -> None:
    x = torch.randn(5, 6, dtype=torch.float64)
    model = adapted(base, True)
    layers = (model[0], model[2])  # type: ignore[index]
    before = model(x)
    for layer in layers:
        layer.enable_adapters(False)
    assert torch.equal(model(x), base(x)), "switched off"
    for layer in layers:
        layer.enable_adapters(True)
        layer.merge()
    torch.testing.assert_close(model(x), before)
    biased = nn.Sequential(base[0], base[1], nn.Linear(7, 4).double())  # type: ignore[index]  # of the adapter's bias
    settings: tuple[dict[str, Any], ...] = ({"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5})
    for changed in settings:
        outputs = []
        for own in (True, False):
            model = adapted(biased, own, **changed)
            torch.manual_seed(5)
            outputs.append(model(x))
        assert torch.equal(*outputs), changed


def test_half_precision_computes_in_it_and_trains_factors_in_float32(base: nn.Module) -> None:
    exact = adapted(base.float(), True, torch.float32)
    half = adapted(base.to(torch.bfloat16), True, torch.float32)
    x = torch.randn(256, 6)
    output = half(x.to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), exact(x), rtol=0, atol=0.03 * float(exact(x).abs().max()))
    output.float().square().sum().backward()
    assert {weight.grad.dtype for weight in half.parameters() if weight.grad is not None} == {torch.float32}
