"""What can be said of a few seeds and of many rows: intervals, dominance and the area that points cover.

A point is (identity, prompt), scores or their gains over the base in per cent; more is better in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

Point = tuple[float, float]
"""(identity, prompt)."""


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; the same for the same arguments.

    With few seeds it is too narrow: the resampled means never leave the range of the values.

    Args:
        values: (seeds,) one value of each seed, at least one.
        level: share of the resampled means within the interval, above 0 and below 1.
        resamples: how many means are drawn, at least 1.
        seed: of the drawing.

    Returns:
        (low, high), in the unit of the values; twice the value where there is but one.

    Raises:
        ValueError: if there is no value, one is not finite, or an argument is out of its range.
    """
    kept = np.asarray(values, dtype=np.float64)
    if kept.ndim != 1 or kept.size == 0:
        raise ValueError(f"values have shape {kept.shape}; give one value of each seed, at least one")
    if not np.isfinite(kept).all():
        raise ValueError(f"values are not all finite: {kept.tolist()}")
    if not 0 < level < 1:
        raise ValueError(f"level must be above 0 and below 1, not {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    chosen = np.random.default_rng(seed).integers(kept.size, size=(resamples, kept.size))
    # Clipped, because a mean of equal values may differ from them in its last digit.
    means = kept[chosen].mean(axis=1).clip(kept.min(), kept.max())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
