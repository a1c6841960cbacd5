"""Velocities and images on a GPU are those of diffusers' own pipelines there."""

from __future__ import annotations

import pytest
import torch
from proofs import apart, euler, near_in_bfloat16, noise, tune
from tiny_models import Model, each_model

from customized_grpo.policies.shortcuts import libraries_own
from customized_grpo.protocols import Conditions


@each_model("flux2-dev")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_velocity_is_that_of_the_pipeline_s_first_step(device: str, model: Model, dtype: str) -> None:
    """At noise level 1, by the pipeline's own text encoders, VAE, position ids and transformer.

    In float32 within 1e-4 of velocities near 1; in bfloat16 within 2% of their length, as products are taken in another
    order and rounded to 8 bits.
    """
    policy, conditions = model.stock_policy(device, dtype=dtype)
    pipeline, seen = model.stock(policy, getattr(torch, dtype)), []
    handle = pipeline.transformer.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    latents = noise(policy)
    model.draw(pipeline, latents.to(pipeline.dtype))
    handle.remove()
    expected = seen[0][:, : latents.shape[1]].float()
    with torch.no_grad():
        found = policy.velocity(latents, torch.ones(1), conditions)
    assert found.device.type == expected.device.type == device
    if dtype == "float32":
        assert apart(found, expected) < 1e-4
    near_in_bfloat16(found, expected)


@each_model("qwen-image-edit")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tuned_velocity_is_that_of_the_libraries_layers(device: str, model: Model, dtype: str) -> None:
    """Of a batch of two prompts with references, at two noise levels, by diffusers' blocks and peft's LoRA."""
    policy = model.policy(device, dtype=dtype)
    tune(policy)
    conditions = Conditions.join([model.encode(policy, prompt) for prompt in ("a red bird", "a big bird")])
    latents, sigma = noise(policy, 2), torch.tensor([0.9, 0.3])
    with torch.no_grad():
        found = policy.velocity(latents, sigma, conditions)
        with libraries_own():
            expected = policy.velocity(latents, sigma, conditions)
    if dtype == "float32":
        assert apart(found, expected) < 1e-4
    near_in_bfloat16(found, expected)


@each_model("uno")
def test_an_euler_rollout_is_the_pipeline_s_image(device: str, model: Model) -> None:
    """In float32, decoded by the VAE on the device."""
    policy, conditions = model.stock_policy(device)
    drawn = euler(policy, noise(policy), conditions)
    assert drawn.device.type == device and drawn.std() > 0.02
    assert apart(drawn, model.draw(model.stock(policy), noise(policy))) < 1e-3
