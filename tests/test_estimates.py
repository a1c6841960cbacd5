"""Intervals agree with values worked by hand, and with the laws they must obey."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.evaluation.estimates import Estimate, bootstrap_interval

NAN, INF = math.nan, math.inf


def test_two_values_give_the_interval_of_the_four_equally_likely_draws() -> None:
    # The mean is 0, 1 or 2 with shares 1/4, 1/2, 1/4: the middle 95% reach both ends, the middle 40% neither.
    assert bootstrap_interval([0.0, 2.0]) == (0.0, 2.0)
    assert bootstrap_interval([0.0, 2.0], level=0.4) == (1.0, 1.0)


def test_many_values_give_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, size=400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_a_higher_level_gives_a_wider_interval() -> None:
    values = [1.0, 4.0, 2.0, 8.0, 5.0]
    narrow, wide = (bootstrap_interval(values, level=level) for level in (0.5, 0.95))
    assert wide[0] < narrow[0] < 4.0 < narrow[1] < wide[1]


def test_the_interval_hangs_on_its_seed_alone() -> None:
    values = [0.3, 1.7, 0.9, 2.2]
    np.random.seed(1)
    first = bootstrap_interval(values, resamples=50)
    np.random.seed(2)
    assert bootstrap_interval(values, resamples=50) == first
    assert any(bootstrap_interval(values, resamples=50, seed=seed) != first for seed in range(1, 5))


def test_equal_values_and_one_value_leave_no_room() -> None:
    assert bootstrap_interval([-3.25]) == (-3.25, -3.25)
    assert bootstrap_interval([0.1] * 3) == (0.1, 0.1)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), st.floats(-100, 100))
def test_the_interval_lies_within_the_values_and_moves_with_them(values: list[float], shift: float) -> None:
    low, high = bootstrap_interval(values, resamples=100)
    assert min(values) <= low <= high <= max(values)
    moved = bootstrap_interval([value + shift for value in values], resamples=100)
    assert moved == pytest.approx((low + shift, high + shift), abs=1e-9)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "at least one"),
        ([[1.0, 2.0]], {}, r"shape \(1, 2\)"),
        ([1.0, NAN], {}, "not all finite"),
        ([INF], {}, "not all finite"),
        ([1.0], {"level": 95}, "level must be"),
        ([1.0], {"level": 0.0}, "level must be"),
        ([1.0], {"resamples": 0}, "resamples must be"),
    ],
)
def test_values_without_an_interval(values: list[float], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        bootstrap_interval(values, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_an_estimate_tells_its_interval_where_there_is_one() -> None:
    assert Estimate.of([2.0]).told() == "+2.0"
    estimate = Estimate.of([0.0, 2.0])
    assert (estimate.mean, estimate.low, estimate.high) == (1.0, 0.0, 2.0)
    assert estimate.told(".2f") == "1.00 [0.00, 2.00]"


def test_the_bounds_of_an_estimate_hold_its_mean() -> None:
    # Of rare large values the middle of the resampled means may lie beside the mean.
    estimate = Estimate(1.0, 1.0 + 1e-12, 2.0)
    assert estimate.bounds == (1.0, 2.0)
