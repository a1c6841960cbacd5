"""Ratios of the first update on a GPU, whatever the sizes of the batches."""

from __future__ import annotations

import pytest
import torch
from proofs import ratios_are_one, tune
from steps import ETA, SAMPLER, sample
from tiny_models import Model, each_model

from customized_grpo.method import SAMPLERS
from customized_grpo.trainer.update import replay


@each_model("flux-kontext")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replay_in_the_same_batches_has_the_bits_of_its_rollout(
    device: str, model: Model, dtype: str, checkpointing: bool
) -> None:
    """With gradients, by the kernels of the same shapes: on an H100 this was so for FLUX.1 in bfloat16."""
    policy = model.policy(device, dtype=dtype, gradient_checkpointing=checkpointing)
    tune(policy)
    sampled = sample(model, policy)
    for batch in sampled.batches:
        ratios_are_one(policy, batch, SAMPLER, ETA, sampled.sigmas)


@each_model("uno")
@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_a_replay_in_other_batches_is_that_within_rounding(
    device: str, model: Model, dtype: str, within: float
) -> None:
    """Kernels of other shapes round otherwise. Of few latents, as here, more of it is left in their mean."""
    policy = model.policy(device, dtype=dtype)
    tune(policy)
    sampled = sample(model, policy, batch_size=4)
    for size in (1, 5, 12):
        for micro in sampled.items(torch.zeros(sampled.trained.shape))[0].split(size):
            _, _, density = replay(policy, micro, SAMPLERS[SAMPLER], ETA, sampled.sigmas[1])
            assert (density - micro.log_density).abs().max() < within
