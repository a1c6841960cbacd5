"""Group-relative advantages: values worked by hand, and groups without a signal."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from customized_grpo.method import (
    degenerate_groups,
    group_advantages,
    max_variance_subset,
    quadrant_shares,
    role_advantages,
)

REWARD = st.floats(-100, 100, width=32)
GROUPS = st.lists(REWARD, min_size=1, max_size=12)


def assert_close(actual: Tensor, expected: list[float] | list[list[float]] | Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=tolerance, rtol=tolerance)


def test_each_row_is_its_own_group() -> None:
    # Mean 2, deviations -2, 0, 2, unbiased variance 8/2.
    rewards = torch.tensor([[[0.0, 2.0, 4.0]], [[100.0, 300.0, 500.0]]])
    assert_close(group_advantages(rewards), torch.tensor([-1.0, 0.0, 1.0]).expand(2, 1, 3))


def test_epsilon_stands_beside_the_std() -> None:
    rewards = torch.tensor([0.0, 2e-8], dtype=torch.float64)
    std = math.sqrt(2) * 1e-8
    assert_close(group_advantages(rewards), [-1e-8 / (std + 1e-8), 1e-8 / (std + 1e-8)], 1e-9)


@settings(max_examples=60, deadline=None)
@given(rewards=GROUPS)
def test_agrees_with_the_formula(rewards: list[float]) -> None:
    values = torch.tensor(rewards, dtype=torch.float64)
    actual = group_advantages(values)
    if len(set(rewards)) == 1:
        assert torch.equal(actual, torch.zeros_like(values))
    else:
        assert_close(actual, (values - values.mean()) / (values.std() + 1e-8), 1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 27.3, -1e4, 0.0])
@pytest.mark.parametrize("images", [1, 2, 3, 7, 12])
def test_equal_rewards_give_exactly_zero(reward: float, images: int, dtype: torch.dtype) -> None:
    rewards = torch.full((2, images), reward, dtype=dtype)
    assert torch.equal(group_advantages(rewards).double(), torch.zeros(2, images).double())
    assert degenerate_groups(rewards).tolist() == [True, True]


def test_integer_and_low_precision_rewards_are_computed_in_float32() -> None:
    checked_scores = group_advantages(torch.tensor([0, 2, 4]))
    assert checked_scores.dtype == torch.float32
    assert_close(checked_scores, [-1.0, 0.0, 1.0])
    low = torch.tensor([0.1, 0.2, 0.4], dtype=torch.bfloat16)
    assert torch.equal(group_advantages(low), group_advantages(low.float()))


def test_floor_bounds_the_divisor_and_marks_the_groups_it_shrinks() -> None:
    rewards = torch.tensor([[0.0, 4.0, 8.0], [0.0, 1.0, 2.0]])  # std 4 and 1
    assert degenerate_groups(rewards, floor=2.0).tolist() == [False, True]
    assert_close(group_advantages(rewards, floor=2.0), [[-1.0, 0.0, 1.0], [-0.5, 0.0, 0.5]])
    assert degenerate_groups(rewards, floor=0.99).tolist() == [False, False]
    assert_close(group_advantages(rewards, floor=0.99), [[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])


@settings(max_examples=60, deadline=None)
@given(rewards=GROUPS)
@example(rewards=[0.0, 1.401298464324817e-45])  # unequal, and the square of their distance is zero
@example(rewards=[0.0, 1e-22, 1e-23])
def test_degenerate_exactly_where_advantages_vanish(rewards: list[float]) -> None:
    values = torch.tensor(rewards)
    silent = bool((group_advantages(values) == 0).all())
    assert bool(degenerate_groups(values)) == silent


def test_invalid_images_count_in_nothing() -> None:
    rewards = torch.tensor([0.0, math.nan, 2.0, math.inf, 4.0])
    valid = torch.tensor([True, False, True, False, True])
    assert_close(group_advantages(rewards, valid=valid), [-1.0, 0.0, 0.0, 0.0, 1.0])


@pytest.mark.parametrize("valid", [[False, False, True], [False, False, False]])
def test_fewer_than_two_valid_images_have_no_signal(valid: list[bool]) -> None:
    rewards, mask = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(valid)
    assert torch.equal(group_advantages(rewards, valid=mask), torch.zeros(3))
    assert bool(degenerate_groups(rewards, valid=mask))


def test_bad_arguments_are_refused() -> None:
    rewards = torch.tensor([1.0, 2.0])
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            group_advantages(torch.tensor([1.0, bad]))
    with pytest.raises(ValueError, match="floor"):
        group_advantages(rewards, floor=-1.0)
    with pytest.raises(ValueError, match="floor"):
        degenerate_groups(rewards, floor=math.nan)
    with pytest.raises(ValueError, match="valid"):
        group_advantages(rewards, valid=torch.tensor([True]))
    with pytest.raises(ValueError, match="last dimension"):
        group_advantages(torch.zeros(3, 0))


A = torch.tensor([0.0, 2.0, 4.0])
B = torch.tensor([30.0, 10.0, 20.0])


def test_combining_rewards_normalises_their_weighted_sum() -> None:
    actual = role_advantages({"a": A, "b": B}, {"b": 0.5, "a": 2.0})  # weights pair by name, not by order
    assert_close(actual, group_advantages(torch.tensor([15.0, 9.0, 18.0])))


def test_combining_advantages_sums_the_normalised_rewards() -> None:
    scores, weights = {"a": A, "b": B}, {"a": 0.5, "b": 0.25}
    actual = role_advantages(scores, weights, combine="advantages")
    # 0.5 * (-1, 0, 1) + 0.25 * (1, -1, 0)
    assert_close(actual, [-0.25, -0.25, 0.5])


def test_a_silent_reward_adds_nothing_to_the_role() -> None:
    scores, weights = {"a": A, "flat": torch.full((3,), 0.1)}, {"a": 1.0, "flat": 7.0}
    assert_close(role_advantages(scores, weights, combine="advantages"), [-1.0, 0.0, 1.0])


def test_validity_reaches_every_reward_of_the_role() -> None:
    valid = torch.tensor([True, True, False])
    scores, weights = {"a": A, "b": B}, {"a": 1.0, "b": 1.0}
    for combine in ("rewards", "advantages"):
        assert role_advantages(scores, weights, combine=combine, valid=valid)[2] == 0


def test_role_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="do not match"):
        role_advantages({"a": A}, {"b": 1.0})
    with pytest.raises(ValueError, match="do not match"):
        role_advantages({}, {})
    with pytest.raises(ValueError, match="combine"):
        role_advantages({"a": A}, {"a": 1.0}, combine="product")  # type: ignore[arg-type]


def test_quadrants_by_hand() -> None:
    identity = torch.tensor([1.0, -1.0, 2.0, -2.0, -3.0, 0.0, 1.0, 0.0])
    prompt = torch.tensor([1.0, -1.0, -2.0, 2.0, 1.0, 1.0, 0.0, 0.0])
    shares = quadrant_shares(identity, prompt)
    assert shares == {"conflicted": 3 / 8, "both_positive": 1 / 8, "both_negative": 1 / 8}
    # The product of these underflows to zero.
    assert quadrant_shares(torch.tensor([1e-30]), torch.tensor([-1e-30]))["conflicted"] == 1.0
    assert set(quadrant_shares(torch.empty(0), torch.empty(0)).values()) == {0.0}
    with pytest.raises(ValueError, match="shapes"):
        quadrant_shares(torch.zeros(2), torch.zeros(1))


def alone(sums: Tensor) -> Tensor:
    """The sums of a process that has all groups."""
    return sums


def test_a_spread_of_the_whole_batch_keeps_the_sizes_of_groups_apart() -> None:
    rewards = torch.tensor([[0.0, 2.0, 4.0], [1.0, 2.0, 3.0]])  # squares 8 + 2 over 4 degrees of freedom
    pooled = group_advantages(rewards, pool=alone)
    std = math.sqrt(10 / 4)
    assert_close(pooled, torch.tensor([[-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / std)
    # Of another process come squares of 30 over 4 degrees: the std grows to sqrt(40 / 8).
    assert_close(group_advantages(rewards, pool=lambda sums: sums + torch.tensor([30.0, 4.0])), pooled * std / 5**0.5)


def test_a_spread_of_the_batch_leaves_out_what_is_missing() -> None:
    rewards = torch.tensor([[0.0, 2.0, 900.0], [1.0, 1.0, 1.0]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    # Squares 2 over 1 + 2 degrees of freedom; the second group is equal, and stays silent.
    found = group_advantages(rewards, valid=valid, pool=alone)
    assert_close(found, torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) / math.sqrt(2 / 3))


def test_roles_pass_the_spread_on() -> None:
    scores = {"a": torch.tensor([[0.0, 2.0], [0.0, 4.0]]), "b": torch.tensor([[1.0, 0.0], [2.0, 2.0]])}
    weights = {"a": 1.0, "b": 2.0}
    total = scores["a"] + 2 * scores["b"]
    assert_close(role_advantages(scores, weights, pool=alone), group_advantages(total, pool=alone))
    each = group_advantages(scores["a"], pool=alone) + 2 * group_advantages(scores["b"], pool=alone)
    assert_close(role_advantages(scores, weights, combine="advantages", pool=alone), each)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(REWARD, st.booleans()), min_size=1, max_size=8), count=st.integers(1, 8))
def test_the_subset_has_the_largest_variance_of_all(rows: list[tuple[float, bool]], count: int) -> None:
    values, valid = (torch.tensor(column) for column in zip(*rows, strict=True))
    chosen = max_variance_subset(values.double()[None], count, valid=valid[None])[0]
    images = valid.nonzero().flatten().tolist()
    assert int(chosen.sum()) == min(count, len(images)) and not bool((chosen & ~valid).any())
    if len(images) > count:
        every = (values.double()[list(some)].var(correction=0) for some in itertools.combinations(images, count))
        assert float(values.double()[chosen].var(correction=0)) == pytest.approx(float(max(every)), rel=1e-9, abs=1e-9)


def test_a_subset_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="count must be at least 1"):
        max_variance_subset(torch.zeros(2, 3), 0)
