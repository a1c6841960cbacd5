"""Areas and fronts agree with values worked by hand, and with the laws they must obey."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.study.statistics import dominates, front, hypervolume

NAN, INF = math.nan, math.inf
few = st.lists(st.tuples(st.integers(-3, 6), st.integers(-3, 6)), max_size=7)


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
