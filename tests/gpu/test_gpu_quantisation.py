"""Weights in 8 and 4 bits on a GPU, where the packages are installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from proofs import NEAR, apart, likeness, noise, only_the_lora_is_trainable, ratios_are_one, schemes, tune
from steps import ETA, SAMPLER, sample, update
from tiny_models import Model, each_model


@each_model("flux-kontext")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@schemes
def test_a_lora_on_quantised_weights_learns_and_replays_its_own_bits(
    device: str, model: Model, dtype: str, scheme: str, package: str
) -> None:
    pytest.importorskip(package)
    policy, plain = (model.policy(device, dtype=dtype, quantise=one) for one in (scheme, None))
    only_the_lora_is_trainable(policy)
    weight = policy._transformer.transformer_blocks[0].attn.to_q.base_layer.weight
    assert type(weight).__name__ == {"int8": "Int8Tensor", "nf4": "Params4bit"}[scheme]
    with torch.no_grad():
        one, other = (p.velocity(noise(p), torch.tensor([0.5]), model.encode(p)) for p in (policy, plain))
    assert apart(one, other) > 0 and likeness(one, other) > NEAR[scheme]
    tune(policy)
    sampled = sample(model, policy)
    for batch in sampled.batches:
        ratios_are_one(policy, batch, SAMPLER, ETA)
    step = update(policy, sampled)
    assert step.record["share/skipped"] == 0 and step.gradient.isfinite().all() and step.gradient.abs().sum() > 0


@each_model("flux-kontext", of=["flux-kontext"])
@schemes
def test_all_is_quantised_and_offloaded(device: str, model: Model, tmp_path: Path, scheme: str, package: str) -> None:
    """As on 24 GB: the weights go to and fro, and text encoders are forgotten."""
    pytest.importorskip(package)
    both = {"quantise": scheme, "quantise_text_encoders": scheme, "dtype": "bfloat16"}
    there, moved = model.policy(device, **both), model.policy(device, **both, offload=True, conditions=tmp_path)
    velocities = []
    for policy in (there, moved):
        rows = model.encode(policy)
        with torch.no_grad():
            velocities.append(policy.velocity(noise(policy), torch.tensor([0.5]), rows))
        assert policy.decode(noise(policy)).isfinite().all()
    assert likeness(*velocities) > 0.999
