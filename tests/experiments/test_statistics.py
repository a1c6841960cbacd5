"""Hypervolumes and fronts obey the laws that define them."""

from hypothesis import given
from hypothesis import strategies as st

from experiments.study.statistics import dominates, front, hypervolume

few = st.lists(st.tuples(st.integers(-3, 6), st.integers(-3, 6)), max_size=7)


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


def test_the_front_runs_from_low_to_high_identity_and_keeps_equals() -> None:
    points = {"identity only": (9, -4), "ours": (6, 5), "naive": (5, 5), "again": (6, 5), "prompt only": (-2, 7)}
    assert front(points) == ["prompt only", "ours", "again", "identity only"]
