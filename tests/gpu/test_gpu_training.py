"""A training step on a GPU: the gradients of the libraries' own layers, with checkpointing and without it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from proofs import apart, half_way, loading_gives_back_every_bit, lora_and_full, tune
from steps import Updated, apart_in_length, sample, update
from tiny_models import Model, each_model

from customized_grpo.config import LoraConfig
from customized_grpo.policies.shortcuts import libraries_own

#: No checkpointing; checkpointing; checkpointing with what it keeps in host memory.
CHECKPOINTING = {
    "none": {},
    "checkpointing": {"gradient_checkpointing": True},
    "on the host": {"gradient_checkpointing": True, "offload_activations": True},
}


def step_of(device: str, model: Model, **settings: object) -> Updated:
    """The first update of a tuned policy: then both factors of its LoRA have gradients."""
    policy = model.policy(device, **settings)
    tune(policy)
    return update(policy, sample(model, policy))


def is_a_step(step: Updated) -> None:
    """Every number is finite, the gradient is not zero, and every weight that has a gradient has moved."""
    assert all(torch.tensor(value).isfinite() for value in step.record.values()), step.record
    assert step.record["gradient_norm"] > 0 and step.record["share/skipped"] == 0
    for name, gradient in step.gradients.items():
        assert gradient.isfinite().all() and step.after[name].isfinite().all(), name
        if gradient.any():
            assert not torch.equal(step.after[name], step.before[name]), name


@each_model("flux-kontext")
@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_a_step_with_checkpointing_is_that_without(device: str, model: Model, dtype: str, within: float) -> None:
    """Gradients agree within 1e-4 of their length in float32, 2% in bfloat16.

    On a CPU, and by deterministic kernels, they have the same bits. Backward passes of attention on a GPU may add in an
    order that changes from run to run.
    """
    steps = [step_of(device, model, dtype=dtype, **settings) for settings in CHECKPOINTING.values()]
    for step in steps:
        is_a_step(step)
    for one, other in pairwise(steps):
        assert apart_in_length(other.gradient, one.gradient) < within


@each_model("uno")
def test_a_step_is_that_of_the_libraries_layers_on_a_cpu(device: str, model: Model) -> None:
    """In float32: sampling, replay and gradients by our layers on the device, by diffusers' and peft's on the CPU."""
    found = step_of(device, model)
    with libraries_own():
        expected = step_of("cpu", model)
    is_a_step(found)
    assert apart_in_length(found.gradient, expected.gradient) < 1e-3
    assert found.record == pytest.approx(expected.record, rel=1e-3, abs=1e-5)


@each_model("flux-kontext", of=["flux-kontext", "flux2-klein", "qwen-image-edit"])
def test_all_weights_are_tuned_with_a_kl_term(device: str, model: Model) -> None:
    """The untuned weights, which wait in host memory, take the place of the tuned ones for the KL, and leave it."""
    policy = model.policy(device, lora=None)
    tune(policy, 0.02)
    step = update(policy, sample(model, policy), kl_weight=0.1, learning_rate=1e-4)
    is_a_step(step)
    assert step.record["kl"] > 0
    assert all(weight.device.type == device for weight in policy.trainable().values())


@each_model("flux2-dev")
@lora_and_full
def test_the_reference_is_the_untuned_model_and_saved_weights_are_loaded(
    device: str, model: Model, lora: LoraConfig | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    policy = model.policy(device, lora=lora)
    conditions = model.encode(policy)
    untuned = half_way(policy, conditions).detach()
    tune(policy)
    tuned = half_way(policy, conditions)
    with policy.reference():
        inside = half_way(policy, conditions)
    assert not inside.requires_grad and apart(inside, untuned) < 1e-5 < 1e-3 < apart(tuned, untuned)
    tuned.square().mean().backward()  # a graph that was built before stays valid
    assert apart(half_way(policy, conditions), tuned) < 1e-5
    other = model.policy(device, lora=lora)
    loading_gives_back_every_bit(policy, other, tmp_path_factory.mktemp("saved"))
    assert all(weight.device.type == device for weight in other.trainable().values())
