"""What can be said of many rows: dominance and the area that points cover.

A point is (identity, prompt), scores or their gains over the base in per cent; more is better in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

Point = tuple[float, float]
"""(identity, prompt)."""


def hypervolume(points: Iterable[Point], origin: Point) -> float:
    """Area of the union of the rectangles that stretch from `origin` to each of the points.

    Args:
        points: any number; those that do not exceed the origin in both coordinates add nothing.
        origin: the corner that the rectangles share; (0, 0) for gains over the base.

    Returns:
        The area, at least 0; 0 for no points. Of gains in per cent: per cent squared.

    Raises:
        ValueError: if a coordinate is not finite.
    """
    left, bottom = _finite("origin", origin)
    kept = [_finite("a point", point) for point in points]
    area, top = 0.0, bottom
    # From the right: each point adds the part of its rectangle above all those that reach further.
    for x, y in sorted(kept, reverse=True):
        if x > left and y > top:
            area += (x - left) * (y - top)
            top = y
    return area


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is at least as good as `b` in both coordinates and better in one.

    Raises:
        ValueError: if a coordinate is not finite.
    """
    (a0, a1), (b0, b1) = _finite("a point", a), _finite("a point", b)
    return a0 >= b0 and a1 >= b1 and (a0 > b0 or a1 > b1)


def front(points: Mapping[str, Point]) -> list[str]:
    """Names of the points that no other dominates, from the lowest first coordinate to the highest.

    Equal points do not dominate each other: both are named, in the order given. No points, no names.

    Raises:
        ValueError: if a coordinate is not finite.
    """
    kept = {name: _finite(repr(name), point) for name, point in points.items()}
    best = [name for name, point in kept.items() if not any(dominates(other, point) for other in kept.values())]
    return sorted(best, key=lambda name: kept[name][0])


def _finite(name: str, point: Point) -> Point:
    if not all(math.isfinite(value) for value in point):
        raise ValueError(f"{name} lies at {point}; give finite coordinates")
    return point
