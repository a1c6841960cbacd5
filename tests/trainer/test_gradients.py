"""The measured gradients are those that training follows, and their cosines those of the vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import gradient_of

from customized_grpo.config import Config, ConfigError, MethodConfig
from customized_grpo.data import open_dataset
from customized_grpo.method import flow_sigmas
from customized_grpo.policies import build_policy
from customized_grpo.trainer.assembly import reward_terms
from experiments.study import gradients


def test_cosines_of_known_vectors() -> None:
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    sigmas = torch.tensor([0.5])
    (found,) = gradients._by_step(gradients._cosine, one[:, None], other[:, None], sigmas)
    assert found.value == pytest.approx(math.sqrt(0.5))
    assert found.low == pytest.approx(found.high), "every resample of equal batches is the same"
    (mixed,) = gradients._by_step(gradients._cosine, one[:, None], torch.eye(2)[:, None], sigmas)
    assert (mixed.low, mixed.high) == pytest.approx((0.0, 1.0), abs=1e-6)


def _of_noise(means: torch.Tensor, noise: list[float], batches: int, parameters: int) -> torch.Tensor:
    """(batches, steps, parameters): one direction at all steps, as strong as message, in noise of those deviations."""
    random = torch.Generator().manual_seed(0)
    deviations = torch.tensor(noise)[:, None]
    direction = torch.zeros(parameters)
    direction[0] = 1.0
    drawn = torch.randn(batches, len(noise), parameters, generator=random)
    return means[:, None] * direction + deviations * drawn


def test_learned_weights_are_the_pull_over_the_noise() -> None:
    """Known signal in known noise: w(t) is the mean over the variance, whatever scale training gives the step."""
    means, noise = torch.tensor([1.0, 1.0, 0.5, 0.0]), [0.1, 0.2, 0.1, 0.1]
    inner = gradients.inner_products(_of_noise(means, noise, 400, 4))
    found = gradients.learned_weights(inner, torch.ones(4))
    expected = torch.tensor([1 / 0.01, 1 / 0.04, 0.5 / 0.01, 0.0])
    torch.testing.assert_close(found, expected * 0.5 / expected.mean(), rtol=0.1, atol=0.03)
    scaled = gradients.learned_weights(inner, torch.tensor([2.0, 1.0, 1.0, 1.0]))
    assert float(scaled[1] / scaled[0]) == pytest.approx(2 * float(found[1] / found[0]), rel=1e-4)
    assert found.mean() == pytest.approx(0.5)


def test_strength_is_reported_from_none() -> None:
    """Unbiased: 0 within its interval where nothing but noise is there, and the true ratio where there is signal."""
    drawn = _of_noise(torch.tensor([0.5, 0.0]), [0.5, 0.5], 100, 10)
    signal, none = gradients._strengths(drawn, torch.tensor([1.0, 0.5, 0.0]), torch.ones(2))
    assert signal.low < 0.25 / (10 * 0.25) < signal.high and signal.low > 0
    assert none.low < 0 < none.high and abs(none.value) < 0.2 * signal.value


def test_agreement_is_reported_from_shared_noise() -> None:
    """Roles that weigh the same draws against each other have cosines below 0, whatever their means do."""
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(200, 2, 10, generator=random)
    pull = torch.zeros(2, 10)
    pull[:, 0] = torch.tensor([0.5, 0.0])
    one, other = pull + noise, pull - 0.5 * noise
    sigmas = torch.tensor([1.0, 0.5])
    agreeing, neither = gradients._by_step(gradients._agreement, one, other, sigmas)
    assert gradients._by_step(gradients._cosine, one, other, sigmas)[1].high < -0.5
    assert agreeing.low < 0.25 / (10 * 0.5) < agreeing.high and agreeing.low > 0
    assert neither.low < 0 < neither.high and abs(neither.value) < 0.2 * agreeing.value
    opposed, _ = gradients._by_step(gradients._agreement, one, noise - pull, sigmas)
    assert opposed.high < 0


def test_evidence_of_an_earlier_version_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "gradients.json"
    path.write_text('{"naive": [], "shaped": []}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"gradients\.json: of an earlier version.*remove it"):
        gradients.read_evidence(path)


def test_scales_are_those_of_the_objective(make_config: Callable[..., Config]) -> None:
    """With train.ratio=guard a step counts by its deviation over its length."""
    sigmas = flow_sigmas(4, 1.0)
    assert (gradients._scales(make_config(), sigmas) == 1).all()
    lengths = sigmas[:-2] - sigmas[1:-1]
    scales = gradients._scales(make_config(sampler="dance", eta=0.7, ratio="guard"), sigmas)
    torch.testing.assert_close(scales, 0.7 * lengths.sqrt() / lengths)


def test_they_are_the_gradients_of_the_surrogate(make_config: Callable[..., Config], tmp_path: Path) -> None:
    """The two roles' gradients, weighted as naive GRPO weighs them, are what one update takes."""
    method = MethodConfig(shaping="none", weighting="static")
    config = make_config(updates=1, batch_size=4, max_gradient_norm=1e9, method=method)
    dataset, policy = open_dataset(config.data), build_policy(config.policy)
    rewards = reward_terms(config.rewards, policy.device)
    identity, prompt, _ = gradients._gradients(config, policy, dataset, rewards, 0)
    expected = -(0.5 * identity + 0.5 * prompt).mean(0)
    found, _ = gradient_of(config, policy, tmp_path)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()) + 1e-9)


def test_one_batch_has_no_interval(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match="gradient_batches"):
        gradients.gradient_evidence(make_config(), object(), [], [], 1)  # type: ignore[arg-type]
