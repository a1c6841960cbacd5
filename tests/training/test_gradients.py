"""The measured gradients are those that training follows, and their cosines those of the vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from customized_grpo.config import Config, MethodConfig
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.rewards import build_reward
from customized_grpo.study import gradients
from customized_grpo.training.rollout import noise_levels


def test_cosines_of_known_vectors() -> None:
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    found = gradients._cosine(3, 0.5, one, other)
    assert found.value == pytest.approx(math.sqrt(0.5))
    assert found.low == pytest.approx(found.high), "every resample of equal batches is the same"
    mixed = gradients._cosine(3, 0.5, one, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert (mixed.low, mixed.high) == pytest.approx((0.0, 1.0), abs=1e-6)


def test_they_are_the_gradients_of_the_surrogate(make_config: Callable[..., Config]) -> None:
    """The two roles' gradients, weighted as naive GRPO weighs them, are what one update takes."""
    config = make_config(updates=1, batch_size=4, max_gradient_norm=1e9)
    config = config.model_copy(update={"method": MethodConfig(shaping="none", weighting="static")})
    dataset, policy = open_dataset(config.data), build_policy(config.policy)
    rewards = [build_reward(reward, policy.device) for reward in config.rewards]
    sigmas = noise_levels(policy, config.rollout.steps, config.rollout.shift)
    identity, prompt, _ = gradients._gradients(config, policy, dataset, rewards, sigmas, 0)
    expected = -(0.5 * identity + 0.5 * prompt).mean(0)

    taken: list[torch.Tensor] = []
    weights = list(policy.trainable().values())

    class Spy(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            taken.append(torch.cat([weight.grad.flatten().clone() for weight in weights if weight.grad is not None]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", lambda parameters, **_: Spy(parameters, lr=0.0))
        _one_iteration(config, policy, dataset, rewards)
    torch.testing.assert_close(taken[0], expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()) + 1e-9)


def _one_iteration(config: Config, policy: object, dataset: object, rewards: list[object]) -> None:
    from tempfile import TemporaryDirectory

    from accelerate import Accelerator

    from customized_grpo.training import loop

    once = config.model_copy(update={"train": config.train.model_copy(update={"iterations": 1})})
    observer = loop.Observer(lambda record: None, lambda iteration: {})
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", lambda *_: None)
        loop.train(once, Path(folder), policy, dataset, rewards, Accelerator(cpu=True), observer)  # type: ignore[arg-type]


def test_one_batch_has_no_interval(make_config: Callable[..., Config]) -> None:
    config = make_config()
    policy = build_policy(config.policy)
    with pytest.raises(ValueError, match="gradient_batches"):
        gradients.gradient_cosines(config, policy, open_dataset(config.data), [], 1)
