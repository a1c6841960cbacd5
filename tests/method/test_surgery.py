"""PCGrad: values worked by hand, and what it promises of any two gradients."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from customized_grpo.method import project_conflicts

NUMBERS = st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4)


def projected(one: list[float], other: list[float]) -> Tensor:
    return project_conflicts([torch.tensor(one)], [torch.tensor(other)])[0]


def test_opposed_gradients_lose_what_opposes() -> None:
    # (1, 0) and (-1, 1): inner product -1. (1, 0) + (-1, 1)/2 = (0.5, 0.5); (-1, 1) + (1, 0) = (0, 1).
    torch.testing.assert_close(projected([1.0, 0.0], [-1.0, 1.0]), torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(projected([2.0, 0.0], [-1.0, 0.0]), torch.zeros(2))


@pytest.mark.parametrize("other", [[0.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
def test_gradients_that_do_not_oppose_are_added_up(other: list[float]) -> None:
    assert torch.equal(projected([2.0, 0.0], other), torch.tensor([2.0, 0.0]) + torch.tensor(other))


def test_the_whole_gradients_oppose_each_other_and_not_one_weight_after_another() -> None:
    """The first weights oppose, the second agree by more: as a whole nothing is to be taken out."""
    one, other = [torch.tensor([1.0]), torch.tensor([[2.0]])], [torch.tensor([-1.0]), torch.tensor([[2.0]])]
    assert [part.tolist() for part in project_conflicts(one, other)] == [[0.0], [[4.0]]]
    whole = project_conflicts([torch.tensor([1.0, 2.0])], [torch.tensor([-3.0, 1.0])])[0]
    parts = project_conflicts([torch.tensor([1.0]), torch.tensor([2.0])], [torch.tensor([-3.0]), torch.tensor([1.0])])
    torch.testing.assert_close(torch.cat(parts), whole)


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
@example([1e-45, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0])
def test_the_sum_is_against_neither(one: list[float], other: list[float]) -> None:
    found = projected(one, other).double()
    a, b = torch.tensor(one).double(), torch.tensor(other).double()
    slack = 1e-5 * (1 + float(a.norm() + b.norm()) ** 2)
    assert float(found @ a) >= -slack and float(found @ b) >= -slack
    torch.testing.assert_close(projected(other, one).double(), found, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_stays_so_and_shapes_must_fit() -> None:
    """So that the update which it belongs to is skipped."""
    assert math.isnan(float(projected([math.nan, 1.0], [-1.0, -1.0])[0]))
    with pytest.raises(ValueError, match="not of the same shapes"):
        projected([1.0], [1.0, 2.0])
    assert project_conflicts([], []) == []
