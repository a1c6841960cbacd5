"""One metric over a run's records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Records = Sequence[Mapping[str, Any]]
Series = list[tuple[int, float]]
"""(iteration, value) by rising iteration; all values finite."""


def series(records: Records, key: str) -> Series:
    """The records' finite values of a key; those that lack it, or have null, are left out."""
    return [(record["iteration"], float(record[key])) for record in records if finite(record.get(key))]


def finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def changes_in_percent(values: Series) -> dict[int, float]:
    """By iteration: the change since the first value, in percent of its size (in points where that is 0)."""
    first = values[0][1] if values else 0.0
    return {iteration: 100 * (value - first) / (abs(first) or 100.0) for iteration, value in values}
