"""Rollouts can be replayed exactly, and do not depend on how their batches were cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.method import SAMPLERS
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.rollout import Trajectories, batches, draw_images, noise_levels
from customized_grpo.trainer.update import Items, replay


@pytest.fixture(scope="module")
def policy(make_config: Callable[..., Config]) -> Policy:
    made = build_policy(make_config().policy)
    with torch.no_grad():  # an adapter that does something
        for weight in made.trainable().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return made


def drawn(policy: Policy, config: Config, rows: list[int], stochastic: range | None = None) -> Trajectories:
    """The chosen ones of the six images of two groups, drawn as one batch."""
    dataset = open_dataset(config.data)
    images = [(dataset[row // 3], row % 3) for row in rows]
    conditions = [policy.encode(pair.prompt, pair.references) for pair, _ in images]
    keys = [(pair.key, number) for pair, number in images]
    sigmas = noise_levels(policy, config.rollout.steps, config.rollout.shift)
    stochastic = stochastic or range(config.rollout.steps - 1)
    (batch,) = draw_images(policy, conditions, keys, config.rollout, sigmas, stochastic, seed=0, iteration=0)
    return batch


@pytest.mark.parametrize("sampler", ["dance", "flow", "cps"])
def test_on_policy_ratios_are_exactly_one(policy: Policy, make_config: Callable[..., Config], sampler: str) -> None:
    config = make_config(sampler=sampler)
    batch = drawn(policy, config, list(range(6)))
    sigmas = noise_levels(policy, config.rollout.steps, config.rollout.shift)
    everyone = torch.arange(6)
    for t in range(config.rollout.steps - 1):
        items = Items.of(batch, everyone, torch.full((6,), t), torch.zeros(6), sigmas)
        _, _, density = replay(policy, items, SAMPLERS[sampler], config.rollout.eta, sigmas[1])
        assert density.requires_grad
        assert torch.equal((density - items.log_density).exp(), torch.ones(6))


def test_ratios_of_mixed_batches_are_one_within_rounding(policy: Policy, make_config: Callable[..., Config]) -> None:
    config = make_config()
    batch = drawn(policy, config, list(range(6)))
    sigmas = noise_levels(policy, config.rollout.steps, config.rollout.shift)
    rows, steps = torch.tensor([0, 3, 3, 5, 1]), torch.tensor([2, 0, 1, 1, 0])
    items = Items.of(batch, rows, steps, torch.zeros(5), sigmas)
    _, _, density = replay(policy, items, SAMPLERS[config.rollout.sampler], config.rollout.eta, sigmas[1])
    assert (density - items.log_density).exp().sub(1).abs().max() < 1e-5


def test_images_do_not_depend_on_the_batch(policy: Policy, make_config: Callable[..., Config]) -> None:
    config = make_config()
    whole = drawn(policy, config, list(range(6)))
    for rows in ([4], [5, 0], [2, 3, 4]):
        part = drawn(policy, config, rows)
        torch.testing.assert_close(part.clean, whole.clean[rows], rtol=1e-4, atol=1e-4)
    assert (whole.clean[0] - whole.clean[1]).abs().max() > 0.01, "images of a group must differ"


def test_a_group_shares_its_initial_noise_when_asked(policy: Policy, make_config: Callable[..., Config]) -> None:
    shared = drawn(policy, make_config(), list(range(6))).latents[:, 0]
    assert torch.equal(shared[0], shared[2])
    assert not torch.equal(shared[0], shared[3])
    own = drawn(policy, make_config(shared_noise=False), list(range(6))).latents[:, 0]
    assert not torch.equal(own[0], own[2])


def test_batches_keep_equal_shapes_together() -> None:
    def condition(tokens: int) -> Conditions:
        return Conditions({"tokens": torch.zeros(1, tokens)})

    shapes = [condition(n) for n in (3, 4, 3, 3, 4)]
    assert batches(shapes, 2) == [[0, 2], [3], [1, 4]]
    with pytest.raises(ValueError, match="different shapes"):
        Conditions.join(shapes)


@pytest.mark.parametrize("first", [0, 1])
def test_images_that_start_alike_have_one_velocity_forth_and_back(
    policy: Policy, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """The model sees a group's common start once, and what comes of it is what comes of images each their own."""
    config = make_config()
    sigmas = noise_levels(policy, config.rollout.steps, config.rollout.shift)
    seen: list[int] = []
    velocity = policy.velocity

    def watched(latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        seen.append(len(latents))
        return velocity(latents, sigma, conditions)

    monkeypatch.setattr(policy, "velocity", watched)
    window = range(first, config.rollout.steps - 1)
    batch = drawn(policy, config, list(range(6)), window)
    assert seen == [2] * (first + 1) + [6] * (config.rollout.steps - first - 1), "two groups, then six images"
    everyone = torch.arange(6).repeat_interleave(2)
    steps = torch.tensor([first, first + 1]).repeat(6)
    advantages = torch.linspace(-1, 1, 12)
    found = []
    for together in (True, False):
        items = Items.of(batch, everyone, steps, advantages, sigmas)
        if not together:
            items = dataclasses.replace(items, same=torch.arange(12))
        seen.clear()
        _, _, density = replay(policy, items, SAMPLERS[config.rollout.sampler], config.rollout.eta, sigmas[1])
        assert seen == [8 if together else 12]
        found.append((density, *torch.autograd.grad((density * advantages).sum(), list(policy.trainable().values()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
