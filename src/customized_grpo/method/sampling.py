"""Denoising steps of a flow-matching policy, each with the density of the step it took.

Convention: ``x = (1 - sigma) * x0 + sigma * noise``, sigma runs from 1 to 0, and the velocity is
``v = d x / d sigma``, that is ``noise - x0``. Every step is

    next = mean(x, v) + std * noise,        d = sigma_next - sigma <= 0,

with one std per sample.

What the steps preserve, given the exact velocity (measured by tests/method/test_marginals.py):

- ``euler`` has the flow's marginals in the limit of fine steps.
- ``dance`` and ``flow`` do too, being discretised SDEs: the drift of their correction balances
  their noise to first order in d, and at finite steps they hold more noise than euler.
- ``dance`` overshoots near sigma = 0 when the data is sharp, its correction growing as
  ``eta^2*d/sigma^2``: with all data on one point, T = 25, shift 3 and eta 0.4, the last sample
  before sigma = 0 has 1.75 times the variance of its noise level (``flow``: 1.24), and finer even
  steps make it worse. The step to 0 itself leaves noise behind, which is why images are decoded
  from the last :func:`x0_estimate` and not from the last sample.
- ``cps`` keeps the noise level exactly, at any number of steps, where the predicted noise is the
  true noise: all data on one point. Its noise does not shrink with the step, so elsewhere finer
  steps do *not* restore the flow's marginals: the variance of the data ends at
  ``(1 + cos(eta*pi/2))/2`` of its true value, 0.90 for eta 0.4.
"""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

Sigma = float | Tensor
"""A noise level in 0..1: a number, a scalar tensor, or (B,), one per sample."""


class Step(NamedTuple):
    """One denoising step of B samples, all float32.

    Keep ``next_sample`` in float32 for the replay: rounding it changes its density.
    """

    next_sample: Tensor
    """(B, ...): the new sample, or the given one."""
    mean: Tensor
    """(B, ...): the mean of the step, with the velocity's graph."""
    std: Tensor
    """(B,): its standard deviation; zero for a deterministic step."""
    log_density: Tensor
    """(B,): log-density of ``next_sample``, averaged over latent elements."""


class StepFunction(Protocol):
    """The signature that all steps share.

    Args:
        sample: (B, ...), any float dtype; computed in float32.
        velocity: like ``sample``.
        sigma: noise level of ``sample``, above 0.
        sigma_next: noise level to reach, at most ``sigma``; above it dance and flow give NaN.
        eta: strength of the noise, at least 0; at most 1 for cps; euler ignores it.
        noise: standard normal, like ``sample``: samples a step.
        next_sample: like ``sample``: scores this step instead (the replay). For the same inputs its
            density is, bit for bit, that of the sampled step.
        sigma_max: the schedule's second sigma, which only flow needs.

    Raises:
        ValueError: if not exactly one of ``noise`` and ``next_sample`` is given (euler needs
            neither), ``eta`` is out of range, or shapes disagree.
    """

    def __call__(
        self,
        sample: Tensor,
        velocity: Tensor,
        sigma: Sigma,
        sigma_next: Sigma,
        *,
        eta: float,
        noise: Tensor | None = None,
        next_sample: Tensor | None = None,
        sigma_max: Sigma | None = None,
    ) -> Step:
        """Take or score one step."""


def flow_sigmas(steps: int, shift: float) -> Tensor:
    """Noise levels from 1 to 0, evenly spaced and then shifted (arXiv 2403.03206, equation 23).

    ``sigma' = shift*s / (1 + (shift - 1)*s)``; a shift above 1 spends more steps on high noise.

    Args:
        steps: T, at least 1.
        shift: above 0; 1 leaves the levels evenly spaced.

    Returns:
        (T + 1,) float32, falling from exactly 1 to exactly 0.

    Raises:
        ValueError: if ``steps`` or ``shift`` is out of range.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if not 0 < shift < math.inf:
        raise ValueError(f"shift must be positive and finite, not {shift}")
    s = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * s / (1 + (shift - 1) * s)).float()


def x0_estimate(sample: Tensor, velocity: Tensor, sigma: Sigma) -> Tensor:
    """``x - sigma*v``, the clean sample that the velocity points to; (B, ...) float32."""
    return sample.float() - _per_sample(sigma, sample) * velocity.float()


def dance_step(
    sample: Tensor,
    velocity: Tensor,
    sigma: Sigma,
    sigma_next: Sigma,
    *,
    eta: float,
    noise: Tensor | None = None,
    next_sample: Tensor | None = None,
    sigma_max: Sigma | None = None,
) -> Step:
    """SDE step with constant diffusion (DanceGRPO, arXiv 2505.07818); the paper's sampler.

    ``mean = x + v*d + eta^2/2 * (x - (1 - sigma)*x0_hat)/sigma^2 * d``, ``std = eta*sqrt(-d)``.
    The fraction is minus the score of the noisy marginal. See :class:`StepFunction`.
    """
    _check_eta(eta)
    x, v = sample.float(), velocity.float()
    s, d = _sigma_and_step(sigma, sigma_next, sample)
    minus_score = (x - (1 - s) * x0_estimate(x, v, sigma)) / s**2
    mean = x + v * d + 0.5 * eta**2 * minus_score * d
    return _gaussian_step(mean, eta * torch.sqrt(-d), noise, next_sample)


def flow_step(
    sample: Tensor,
    velocity: Tensor,
    sigma: Sigma,
    sigma_next: Sigma,
    *,
    eta: float,
    noise: Tensor | None = None,
    next_sample: Tensor | None = None,
    sigma_max: Sigma | None = None,
) -> Step:
    """SDE step with diffusion ``g = eta*sqrt(sigma/(1 - sigma))`` (Flow-GRPO, arXiv 2505.05470).

    ``mean = x*(1 + g^2/(2 sigma)*d) + v*(1 + g^2*(1 - sigma)/(2 sigma))*d``, ``std = g*sqrt(-d)``.
    At sigma = 1, ``sigma_max`` stands in the denominator of g. See :class:`StepFunction`.

    Raises:
        ValueError: also if ``sigma_max`` is missing.
    """
    _check_eta(eta)
    if sigma_max is None:
        raise ValueError("flow_step needs sigma_max, the second sigma of the schedule")
    x, v = sample.float(), velocity.float()
    s, d = _sigma_and_step(sigma, sigma_next, sample)
    g = eta * torch.sqrt(s / (1 - torch.where(s == 1, _per_sample(sigma_max, sample), s)))
    mean = x * (1 + g**2 / (2 * s) * d) + v * (1 + g**2 * (1 - s) / (2 * s)) * d
    return _gaussian_step(mean, g * torch.sqrt(-d), noise, next_sample)


def cps_step(
    sample: Tensor,
    velocity: Tensor,
    sigma: Sigma,
    sigma_next: Sigma,
    *,
    eta: float,
    noise: Tensor | None = None,
    next_sample: Tensor | None = None,
    sigma_max: Sigma | None = None,
) -> Step:
    """Coefficients-Preserving Sampling (arXiv 2509.05952): part of the predicted noise is renewed.

    ``std = sigma_next*sin(eta*pi/2)`` and
    ``mean = (1 - sigma_next)*x0_hat + sqrt(sigma_next^2 - std^2)*x1_hat`` with the predicted noise
    ``x1_hat = x + (1 - sigma)*v``. Known implementations drop the factor 1/(2 std^2) and the
    constants from its log-density; here it is the full one, so clip ranges are not interchangeable
    with theirs. See :class:`StepFunction`.
    """
    _check_eta(eta, highest=1.0)
    s, s_next = _per_sample(sigma, sample), _per_sample(sigma_next, sample)
    x0_hat = x0_estimate(sample, velocity, sigma)
    x1_hat = sample.float() + (1 - s) * velocity.float()
    # sqrt(sigma_next^2 - std^2), without a square root that rounding could turn NaN at eta = 1.
    kept = s_next * math.cos(eta * math.pi / 2)
    mean = (1 - s_next) * x0_hat + kept * x1_hat
    return _gaussian_step(mean, s_next * math.sin(eta * math.pi / 2), noise, next_sample)


def euler_step(
    sample: Tensor,
    velocity: Tensor,
    sigma: Sigma,
    sigma_next: Sigma,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
    next_sample: Tensor | None = None,
    sigma_max: Sigma | None = None,
) -> Step:
    """Deterministic step of the flow, ``mean = x + v*d``, std 0, log-density 0.

    ``eta``, ``noise`` and ``sigma_max`` are ignored; a given ``next_sample`` is handed back.
    See :class:`StepFunction`.
    """
    s, d = _sigma_and_step(sigma, sigma_next, sample)
    mean = sample.float() + velocity.float() * d
    target = mean if next_sample is None else next_sample
    return _gaussian_step(mean, torch.zeros_like(s), None, target)


def gaussian_log_density(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of ``value`` under N(mean, std^2), constants included, averaged over elements.

    The gradient runs through the mean; the value is a constant even when it was just sampled from
    that mean.

    Args:
        value: (B, ...).
        mean: (B, ...).
        std: (B,), or a scalar for all samples; where zero the result is 0, since a deterministic
            step has no density and must not change a ratio.

    Returns:
        (B,) float32.
    """
    spread, deterministic = _safe_std(std, mean)
    z = (value.detach().float() - mean.float()) / spread
    scale = spread.flatten()
    density = -0.5 * _element_mean(z.square()) - scale.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(deterministic, torch.zeros_like(density), density)


def gaussian_kl(mean: Tensor, mean_ref: Tensor, std: Tensor) -> Tensor:
    """KL between two steps of equal std, ``(mean - mean_ref)^2 / (2 std^2)``, in nats per element.

    Args:
        mean: (B, ...).
        mean_ref: (B, ...).
        std: (B,), or a scalar for all samples; where zero the result is 0, as in
            :func:`gaussian_log_density`.

    Returns:
        (B,) float32, at least 0.
    """
    spread, deterministic = _safe_std(std, mean)
    kl = 0.5 * _element_mean(((mean.float() - mean_ref.float()) / spread).square())
    return torch.where(deterministic, torch.zeros_like(kl), kl)


SAMPLERS: Final[Mapping[str, StepFunction]] = {
    "dance": dance_step,
    "flow": flow_step,
    "cps": cps_step,
    "euler": euler_step,
}
"""Configuration name -> step."""


def _gaussian_step(mean: Tensor, std: Tensor, noise: Tensor | None, next_sample: Tensor | None) -> Step:
    """Sample or replay the next step, then score it by the same expression."""
    if (noise is None) == (next_sample is None):
        raise ValueError("give either noise, to sample a step, or next_sample, to score one")
    if next_sample is None:
        assert noise is not None
        _check_shape("noise", noise, mean)
        next_sample = mean + std * noise.float()
    _check_shape("next_sample", next_sample, mean)
    next_sample = next_sample.float()
    std = std.flatten()
    return Step(next_sample, mean, std, gaussian_log_density(next_sample, mean, std))


def _per_sample(value: Sigma, sample: Tensor) -> Tensor:
    """``value`` as float32 (B, 1, ...), one number per sample whatever it was."""
    number = torch.as_tensor(value, dtype=torch.float32, device=sample.device)
    batch = sample.shape[0]
    if number.shape not in ((), (batch,)):
        raise ValueError(f"need a scalar or ({batch},), not {tuple(number.shape)}")
    # Contiguous: the same kernels, hence the same bits, for one sigma as for one per sample.
    return number.expand(batch).contiguous().view(batch, *[1] * (sample.ndim - 1))


def _sigma_and_step(sigma: Sigma, sigma_next: Sigma, sample: Tensor) -> tuple[Tensor, Tensor]:
    """``sigma`` and ``d = sigma_next - sigma``, both (B, 1, ...)."""
    s = _per_sample(sigma, sample)
    return s, _per_sample(sigma_next, sample) - s


def _safe_std(std: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Std (B, 1, ...) with 1 in place of 0, and (B,) bool where it was 0.

    Compares with 0, not for > 0, so that a NaN is passed on.
    """
    spread = _per_sample(std, like)
    zero = spread == 0
    return torch.where(zero, torch.ones_like(spread), spread), zero.flatten()


def _element_mean(values: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return values.reshape(values.shape[0], -1).mean(1)


def _check_eta(eta: float, highest: float = math.inf) -> None:
    if not 0 <= eta <= highest:
        raise ValueError(f"eta must lie in 0..{highest:g}, not {eta}")


def _check_shape(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape != like.shape:
        raise ValueError(f"{name} is {tuple(tensor.shape)}, the sample {tuple(like.shape)}")
