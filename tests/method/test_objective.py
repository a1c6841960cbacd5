"""The clipped surrogate: values by hand, gradients, and when an item counts as clipped."""

import math

import pytest
import torch

from customized_grpo.method import clipped_surrogate, gaussian_log_density, guarded_log_ratio, guarded_loss

EPS = 0.2
UP, DOWN = math.log(1.5), math.log(0.5)


@pytest.mark.parametrize(
    ("difference", "advantage", "loss", "clipped"),
    [
        (0.0, 2.0, -2.0, False),
        (0.0, -2.0, 2.0, False),
        (UP, 2.0, -2.4, True),
        (UP, -2.0, 3.0, False),
        (DOWN, 2.0, -1.0, False),
        (DOWN, -2.0, 1.6, True),
        (UP, 0.0, 0.0, False),
    ],
)
def test_values_by_hand(difference: float, advantage: float, loss: float, clipped: bool) -> None:
    new = torch.tensor([difference], requires_grad=True)
    result = clipped_surrogate(new, torch.tensor([advantage]), EPS)
    assert result.loss.item() == pytest.approx(loss, abs=1e-6)
    assert result.ratio.item() == pytest.approx(math.exp(difference), rel=1e-6)
    assert result.clipped.item() is clipped
    (gradient,) = torch.autograd.grad(result.loss.sum(), new)
    expected = 0.0 if clipped else -advantage * math.exp(difference)
    assert gradient.item() == pytest.approx(expected, abs=1e-6)


def test_a_narrow_range_clips_in_low_precision_too() -> None:
    new = torch.tensor([2.0**-8, 0.0], dtype=torch.bfloat16)
    result = clipped_surrogate(new, torch.ones(2), 1e-4)
    assert result.clipped.tolist() == [True, False]
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(result.loss, torch.tensor([-1.0001, -1.0]))


def test_a_higher_upper_range_spares_good_samples_alone() -> None:
    log_ratio = torch.tensor([math.log(1.25), math.log(1.25), math.log(0.75), math.log(0.75), math.log(1.6)])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    assert clipped_surrogate(log_ratio, advantages, 0.2).clipped.tolist() == [True, False, False, True, True]
    wider = clipped_surrogate(log_ratio, advantages, 0.2, 0.5)
    assert wider.clipped.tolist() == [False, False, False, True, True]
    assert wider.loss.tolist() == pytest.approx([-1.25, 1.25, -0.75, 0.8, -1.5])


def test_bad_arguments_are_refused() -> None:
    one = torch.ones(1)
    for ranges in ((0.0,), (0.1, 0.0), (0.1, -1.0)):
        with pytest.raises(ValueError, match="clip_range"):
            clipped_surrogate(one, one, *ranges)
    with pytest.raises(ValueError, match="shapes"):
        clipped_surrogate(one, torch.ones(2), 0.2)
    with pytest.raises(ValueError, match=r"need log-ratio and std \(N,\)"):
        guarded_log_ratio(one, torch.ones(1, 4), torch.ones(1, 3), one)


@pytest.mark.parametrize("std", [0.05, 0.3, 2.0])
def test_the_guarded_ratio_is_the_shift_times_the_noise(std: float) -> None:
    """Whatever the step's std: the mean over elements of (mean - mean_old) * noise."""
    torch.manual_seed(0)
    mean_old, shift, noise = torch.randn(6, 5, 8), 0.01 * torch.randn(6, 5, 8), torch.randn(6, 5, 8)
    mean, stds = mean_old + shift, torch.full((6,), std)
    drawn = mean_old + std * noise
    log_ratio = gaussian_log_density(drawn, mean, stds) - gaussian_log_density(drawn, mean_old, stds)
    guarded = guarded_log_ratio(log_ratio, mean, mean_old, stds)
    torch.testing.assert_close(guarded, (shift * noise).mean((1, 2)), atol=2e-6, rtol=1e-3)


def test_on_policy_the_guarded_ratio_is_exactly_one() -> None:
    mean, drawn, std = torch.randn(3, 7), torch.randn(3, 7), torch.tensor([0.1, 0.5, 1.0])
    density = gaussian_log_density(drawn, mean, std)
    assert torch.equal(guarded_log_ratio(density - density, mean, mean, std).exp(), torch.ones(3))


def test_a_guarded_loss_counts_each_step_by_its_length() -> None:
    """The gradient of a step's mean, sigma - sigma_next times the velocity's, is as long for every step."""
    sigma, sigma_next = torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.25])
    assert guarded_loss(torch.tensor([1.0, 3.0]), sigma, sigma_next).tolist() == [2.0, 12.0]
    assert guarded_loss(torch.ones(2, 3), sigma, sigma_next).tolist() == [[2.0] * 3, [4.0] * 3]
    velocity = torch.ones(2, 4, requires_grad=True)
    moved = (sigma_next - sigma)[:, None] * velocity
    guarded_loss(moved.mean(1), sigma, sigma_next).sum().backward()
    assert velocity.grad is not None and torch.equal(velocity.grad, torch.full((2, 4), -0.25))
