"""One update of a policy as training takes it: images sampled by stochastic steps, replayed, one step of AdamW."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from proofs import STEPS
from tiny_models import Model
from torch import Tensor

from customized_grpo.config import Config, RolloutConfig, TrainConfig
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.trainer.grpo import GRPOUpdater, Items, sample_trained_steps
from customized_grpo.trainer.optimizer import build_optimizer
from customized_grpo.trainer.processes import ALONE
from customized_grpo.trainer.rollout import Trajectories, sample_groups

SAMPLER, ETA = "dance", 0.4
PROMPTS = ("a red bird", "a big bird")  # of one length, so that they can stand in one batch of any model
GROUP = 2


@dataclass(frozen=True)
class Sampled:
    """Images of two groups, and the steps of each that are trained."""

    batches: list[Trajectories]
    trained: Tensor

    def items(self, advantages: Tensor) -> list[Items]:
        """The trained steps of all images."""
        everyone = set(range(len(self.trained)))
        return [Items.chosen(batch, everyone, self.trained, advantages) for batch in self.batches]


@dataclass(frozen=True)
class Updated:
    """An update: the numbers for the log, the gradients that its step was taken by, the weights before and after.

    `advantages` are those of the trained steps (images, S).
    """

    record: dict[str, float]
    gradients: dict[str, Tensor]
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    advantages: Tensor

    @property
    def gradient(self) -> Tensor:
        """All gradients in a row, on the CPU."""
        return torch.cat([self.gradients[name].flatten() for name in sorted(self.gradients)])


def sample(model: Model, policy: PipelinePolicy, batch_size: int = 4) -> Sampled:
    """Two groups of images, in batches of at most `batch_size`."""
    config = RolloutConfig(sampler=SAMPLER, eta=ETA, steps=STEPS, batch_size=batch_size, group_size=GROUP, pairs=2)
    stochastic = range(STEPS - 1)
    keys = [(prompt, number) for prompt in PROMPTS for number in range(GROUP)]
    encoded = {prompt: model.encode(policy, prompt) for prompt in PROMPTS}
    conditions = [encoded[prompt] for prompt, _ in keys]
    trained = sample_trained_steps(stochastic, 1.0, 0, 0, keys)
    batches = sample_groups(policy, conditions, keys, config, stochastic, seed=0, iteration=0)
    return Sampled(list(batches), trained)


def update(policy: PipelinePolicy, sampled: Sampled, batch_size: int = 3, **settings: object) -> Updated:
    """The first update on these images, with random advantages, in micro-batches of `batch_size`."""
    common = {"ratio": "plain", "learning_rate": 1e-3, "max_gradient_norm": 1e9}
    config = TrainConfig.model_validate({**common, "batch_size": batch_size, **settings})
    weights, gradients = policy.trainable(), {}

    def keep_gradients() -> None:
        gradients.update({name: w.grad.detach().cpu().float() for name, w in weights.items() if w.grad is not None})

    optimizer = build_optimizer(list(weights.values()), config, ALONE)
    run = Config.model_construct(train=config, rollout=RolloutConfig(sampler=SAMPLER, eta=ETA))
    updater = GRPOUpdater(policy, optimizer, run, before_step=keep_gradients)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    advantages = torch.randn(sampled.trained.shape, generator=torch.Generator().manual_seed(0))
    record = updater.update(sampled.items(advantages))
    after = {name: weight.detach().clone() for name, weight in weights.items()}
    return Updated(record, gradients, before, after, advantages)


def apart_in_length(found: Tensor, expected: Tensor) -> float:
    """The length of the difference of two vectors of finite numbers, over that of the second."""
    assert found.shape == expected.shape and found.isfinite().all() and expected.isfinite().all()
    return float((found - expected).norm() / expected.norm())
