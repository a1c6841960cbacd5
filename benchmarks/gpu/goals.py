"""What one H100 should reach, and what a run has reached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.gpu.sections import Row

Results = Mapping[str, Sequence[Row]]


def goals(results: Results) -> list[Row]:
    """The goals as rows; `reached` is None where a run has not measured it."""

    def speed_up(way: str) -> float | None:
        found = [row for row in results.get("kontext", ()) if row.get("way") == way]
        return _best(found, "speed_up")

    found: list[tuple[str, float, float | None, bool]] = [
        ("velocity, % of the matrix peak", 65.0, _best(results.get("velocity", ()), "ours_share"), True),
        ("forward and backward, % of the matrix peak", 60.0, _best(results.get("training", ()), "ours_share"), True),
        ("iteration of kontext-dev.yaml, speed-up over diffusers + peft", 1.6, speed_up("diffusers + peft"), True),
        ("the same, speed-up over the released shape", 3.0, speed_up("released shape"), True),
        ("largest difference of planned and measured memory, %", 10.0, _largest_difference(results), False),
    ]
    return [
        {
            "goal": goal,
            "target": f"at {'least' if more else 'most'} {target:g}",
            "reached": reached,
            "met": None if reached is None else (reached >= target if more else reached <= target),
        }
        for goal, target, reached, more in found
    ]


def _best(rows: Iterable[Mapping[str, Any]], key: str) -> float | None:
    return max((row[key] for row in rows if row.get(key) is not None), default=None)


def _largest_difference(results: Results) -> float | None:
    rows = [row for name in ("training", "kontext", "paper") for row in results.get(name, ())]
    found = [abs(row["plan_difference"]) for row in rows if row.get("plan_difference") is not None]
    return max(found, default=None)
