"""Intervals, areas and fronts agree with values worked by hand, and with the laws they must obey."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.study.statistics import bootstrap_interval, dominates, front, hypervolume

NAN, INF = math.nan, math.inf
few = st.lists(st.tuples(st.integers(-3, 6), st.integers(-3, 6)), max_size=7)


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


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        ([(2.0, 3.0)], 6.0),
        ([(1.0, 3.0), (3.0, 1.0)], 5.0),  # 3 + 3, less the square that both cover
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], 6.0),
        ([(2.0, 3.0), (1.0, 1.0), (2.0, 2.0), (2.0, 3.0)], 6.0),  # inside, on the edge, the same again
        (
            [(2.0, 3.0), (9.0, -1.0), (-1.0, 9.0), (9.0, 0.0), (0.0, 9.0)],
            6.0,
        ),  # worse than the base in one, or no better
    ],
)
def test_areas_worked_by_hand(points: list[tuple[float, float]], area: float) -> None:
    assert hypervolume(points, (0.0, 0.0)) == area
    assert hypervolume(reversed(points), (0.0, 0.0)) == area
    assert hypervolume([(y, x) for x, y in points], (0.0, 0.0)) == area
    assert hypervolume([(x + 60, y + 24) for x, y in points], (60.0, 24.0)) == area


@given(few)
def test_the_area_counts_the_unit_squares_that_some_point_covers(points: list[tuple[int, int]]) -> None:
    squares = {(i, j) for x, y in points for i in range(-1, x) for j in range(-2, y)}
    assert hypervolume(points, (-1, -2)) == len(squares)


@given(few)
def test_the_front_alone_covers_the_whole_area(points: list[tuple[int, int]]) -> None:
    named = {str(i): point for i, point in enumerate(points)}
    best = [named[name] for name in front(named)]
    assert hypervolume(best, (-3, -3)) == hypervolume(points, (-3, -3))
    for point in points:  # each is on the front or below a point of it
        assert point in best or any(dominates(other, point) for other in best)
    assert not any(dominates(a, b) for a in best for b in best)


def test_one_point_dominates_another() -> None:
    assert dominates((2.0, 1.0), (1.0, 1.0)) and dominates((1.0, 2.0), (1.0, 1.0)) and dominates((2.0, 2.0), (1.0, 1.0))
    assert not dominates((1.0, 1.0), (1.0, 1.0))
    assert not dominates((2.0, 0.0), (1.0, 1.0)) and not dominates((1.0, 1.0), (2.0, 0.0))
    assert not dominates((1.0, 1.0), (2.0, 1.0))


def test_the_front_runs_from_low_to_high_identity_and_keeps_equals() -> None:
    points = {
        "identity only": (9.0, -4.0),
        "ours": (6.0, 5.0),
        "naive": (5.0, 5.0),
        "again": (6.0, 5.0),
        "prompt only": (-2.0, 7.0),
        "base": (0.0, 0.0),
    }
    assert front(points) == ["prompt only", "ours", "again", "identity only"]
    assert front({}) == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda: hypervolume([(1.0, NAN)], (0.0, 0.0)),
        lambda: hypervolume([], (0.0, INF)),
        lambda: dominates((1.0, 1.0), (NAN, 0.0)),
        lambda: dominates((INF, 1.0), (0.0, 0.0)),
        lambda: front({"a": (1.0, -INF)}),
    ],
)
def test_points_that_are_not_finite(ask: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="give finite coordinates") as caught:
        ask()
    assert "\n" not in str(caught.value)
