"""What the steps do to the flow's marginals, on data whose velocity is known exactly.

Data N(M, s^2) under ``x = (1 - sigma)*x0 + sigma*noise`` is N((1 - sigma)*M, V(sigma)) with
``V = (1 - sigma)^2 s^2 + sigma^2``, and its velocity is affine in x. So is every step, hence mean
and variance can be followed exactly, step by step, without sampling error.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from customized_grpo.method import SAMPLERS, flow_sigmas

M, ETA, SHIFT = 0.7, 0.4, 3.0
COS = math.cos(ETA * math.pi / 2)


def variance(sigma: float, s: float) -> float:
    return ((1 - sigma) * s) ** 2 + sigma**2


def exact_velocity(x: Tensor, sigma: float, s: float) -> Tensor:
    """``E[noise - x0 | x]``."""
    deviation = (x - (1 - sigma) * M) / variance(sigma, s)
    return sigma * deviation - (M + (1 - sigma) * s**2 * deviation)


def after_step(
    name: str, mean: float, var: float, sigma: float, sigma_next: float, s: float, top: float
) -> tuple[float, float]:
    """Mean and variance after one step, from the step's own mean at x = 0 and x = 1."""
    x = torch.tensor([[0.0], [1.0]])
    v = exact_velocity(x, sigma, s)
    step = SAMPLERS[name](x, v, sigma, sigma_next, eta=ETA, noise=torch.zeros_like(x), sigma_max=top)
    at_zero, at_one = step.mean.flatten().double().tolist()
    slope = at_one - at_zero
    return at_zero + slope * mean, slope**2 * var + float(step.std[0]) ** 2


def trajectory(name: str, steps: int, s: float) -> list[tuple[float, float, float]]:
    """(sigma, error of the mean, variance over the flow's) after each step but the one to 0."""
    sigmas = flow_sigmas(steps, SHIFT).double().tolist()
    mean, var, rows = 0.0, 1.0, []
    for sigma, sigma_next in pairwise(sigmas[:-1]):
        mean, var = after_step(name, mean, var, sigma, sigma_next, s, sigmas[1])
        rows.append((sigma_next, mean - (1 - sigma_next) * M, var / variance(sigma_next, s)))
    return rows


@pytest.mark.parametrize(("name", "tolerance"), [("euler", 0.01), ("dance", 0.01), ("flow", 0.013)])
def test_fine_steps_keep_the_marginals_of_spread_data(name: str, tolerance: float) -> None:
    for sigma, mean_error, ratio in trajectory(name, 1000, 0.5):
        assert mean_error == pytest.approx(0, abs=1e-3), sigma
        assert ratio == pytest.approx(1, abs=tolerance), sigma


@pytest.mark.parametrize("name", ["euler", "dance", "flow"])
@pytest.mark.parametrize("sigma", [0.9, 0.5, 0.2])
def test_the_error_of_one_step_is_of_second_order(name: str, sigma: float) -> None:
    def error(h: float) -> float:
        start, goal = variance(sigma, 0.8), variance(sigma - h, 0.8)
        mean, var = after_step(name, (1 - sigma) * M, start, sigma, sigma - h, 0.8, 0.98)
        assert mean == pytest.approx((1 - sigma + h) * M, abs=1e-5)
        return var - goal

    assert error(0.04) / error(0.02) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("steps", [2, 5, 25, 100])
def test_cps_keeps_the_noise_level_of_sharp_data_at_any_number_of_steps(steps: int) -> None:
    for sigma, mean_error, ratio in trajectory("cps", steps, 0.0):
        assert mean_error == pytest.approx(0, abs=1e-5), sigma
        assert ratio == pytest.approx(1, abs=1e-4), sigma


def test_cps_takes_variance_from_spread_data_however_fine_the_steps() -> None:
    """Each step keeps 1 - k of a deviation and adds fixed noise: V = (1 + c)/(2 - k) of the flow's.

    With c = cos(eta*pi/2) and k = (1 - c)*sigma^2/V(sigma), which is 1 - c for data on one point.
    """
    for sigma, mean_error, ratio in trajectory("cps", 1000, 1.0):
        assert mean_error == pytest.approx(0, abs=1e-3), sigma
        if 0.3 < sigma < 0.95:
            k = (1 - COS) * sigma**2 / variance(sigma, 1.0)
            assert ratio == pytest.approx((1 + COS) / (2 - k), abs=0.005), sigma
    assert ratio == pytest.approx((1 + COS) / 2, abs=0.01)  # 0.90 of the data's variance
    assert ratio < 0.91


def test_noise_held_by_the_released_recipe_on_sharp_data() -> None:
    """T = 25, shift 3, eta 0.4: the sample before the step to sigma = 0."""
    held = {name: trajectory(name, 25, 0.0)[-1][2] for name in SAMPLERS}
    assert held["euler"] == pytest.approx(1, abs=1e-4)
    assert held["cps"] == pytest.approx(1, abs=1e-4)
    assert held["flow"] == pytest.approx(1.24, abs=0.01)
    assert held["dance"] == pytest.approx(1.75, abs=0.01)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samples_follow_the_moments(name: str) -> None:
    """Real draws, many at once, land where the moments say: noise enters as it should."""
    steps, s, count = 40, 0.6, 40_000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, count, generator=generator)
    sigmas = flow_sigmas(steps, SHIFT).tolist()
    for sigma, sigma_next in pairwise(sigmas[:-1]):
        noise = torch.randn(1, count, generator=generator)
        v = exact_velocity(x, sigma, s)
        step = SAMPLERS[name](x, v, sigma, sigma_next, eta=ETA, noise=noise, sigma_max=sigmas[1])
        x = step.next_sample
    sigma, mean_error, ratio = trajectory(name, steps, s)[-1]
    expected = ratio * variance(sigma, s)
    assert float(x.var()) == pytest.approx(expected, rel=5 * math.sqrt(2 / count))
    deviation = float(x.mean()) - (1 - sigma) * M - mean_error
    assert deviation == pytest.approx(0, abs=5 * math.sqrt(expected / count))
