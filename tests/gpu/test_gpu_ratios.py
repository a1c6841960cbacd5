"""Replays on a GPU: the bits of their rollouts in the same batches, ratios of 1 in any."""

from __future__ import annotations

import pytest
from proofs import ratios_are_one, tune
from steps import ETA, SAMPLER, sample, update
from tiny_models import Model, each_model


@each_model("flux-kontext")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replay_in_the_same_batches_has_the_bits_of_its_rollout(
    device: str, model: Model, dtype: str, checkpointing: bool
) -> None:
    """With gradients, by kernels for the same shapes. On an H100 this was so for FLUX.1 in bfloat16."""
    policy = model.policy(device, dtype=dtype, gradient_checkpointing=checkpointing)
    tune(policy)
    sampled = sample(model, policy)
    for batch in sampled.batches:
        ratios_are_one(policy, batch, SAMPLER, ETA)


@each_model("uno")
@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_the_first_update_in_other_batches_has_ratios_of_one(
    device: str, model: Model, dtype: str, within: float
) -> None:
    """Kernels of other shapes round otherwise, which `replay_error` reports and the surrogate does not see.

    Of few latents, as here, more of the rounding is left in a log-density, their mean. The loss at ratios of 1 is minus
    the mean advantage.
    """
    for size in (1, 5, 12):
        policy = model.policy(device, dtype=dtype)
        tune(policy)
        step = update(policy, sample(model, policy, batch_size=4), batch_size=size, clip_range=1e-9)
        assert 0 <= step.record["replay_error"] < within
        assert step.record["clip_fraction"] == 0 and step.record["gradient_norm"] > 0
        assert step.record["loss"] == pytest.approx(-float(step.advantages.mean()), rel=1e-5)
