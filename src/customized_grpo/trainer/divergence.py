"""When a training has gone wrong for good, and stops before it overwrites what was good."""

from __future__ import annotations

import math
from pathlib import Path


class DivergenceError(ValueError):
    """A policy that can no longer be trained; its text is one line with the numbers and the remedy."""


def check_skipped(skipped: int, limit: int, iteration: int, run: Path) -> None:
    """Raises DivergenceError where more than `limit` updates in a row had no finite gradient.

    Single ones happen in low precision, and are skipped; the weights are then as they were.
    """
    if skipped > limit:
        raise DivergenceError(
            f"iteration {iteration}: {skipped} updates in a row had a gradient that is not finite, more than "
            f"train.max_skipped={limit} allows; {_remedy(run, ', or set policy.dtype to float32,')}"
        )


def check_drift(drift: float, limit: float | None, iteration: int, run: Path) -> None:
    """Raises DivergenceError where the policy's `drift`, of `Updater.probe`, is above `limit` or not a number.

    Of all that a step too far leaves behind it is the surest sign. The loss is zero once the pictures of a group are
    noise alike, gradients are clipped, weights of any size may be finite, and the norms inside a transformer bound what
    it returns: at a learning rate of 1000 the KL is no larger than at 0.1.
    """
    if not (math.isfinite(drift) and (limit is None or drift <= limit)):
        allowed = f"more than train.max_drift={limit:g} allows" if math.isfinite(drift) else "not a finite number"
        raise DivergenceError(
            f"iteration {iteration}: the velocity's drift from the base model is {drift:.3g}, {allowed}; {_remedy(run)}"
        )


def _remedy(run: Path, more: str = "") -> str:
    return (
        f"lower train.learning_rate{more} in {run / 'config.yaml'}, "
        f"then go on from the last checkpoint by --resume {run}"
    )
