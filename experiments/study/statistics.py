"""Dominance and hypervolume of points (identity, prompt), of which more is better in both coordinates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Point = tuple[float, float]
"""(identity, prompt): scores, or their gains over the base in per cent."""


def hypervolume(points: Iterable[Point], origin: Point) -> float:
    """Compute the area of the union of the rectangles from `origin` to each of the points.

    Args:
        points: Points; those that do not exceed the origin in both coordinates add nothing.
        origin: Corner that the rectangles share; (0, 0) for gains over the base.

    Returns:
        Area, at least 0; for gains in per cent, per cent squared.
    """
    left, bottom = origin
    area, top = 0.0, bottom
    # From the right: each point adds the part of its rectangle above all those that reach further.
    for x, y in sorted(points, reverse=True):
        if x > left and y > top:
            area += (x - left) * (y - top)
            top = y
    return area


def dominates(a: Point, b: Point) -> bool:
    """Return whether `a` is at least as good as `b` in both coordinates and better in one."""
    return a[0] >= b[0] and a[1] >= b[1] and a != b


def front(points: Mapping[str, Point]) -> list[str]:
    """Return names of the points that no other dominates, by rising first coordinate; equal points are all named."""
    best = [name for name, point in points.items() if not any(dominates(other, point) for other in points.values())]
    return sorted(best, key=lambda name: points[name][0])
