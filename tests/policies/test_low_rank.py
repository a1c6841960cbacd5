"""The LoRA's linear layer against peft's own."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from embedded import embedded
from torch import Tensor, nn

from customized_grpo.config import LoraConfig, PolicyConfig
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.policies.low_rank import LowRankLinear
from customized_grpo.policies.shortcuts import libraries_own, taken


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


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (4, 5, 6)])
@pytest.mark.parametrize("moving", [False, True])
def test_output_and_gradients_are_those_of_pefts_layer(base: nn.Module, shape: tuple[int, ...], moving: bool) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=moving)
    own, theirs = adapted(base, True), adapted(base, False)
    assert isinstance(own[0], LowRankLinear) and not isinstance(theirs[0], LowRankLinear)
    torch.testing.assert_close(own(x), theirs(x), rtol=1e-12, atol=1e-12)
    assert not torch.equal(own(x), base(x)), "the adapter is at work"
    found, expected = gradients(own, x), gradients(theirs, x)
    assert found.keys() == expected.keys() and len(found) == 4 + moving
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_finite_differences(base: nn.Module) -> None:
    layer = adapted(base, True)[0]
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight

    def output(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        factors = {"lora_A.default.weight": down, "lora_B.default.weight": up}
        result: Tensor = torch.func.functional_call(layer, factors, (x,))
        return result

    for rows in (4, 9):  # fewer than the weight has, and more
        x = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(output, (x, down, up))


@pytest.mark.parametrize("rows", [5, 200])
def test_products_of_float32_are_those_of_pefts_layer(base: nn.Module, rows: int) -> None:
    x = torch.randn(rows, 6, requires_grad=True)
    own, theirs = (adapted(base.float(), own, torch.float32) for own in (True, False))
    torch.testing.assert_close(own(x), theirs(x), rtol=1e-4, atol=1e-4)
    found, expected = gradients(own, x), gradients(theirs, x)
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-4, atol=1e-3 * float(expected[name].abs().max())
        )


def test_an_adapter_of_zeros_changes_no_bit(base: nn.Module) -> None:
    model, x = adapted(base.float(), True, torch.float32), torch.randn(64, 6)
    for layer in (model[0], model[2]):
        layer.lora_B["default"].weight.data.zero_()
    with torch.no_grad():
        tuned = model(x)
        for layer in (model[0], model[2]):
            layer.enable_adapters(False)
        assert torch.equal(model(x), tuned)


def test_a_forward_pass_is_the_same_with_gradients_and_without(base: nn.Module) -> None:
    model, x = adapted(base.float(), True, torch.float32), torch.randn(64, 6)
    with torch.no_grad():
        without = model(x)
    assert torch.equal(model(x), without)


def test_whatever_is_not_plain_is_left_to_peft(base: nn.Module) -> None:
    x = torch.randn(5, 6, dtype=torch.float64)
    model = adapted(base, True)
    for layer in (model[0], model[2]):
        layer.enable_adapters(False)
    assert torch.equal(model(x), base(x)), "switched off"
    for layer in (model[0], model[2]):
        layer.enable_adapters(True)
    before = model(x)
    for layer in (model[0], model[2]):
        layer.merge()
    torch.testing.assert_close(model(x), before)
    biased = nn.Sequential(base[0], base[1], nn.Linear(7, 4).double())  # a bias of the adapter needs the layer's own
    settings: tuple[dict[str, Any], ...] = ({"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5})
    for changed in settings:
        outputs = []
        for own in (True, False):
            model = adapted(biased, own, **changed)
            torch.manual_seed(5)
            outputs.append(model(x))
        assert torch.equal(*outputs), changed


def test_half_precision_works_in_it_and_moves_factors_in_full(base: nn.Module) -> None:
    exact = adapted(base.float(), True, torch.float32)
    half = adapted(base.to(torch.bfloat16), True, torch.float32)
    x = torch.randn(256, 6)
    output = half(x.to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    scale = float(exact(x).abs().max())
    torch.testing.assert_close(output.float(), exact(x), rtol=0, atol=0.03 * scale)
    output.float().square().sum().backward()
    assert {weight.grad.dtype for weight in half.parameters() if weight.grad is not None} == {torch.float32}


def test_a_policy_s_layers_are_these() -> None:
    policy = FluxKontextPolicy(embedded(PolicyConfig, lora=LoraConfig(rank=2)))
    layers = {name.split(".lora_")[0] for name in policy.trainable()}
    assert layers
    transformer = policy._transformer
    assert all(type(transformer.get_submodule(name)) is LowRankLinear for name in layers)


def test_peft_computes_where_it_is_asked_to(base: nn.Module) -> None:
    own, theirs, x = (
        adapted(base.float(), True, torch.float32),
        adapted(base.float(), False, torch.float32),
        torch.randn(64, 6),
    )
    with libraries_own():
        assert torch.equal(own(x), theirs(x))
    assert taken()
