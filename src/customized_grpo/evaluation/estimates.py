"""A mean over seeds or subjects, and its bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval by the percentile bootstrap. The interval is too narrow for fewer than ten values."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        """Estimate the mean of finite values, one for each seed or subject; equal values give equal estimates."""
        if not values or not all(map(math.isfinite, values)):
            raise ValueError(f"values are {list(values)}; give at least one, all of them finite")
        mean = sum(values) / len(values)
        if min(values) == max(values):
            return Estimate(mean, values[0], values[0])
        batch = max(1, 10**7 // len(values))  # of resamples at a time, for memory
        found = bootstrap(
            (values,), np.mean, n_resamples=10_000, batch=batch, method="percentile", rng=0
        ).confidence_interval
        return Estimate(mean, float(found.low), float(found.high))

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval, extended to the mean, which may lie outside by rounding."""
        return min(self.low, self.mean), max(self.high, self.mean)

    def text(self, form: str = "+.1f") -> str:
        """Format the mean and, if it is not a single point, the interval."""
        if self.low == self.high:
            return f"{self.mean:{form}}"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"
