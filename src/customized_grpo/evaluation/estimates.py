"""A mean and how sure it is: percentile bootstrap over seeds, or over a benchmark's subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; the same for the same arguments.

    With few values it is too narrow: the resampled means never leave the range of the values.

    Args:
        values: (units,) one value of each seed or subject, at least one.
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
        raise ValueError(f"values have shape {kept.shape}; give one value of each unit, at least one")
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


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds or subjects and its bootstrap 95% interval."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        return Estimate(sum(values) / len(values), *bootstrap_interval(values))

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval, stretched to the mean where that falls outside by rounding alone."""
        return min(self.low, self.mean), max(self.high, self.mean)

    def told(self, form: str = "+.1f") -> str:
        """The mean and, where there is more than one value to take it from, the interval."""
        if self.low == self.high:
            return f"{self.mean:{form}}"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"
