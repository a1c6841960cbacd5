"""Denoising steps: published formulas, log-density, replay, per-sample sigmas."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from customized_grpo.method import (
    SAMPLERS,
    Step,
    cps_step,
    dance_step,
    euler_step,
    flow_sigmas,
    flow_step,
    gaussian_kl,
    gaussian_log_density,
    x0_estimate,
)

STOCHASTIC = ["dance", "flow", "cps"]
ALL = [*STOCHASTIC, "euler"]
SHAPE = (3, 4, 5)


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def log_prob(mean: Tensor, std: Tensor, value: Tensor) -> Tensor:
    return Normal(mean, std).log_prob(value)  # type: ignore[no-any-return, no-untyped-call]


def take(name: str, sigma: Any = 0.8, sigma_next: Any = 0.6, **given: Any) -> Step:
    given = {"eta": 0.4, "sigma_max": 0.98, **given}
    if "next_sample" not in given:
        given.setdefault("noise", normal(2))
    return SAMPLERS[name](normal(0), normal(1), sigma, sigma_next, **given)


def one(name: str, x: float, v: float, sigma: float, sigma_next: float, **given: Any) -> Step:
    """A step of one sample with one element."""
    given = {"eta": 0.5, "noise": torch.zeros(1, 1), **given}
    return SAMPLERS[name](torch.full((1, 1), x), torch.full((1, 1), v), sigma, sigma_next, **given)


# Noise levels.


def test_sigmas_by_hand() -> None:
    # s = 1, 3/4, 1/2, 1/4, 0 with shift 3: 3s / (1 + 2s).
    expected = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])
    torch.testing.assert_close(flow_sigmas(4, 3.0), expected)


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 200), shift=st.floats(0.1, 12))
def test_sigmas_fall_from_one_to_zero(steps: int, shift: float) -> None:
    sigmas = flow_sigmas(steps, shift)
    assert sigmas.shape == (steps + 1,)
    assert (sigmas[0].item(), sigmas[-1].item()) == (1.0, 0.0)
    assert bool((sigmas.diff() < 0).all())


@pytest.mark.parametrize(("steps", "shift"), [(0, 3.0), (5, 0.0), (5, math.inf), (5, math.nan)])
def test_bad_sigmas_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        flow_sigmas(steps, shift)


# The formulas.


@pytest.mark.parametrize(
    ("name", "sigma", "sigma_next", "settings", "mean", "std"),
    [
        # x0_hat 0.5; (x - x0_hat/2) / 0.25 = 7; d = -1/4; half eta^2 = 1/8.
        ("dance", 0.5, 0.25, {}, 2 - 3 / 4 - 7 / 32, 0.5 * 0.5),
        # g^2 = 0.25 * 0.5/0.5; d = -1/4; x and v terms by the published formula.
        ("flow", 0.5, 0.25, {"sigma_max": 0.9}, 2 * (1 - 0.25 / 4) - 3 * (1 + 0.125) / 4, 0.25),
        # sigma_max replaces a sigma of 1 in the denominator alone: g^2 = 0.25 / (1 - 0.75) = 1; d = -1/4.
        ("flow", 1.0, 0.75, {"sigma_max": 0.75}, 2 * (1 - 0.5 / 4) - 3 / 4, 0.5),
        # eta 1/3: sin 30 degrees. x0_hat 0.5, x1_hat 3.5, sigma_next 0.25, std 0.125.
        ("cps", 0.5, 0.25, {"eta": 1 / 3}, 0.75 * 0.5 + math.sqrt(0.25**2 - 0.125**2) * 3.5, 0.125),
    ],
)
def test_steps_by_hand(
    name: str, sigma: float, sigma_next: float, settings: dict[str, float], mean: float, std: float
) -> None:
    step = one(name, 2.0, 3.0, sigma, sigma_next, **settings)
    assert step.mean.item() == pytest.approx(mean)
    assert step.std.item() == pytest.approx(std)


def test_euler_by_hand() -> None:
    assert x0_estimate(torch.tensor([[2.0]]), torch.tensor([[3.0]]), 0.5).item() == 0.5
    step = one("euler", 2.0, 3.0, 0.5, 0.25)
    assert step.mean.item() == step.next_sample.item() == 2 - 3 / 4
    assert step.std.tolist() == step.log_density.tolist() == [0.0]


@pytest.mark.parametrize("name", STOCHASTIC)
def test_without_noise_every_step_is_euler(name: str) -> None:
    step, euler = take(name, eta=0.0), take("euler")
    torch.testing.assert_close(step.next_sample, euler.next_sample)
    assert torch.equal(step.std, torch.zeros(3))
    assert torch.equal(step.log_density, torch.zeros(3))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_draw_is_mean_plus_std_times_noise(name: str) -> None:
    step = take(name)
    assert step.std.shape == (3,)
    torch.testing.assert_close(step.next_sample, step.mean + step.std[:, None, None] * normal(2))
    assert float((step.next_sample - step.mean).std()) > 0.1


# Log-density and KL.


@pytest.mark.parametrize("name", STOCHASTIC)
def test_log_density_is_the_full_normal_one(name: str) -> None:
    step = take(name)
    reference = log_prob(step.mean, step.std[:, None, None], step.next_sample)
    torch.testing.assert_close(step.log_density, reference.mean(dim=(1, 2)))
    far = step.next_sample + 3 * step.std[:, None, None]
    reference = log_prob(step.mean, step.std[:, None, None], far)
    torch.testing.assert_close(gaussian_log_density(far, step.mean, step.std), reference.mean(dim=(1, 2)))


def test_kl_against_torch() -> None:
    mean, other, std = normal(4), normal(5), torch.tensor([0.1, 1.0, 3.0])
    spread = std[:, None, None]
    expected = kl_divergence(Normal(mean, spread), Normal(other, spread)).mean(dim=(1, 2))
    torch.testing.assert_close(gaussian_kl(mean, other, std), expected)


def test_a_deterministic_step_has_no_density_and_no_kl() -> None:
    mean = normal(0).requires_grad_()
    std = torch.tensor([0.0, 0.5, 0.0])
    density, kl = gaussian_log_density(normal(1), mean, std), gaussian_kl(mean, normal(1), std)
    assert (density == 0).tolist() == (kl == 0).tolist() == [True, False, True]
    (gradient,) = torch.autograd.grad(density.sum() + kl.sum(), mean)
    assert bool(gradient.isfinite().all())
    assert bool((gradient[[0, 2]] == 0).all())


def test_the_last_cps_step_is_the_clean_estimate() -> None:
    step = take("cps", 0.2, 0.0)
    torch.testing.assert_close(step.next_sample, x0_estimate(normal(0), normal(1), 0.2))
    assert torch.equal(step.log_density, torch.zeros(3))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_gradient_is_that_of_the_score_function(name: str) -> None:
    velocity = normal(1).requires_grad_()
    arguments: dict[str, Any] = {"eta": 0.4, "sigma_max": 0.98}
    drawn = SAMPLERS[name](normal(0), velocity, 0.8, 0.6, noise=normal(2), **arguments)
    (from_draw,) = torch.autograd.grad(drawn.log_density.sum(), velocity)
    given = drawn.next_sample.detach()
    replayed = SAMPLERS[name](normal(0), velocity, 0.8, 0.6, next_sample=given, **arguments)
    (from_replay,) = torch.autograd.grad(replayed.log_density.sum(), velocity)
    assert torch.equal(from_draw, from_replay)
    assert float(from_replay.abs().max()) > 0


@pytest.mark.parametrize("name", ["dance", "flow"])
def test_a_rising_sigma_is_loud(name: str) -> None:
    assert bool(take(name, 0.5, 0.6).log_density.isnan().all())


# Replay, sigmas per sample, precision.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("sigma", "sigma_next"), [(1.0, 0.98), (0.7, 0.6), (0.1, 0.0)])
def test_replay_repeats_the_density_bit_for_bit(name: str, dtype: torch.dtype, sigma: float, sigma_next: float) -> None:
    x, v, noise = (normal(seed, (4, 16, 8)).to(dtype) for seed in range(3))
    step = partial(SAMPLERS[name], x, v, sigma, sigma_next, eta=0.4, sigma_max=0.98)
    drawn = step(noise=noise)
    replayed = step(next_sample=drawn.next_sample)
    for before, after in zip(drawn, replayed, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("name", ALL)
def test_mixed_sigmas_replay_as_each_was_sampled(name: str) -> None:
    sigmas = flow_sigmas(25, 3.0)
    at = torch.tensor([0, 17, 24])
    mixed = take(name, sigmas[at], sigmas[at + 1], sigma_max=sigmas[1])
    for row, t in enumerate(at.tolist()):
        alone = SAMPLERS[name](
            normal(0)[row : row + 1],
            normal(1)[row : row + 1],
            float(sigmas[t]),
            float(sigmas[t + 1]),
            eta=0.4,
            noise=normal(2)[row : row + 1],
            sigma_max=float(sigmas[1]),
        )
        for whole, part in zip(mixed, alone, strict=True):
            assert torch.equal(whole[row : row + 1], part)


@pytest.mark.parametrize("name", ALL)
def test_numbers_scalars_and_vectors_of_sigma_agree(name: str) -> None:
    results = [
        take(name, convert(0.8), convert(0.6), sigma_max=convert(0.98))
        for convert in (float, torch.tensor, lambda value: torch.full((3,), value))
    ]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_low_precision_inputs_are_computed_in_float32(name: str) -> None:
    low = [normal(seed).bfloat16() for seed in range(3)]
    high = [tensor.float() for tensor in low]
    results = [SAMPLERS[name](x, v, 0.8, 0.6, eta=0.4, noise=noise, sigma_max=0.98) for x, v, noise in (low, high)]
    assert {tensor.dtype for tensor in results[0]} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(2,), (2, 6), (2, 3, 4, 5)])
def test_any_number_of_latent_dimensions(name: str, shape: tuple[int, ...]) -> None:
    x, v, noise = (normal(seed, shape) for seed in range(3))
    step = SAMPLERS[name](x, v, 0.8, 0.6, eta=0.4, noise=noise, sigma_max=0.98)
    assert step.next_sample.shape == step.mean.shape == shape
    assert step.std.shape == step.log_density.shape == (2,)


# Refusals.


@pytest.mark.parametrize("step", [dance_step, flow_step, cps_step])
def test_bad_steps_are_refused(step: Any) -> None:
    x = torch.zeros(2, 3)
    arguments = {"eta": 0.4, "sigma_max": 0.9}
    with pytest.raises(ValueError, match="either noise"):
        step(x, x, 0.8, 0.6, **arguments)
    with pytest.raises(ValueError, match="either noise"):
        step(x, x, 0.8, 0.6, noise=x, next_sample=x, **arguments)
    with pytest.raises(ValueError, match="noise is"):
        step(x, x, 0.8, 0.6, noise=x[:1], **arguments)
    with pytest.raises(ValueError, match="next_sample is"):
        step(x, x, 0.8, 0.6, next_sample=x[:1], **arguments)
    with pytest.raises(ValueError, match="scalar or"):
        step(x, x, torch.ones(3), 0.6, noise=x, **arguments)
    with pytest.raises(ValueError, match="eta"):
        step(x, x, 0.8, 0.6, eta=-0.1, noise=x, sigma_max=0.9)


def test_cps_noise_cannot_exceed_its_level() -> None:
    full = take("cps", eta=1.0)
    torch.testing.assert_close(full.std, torch.full((3,), 0.6))
    with pytest.raises(ValueError, match="eta"):
        take("cps", eta=1.01)


def test_flow_needs_the_second_sigma() -> None:
    with pytest.raises(ValueError, match="sigma_max"):
        take("flow", sigma_max=None)


def test_euler_needs_neither_noise_nor_a_next_sample() -> None:
    x = normal(0)
    plain, noisy = euler_step(x, x, 0.8, 0.6), euler_step(x, x, 0.8, 0.6, eta=0.4, noise=x)
    assert torch.equal(plain.next_sample, noisy.next_sample)
