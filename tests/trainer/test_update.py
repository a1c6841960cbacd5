"""The update: ratios at unchanged weights are exactly 1, whatever rounding separates replay from sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.method import SAMPLERS
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Policy
from customized_grpo.trainer.optimizer import WholeOptimizer, adamw
from customized_grpo.trainer.rollout import Trajectories, draw_images, noise_levels
from customized_grpo.trainer.update import Items, Updater, draw_trained_steps, mean_of_updates

ROUNDING = 3e-5  # as measured on a GPU between batch sizes; the clip range is 1e-4


def sampled(config: Config) -> tuple[Policy, Trajectories, torch.Tensor, torch.Tensor]:
    """A policy, one batch of three images, their trained steps (3, S) and the noise levels."""
    policy = build_policy(config.policy)
    pair, rollout = open_dataset(config.data)[0], config.rollout
    keys = [(pair.key, i) for i in range(3)]
    sigmas = noise_levels(policy, rollout.steps, rollout.shift)
    stochastic = range(rollout.steps - 1)
    trained = draw_trained_steps(stochastic, 1.0, 0, 0, keys)
    conditions = [policy.encode(pair.prompt, pair.references)] * 3
    (batch,) = draw_images(
        policy, conditions, keys, rollout, sigmas, stochastic, seed=0, iteration=0, trained=trained, means=True
    )
    return policy, batch, trained, sigmas


def rounded(batch: Trajectories) -> Trajectories:
    """The batch as if it had been sampled with other rounding."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.empty_like(batch.log_density).uniform_(-1, 1, generator=generator)
    noise.view(-1)[0] = 1.0
    assert batch.mean is not None
    return replace(batch, log_density=batch.log_density + ROUNDING * noise, mean=batch.mean + 1e-4)


@pytest.mark.parametrize("ratio", ["plain", "guard"])
def test_first_update_ignores_rounding_between_replay_and_sampling(
    make_config: Callable[..., Config], ratio: str
) -> None:
    config = make_config(ratio=ratio, clip_range=1e-9, group_size=3, pairs=1, batch_size=3)
    policy, batch, trained, sigmas = sampled(config)
    weights = list(policy.trainable().values())
    gradients, records = [], []
    for given in (batch, rounded(batch)):
        optimizer = WholeOptimizer(adamw(weights, config.train), weights, 1.0)
        optimizer.step = lambda: gradients.append([w.grad.clone() for w in weights]) or 0.5  # type: ignore[method-assign,union-attr,func-returns-value,misc]
        updater = Updater(policy, optimizer, config.train, SAMPLERS["dance"], config.rollout.eta)
        items = Items.chosen(given, {0, 1, 2}, trained, torch.linspace(-1, 1, trained.numel()).view_as(trained), sigmas)
        records.append(updater.update([items], sigmas[1]))
        assert not updater.on_policy
        records.append(updater.update([items], sigmas[1]))  # no longer on-policy: the stored densities count
    exact, exact_later, other, other_later = records
    assert all(torch.equal(a, b) for a, b in zip(gradients[0], gradients[2], strict=True))
    assert exact["replay_error"] == 0.0
    assert other["replay_error"] == pytest.approx(ROUNDING, rel=0.02)
    assert exact["clip_fraction"] == other["clip_fraction"] == exact_later["clip_fraction"] == 0.0
    assert exact["loss"] == other["loss"]
    assert other_later["clip_fraction"] > 0, "in later updates, rounding beyond the clip range clips"
    assert "replay_error" not in other_later


def test_skipped_update_stays_on_policy(make_config: Callable[..., Config]) -> None:
    config = make_config(group_size=3, pairs=1)
    policy, batch, trained, sigmas = sampled(config)
    weights = list(policy.trainable().values())
    updater = Updater(
        policy, WholeOptimizer(adamw(weights, config.train), weights, 1.0), config.train, SAMPLERS["dance"], 0.7
    )
    items = Items.chosen(batch, {0, 1, 2}, trained, torch.full(trained.shape, torch.inf), sigmas)
    assert updater.update([items], sigmas[1])["share/skipped"] == 1.0
    assert updater.on_policy


def test_mean_of_updates_counts_those_that_report_a_number() -> None:
    assert mean_of_updates([{"loss": 1.0, "replay_error": 4.0}, {"loss": 3.0}]) == {"loss": 2.0, "replay_error": 4.0}
