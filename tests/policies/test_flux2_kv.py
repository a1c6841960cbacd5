"""Reference keys and values of FLUX.2 klein KV: computed once, with the gradient of the transformer's own pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from embedded import embedded
from proofs import PROMPT, STEPS, apart, noise, random_image, refused, tune
from tiny_models import Model
from torch import Tensor

from customized_grpo.config import RolloutConfig
from customized_grpo.method import dance_step
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.protocols import Conditions
from customized_grpo.trainer.grpo import Items, replay
from customized_grpo.trainer.rollout import sample_groups, sample_images

kv = pytest.mark.parametrize("model", ["flux2-klein-kv"], indirect=True)
LEVELS = torch.tensor([0.9, 0.5, 0.2])


def two_pairs(model: Model, policy: PipelinePolicy) -> list[Conditions]:
    """The conditioning of two prompts, with references that differ in one of them."""
    first, second = model.source.references
    return [model.encode(policy), policy.encode("a blue cat", [first, random_image(*second.size[::-1], 7)])]


def in_one_pass(policy: PipelinePolicy, latents: Tensor, conditions: Conditions) -> Tensor:
    """The transformer's velocity of one sequence of references and image, as in the pipeline's first step."""
    references = [conditions.rows[f"reference_{k}"] for k in (1, 2)]
    inputs = policy.transformer_inputs(conditions.rows, (policy._grid, *(r.shape[1:3] for r in references)))
    ids, length = inputs["img_ids"], latents.shape[1]
    tokens = torch.cat([r.flatten(1, 2) for r in references], dim=1)
    policy._transformer.disable_gradient_checkpointing()
    velocity: Tensor = policy._transformer(
        hidden_states=torch.cat([tokens, latents], dim=1),
        timestep=LEVELS,
        kv_cache_mode="extract",
        num_ref_tokens=tokens.shape[1],
        return_dict=False,
        **{**inputs, "img_ids": torch.cat([ids[:, length:], ids[:, :length]], dim=1)},
    )[0]
    return velocity


@pytest.mark.parametrize("settings", [{}, {"kernels": "off"}, {"gradient_checkpointing": False}], ids=str)
@kv
def test_velocity_and_gradient_are_those_of_one_pass(model: Model, settings: dict[str, Any]) -> None:
    policy = model.policy(**{"gradient_checkpointing": True, **settings})
    tune(policy)
    conditions = Conditions.join(two_pairs(model, policy)).select(torch.tensor([0, 1, 0]))
    latents = noise(policy, 3)
    found = []
    for compute in (
        lambda: policy.velocity(latents, LEVELS, conditions),
        lambda: in_one_pass(policy, latents, conditions),
    ):
        velocity = compute()
        gradients = torch.autograd.grad(velocity.square().sum(), list(policy.trainable().values()))
        found.append((velocity, *gradients))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().max() > 0 for gradient in found[0])


@contextmanager
def counted(policy: PipelinePolicy) -> Iterator[list[tuple[str, int]]]:
    """The mode and the batch size of each call of the transformer inside the context."""
    calls: list[tuple[str, int]] = []

    def count(_: Any, args: Any, given: dict[str, Any]) -> None:
        calls.append((given["kv_cache_mode"], len(given["hidden_states"])))

    with policy._transformer.register_forward_pre_hook(count, with_kwargs=True):
        yield calls


@kv
def test_references_are_computed_once_for_a_rollout_and_once_for_a_micro_batch(model: Model) -> None:
    policy = model.policy()
    first, second = two_pairs(model, policy)
    config = embedded(RolloutConfig, steps=STEPS, batch_size=4, shift=None)
    keys = [(pair, number) for pair in ("a", "b") for number in range(2)]
    with counted(policy) as calls:
        (batch,) = sample_groups(
            policy, [first, first, second, second], keys, config, range(STEPS - 1), seed=0, iteration=0
        )
    # The first step is of the two noises that the groups share.
    assert calls == [("extract", 2), ("cached", 2), *[("cached", 4)] * (STEPS - 1)]
    rows = torch.tensor([0, 1])  # of one pair
    items = Items.of(batch, rows, torch.tensor([1, 2]), torch.zeros(2))
    with counted(policy) as calls:
        replay(policy, items, dance_step, config.eta)
    assert calls == [("extract", 1), ("cached", 2)]


@kv
def test_weights_that_changed_between_rollouts_are_used(model: Model) -> None:
    policy = model.policy()
    conditions, sigmas = model.encode(policy, PROMPT), policy.sigmas(STEPS)
    before = sample_images(policy, conditions, noise(policy), sigmas)
    with torch.no_grad():  # only of layers that see references alone: the keys of the first block
        for name, weight in policy.trainable().items():
            if name.startswith("transformer_blocks.0.attn.to_k."):
                weight.add_(0.3)
    after = sample_images(policy, conditions, noise(policy), sigmas)
    assert apart(before, after) > 1e-3
    with policy.sampling():
        assert torch.equal(sample_images(policy, conditions, noise(policy), sigmas), after)
    with policy.reference():
        assert torch.equal(sample_images(policy, conditions, noise(policy), sigmas), before)


@kv
def test_fsdp_is_refused(model: Model) -> None:
    refused(lambda: model.policy().shard(lambda module: module), "policy.kind", "FSDP")
