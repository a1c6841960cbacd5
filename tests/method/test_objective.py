"""The clipped surrogate: values by hand, gradients, and when an item counts as clipped."""

import math

import pytest
import torch

from customized_grpo.method import clipped_surrogate

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
    new = torch.tensor([difference - 3.0], requires_grad=True)
    result = clipped_surrogate(new, torch.tensor([-3.0]), torch.tensor([advantage]), EPS)
    assert result.loss.item() == pytest.approx(loss, abs=1e-6)
    assert result.ratio.item() == pytest.approx(math.exp(difference), rel=1e-6)
    assert result.clipped.item() is clipped
    (gradient,) = torch.autograd.grad(result.loss.sum(), new)
    expected = 0.0 if clipped else -advantage * math.exp(difference)
    assert gradient.item() == pytest.approx(expected, abs=1e-6)


def test_on_policy_the_ratio_is_one_and_the_gradient_is_minus_the_advantage() -> None:
    new = torch.tensor([[-1.3, 0.7]], requires_grad=True)
    advantages = torch.tensor([[1.5, -0.5]])
    result = clipped_surrogate(new, new, advantages, 1e-4)
    assert torch.equal(result.ratio, torch.ones(1, 2))
    (gradient,) = torch.autograd.grad(result.loss.sum(), new)
    assert torch.equal(gradient, -advantages)


def test_a_narrow_range_clips_in_low_precision_too() -> None:
    new = torch.tensor([2.0**-8, 0.0], dtype=torch.bfloat16)
    result = clipped_surrogate(new, torch.zeros(2), torch.ones(2), 1e-4)
    assert result.clipped.tolist() == [True, False]
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(result.loss, torch.tensor([-1.0001, -1.0]))


def test_bad_arguments_are_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match="clip_range"):
        clipped_surrogate(one, one, one, 0.0)
    with pytest.raises(ValueError, match="shapes"):
        clipped_surrogate(one, one, torch.ones(2), 0.2)
