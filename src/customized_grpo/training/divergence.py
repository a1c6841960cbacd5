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


def check_drift(kl: float, limit: float | None, iteration: int, run: Path) -> None:
    """Raises DivergenceError where the KL to the base model is above `limit`, or not a number.

    Of all that a step too far leaves behind it is the surest sign: the loss is zero once all pictures of a group are
    the same noise, gradients are clipped, and weights of any size may be finite.
    """
    if not (math.isfinite(kl) and (limit is None or kl <= limit)):
        allowed = f"more than train.max_kl={limit:g} allows" if math.isfinite(kl) else "not a finite number"
        raise DivergenceError(
            f"iteration {iteration}: the KL to the base model is {kl:.3g} nats per element, {allowed}; {_remedy(run)}"
        )


def _remedy(run: Path, more: str = "") -> str:
    return (
        f"lower train.learning_rate{more} in {run / 'config.yaml'}, "
        f"then go on from the last checkpoint by --resume {run}"
    )
